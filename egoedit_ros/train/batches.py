# SPDX-License-Identifier: Apache-2.0
"""What the transformer's stages draw at each step: windows of cached clips, cut around edits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from egoedit_ros.data.latents import LatentClip
from egoedit_ros.data.mixture import Mixture, Source, read_batches
from egoedit_ros.errors import UserError
from egoedit_ros.train.latents import load_latents
from egoedit_ros.train.parallel import Group

NEVER = 2**40  # a step that no run reaches
# Settings that rectified flow alone heeds.
FLOW_ONLY = ("text_dropout", "mask_layer", "rough_past")


@dataclass(frozen=True)
class FlowData:
    """Windows of latent frames; crops (in latent cells, 0 = whole frames) around the edit.

    views: ``{weight, batch, frames, crop}`` each, one drawn at every step; without any, the fields
    above are the only one. Crops are quick to learn from; whole frames teach what not to edit.

    anywhere: share of crops that lie anywhere, not around the edit. edit_weights: how often the
    first, second, ... edit of a clip is drawn; empty, or where a clip has more or fewer: equally.
    mask_layer: blocks after which a head also predicts where the edit is, its cross-entropy times
    mask_weight added to the loss; 0: no head.

    from_start: share of windows that begin where the clip does, besides those that do by chance
    (clips in a device's memory only). most_weight: the greatest mean weight of a sample, 0: any;
    an edit of the whole picture would else count many times one of a small thing.

    switched: share of samples whose past shows another edit, or none. text_dropout: share whose
    text is the empty one, so that the network can be guided (CFG). Noise levels are logit-normal
    (noise_mean, noise_std), shifted by noise_shift (None: the editor's), a share of pure_noise at
    1. loss: ``clean`` (of the latents), ``velocity``, or ``auto``: what the network predicts.

    sources: a mixture in place of ``latents``, tables of
    :class:`~egoedit_ros.data.mixture.Source`; workers: processes that read it ahead.
    """

    latents: Path
    batch: int = 16
    frames: int = 3
    crop: int = 16
    anywhere: float = 0.0
    edit_weights: tuple[float, ...] = ()
    mask_layer: int = 0
    mask_weight: float = 0.1
    switched: float = 0.25
    from_start: float = 0.0
    most_weight: float = 0.0
    edited_weight: float = 5.0
    views: tuple[dict, ...] = ()
    attention: str = "causal"
    forcing: str = "teacher"
    text_dropout: float = 0.0
    noise_mean: float = 0.0
    noise_std: float = 1.0
    noise_shift: float | None = None
    pure_noise: float = 0.35
    rough_past: float = 0.15
    loss: str = "auto"
    sources: tuple[dict, ...] = ()
    workers: int = 2

    def check(self) -> None:
        """Raise UserError for what cannot be drawn."""
        for name, known in (("attention", ("causal", "bidirectional")),
                            ("forcing", ("teacher", "diffusion")),
                            ("loss", ("auto", "clean", "velocity"))):  # fmt: skip
            if getattr(self, name) not in known:
                raise UserError(
                    f"{name} is {getattr(self, name)!r}; use one of: {', '.join(known)}"
                )
        for name in ("switched", "text_dropout", "pure_noise", "rough_past", "anywhere"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must lie in 0..1")
        known = {f.name for f in fields(self)} | {"weight"}
        for view in self.views:
            if not isinstance(view, dict) or "weight" not in view or set(view) - known:
                raise UserError(f"the view {view} must have a weight, and else settings of data")
        for one in (self, *(self.with_view(v) for v in self.views)):
            if one.batch < 1 or one.frames < 1 or one.crop < 0 or one.crop % 2:
                raise UserError("batch and frames must be 1 or more, crop even or 0")

    def refuse_flow_only(self, stage: str) -> None:
        """Raise UserError where a setting of flow's was given that ``stage`` would not heed."""
        usual = {f.name: f.default for f in fields(self)}
        for one in self.each_view():
            for name in FLOW_ONLY:
                if getattr(one, name) != usual[name]:
                    raise UserError(f"{stage} does not heed {name}; leave it out")

    def with_view(self, view: dict) -> FlowData:
        return replace(self, views=(), **{k: v for k, v in view.items() if k != "weight"})

    def each_view(self) -> list[FlowData]:
        """All that :meth:`draw_view` can give."""
        return [self.with_view(v) for v in self.views] or [self]

    def draw_view(self, rng: np.random.Generator) -> FlowData:
        """The data of one step."""
        if not self.views:
            return self
        weights = np.array([v["weight"] for v in self.views], float)
        return self.with_view(self.views[int(rng.choice(len(weights), p=weights / weights.sum()))])


@runtime_checkable
class Resident(Protocol):
    """Clips in a device's memory (:class:`~egoedit_ros.train.resident.ResidentClips`)."""

    def draw(self, rng: np.random.Generator, data: FlowData) -> tuple[Batch, object]:
        """A batch on the device, and where it is from."""


class Mixed:
    """A mixture of sources, of which each step takes its own samples, read ahead by processes.

    The order follows from the step's number; a process of a group reads its share only.
    """

    def __init__(
        self, mixture: Mixture, stride: int, frames: int, workers: int, group: Group
    ) -> None:
        self.mixture, self.stride, self.frames = mixture, stride, frames
        self.workers, self.group = workers, group
        self._step, self._clips = -1, []
        self._reader = None

    def go_to(self, step: int) -> None:
        """Have the samples of a step; the next step costs no wait."""
        if step == self._step:
            return
        if self._reader is None or step != self._step + 1:
            self._reader = read_batches(
                self.mixture, self.stride, step, NEVER, self.frames, self.workers,
                self.group.rank, self.group.count,
            )  # fmt: skip
        self._step, self._clips = next(self._reader)

    def clip(self, index: int) -> LatentClip:
        """The step's index-th sample, one of this process's."""
        return self._clips[index // self.group.count]


def open_clips(data: FlowData, seed: int, group: Group | None = None) -> list[LatentClip] | Mixed:
    """What a stage draws from. Raises UserError where there is nothing long enough."""
    views = data.each_view()
    need = max(v.frames for v in views)
    if data.sources:
        mixture = Mixture([Source.of(values) for values in data.sources], seed)
        batch = max(v.batch for v in views)
        return Mixed(mixture, batch, need, data.workers, group or Group())
    clips = load_latents(data.latents)
    # A bag's last windows may be shorter than the others.
    long = [clip for clip in clips if clip.latents.shape[2] >= need]
    if not long:
        most = max(clip.latents.shape[2] for clip in clips)
        raise UserError(
            f"the longest clip in {data.latents} has {most} latent frames, the recipe wants "
            f"{need}; lower frames, or make longer clips"
        )
    return long


@dataclass(slots=True)
class Batch:
    """source, target, past: ``[B, F, C, h, w]``; edited ``[B, F, h, w]``; text ``[B, L, D]``."""

    source: Tensor
    target: Tensor
    past: Tensor
    edited: Tensor
    text: Tensor
    corners: Tensor  # [B, 2] row and column of the crop, in tokens

    def tensors(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in self.__slots__}

    def to(self, device: torch.device) -> Batch:
        return Batch(*(t.to(device) for t in self.tensors().values()))


def sample_batch(
    rng: np.random.Generator,
    clips: Sequence[LatentClip] | Mixed,
    data: FlowData,
    group: Group | None = None,
    empty: Tensor | None = None,
) -> Batch:
    """Draw a batch; everything follows from ``rng``. A process keeps its share of the samples.

    empty: embedding ``[L, D]`` of the empty text, for data.text_dropout.
    """
    group = group or Group()
    group.part(data.batch)
    if isinstance(clips, Resident):
        batch, _ = clips.draw(rng, data)
        if data.text_dropout:
            dropped = torch.from_numpy(rng.random(data.batch) < data.text_dropout)
            batch.text[dropped.to(batch.text.device)] = empty.to(batch.text)
        return batch
    mixed = isinstance(clips, Mixed)
    name = int(rng.integers(2**62)) if mixed else 0
    rows = []
    for index in range(data.batch):
        mine = index % group.count == group.rank
        if mixed:
            if mine:
                clip = clips.clip(index)
                rows.append(_sample(np.random.default_rng([name, index]), clip, data))
            continue
        row = _sample(rng, clips[int(rng.integers(len(clips)))], data)
        if mine:
            rows.append(row)
    batch = Batch(*(torch.stack(column) for column in zip(*rows, strict=True)))
    if data.text_dropout:
        dropped = group.share(torch.from_numpy(rng.random(data.batch) < data.text_dropout))
        batch.text[dropped] = empty.to(batch.text.dtype)
    return batch.to(group.device)


def _sample(rng: np.random.Generator, clip: LatentClip, data: FlowData) -> tuple[Tensor, ...]:
    """One sample of a clip, as the columns of :class:`Batch`."""
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
    return (
        video[0][cut].float(),
        video[edit + 1][cut].float(),
        video[past][cut].float(),
        edited[:, cut[2], cut[3]].float(),
        clip.text[edit].float(),
        torch.tensor([top // 2, left // 2]),
    )


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
        rim = 2 if min(height, width) > 4 else 0  # cells between the edit's and the crop's edge
        y, x = y - rng.integers(rim, height - rim), x - rng.integers(rim, width - rim)
    else:
        y, x = rng.integers(0, h - height + 1), rng.integers(0, w - width + 1)
    y, x = int(np.clip(y, 0, h - height)), int(np.clip(x, 0, w - width))
    return y // 2 * 2, x // 2 * 2
