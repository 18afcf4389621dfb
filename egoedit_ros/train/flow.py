# SPDX-License-Identifier: Apache-2.0
"""Stages ``flow``, ``flow_whole`` and ``causal``: rectified flow, bidirectional or block-causal.

``attention: bidirectional`` trains EgoEdit (all latents of a clip see each other, one noise level
a clip). ``attention: causal`` trains what a stream runs, by one of two ways:

- ``forcing: teacher``: one forward carries the clean past and the noisy chunks side by side; a
  noisy chunk sees itself and the clean chunks of its window, exactly what the cache will show it.
- ``forcing: diffusion``: each chunk has a noise level of its own and sees the noisy chunks before
  it (Diffusion Forcing).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from egoedit_ros.errors import UserError
from egoedit_ros.model.checkpoint import fill, read_safetensors
from egoedit_ros.model.config import EditorConfig
from egoedit_ros.model.flow import add_noise, shift_sigma, to_clean
from egoedit_ros.model.text import get_text_encoder
from egoedit_ros.model.transformer import Attend, Transformer, rotate, split_heads
from egoedit_ros.train.batches import (
    Batch,
    FlowData,
    Mixed,
    Resident,
    open_clips,
    sample_batch,
)
from egoedit_ros.train.denoise import LEAST_SIGMA, Denoiser, angles
from egoedit_ros.train.loop import Trainer, TrainSettings
from egoedit_ros.train.lora import FROZEN_BY_LORA
from egoedit_ros.train.parallel import Group, join


def teacher_attend(
    cos: Tensor, sin: Tensor, heads: int, clean: int, noisy: int, window: int, chunk: int = 1
) -> Attend:
    """Attention over [clean past | noisy chunks] along the frame axis.

    cos, sin: ``[B, 1, F*S, head_dim]`` of the noisy frames; clean frame i has the position of
    noisy frame i. clean, noisy: chunks of each, of ``chunk`` frames. Clean chunk i sees clean
    chunks of its window; noisy chunk i sees the clean ones before it and itself.
    """

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        shape, s = q.shape, q.shape[2] * chunk
        q, k, v = (split_heads(x, heads) for x in (q, k, v))
        both_cos = torch.cat([cos[..., : clean * s, :], cos], dim=-2).to(q.dtype)
        both_sin = torch.cat([sin[..., : clean * s, :], sin], dim=-2).to(q.dtype)
        q, k = rotate(q, both_cos, both_sin), rotate(k, both_cos, both_sin)
        outputs = []
        for index in range(clean + noisy):
            here = slice(index * s, (index + 1) * s)
            place = index if index < clean else index - clean
            past = slice(max(0, place - window) * s, place * s)
            keys = torch.cat([k[:, :, past], k[:, :, here]], dim=2)
            values = torch.cat([v[:, :, past], v[:, :, here]], dim=2)
            outputs.append(_attention(q[:, :, here], keys, values))
        return torch.cat(outputs, dim=2).transpose(1, 2).reshape(shape)

    return attend


def _attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v.to(q.dtype))
    # Written out: for so few keys it is faster on a CPU, backwards above all.
    weights = torch.softmax((q / q.shape[-1] ** 0.5) @ k.transpose(-1, -2), dim=-1)
    return weights.to(v.dtype) @ v


def draw_sigma(
    rng: torch.Generator,
    shape: tuple[int, ...],
    shift: float,
    mean: float = 0.0,
    std: float = 1.0,
    pure: float = 0.35,
) -> Tensor:
    """Logit-normal, shifted towards noise; a share is pure noise, where every chunk starts."""
    device = rng.device
    logits = mean + std * torch.randn(shape, generator=rng, device=device)
    sigma = shift_sigma(torch.sigmoid(logits), shift)
    pick = torch.rand(shape, generator=rng, device=device) < pure
    return torch.where(pick, torch.ones_like(sigma), sigma)


def flow_loss(
    model: Transformer,
    config: EditorConfig,
    batch: Batch,
    rng: torch.Generator,
    data: FlowData,
    group: Group | None = None,
    mask: MaskHead | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean squared error of the clean latents or of the velocity, edited cells weighted.

    mask: adds its own loss.
    """
    group = group or Group()
    b, f = batch.source.shape[:2]
    chunk = 1 if data.attention == "bidirectional" else config.chunk_latents
    if f % chunk:
        raise UserError(
            f"{f} latent frames are no whole number of chunks of {chunk}; change frames"
        )
    levels = 1 if data.attention == "bidirectional" else f // chunk
    shift = config.shift if data.noise_shift is None else data.noise_shift
    sigma = group.share(
        draw_sigma(
            rng, (b * group.count, levels), shift, data.noise_mean, data.noise_std, data.pure_noise
        )
    )
    sigma = sigma.repeat_interleave(f // levels, dim=1)
    level = sigma[..., None, None, None]
    noisy = add_noise(batch.target, group.normal(rng, batch.target.shape), level)
    if data.attention == "causal" and data.forcing == "teacher":
        made = _teacher_forced(model, config, batch, noisy, sigma, rng, data, group)
    else:
        causal = data.attention == "causal"
        denoise = Denoiser(
            model,
            config,
            batch.source,
            batch.text,
            batch.corners if data.crop else None,
            chunk if causal else None,
            config.window_chunks if causal else None,
        )
        made = denoise(noisy, sigma)
    loss, report = _weigh(made, batch, level, config, data)
    if mask is not None:
        loss = loss + data.mask_weight * mask.loss(batch.edited)
    return loss, report


def _teacher_forced(
    model: Transformer,
    config: EditorConfig,
    batch: Batch,
    noisy: Tensor,
    sigma: Tensor,
    rng: torch.Generator,
    data: FlowData,
    group: Group,
) -> Tensor:
    """Clean latents of each chunk beside its clean past."""
    b, f, _, h, w = batch.source.shape
    chunk = config.chunk_latents
    clean = f - chunk
    # The past of a stream is generated, so never perfect.
    rough = data.rough_past * group.uniform(rng, (b, 1, 1, 1, 1))
    past = batch.past + rough * group.normal(rng, batch.past.shape)

    source_half = model.embed(batch.source, config.transformer.out_channels, bias=False)
    tokens = model.embed(noisy) + source_half
    if clean:
        tokens = torch.cat([model.embed(past[:, :clean]) + source_half[:, :clean], tokens], dim=1)
    timestep = torch.cat([sigma.new_zeros(b, clean), 1000 * sigma], dim=1)
    modulation = model.modulation(timestep)
    _, ph, pw = config.transformer.patch
    rows, columns = h // ph, w // pw
    cos, sin = angles(model, batch.corners, f, rows, columns)
    attend = teacher_attend(
        cos, sin, config.transformer.heads, clean // chunk, f // chunk, config.window_chunks, chunk
    )
    output = model(tokens, modulation, model.text(batch.text), attend, (rows, columns))
    level = sigma[..., None, None, None]
    return to_clean(
        output[:, clean:].float(), noisy, level, batch.source, config.transformer.anchored
    )


def _weigh(
    made: Tensor, batch: Batch, level: Tensor, config: EditorConfig, data: FlowData
) -> tuple[Tensor, dict[str, Tensor]]:
    # Both velocities are (noisy - x0) / sigma.
    scale = level.clamp(min=LEAST_SIGMA).square() if uses_velocity(config, data.loss) else None
    return weighted(made, batch, data, scale)


def weighted(
    made: Tensor, batch: Batch, data: FlowData, scale: Tensor | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Squared error of clean latents, edited cells weighted; over ``scale``, where it is given."""
    weight = 1 + (data.edited_weight - 1) * batch.edited.unsqueeze(2)
    if data.most_weight:
        mean = weight.mean((1, 2, 3, 4), keepdim=True)
        weight = weight * (data.most_weight / mean).clamp(max=1)
    error = (made - batch.target).square()
    loss = (error * weight if scale is None else error * weight / scale).mean()
    with torch.no_grad():
        inside = batch.edited.unsqueeze(2)
        change = (batch.source - batch.target).square()
        report = {
            "latent_gain": 1 - (error * inside).sum() / (change * inside).sum().clamp(min=1e-6),
            "outside": (error * (1 - inside)).mean() / (1 - inside).mean().clamp(min=1e-6),
        }
    return loss, report


def uses_velocity(config: EditorConfig, loss: str) -> bool:
    """Whether the loss is on the velocity; ``auto``: where the network predicts it."""
    return loss == "velocity" or (loss == "auto" and not config.transformer.anchored)


class MaskHead(nn.Module):
    """Reads where the edit is from the tokens after ``layer`` blocks; used in training alone.

    The loss on the latents says little about *which* thing an instruction names; asking for it half
    way up makes the lower blocks look for it early.
    """

    def __init__(self, model: Transformer, layer: int) -> None:
        super().__init__()
        _, ph, pw = self.patch = model.config.patch
        dim = model.config.dim
        self.net = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, ph * pw))
        self._seen: Tensor | None = None
        model.blocks[layer - 1].register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, args: tuple, output: Tensor) -> None:
        self._seen = output

    def loss(self, edited: Tensor) -> Tensor:
        """Cross-entropy of the last forward pass against ``edited`` [B, F, h, w], 0 or 1.

        Frames before the last F (a clean past) are left out.
        """
        seen, self._seen = self._seen, None
        b, f, h, w = edited.shape
        _, ph, pw = self.patch
        logits = self.net(seen[:, -f:].float()).reshape(b, f, h // ph, w // pw, ph, pw)
        logits = logits.permute(0, 1, 2, 4, 3, 5).reshape(edited.shape)
        return F.binary_cross_entropy_with_logits(logits, edited)


def add_mask_head(model: Transformer, data: FlowData, group: Group) -> MaskHead | None:
    """Give ``model`` the head that ``data`` asks for. Raises UserError where it cannot be."""
    if not data.mask_layer:
        return None
    if group.count > 1:
        raise UserError("several processes train without the mask head; leave out mask_layer")
    if not 0 < data.mask_layer <= len(model.blocks):
        raise UserError(f"mask_layer is {data.mask_layer}; the network has {len(model.blocks)}")
    model.training_head = MaskHead(model, data.mask_layer).to(group.device)
    return model.training_head


def start_small(model: Transformer) -> None:
    """Zero the output and the gates' offsets, so that training starts at "change nothing"."""
    torch.nn.init.zeros_(model.proj_out.weight)
    torch.nn.init.zeros_(model.proj_out.bias)
    torch.nn.init.normal_(model.condition_embedder.time_proj.weight, std=0.02)
    torch.nn.init.zeros_(model.condition_embedder.time_proj.bias)


def new_transformer(config: EditorConfig, start: Path | None, group: Group) -> Transformer:
    """A network where the group has room for a whole one: the weights of ``start``, or new ones."""
    model = Transformer(config.transformer)
    if start is None:
        start_small(model)
    else:
        fill(model, read_safetensors(start), start)
    return model.to(group.whole_device)


def empty_text(config: EditorConfig) -> Tensor:
    """Embedding ``[L, text_dim]`` of the empty text, what guidance leads away from."""
    encoder = get_text_encoder(
        config.text_encoder, config.transformer.text_len, config.text_folder
    )  # fmt: skip
    return encoder("")


def train_flow(
    settings: TrainSettings,
    data: FlowData,
    start: Path | None = None,
    sampler=None,
    resident: Resident | None = None,
) -> Path:
    """Run the stage; ``start``: weights to begin with. resident: clips in a device's memory in
    place of data.latents."""
    data.check()
    if data.mask_layer and settings.lora:
        raise UserError(FROZEN_BY_LORA.format("mask head", "mask_layer"))
    torch.manual_seed(settings.seed)
    config = settings.editor
    group = join(settings.device)
    model = new_transformer(config, start, group)
    mask = add_mask_head(model, data, group)
    clips = resident or open_clips(data, settings.seed, group)
    empty = empty_text(config) if any(v.text_dropout for v in data.each_view()) else None
    seen: list[Batch] = []

    def step(rng: np.random.Generator, noise: torch.Generator):
        view = data.draw_view(rng)
        if isinstance(clips, Mixed):
            clips.go_to(trainer.done)
        seen[:] = [sample_batch(rng, clips, view, group, empty)]
        return flow_loss(model, config, seen[0], noise, view, group, mask)

    trainer = Trainer(
        model,
        settings,
        step,
        data={"data": data.__dict__},
        group=group,
        batch=lambda: seen[0].tensors() if seen else {},
        sampler=sampler,
    )
    return trainer.run()
