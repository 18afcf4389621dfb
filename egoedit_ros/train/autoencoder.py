# SPDX-License-Identifier: Apache-2.0
"""Stage ``autoencoder``: find the code of pictures, learn to decode an edit beside its source."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from egoedit_ros.data.sim.generate import read_clip
from egoedit_ros.errors import UserError
from egoedit_ros.model.autoencoder import EdgeAutoencoder, composite
from egoedit_ros.model.checkpoint import fill, read_safetensors
from egoedit_ros.train.loop import Trainer, TrainSettings
from egoedit_ros.train.parallel import alone, join
from egoedit_ros.train.resident import ResidentClips

EDITED = 12 / 255 * 2  # a pixel is edited when a channel differs by more, in -1..1
NOISE = 0.2  # at most, on latents: what a transformer makes is never exact
FIT_DRAWS = 160  # batches that the transform is found from


@dataclass(frozen=True)
class AutoencoderData:
    """Random crops of simulated pairs, most of them around the edit."""

    clips: Path
    crop: int = 96
    batch: int = 12
    similarity: float = 0.0  # weight of 1 - SSIM around the edit
    recent: int = 1_000_000  # seeds below this train, the others evaluate

    def paths(self) -> list[Path]:
        found = sorted(p for p in self.clips.glob("*.safetensors") if int(p.stem) < self.recent)
        if not found:
            raise UserError(
                f"no clips in {self.clips}; make some: egoedit data sim -o {self.clips}"
            )
        return found

    def sample(self, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """source, target: ``[batch, 4, 3, crop, crop]`` in -1..1."""
        paths = self.paths()
        sources, targets = [], []
        while len(sources) < self.batch:
            clip = read_clip(paths[rng.integers(len(paths))])
            films = [clip.source, *clip.targets]
            drawn = rng.permutation(len(clip.films))[: min(3, self.batch - len(sources))]
            for before, after in (clip.films[i] for i in drawn):
                first = int(rng.integers(0, len(clip.source) - 3))
                pair = np.stack([films[i][first : first + 4] for i in (before, after)])
                changed = np.abs(pair[0].astype(np.int16) - pair[1]).max(-1).max(0) > 12
                top, left = crop_corner(rng, changed, self.crop, self.crop)
                pair = pair[:, :, top : top + self.crop, left : left + self.crop]
                if rng.random() < 0.5:
                    pair = pair[:, :, :, ::-1]
                if rng.random() < 0.12:  # a stream's first latent frame: one picture, repeated
                    pair = np.repeat(pair[:, :1], 4, axis=1)
                sources.append(pair[0])
                targets.append(pair[1])
        gain = torch.from_numpy(rng.uniform(0.75, 1.15, (self.batch, 1, 1, 1, 1))).float()
        stack = [np.ascontiguousarray(np.stack(x)) for x in (sources, targets)]
        tensors = [torch.from_numpy(x).permute(0, 1, 4, 2, 3).float() / 255 for x in stack]
        return tuple((x * gain).clamp(0, 1) * 2 - 1 for x in tensors)


def crop_corner(
    rng: np.random.Generator, changed: np.ndarray, height: int, width: int, step: int = 8
) -> tuple[int, int]:
    """A random corner whose crop holds most of the change; steps of ``step`` pixels."""
    h, w = changed.shape
    rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
    if len(rows) and rng.random() < 0.8:
        y = rng.integers(rows[0], rows[-1] + 1) - height // 2 + rng.integers(-16, 17)
        x = rng.integers(columns[0], columns[-1] + 1) - width // 2 + rng.integers(-16, 17)
    else:
        y, x = rng.integers(0, h - height + 1), rng.integers(0, w - width + 1)
    y, x = int(np.clip(y, 0, h - height)), int(np.clip(x, 0, w - width))
    return y // step * step, x // step * step


def picture_loss(made: Tensor, wanted: Tensor, weight: Tensor | None = None) -> Tensor:
    """L1 plus L1 of the gradients; made, wanted ``[N, T, 3, H, W]``, weight ``[N, T, 1, H, W]``."""
    error = (made - wanted).abs()
    loss = (error if weight is None else error * weight).mean()
    for axis in (-1, -2):
        slope = (made.diff(dim=axis) - wanted.diff(dim=axis)).abs()
        if weight is not None:
            slope = slope * weight.narrow(axis, 1, weight.shape[axis] - 1)
        loss = loss + 0.5 * slope.mean()
    return loss


def _box(size: int, like: Tensor) -> Tensor:
    """``[size, size]``: the mean over 7 neighbours, with zeros beyond the ends, as a product."""
    place = torch.arange(size, device=like.device)
    return ((place[:, None] - place).abs() <= 3).float() / 7


def ssim_loss(made: Tensor, wanted: Tensor, weight: Tensor) -> Tensor:
    """1 - SSIM (7x7 windows) of ``[N, T, 3, H, W]`` in -1..1, averaged with ``[N, T, H, W]``."""

    down, across = (_box(size, made) for size in made.shape[-2:])

    def mean(x: Tensor) -> Tensor:
        # As a product: a quarter of a pooling's time. A difference of squares needs float32.
        with torch.autocast(x.device.type, enabled=False):
            return down @ (x.flatten(0, 1).float() @ across)

    a, b = mean(made), mean(wanted)
    va, vb = mean(made.square()) - a.square(), mean(wanted.square()) - b.square()
    cov = mean(made * wanted) - a * b
    c1, c2 = 0.02**2, 0.06**2
    similar = (2 * a * b + c1) * (2 * cov + c2)
    similar = similar / ((a.square() + b.square() + c1) * (va + vb + c2))
    weight = weight.flatten(0, 1).unsqueeze(1)
    return ((1 - similar) * weight).sum() / (3 * weight.sum()).clamp(min=1)


def autoencoder_loss(
    model: EdgeAutoencoder,
    source: Tensor,
    target: Tensor,
    rng: torch.Generator,
    similarity: float = 0.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Edit decoding beside the source, and plain reconstruction with the source hidden.

    similarity: weight of 1 - SSIM around the edit.
    """
    n = len(source)
    edited = ((source - target).abs().amax(2) > EDITED).float()
    src, coded = model.encode(source), model.encode(target, fine=False).latents
    noise = torch.rand(n, 1, 1, 1, generator=rng, device=source.device) * NOISE
    coded = coded + noise * torch.randn(coded.shape, generator=rng, device=source.device)
    frames, logits = model.decode(coded, src)
    frames, logits = frames.float(), logits.float()
    weight = 1 + 3 * edited.unsqueeze(2)
    merged = composite(frames, torch.sigmoid(logits), source)
    loss_edit = picture_loss(merged, target, weight)
    loss_raw = picture_loss(frames, target, weight)
    loss_mask = F.binary_cross_entropy_with_logits(logits, edited)
    plain = slice(0, max(1, n // 6))
    alone, _ = model.decode(coded[plain], None)
    loss_plain = picture_loss(alone.float(), target[plain], weight[plain])
    loss = loss_edit + 0.5 * loss_raw + 0.3 * loss_mask + 0.3 * loss_plain
    similar = None
    if similarity:
        near = F.max_pool2d(edited, 9, stride=1, padding=4)
        similar = ssim_loss(merged, target, near)
        loss = loss + similarity * similar
    with torch.no_grad():
        error = (merged - target).square() / 4
        inside = (error.mean(2) * edited).sum() / edited.sum().clamp(min=1)
        before = ((source - target).square().mean(2) / 4 * edited).sum() / edited.sum().clamp(min=1)
        report = {
            "gain": 1 - inside / before.clamp(min=1e-6),
            "psnr": -10 * torch.log10(error.mean()),
            "plain_psnr": -10 * torch.log10((alone - target[plain]).square().mean() / 4),
            "mask": loss_mask,
        }
        if similar is not None:
            report["ssim"] = 1 - similar
    return loss, report


class Squares(Protocol):
    """What the stage learns from."""

    def sample(self, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """source, target: ``[batch, 4, 3, crop, crop]`` in -1..1."""


def fit_transform(model: EdgeAutoencoder, squares: Squares, seed: int) -> None:
    """Find the model's code from sources and targets alike."""
    rng = np.random.default_rng(seed)
    model.fit(torch.cat(squares.sample(rng)) for _ in range(FIT_DRAWS))


def train_autoencoder(
    settings: TrainSettings,
    data: AutoencoderData,
    start: Path | None = None,
    resident: ResidentClips | None = None,
) -> Path:
    """Run the stage in one process; returns the checkpoint. start: weights to begin with, whose
    code is kept: a transformer that learned it goes on with the new decoder.

    resident: clips in a device's memory in place of data.clips; without, it runs on the CPU.
    """
    group = join(settings.device if resident else "cpu")
    alone(group, settings.stage)
    torch.manual_seed(settings.seed)
    model = EdgeAutoencoder(settings.editor.autoencoder)
    if start is not None:
        fill(model, read_safetensors(start), start)
    model = model.to(group.device, memory_format=torch.channels_last)
    squares = ResidentSquares(resident, data) if resident else data
    if start is None:
        fit_transform(model, squares, settings.seed + 1)

    def step(rng: np.random.Generator, noise: torch.Generator):
        source, target = squares.sample(rng)
        seen[:] = [(source, target)]
        return autoencoder_loss(model, source, target, noise, data.similarity)

    seen: list[tuple[Tensor, Tensor]] = []

    def batch() -> dict[str, Tensor]:
        return dict(zip(("source", "target"), seen[0], strict=True)) if seen else {}

    return Trainer(
        model, settings, step, data={"data": data.__dict__}, group=group, batch=batch
    ).run()


@dataclass(frozen=True)
class ResidentSquares:
    """:class:`Squares` of clips in a device's memory."""

    clips: ResidentClips
    data: AutoencoderData

    def sample(self, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        source, target = self.clips.sample(rng, self.data.batch, self.data.crop)
        still = torch.from_numpy(rng.random(len(source)) < 0.06).to(source.device)
        pick = still[:, None, None, None, None]
        return tuple(torch.where(pick, x[:, :1].expand_as(x), x) for x in (source, target))
