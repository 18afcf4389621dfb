# SPDX-License-Identifier: Apache-2.0
"""A chunk's edit drawn once more by the detail network, in a square around it.

An edit of the whole picture is left as it is: no square would hold it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from egoedit_ros.model.answers import Before, Whole, told_next
from egoedit_ros.model.autoencoder import CELL
from egoedit_ros.model.detail import ALONE, DetailNet
from egoedit_ros.model.show import show

SQUARES = (64, 96, 112)  # pixels a side: a small thing takes less time
MOST = (0.03, 0.97)  # of what changes, along a side, that a square is to hold
MARGIN = 10  # pixels beside that: what is drawn softly may reach farther
SEAM = 8  # pixels along a square's sides over which it goes over into what was there
WHOLE = 0.4  # share of the picture from which on an edit is one of all of it
FAINTEST = 0.02  # share of an answer below which it is none of what is shown
GROUP = 4  # pictures of a latent frame


@dataclass(frozen=True, slots=True)
class Told:
    """An instruction as the detail network has it: of :meth:`DetailNet.read` and ``named``."""

    text: Tensor
    likely: Tensor | None


def tell(net: DetailNet, embedded: Tensor) -> Told:
    """Token embeddings ``[L, text_dim]`` of an instruction."""
    embedded = embedded[None].to(net.inside.weight)
    return Told(net.read(embedded), net.named(embedded))


@dataclass(frozen=True, slots=True)
class Square:
    """size: of its sides; row, column: where it begins. All in pixels, multiples of a cell's."""

    size: int
    row: int
    column: int

    @property
    def pixels(self) -> tuple[slice, slice]:
        return self._slices(1)

    @property
    def cells(self) -> tuple[slice, slice]:
        return self._slices(CELL)

    def _slices(self, unit: int) -> tuple[slice, slice]:
        return tuple(slice(b // unit, (b + self.size) // unit) for b in (self.row, self.column))


def square_around(source: np.ndarray, made: np.ndarray, mask: np.ndarray) -> Square | None:
    """The least of ``SQUARES`` that holds most of what is edited in any picture of a chunk, or the
    greatest that fits, where it holds as much as it can: a thing rather than the end of its shadow.
    None: nothing is edited, or the picture is smaller than any.

    source, made: uint8 ``[n, h, w, 3]``; mask: uint8 ``[n, h, w]``.
    """
    change = (np.abs(made.astype(np.int16) - source).sum(-1) * (mask > 0)).sum(0)
    fitting = [size for size in SQUARES if size <= min(change.shape)]
    if not fitting or not change.any():
        return None
    shares = [np.cumsum(change.sum(axis, dtype=np.float64)) for axis in (1, 0)]
    spans = [np.searchsorted(share, share[-1] * np.array(MOST)) for share in shares]
    extent = max(high - low for low, high in spans) + 2 * MARGIN
    size = next((s for s in fitting if s >= extent), fitting[-1])
    begins = []
    for share, (low, high) in zip(shares, spans, strict=True):
        last = (len(share) - size) // CELL * CELL
        if high - low + 2 * MARGIN <= size:
            begin = round(((low + high) - size) / 2 / CELL) * CELL
        else:
            starts = np.arange(0, last + 1, CELL)
            before = np.concatenate([[0.0], share])
            begin = starts[np.argmax(before[starts + size] - before[starts])]
        begins.append(int(min(max(begin, 0), last)))
    return Square(size, *begins)


def whole_of(
    square: Square, source: np.ndarray, device: torch.device, before: Before | None = None
) -> Whole:
    """What a square is of: uint8 ``[n, h, w, 3]``; before: what the chunk before told."""
    return Whole(_tensor(source, device), square.row, square.column, before or Before())


@dataclass(frozen=True, slots=True)
class Drawn:
    """picture: uint8 ``[n, h, w, 3]``; mask: uint8 ``[n, h, w]``; laid: likewise, where a body is
    laid that has its edges, None: nowhere; before: what this tells the next chunk of the same
    edit."""

    picture: np.ndarray
    mask: np.ndarray
    before: Before
    laid: np.ndarray | None = None


@torch.inference_mode()
def draw(
    net: DetailNet,
    told: Told,
    source: np.ndarray,
    made: np.ndarray,
    mask: np.ndarray,
    latents: Tensor,
    first: bool,
    before: Before | None = None,
) -> Drawn:
    """A chunk's pictures and mask with the square around the edit drawn anew.

    told: the instruction; source, made: uint8 ``[n, h, w, 3]`` rgb;
    mask: uint8 ``[n, h, w]``; latents: edited and source ``[F, 2C, h/8, w/8]``; first: the chunk
    begins its stream, with a latent frame of one picture; before: what the one before told.
    """
    before = before or Before()
    if (mask > 127).mean() > WHOLE:
        return Drawn(made, mask, before)
    square = square_around(source, made, mask)
    if square is None:
        return Drawn(made, mask, before)
    box = square.pixels
    where = [i + (GROUP - 1) * first for i in range(len(source))]
    frame = [i // GROUP for i in where]
    place = [ALONE if first and i == 0 else p % GROUP for i, p in enumerate(where)]
    weight = net.inside.weight
    pixels = [_tensor(x[:, *box], weight.device) for x in (source, made, mask[..., None])]
    whole = whole_of(square, source, weight.device, before)
    answers = net(
        *pixels,
        latents[frame][:, :, *square.cells].to(weight),
        torch.tensor(place, device=weight.device),
        told.text,
        likely=told.likely,
        whole=whole,
    )
    chosen = show(answers)
    shares = torch.where(chosen.shares < FAINTEST, 0, chosen.shares)
    shares = shares / shares.sum(1, keepdim=True)
    shown = (shares[:, :, None] * chosen.colors).sum(1).mul(255).clamp(0, 255)
    made, mask, laid = made.copy(), mask.copy(), None
    parts = [(made, shown.permute(0, 2, 3, 1)), (mask, 255 * (1 - shares[:, 0]))]
    if chosen.laid is not None:
        laid = np.zeros_like(mask)
        parts.append((laid, 255 * chosen.laid))
    inside, seam = (slice(None), *box), _seam(square, mask.shape[1:])
    for old, new in parts:
        was = old[inside].astype(np.float32)
        part = seam[..., None] if old.ndim > mask.ndim else seam
        old[inside] = np.rint(was + part * (new.cpu().numpy() - was)).astype(np.uint8)
    return Drawn(made, mask, told_next(answers, whole), laid)


def _tensor(pictures: np.ndarray, device: torch.device) -> Tensor:
    """uint8 ``[n, h, w, c]`` to float32 ``[n, c, h, w]`` in 0..1."""
    pixels = torch.from_numpy(np.ascontiguousarray(pictures)).to(device)
    return pixels.permute(0, 3, 1, 2).float() / 255


def _seam(square: Square, size: tuple[int, int]) -> np.ndarray:
    """How far the square counts, pixel by pixel: 1, but towards sides inside of the picture 0."""
    ramps = []
    rise = (np.arange(SEAM, dtype=np.float32) + 0.5) / SEAM
    for begin, length in zip((square.row, square.column), size, strict=True):
        ramp = np.ones(square.size, np.float32)
        if begin > 0:
            ramp[:SEAM] = rise
        if begin + square.size < length:
            ramp[-SEAM:] = rise[::-1]
        ramps.append(ramp)
    return np.minimum.outer(ramps[0], ramps[1])
