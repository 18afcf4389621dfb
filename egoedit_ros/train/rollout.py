# SPDX-License-Identifier: Apache-2.0
"""Stage ``rollout``: Self Forcing with the pair's own target in place of a teacher's opinion.

A stream is generated through the inference cache, as in ``self_forcing``, and compared with the
target: its latents, and its pixels after the decoder (frozen, or learning beside it), since an edge
that is half a pixel off is little in latents and all of what an eye sees. Simulated pairs have such
a target; footage has none, and there the distribution matching loss of ``self_forcing`` is what one
has.

Clips must be in a device's memory (:mod:`egoedit_ros.train.resident`), with their pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from egoedit_ros.errors import UserError
from egoedit_ros.model.autoencoder import EdgeAutoencoder, Encoded, composite
from egoedit_ros.model.config import EditorConfig
from egoedit_ros.model.precision import best_dtype, weights_as
from egoedit_ros.model.transformer import Transformer
from egoedit_ros.train.autoencoder import EDITED, ssim_loss
from egoedit_ros.train.batches import Batch, FlowData
from egoedit_ros.train.captured import Captured
from egoedit_ros.train.decoder import DecoderData, decoded_loss
from egoedit_ros.train.dmd import rollout_whole
from egoedit_ros.train.flow import new_transformer, weighted
from egoedit_ros.train.latents import load_frozen
from egoedit_ros.train.loop import TRAINING_ONLY, Trainer, TrainSettings
from egoedit_ros.train.lora import FROZEN_BY_LORA
from egoedit_ros.train.parallel import alone, join
from egoedit_ros.train.resident import CELL, ResidentClips, Where, corner_around, crop
from egoedit_ros.train.self_forcing import hides_first, rollout_stream
from egoedit_ros.train.states import write_together


@dataclass(frozen=True)
class RolloutData:
    """autoencoder: its weights. of_steps: how often a stream of so many steps is drawn; one of its
    steps, drawn evenly, is what learns. pixels: weight of the loss on decoded squares of ``square``
    pixels; in_latents: of the loss on latents. with_decoder: the decoder learns beside the
    transformer, and is left as ``decoder.safetensors``. captured: steps run as CUDA graphs
    (:mod:`egoedit_ros.train.captured`)."""

    autoencoder: Path
    of_steps: dict[int, float] = field(default_factory=lambda: {1: 0.5, 2: 0.25, 4: 0.25})
    in_latents: float = 1.0
    pixels: float = 1.0
    square: int = 128
    with_decoder: bool = False
    captured: bool = False


def draw_steps(rng: np.random.Generator, steps: dict[int, float]) -> tuple[int, int]:
    """Steps of a stream, and the one that learns."""
    counts, chances = list(steps), np.array(list(steps.values()), float)
    count = int(counts[rng.choice(len(counts), p=chances / chances.sum())])
    return count, int(rng.integers(count))


def square_cells(cells: tuple[int, int], size: int) -> tuple[int, int]:
    """Height and width, in cells, of the squares of ``size`` pixels that are decoded of latents
    that have ``cells``. size 0: all of them."""
    return (size // CELL, size // CELL) if size and size < CELL * min(cells) else cells


def square_corners(batch: Batch, size: int, rng: torch.Generator) -> Tensor:
    """Corners ``[n, 2]`` of such squares around each sample's edit."""
    cells = tuple(batch.target.shape[-2:])
    if square_cells(cells, size) == cells:
        return torch.zeros_like(batch.corners)
    return corner_around(batch.edited.any(1), square_cells(cells, size), rng, 0)


def decode_squares(
    autoencoder: EdgeAutoencoder,
    made: Tensor,
    batch: Batch,
    where: Where,
    clips: ResidentClips,
    corners: Tensor,
    size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Frames, mask logits, source and target of the squares at ``corners``, all latent frames
    ``[n * F, ...]``."""
    cells = square_cells(tuple(made.shape[-2:]), size)
    at, pixels = (2 * batch.corners + corners) * CELL, tuple(CELL * c for c in cells)
    source, target = (x.flatten(0, 1) for x in clips.pictures(where, at, pixels))
    with torch.no_grad():
        fine = autoencoder.encode(source).fine
    latents, coded = (crop(x, corners, *cells).flatten(0, 1) for x in (made, batch.source))
    frames, logits = autoencoder.decode(latents, Encoded(coded, fine))
    return frames, logits, source, target


@dataclass(frozen=True)
class Kind:
    """What is the same in all steps of a kind: the view, a stream's steps and the one of them that
    learns. Tensors of two steps of a kind have the same shapes."""

    view: FlowData
    nfe: int
    exit_step: int


@dataclass(slots=True)
class Drawn:
    """All that is random in a step. corners: of the squares that are decoded; noise
    ``[draws, B, chunk, C, h, w]``."""

    batch: Batch
    where: Where
    corners: Tensor
    noise: Tensor

    def tensors(self) -> list[Tensor]:
        where = (self.where.clip, self.where.edit, self.where.turn, self.where.window)
        return [*self.batch.tensors().values(), *where, self.corners, self.noise]


class RolloutStep:
    """A :data:`~egoedit_ros.train.parts.Step` in two: what is drawn, and what is learnt of it."""

    def __init__(
        self,
        model: Transformer,
        autoencoder: EdgeAutoencoder,
        config: EditorConfig,
        data: FlowData,
        given: RolloutData,
        clips: ResidentClips,
        dtype: torch.dtype | None = None,
    ) -> None:
        """dtype: what the transformer computes in; None: as autocast has it."""
        self.model, self.autoencoder, self.config = model, autoencoder, config
        self.data, self.given, self.clips, self.dtype = data, given, clips, dtype
        self.last: Batch | None = None  # what the last step was about

    def __call__(
        self, rng: np.random.Generator, noise: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return self.learn(*self.draw(rng, noise))

    def draw(self, rng: np.random.Generator, noise: torch.Generator) -> tuple[Kind, Drawn]:
        """What the next step is about."""
        view = self.data.draw_view(rng)
        nfe, exit_step = draw_steps(rng, self.given.of_steps)
        # All streams begin with the same level of noise: a first step is that of a single one.
        kind = Kind(view, nfe if exit_step else 1, exit_step)
        batch, where = self.clips.draw(rng, view, with_pixels=bool(self.given.pixels))
        self.last = batch
        corners = square_corners(batch, self.given.square, noise)
        chunk = self.config.chunk_latents
        count = batch.target.shape[1] // chunk * (exit_step + 1)
        shape = (count, len(batch.target), chunk, *batch.target.shape[2:])
        made = torch.randn(shape, generator=noise, device=noise.device)
        return kind, Drawn(batch, where, corners, made)

    def learn(self, kind: Kind, drawn: Drawn) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and figures to report. Nothing here is drawn, nor asked of the device."""
        view, batch = kind.view, drawn.batch
        made = self._stream(kind, drawn)
        loss, report = weighted(made.float(), batch, view)
        loss = self.given.in_latents * loss
        if self.given.pixels:
            decoded = decode_squares(
                self.autoencoder, made, batch, drawn.where, self.clips, drawn.corners,
                self.given.square,
            )  # fmt: skip
            in_pixels, figures = decoded_loss(*decoded, count=view.frames)
            loss, report = loss + self.given.pixels * in_pixels, report | figures
        return loss, report

    def _stream(self, kind: Kind, drawn: Drawn) -> Tensor:
        """Edited latents."""
        config, batch, rows = self.config, drawn.batch, iter(drawn.noise)
        draw = lambda *_: next(rows)  # noqa: E731
        with self._precision(batch.source.device.type):
            if kind.view.frames == config.chunk_latents:  # a first chunk sees itself only
                rollout = rollout_whole(config, kind.nfe, bool(kind.view.crop))
                return rollout(self.model, batch, kind.exit_step, draw)
            # A crop's place does not matter: rotary embeddings are relative.
            return rollout_stream(
                self.model, config, batch.source, batch.text, kind.exit_step, kind.nfe, draw,
                hide_first=hides_first(config, kind.view.frames),
            )  # fmt: skip

    @contextmanager
    def _precision(self, device: str) -> Iterator[None]:
        if self.dtype is None:
            yield
            return
        named = self.model.named_modules()
        mine = [m for n, m in named if not f"{n}.".startswith(TRAINING_ONLY)]
        with weights_as(mine, self.dtype), torch.autocast(device, enabled=False):
            yield


def train_rollout(
    settings: TrainSettings,
    data: FlowData,
    given: RolloutData,
    resident: ResidentClips,
    start: Path | None = None,
    sampler=None,
) -> Path:
    """Run the stage; start: weights to begin with."""
    data.check()
    data.refuse_flow_only(settings.stage)
    if given.with_decoder and settings.lora:
        raise UserError(FROZEN_BY_LORA.format("decoder", "with_decoder"))
    torch.manual_seed(settings.seed)
    config, group = settings.editor, join(settings.device)
    alone(group, settings.stage)
    model = new_transformer(config, start, group)
    autoencoder = load_frozen(given.autoencoder, config, str(group.device), torch.float32)
    if given.with_decoder:
        if not given.pixels:
            raise UserError("with_decoder learns from pixels; give them a weight")
        model.training_head = autoencoder
        for name, parameter in autoencoder.named_parameters():
            parameter.requires_grad_(name.startswith("decoder_"))

    def leave_decoder(averaged: Transformer) -> None:
        weights = averaged.training_head.state_dict()
        path = settings.output / "decoder.safetensors"
        write_together([(path, weights, {"stage": "decoder", "model": settings.model})])

    dtype = best_dtype(group.device) if settings.bf16 else torch.float32
    if settings.recompute or settings.compile:
        dtype = None  # both read the weights when they are no longer cast
    step = RolloutStep(model, autoencoder, config, data, given, resident, dtype)
    return Trainer(
        model,
        settings,
        Captured(step, model, group.device) if given.captured else step,
        leave_decoder if given.with_decoder else None,
        data={"data": data.__dict__, "rollout": given.__dict__},
        group=group,
        batch=lambda: step.last.tensors() if step.last else {},
        sampler=sampler,
        rolls_out=True,
    ).run()


class StreamDecoderStep:
    """Stage ``decoder`` on streams: latents by the frozen transformer through its cache."""

    def __init__(
        self,
        model: EdgeAutoencoder,
        net: Transformer,
        config: EditorConfig,
        data: DecoderData,
        clips: ResidentClips,
    ) -> None:
        self.model, self.net, self.config, self.data, self.clips = model, net, config, data, clips
        self.view = FlowData(
            latents=data.clips, batch=data.batch, frames=data.frames, crop=0, from_start=0.5
        )

    def __call__(
        self, rng: np.random.Generator, noise: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        batch, where = self.clips.draw(rng, self.view, with_pixels=True)
        draw = lambda shape, _: torch.randn(shape, generator=noise, device=noise.device)  # noqa: E731
        nfe, exit_step = draw_steps(rng, {1: 0.5, 2: 0.25, 4: 0.25})
        with torch.no_grad():
            made = rollout_stream(
                self.net, self.config, batch.source, batch.text, exit_step, nfe, draw,
                hide_first=hides_first(self.config, self.view.frames),
            ).float()  # fmt: skip
            true = max(1, round(self.data.true_share * len(made)))
            rough = 0.1 * torch.randn(made[:true].shape, generator=noise, device=noise.device)
            made[:true] = batch.target[:true] + rough
        corners, size = square_corners(batch, self.data.crop, noise), self.data.crop
        decoded = decode_squares(self.model, made, batch, where, self.clips, corners, size)
        return decoded_loss(*decoded, slice(true * self.data.frames, None), self.data.frames)


class Validation:
    """Figures of clips that training does not see, edited as streams of 1, 2 and 4 steps.

    A trainer's sampler. ``gain_N``: share of the squared error over edited pixels that is gone;
    ``ssim_N``: the same of 1 - SSIM in and near the edit.
    """

    def __init__(
        self, clips: ResidentClips, config: EditorConfig, autoencoder: Path, most: int = 64
    ) -> None:
        self.clips, self.config, self.most = clips, config, most
        device = str(clips.device)
        self.autoencoder = load_frozen(autoencoder, config, device, torch.float32)
        clips.encode_with(load_frozen(autoencoder, config, device))

    @torch.no_grad()
    def __call__(self, net: nn.Module, step: int) -> dict[str, float]:
        figures = {}
        for nfe in (1, 2, 4):
            figures |= {f"{k}_{nfe}": v for k, v in self._measure(net, nfe).items()}
        return figures

    def _measure(self, net: nn.Module, nfe: int) -> dict[str, float]:
        rng, noise = np.random.default_rng(nfe), torch.Generator(self.clips.device)
        noise.manual_seed(nfe)
        sums = torch.zeros(4, device=self.clips.device)
        # A decoder that learns beside the network shows what the network is for.
        beside = getattr(net, "training_head", None)
        decoder = beside if isinstance(beside, EdgeAutoencoder) else self.autoencoder
        for _ in range(-(-self.most // 16)):
            view = FlowData(
                latents=Path(), batch=16, frames=self.clips.latents.shape[3], crop=0, switched=0.0
            )
            batch, where = self.clips.draw(rng, view, with_pixels=True)
            draw = lambda shape, _: torch.randn(shape, generator=noise, device=noise.device)  # noqa: E731
            made = rollout_stream(
                net, self.config, batch.source, batch.text, nfe - 1, nfe, draw, hide_first=False
            )
            corners = square_corners(batch, 0, noise)
            sums += _errors(*decode_squares(decoder, made, batch, where, self.clips, corners, 0))
        error, change, unlike, unlike_before = sums.tolist()
        return {
            "gain": 1 - error / max(change, 1e-9),
            "ssim": 1 - unlike / max(unlike_before, 1e-9),
        }


def _errors(frames: Tensor, logits: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """Squared errors over edited pixels and 1 - SSIM near them, after and before."""
    merged = composite(frames.float(), torch.sigmoid(logits.float()), source).clamp(-1, 1)
    edited = ((source - target).abs().amax(2) > EDITED).float()
    near = F.max_pool2d(edited, 9, stride=1, padding=4)
    parts = []
    for picture in (merged, source):
        parts.append(((picture - target).square() * edited.unsqueeze(2)).sum())
        parts.append(ssim_loss(picture, target, near) * near.sum())
    return torch.stack([parts[0], parts[2], parts[1], parts[3]])
