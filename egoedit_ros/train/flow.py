# SPDX-License-Identifier: Apache-2.0
"""Stage ``flow``: rectified flow with teacher forcing, block-causal as at inference.

One forward carries the clean past and the noisy chunks side by side: a noisy chunk sees itself and
the clean chunks of its window, exactly what the cache will show it in a stream.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from egoedit_ros.model.config import EditorConfig, get_config
from egoedit_ros.model.flow import add_noise, shift_sigma, to_clean
from egoedit_ros.model.transformer import (
    Attend,
    Transformer,
    rotate,
    split_heads,
    token_grid,
)
from egoedit_ros.train.latents import LatentClip, load_latents
from egoedit_ros.train.loop import Trainer, TrainSettings


@dataclass(frozen=True)
class FlowData:
    """Windows of latent frames; crops (in latent cells, 0 = whole frames) around the edit.

    views: ``{weight, batch, frames, crop}`` each, one drawn at every step; without any, the fields
    above are the only one. Crops are quick to learn from; whole frames teach what not to edit.
    """

    latents: Path
    batch: int = 16
    frames: int = 3
    crop: int = 16
    switched: float = 0.25  # share of samples whose past shows another edit, or none
    edited_weight: float = 5.0
    anywhere: float = 0.0  # share of crops that lie anywhere, not around the edit
    edit_weights: tuple[float, ...] = ()  # how often each edit of a clip is drawn; empty: equally
    mask_layer: int = 0  # blocks after which a head also predicts where the edit is; 0: no head
    mask_weight: float = 0.1
    views: tuple[dict, ...] = ()

    def draw_view(self, rng: np.random.Generator) -> FlowData:
        """The data of one step."""
        if not self.views:
            return self
        weights = np.array([v["weight"] for v in self.views], float)
        view = self.views[int(rng.choice(len(self.views), p=weights / weights.sum()))]
        return replace(self, views=(), **{k: v for k, v in view.items() if k != "weight"})


@dataclass(slots=True)
class Batch:
    """source, target, past: ``[B, F, C, h, w]``; edited ``[B, F, h, w]``; text ``[B, L, D]``."""

    source: Tensor
    target: Tensor
    past: Tensor
    edited: Tensor
    text: Tensor
    corners: Tensor  # [B, 2] row and column of the crop, in tokens


def sample_batch(rng: np.random.Generator, clips: list[LatentClip], data: FlowData) -> Batch:
    """Draw a batch; everything follows from ``rng``."""
    rows = []
    for _ in range(data.batch):
        clip = clips[rng.integers(len(clips))]
        mirrored, edit = int(rng.integers(2)), _draw_edit(rng, len(clip.text), data.edit_weights)
        video = clip.latents[mirrored]
        first = int(rng.integers(video.shape[1] - data.frames + 1))
        window = slice(first, first + data.frames)
        edited = clip.edited[mirrored, edit, window]
        past = edit + 1
        if rng.random() < data.switched:
            past = int(rng.integers(video.shape[0]))
        top = left = 0
        h, w = video.shape[-2:]
        height, width = (min(data.crop, h), min(data.crop, w)) if data.crop else (h, w)
        if data.crop:
            there = edited.any(0).numpy()
            if data.anywhere and rng.random() < data.anywhere:
                there = np.zeros_like(there)
            top, left = _corner(rng, there, height, width)
        cut = (window, slice(None), slice(top, top + height), slice(left, left + width))
        rows.append(
            (
                video[0][cut].float(),
                video[edit + 1][cut].float(),
                video[past][cut].float(),
                edited[:, cut[2], cut[3]].float(),
                clip.text[edit].float(),
                torch.tensor([top // 2, left // 2]),
            )
        )
    return Batch(*(torch.stack(column) for column in zip(*rows, strict=True)))


def _draw_edit(rng: np.random.Generator, edits: int, weights: tuple[float, ...]) -> int:
    if len(weights) != edits:
        return int(rng.integers(edits))
    share = np.array(weights, float)
    return int(rng.choice(edits, p=share / share.sum()))


def _corner(
    rng: np.random.Generator, edited: np.ndarray, height: int, width: int
) -> tuple[int, int]:
    """A random even corner whose crop holds an edited cell, if there is one."""
    h, w = edited.shape
    where = np.argwhere(edited)
    if len(where):
        y, x = where[rng.integers(len(where))]
        y, x = y - rng.integers(2, height - 2), x - rng.integers(2, width - 2)
    else:
        y, x = rng.integers(0, h - height + 1), rng.integers(0, w - width + 1)
    y, x = int(np.clip(y, 0, h - height)), int(np.clip(x, 0, w - width))
    return y // 2 * 2, x // 2 * 2


def teacher_attend(
    cos: Tensor, sin: Tensor, heads: int, clean: int, noisy: int, window: int
) -> Attend:
    """Attention over [clean past | noisy chunks] along the frame axis.

    cos, sin: ``[B, 1, F*S, head_dim]`` of the noisy frames; clean frame i has the position of
    noisy frame i. Clean chunk i sees clean chunks of its window; noisy chunk i sees the clean ones
    before it and itself.
    """

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        shape, s = q.shape, q.shape[2]
        q, k, v = (split_heads(x, heads) for x in (q, k, v))
        both_cos = torch.cat([cos[:, :, : clean * s], cos], dim=2).to(q.dtype)
        both_sin = torch.cat([sin[:, :, : clean * s], sin], dim=2).to(q.dtype)
        q, k = rotate(q, both_cos, both_sin), rotate(k, both_cos, both_sin)
        q = q / q.shape[-1] ** 0.5
        outputs = []
        for index in range(clean + noisy):
            here = slice(index * s, (index + 1) * s)
            place = index if index < clean else index - clean
            past = slice(max(0, place - window) * s, place * s)
            keys = torch.cat([k[:, :, past], k[:, :, here]], dim=2)
            values = torch.cat([v[:, :, past], v[:, :, here]], dim=2)
            # Written out: for so few keys it is faster on a CPU, backwards above all.
            weights = torch.softmax(q[:, :, here] @ keys.transpose(-1, -2), dim=-1)
            outputs.append(weights.to(values.dtype) @ values)
        return torch.cat(outputs, dim=2).transpose(1, 2).reshape(shape)

    return attend


def draw_sigma(rng: torch.Generator, shape: tuple[int, ...], shift: float) -> Tensor:
    """Logit-normal, shifted towards noise; a third is pure noise, where every chunk starts."""
    sigma = shift_sigma(torch.sigmoid(torch.randn(shape, generator=rng)), shift)
    return torch.where(torch.rand(shape, generator=rng) < 0.35, torch.ones(shape), sigma)


def flow_loss(
    model: Transformer,
    config: EditorConfig,
    batch: Batch,
    rng: torch.Generator,
    edited_weight: float,
    mask: MaskHead | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean squared error of the clean latents, edited cells weighted; and the mask head's."""
    b, f, _, h, w = batch.source.shape
    sigma = draw_sigma(rng, (b, f), config.shift)
    level = sigma[..., None, None, None]
    noise = torch.randn(batch.target.shape, generator=rng)
    noisy = add_noise(batch.target, noise, level)
    clean = f - 1
    # The past of a stream is generated, so never perfect.
    rough = 0.15 * torch.rand((b, 1, 1, 1, 1), generator=rng)
    past = batch.past + rough * torch.randn(batch.past.shape, generator=rng)

    source_half = model.embed(batch.source, config.transformer.out_channels, bias=False)
    tokens = model.embed(noisy) + source_half
    if clean:
        tokens = torch.cat([model.embed(past[:, :clean]) + source_half[:, :clean], tokens], dim=1)
    timestep = torch.cat([torch.zeros(b, clean), 1000 * sigma], dim=1)
    modulation = model.modulation(timestep)
    rows, columns = h // 2, w // 2
    cos, sin = _angles(model, batch.corners, f, rows, columns)
    attend = teacher_attend(cos, sin, config.transformer.heads, clean, f, config.window_chunks)
    output = model(tokens, modulation, model.text(batch.text), attend, (rows, columns))
    made = to_clean(
        output[:, clean:].float(), noisy, level, batch.source, config.transformer.anchored
    )
    weight = 1 + (edited_weight - 1) * batch.edited.unsqueeze(2)
    error = (made - batch.target).square()
    loss = (error * weight).mean()
    if mask is not None:
        loss = loss + mask.loss(clean, batch.edited, (rows, columns))
    with torch.no_grad():
        inside = batch.edited.unsqueeze(2)
        change = (batch.source - batch.target).square()
        report = {
            "latent_gain": 1 - (error * inside).sum() / (change * inside).sum().clamp(min=1e-6),
            "outside": (error * (1 - inside)).mean() / (1 - inside).mean().clamp(min=1e-6),
        }
    return loss, report


class MaskHead(nn.Module):
    """Reads where the edit is from the tokens after ``layer`` blocks; used in training alone.

    The loss on the latents says little about *which* thing an instruction names; saying it half way
    up makes the lower blocks look for it early.
    """

    def __init__(self, model: Transformer, layer: int, weight: float) -> None:
        super().__init__()
        self.weight = weight
        self.net = nn.Sequential(nn.LayerNorm(model.config.dim), nn.Linear(model.config.dim, 4))
        self._seen: Tensor | None = None
        model.blocks[layer - 1].register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, args: tuple, output: Tensor) -> None:
        self._seen = output

    def loss(self, clean: int, edited: Tensor, grid: tuple[int, int]) -> Tensor:
        """Cross-entropy against ``edited`` [B, F, h, w] of the noisy frames, behind ``clean``."""
        seen, self._seen = self._seen, None
        b, f = edited.shape[:2]
        logits = self.net(seen[:, clean:].float()).reshape(b, f, *grid, 2, 2)
        logits = logits.permute(0, 1, 2, 4, 3, 5).reshape(edited.shape)
        return self.weight * F.binary_cross_entropy_with_logits(logits, edited)


def _angles(
    model: Transformer, corners: Tensor, frames: int, rows: int, columns: int
) -> tuple[Tensor, Tensor]:
    """Rotations ``[B, 1, F*S, head_dim]`` of crops at their true places."""
    parts = []
    time = torch.arange(frames)
    for top, left in corners.tolist():
        parts.append(model.rope.angles(time, *token_grid(rows, columns, time.device, top, left)))
    cos, sin = (torch.stack(p).unsqueeze(1) for p in zip(*parts, strict=True))
    return cos, sin


def start_small(model: Transformer) -> None:
    """Zero the output and the gates' offsets, so that training starts at "change nothing"."""
    torch.nn.init.zeros_(model.proj_out.weight)
    torch.nn.init.zeros_(model.proj_out.bias)
    torch.nn.init.normal_(model.condition_embedder.time_proj.weight, std=0.02)
    torch.nn.init.zeros_(model.condition_embedder.time_proj.bias)


def train_flow(settings: TrainSettings, data: FlowData, start: Path | None = None) -> Path:
    """Run the stage; ``start``: weights to begin with."""
    from safetensors.torch import load_file

    torch.manual_seed(settings.seed)
    config = get_config(settings.model)
    model = Transformer(config.transformer)
    start_small(model)
    if start is not None:
        model.load_state_dict(load_file(start))
    mask = None
    if data.mask_layer:
        mask = model.training_head = MaskHead(model, data.mask_layer, data.mask_weight)
    clips = load_latents(data.latents)

    def step(rng: np.random.Generator, noise: torch.Generator):
        batch = sample_batch(rng, clips, data.draw_view(rng))
        return flow_loss(model, config, batch, noise, data.edited_weight, mask)

    return Trainer(model, settings, step).run()
