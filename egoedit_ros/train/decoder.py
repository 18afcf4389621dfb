# SPDX-License-Identifier: Apache-2.0
"""Stage ``decoder``: teach the decoder what the transformer really gives it.

Generated latents are smoother than encoded ones. A decoder that has only seen encoded ones passes
the smear on; one that has seen generated ones takes edges from the source where the shape stays
and keeps the camera's pixels where the latents are in doubt. The encoder is frozen: what latents
mean, and with it the transformer, stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from egoedit_ros.data.sim.generate import read_clip
from egoedit_ros.model.autoencoder import EdgeAutoencoder, Encoded, composite
from egoedit_ros.model.checkpoint import fill, read_safetensors
from egoedit_ros.model.config import EditorConfig
from egoedit_ros.model.flow import add_noise, step_sigmas, to_clean
from egoedit_ros.model.precision import best_dtype
from egoedit_ros.model.text import get_text_encoder
from egoedit_ros.model.transformer import Transformer, causal_attend, token_grid
from egoedit_ros.train.autoencoder import (
    EDITED,
    AutoencoderData,
    crop_corner,
    picture_loss,
    ssim_loss,
)
from egoedit_ros.train.latents import SIDES, load_frozen, to_pixels
from egoedit_ros.train.loop import Trainer, TrainSettings
from egoedit_ros.train.parallel import alone, join
from egoedit_ros.train.resident import ResidentClips

# Weights in decoded_loss: of a change across a border of two latent frames over one inside of them,
# and of the share of the squared error over edited pixels that is left.
BORDER, LEFT = 4.0, 0.5


def change_loss(made: Tensor, wanted: Tensor, weight: Tensor, count: int) -> Tensor:
    """L1 of what changes from picture to picture, across the borders of ``count`` latent frames
    that follow each other, too, and most there: an eye sees a border that jumps.
    ``[n * count, T, 3, H, W]``."""
    pictures = made.shape[1]
    films = [x.unflatten(0, (-1, count)).flatten(1, 2) for x in (made, wanted, weight)]
    made, wanted, weight = films
    place = torch.arange(1, made.shape[1], device=made.device)
    across = (1 + (BORDER - 1) * (place % pictures == 0))[:, None, None, None]
    return ((made.diff(dim=1) - wanted.diff(dim=1)).abs() * weight[:, 1:] * across).mean()


def decoded_loss(
    frames: Tensor,
    logits: Tensor,
    source: Tensor,
    target: Tensor,
    mine: slice = slice(None),
    count: int = 1,
) -> tuple[Tensor, dict[str, Tensor]]:
    """What decoded frames ``[N, T, 3, H, W]`` and mask logits ``[N, T, H, W]`` of an edit lack.

    mine: the samples that ``gain`` is of; ``ssim`` is of all. count: latent frames in a row that
    are of one stream.
    """
    frames, logits = frames.float(), logits.float()
    edited = ((source - target).abs().amax(2) > EDITED).float()
    merged = composite(frames, torch.sigmoid(logits), source)
    weight = 1 + 3 * edited.unsqueeze(2)
    near = F.max_pool2d(edited, 9, stride=1, padding=4)
    similar = ssim_loss(merged, target, near)
    loss = picture_loss(merged, target, weight) + 0.5 * picture_loss(frames, target, weight)
    loss = loss + 0.3 * F.binary_cross_entropy_with_logits(logits, edited) + similar
    loss = loss + change_loss(merged, target, weight, count)
    inside = edited.unsqueeze(2)
    error = ((merged - target).square() * inside).sum((1, 2, 3, 4))
    before = ((source - target).square() * inside).sum((1, 2, 3, 4))
    loss = loss + LEFT * error.sum() / before.sum().clamp(min=1e-6)
    gain = 1 - error[mine].sum() / before[mine].sum().clamp(min=1e-6)
    return loss, {"gain": gain.detach(), "ssim": 1 - similar.detach()}


@dataclass(frozen=True)
class DecoderData:
    """Whole frames for the transformer, crops of ``crop`` pixels for the decoder.

    true_share: samples that get the target's encoded latents instead of generated ones. frames: of
    a stream, where clips are in a device's memory.
    """

    clips: Path
    transformer: Path
    autoencoder: Path
    crop: int = 128
    batch: int = 8
    true_share: float = 0.25
    frames: int = 4


@torch.no_grad()
def generate(
    net: Transformer, config: EditorConfig, source: Tensor, text: Tensor, rng: torch.Generator
) -> Tensor:
    """Edited latents ``[B, C, h, w]`` of single latent frames, as a stream's first chunk."""
    rows, columns = source.shape[-2] // 2, source.shape[-1] // 2
    cos, sin = net.rope.angles(torch.zeros(1), *token_grid(rows, columns, source.device))
    attend = causal_attend(
        cos.to(source.dtype), sin.to(source.dtype), config.transformer.heads, chunk=1
    )
    source = source.unsqueeze(1)
    half = net.embed(source, config.transformer.out_channels, bias=False)
    context = net.text(text)
    sigmas = step_sigmas(config.nfe, config.shift)
    noisy = torch.randn(source.shape, generator=rng).to(source.dtype)
    for index, sigma in enumerate(sigmas):
        modulation = net.modulation(torch.full((1, 1), 1000 * sigma))
        out = net(net.embed(noisy) + half, modulation, context, attend, (rows, columns))
        clean = to_clean(out, noisy, sigma, source, config.transformer.anchored)
        if index + 1 < len(sigmas):
            fresh = torch.randn(source.shape, generator=rng).to(source.dtype)
            noisy = add_noise(clean, fresh, sigmas[index + 1])
    return clean[:, 0].float()


class DecoderStep:
    """One batch: edit latents with the frozen transformer, decode crops, compare."""

    def __init__(self, model: EdgeAutoencoder, config: EditorConfig, data: DecoderData) -> None:
        self.model, self.config, self.data = model, config, data
        self.paths = AutoencoderData(data.clips).paths()
        self.encoder = load_frozen(data.autoencoder, config)
        net = Transformer(config.transformer).eval().requires_grad_(False)
        fill(net, read_safetensors(data.transformer), data.transformer)
        self.dtype = best_dtype()
        self.net = net.to(self.dtype)
        self.text = get_text_encoder(config.text_encoder, config.transformer.text_len)
        self.seen: dict[str, Tensor] = {}

    def __call__(
        self, rng: np.random.Generator, noise: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        sources, targets, corners, texts = [], [], [], []
        while len(sources) < self.data.batch:
            clip = read_clip(self.paths[rng.integers(len(self.paths))])
            edit = int(rng.integers(len(clip.targets)))
            first = 1 + 4 * int(rng.integers(0, (len(clip.source) - 1) // 4))
            pair = np.stack([clip.source[first : first + 4], clip.targets[edit][first : first + 4]])
            if rng.random() < 0.5 and not SIDES.search(clip.instructions[edit]):
                pair = np.ascontiguousarray(pair[:, :, :, ::-1])
            changed = np.abs(pair[0].astype(np.int16) - pair[1]).max(-1).max(0) > 12
            corners.append(crop_corner(rng, changed, self.data.crop, self.data.crop))
            sources.append(to_pixels(pair[0]))
            targets.append(to_pixels(pair[1]))
            texts.append(self.text(clip.instructions[edit]))
        source, target = torch.cat(sources), torch.cat(targets)
        self.seen.update(source=source, target=target, text=torch.stack(texts))
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            coded = self.encoder.encode(source.to(self.dtype))
            text = torch.stack(texts).to(self.dtype)
            made = generate(self.net, self.config, coded.latents.to(self.dtype), text, noise)
            true = max(1, round(self.data.true_share * len(made)))
            exact = self.encoder.encode(target[:true].to(self.dtype)).latents.float()
            made[:true] = exact + 0.1 * torch.randn(exact.shape, generator=noise)
        return self._loss(source, target, coded, made, corners, true)

    def _loss(self, source, target, coded, made, corners, true):
        size = self.data.crop
        cut = [_crop(x, corners, size) for x in (source, target)]
        seen = Encoded(
            _crop(coded.latents.float(), corners, size // 8, 8),
            _crop(coded.fine.float(), corners, size // 4, 4),
        )
        frames, logits = self.model.decode(_crop(made, corners, size // 8, 8), seen)
        return decoded_loss(frames, logits, *cut, slice(true, None))


def _crop(x: Tensor, corners: list[tuple[int, int]], size: int, scale: int = 1) -> Tensor:
    """Each sample's square of ``size`` at its corner (pixels; ``scale`` pixels to a cell of x)."""
    return torch.stack(
        [
            s[..., y // scale : y // scale + size, z // scale : z // scale + size]
            for s, (y, z) in zip(x, corners, strict=True)
        ]
    )


def train_decoder(
    settings: TrainSettings, data: DecoderData, resident: ResidentClips | None = None
) -> Path:
    """Run the stage in one process; the checkpoint is a whole autoencoder.

    resident: clips in a device's memory, as streams, in place of data.clips; without, it runs on
    the CPU.
    """
    group = join(settings.device if resident else "cpu")
    alone(group, settings.stage)
    torch.manual_seed(settings.seed)
    config = settings.editor
    model = EdgeAutoencoder(config.autoencoder)
    fill(model, read_safetensors(data.autoencoder), data.autoencoder)
    model = model.to(group.device, memory_format=torch.channels_last)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("decoder_"))
    seen: dict[str, Tensor] = {}
    if resident is None:
        step = DecoderStep(model, config, data)
        seen = step.seen
    else:
        from egoedit_ros.train.rollout import StreamDecoderStep

        net = Transformer(config.transformer).eval().requires_grad_(False)
        fill(net, read_safetensors(data.transformer), data.transformer)
        step = StreamDecoderStep(model, net.to(group.device), config, data, resident)
    return Trainer(
        model, settings, step, data={"data": data.__dict__}, group=group, batch=lambda: seen
    ).run()
