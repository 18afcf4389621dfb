# SPDX-License-Identifier: Apache-2.0
"""How steady an edited clip is: flow-compensated difference, flicker, jumps at chunk borders.

Pictures are uint8 ``[n, h, w, 3]`` rgb, the source's and the edit's of the same moments. All is
measured at 256x192, against what the source itself does.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

SIZE = (256, 192)
CELLS = (16, 12)
# Grey levels added to both sides of a ratio: below it, differences are those of the codec.
FLOOR = 1.0
# Pixels by which a flow forth and back may miss its start before the point counts as hidden.
MOST_MISS = 1.5
FEWEST_VISIBLE = 0.1
FEWEST_BORDERS = 2
# Steps before and after a chunk border that it is held against.
NEAR = 3
MOST_STUTTER = 1.5


def small(frames: np.ndarray) -> np.ndarray:
    """The clip at 256x192, uint8."""
    return np.stack([cv2.resize(f, SIZE, interpolation=cv2.INTER_AREA) for f in frames])


@dataclass(slots=True)
class Step:
    """Where the pixels of a frame were in the one before, float32 ``[h, w]`` each, and where that
    is known, bool ``[h, w]``."""

    to_x: np.ndarray
    to_y: np.ndarray
    visible: np.ndarray


def source_motion(source: np.ndarray) -> list[Step | None]:
    """The steps of a clip as :func:`small` makes it; None where its flow holds nowhere (a cut)."""
    flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    greys = [cv2.cvtColor(f, cv2.COLOR_RGB2GRAY) for f in source]
    height, width = greys[0].shape
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    steps: list[Step | None] = []
    for before, after in zip(greys, greys[1:], strict=False):
        back = flow.calc(after, before, None)
        forth = flow.calc(before, after, None)
        to_x, to_y = x + back[..., 0], y + back[..., 1]
        returned = cv2.remap(forth, to_x, to_y, cv2.INTER_LINEAR)
        visible = np.hypot(*np.moveaxis(back + returned, -1, 0)) < MOST_MISS
        visible &= (to_x >= 0) & (to_x <= width - 1) & (to_y >= 0) & (to_y <= height - 1)
        known = visible.mean() >= FEWEST_VISIBLE
        steps.append(Step(to_x, to_y, visible) if known else None)
    return steps


def warp_errors(frames: np.ndarray, steps: list[Step | None]) -> np.ndarray:
    """Mean absolute difference of each frame to the one before it, moved as the source moved.

    frames: as :func:`small` makes them. Returns float ``[n-1]`` in grey levels, NaN where the
    source's flow is not known.
    """
    found = np.full(len(steps), np.nan)
    for i, step in enumerate(steps):
        if step is not None:
            moved = cv2.remap(frames[i], step.to_x, step.to_y, cv2.INTER_LINEAR)
            found[i] = cv2.absdiff(moved, frames[i + 1])[step.visible].mean()
    return found


def temporal_error(source: np.ndarray, edited: np.ndarray) -> float | None:
    """Flow-compensated difference of the edit over the source's own; 1 = as steady. None: cuts.

    Both from :func:`warp_errors`.
    """
    if not np.isfinite(source).any():
        return None
    return float((np.nanmean(edited) + FLOOR) / (np.nanmean(source) + FLOOR))


def flicker(source: np.ndarray, edited: np.ndarray) -> float:
    """Grey levels by which brightness swings from frame to frame more than in the source.

    Mean difference of the brightness of 16x12 cells to the mean of the frames before and after,
    the edit's less the source's. Below 0: steadier than the source.
    """

    def swing(frames: np.ndarray) -> float:
        cells = [cv2.resize(f, CELLS, interpolation=cv2.INTER_AREA).mean(-1) for f in frames]
        return float(np.abs(np.diff(np.array(cells), n=2, axis=0)).mean() / 2)

    return swing(edited) - swing(source)


def chunk_borders(count: int, first: int, others: int) -> list[int]:
    """Numbers of the frames with which a chunk begins, but for the first: 9, 21, 33 for 9, 12."""
    return list(range(first, count, others))


def chunk_jump(
    source: np.ndarray, edited: np.ndarray, edited_index: np.ndarray, borders: list[int]
) -> float | None:
    """Temporal error of the steps across chunk borders over that of the steps around them.

    source, edited: from :func:`warp_errors`. edited_index: number in the edited file of each frame
    compared. Each border is held against the median of the steps up to three before and after it
    that cross none, as motion changes through a clip; mean over borders. Where the source itself
    stutters (a frame given twice, a jerk) nothing can be told. 1 = no jumps. None with fewer than
    two borders.
    """
    source, edited = source + FLOOR, edited + FLOOR
    steps = zip(edited_index, edited_index[1:], strict=False)
    at = np.array([any(a < border <= z for border in borders) for a, z in steps])
    usable = np.isfinite(source) & ~at
    jumps = []
    for i in np.flatnonzero(at & np.isfinite(source)):
        near = slice(max(0, i - NEAR), i + NEAR + 1)
        around = usable[near]
        if not around.any():
            continue
        own = source[i] / np.median(source[near][around])
        if 1 / MOST_STUTTER < own < MOST_STUTTER:
            jumps.append(edited[i] / np.median(edited[near][around]) / own)
    return float(np.mean(jumps)) if len(jumps) >= FEWEST_BORDERS else None
