# SPDX-License-Identifier: Apache-2.0
"""A source video and what was made of it, brought to one grid: same size, same moments."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from egoedit_ros.data.video import VideoReader
from egoedit_ros.errors import UserError

# The size of the paper's model, at which other systems publish their results too.
GRID = (512, 384)
FEWEST_FRAMES = 3
ALIGNMENTS = ("auto", "index", "time")

# A system may work at a rate of its own and label the result with another one. These are the rates
# whose ratios are tried when neither frame numbers nor time stamps seem to fit.
_RATES = (5, 8, 10, 12, 15, 16, 20, 24, 25, 30)
_COMPARED = (96, 72)
_LEAST_GAIN = 0.01


@dataclass(slots=True)
class Clip:
    """A whole video at the grid's size: uint8 ``[n, h, w, 3]`` rgb, frame rate (0: not said) and
    the size (width, height) that it has in its file."""

    frames: np.ndarray
    fps: float
    size: tuple[int, int]


@dataclass(slots=True)
class Pair:
    """The frames that can be compared, uint8 ``[n, h, w, 3]`` each.

    source_index, edited_index: which frames of the files they are. notes: in which way the files
    differ and what was done about it, in words.
    """

    source: np.ndarray
    edited: np.ndarray
    source_index: np.ndarray
    edited_index: np.ndarray
    notes: list[str] = field(default_factory=list)


def to_grid(picture: np.ndarray, size: tuple[int, int] = GRID) -> np.ndarray:
    """Stretch uint8 ``[h, w, 3]`` to ``size`` (width, height): by area to shrink, else cubic."""
    height, width = picture.shape[:2]
    if (width, height) == size:
        return picture
    shrinks = width >= size[0] and height >= size[1]
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)


def load_clip(path: str | Path, most_frames: int | None = None) -> Clip:
    """Decode a video onto the grid. Raises UserError for what is no video or is too short."""
    reader = VideoReader(path)
    frames = []
    for _, picture in reader:
        frames.append(to_grid(picture))
        if len(frames) == most_frames:
            break
    if len(frames) < FEWEST_FRAMES:
        raise UserError(f"{path} has {len(frames)} frames; {FEWEST_FRAMES} are needed to compare")
    return Clip(np.stack(frames), reader.fps, reader.size)


def pair_up(source: Clip, edited: Clip, align: str = "auto") -> Pair:
    """Match the frames of an edited clip to those of its source.

    align: ``index``, the n-th to the n-th; ``time``, by the frame rates the files give; ``auto``:
    by index where number and rate of frames agree, else by whichever of index, time and the
    ratios of common frame rates makes the pictures' outlines agree best.
    """
    notes = []
    if edited.size != source.size:
        notes.append(
            f"size {_size(edited)} against {_size(source)}; compared at {GRID[0]}x{GRID[1]}"
        )
    counts = len(source.frames), len(edited.frames)
    rates = source.fps, edited.fps
    by_time = rates[0] / rates[1] if all(rates) else 1.0
    same = counts[0] == counts[1] and abs(by_time - 1) < 0.01
    step = 1.0
    if not same:
        step = _best_step(source, edited, by_time) if align == "auto" else 1.0
        step = by_time if align == "time" else step
        notes.append(
            f"{counts[1]} frames at {rates[1]:.4g}/s against {counts[0]} at {rates[0]:.4g}/s; "
            + _matched(step, by_time)
        )
    source_index, edited_index = _indices(counts, step)
    if len(source_index) < FEWEST_FRAMES:
        raise UserError(f"only {len(source_index)} frames of the edit lie within the source")
    lost = counts[1] - len(edited_index), counts[0] - len(source_index)
    if any(lost):
        notes.append(f"left out: {lost[0]} edited and {lost[1]} source frames without a partner")
    return Pair(
        source.frames[source_index], edited.frames[edited_index], source_index, edited_index, notes
    )


def _size(clip: Clip) -> str:
    return f"{clip.size[0]}x{clip.size[1]}"


def _matched(step: float, by_time: float) -> str:
    if step == 1.0:
        return "matched frame by frame"
    if step == by_time:
        return "matched by time"
    return f"matched by the pictures, {step:.4g} source frames to an edited one"


def _indices(counts: tuple[int, int], step: float) -> tuple[np.ndarray, np.ndarray]:
    """Partners, each frame used once at most: on the coarser of the two grids."""
    if step >= 1:
        edited = np.arange(counts[1])
        source = np.round(edited * step).astype(int)
    else:
        source = np.arange(counts[0])
        edited = np.round(source / step).astype(int)
    fits = (source < counts[0]) & (edited < counts[1])
    return source[fits], edited[fits]


def _best_step(source: Clip, edited: Clip, by_time: float) -> float:
    """Source frames to an edited frame, by how well outlines agree; the simplest of near equals."""
    one, two = outlines(source.frames), outlines(edited.frames)
    ratios = {a / b for a in _RATES for b in _RATES if 0.75 <= a / b <= 1.34}
    best, best_score = 1.0, -1.0
    for step in [1.0, by_time, *sorted(ratios, key=lambda r: abs(r - 1))]:
        source_index, edited_index = _indices((len(one), len(two)), step)
        if len(source_index) < min(len(one), len(two)) // 2:
            continue
        score = float((one[source_index] * two[edited_index]).sum(1).mean())
        if score > best_score + _LEAST_GAIN:
            best, best_score = step, score
    return best


def outlines(frames: Iterable[np.ndarray]) -> np.ndarray:
    """float32 ``[n, 96*72]``: strength of gradients, centred, of length 1: survives new colours."""
    rows = []
    for frame in frames:
        grey = cv2.cvtColor(to_grid(frame, _COMPARED), cv2.COLOR_RGB2GRAY).astype(np.float32)
        row = np.hypot(cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1)).ravel()
        row -= row.mean()
        rows.append(row / max(float(np.linalg.norm(row)), 1e-6))
    return np.stack(rows)
