# SPDX-License-Identifier: Apache-2.0
"""How close an edited clip is to the exactly rendered target.

Edited pixels: source and target differ by more than 12 of 255 in a channel. All pictures are uint8
``[t, h, w, 3]`` at the model's size.
"""

from __future__ import annotations

import numpy as np

from egoedit_ros.data.sim.tasks import TASK_TABLE

EDITED_LEVEL = 12
FEWEST_PIXELS = 20
PSNR_CAP = 60.0
BOX_MARGIN = 4
BOX_SMALLEST = 11
METRICS = ("edit_gain", "ssim_gain", "keep_psnr", "hand_psnr")
# EgoEditBench's task that a task of the simulator is like.
LIKE = {task.name: task.paper for task in TASK_TABLE}


def edited_pixels(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Bool ``[t, h, w]``: where the edit changes the picture."""
    return np.abs(source.astype(np.int16) - target).max(-1) > EDITED_LEVEL


def _box(mask: np.ndarray) -> tuple[slice, slice]:
    """The box around a frame's edited pixels, 4 pixels wider and at least 11 wide."""
    box = []
    for axis, length in ((1, mask.shape[0]), (0, mask.shape[1])):
        where = np.flatnonzero(mask.any(axis))
        low, high = where[0] - BOX_MARGIN, where[-1] + 1 + BOX_MARGIN
        short = BOX_SMALLEST - (high - low)
        if short > 0:
            low, high = low - (short + 1) // 2, high + (short + 1) // 2
        low, high = max(low, 0), min(high, length)
        if high - low < BOX_SMALLEST:  # at the border: grow to the other side
            low, high = max(0, high - BOX_SMALLEST), min(length, low + BOX_SMALLEST)
        box.append(slice(int(low), int(high)))
    return box[0], box[1]


def _ssim(a: np.ndarray, b: np.ndarray) -> float:
    from skimage.metrics import structural_similarity

    return float(structural_similarity(a, b, channel_axis=-1, data_range=255))


def frame_gain(
    source: np.ndarray, target: np.ndarray, edited: np.ndarray, mask: np.ndarray
) -> float | None:
    """ssim_gain of one frame, in the box around its edited pixels; None: too few of them."""
    if mask.sum() < FEWEST_PIXELS:
        return None
    box = _box(mask)
    undone = _ssim(source[box], target[box])
    return (_ssim(edited[box], target[box]) - undone) / max(1 - undone, 1e-6)


def _psnr(a: np.ndarray, b: np.ndarray, where: np.ndarray) -> float | None:
    """PSNR in dB over ``where``, capped at 60; None where there is nothing to compare."""
    if not where.any():
        return None
    error = (a[where].astype(np.float64) - b[where]) ** 2
    return float(min(PSNR_CAP, 10 * np.log10(255**2 / max(error.mean(), 1e-9))))


def score_clip(
    source: np.ndarray, target: np.ndarray, edited: np.ndarray, hand: np.ndarray
) -> dict[str, float | None]:
    """The four figures of a clip; ``hand``: bool ``[t, h, w]``. None: nothing to measure on."""
    mask = edited_pixels(source, target)
    before = after = 0.0
    gains = []
    for s, t, e, m in zip(source, target, edited, mask, strict=True):
        gain = frame_gain(s, t, e, m)
        if gain is None:
            continue
        goal = t[m].astype(np.float64)
        after += float(((e[m] - goal) ** 2).sum())
        before += float(((s[m] - goal) ** 2).sum())
        gains.append(gain)
    return {
        "edit_gain": 1 - after / before if before else None,
        "ssim_gain": float(np.mean(gains)) if gains else None,
        "keep_psnr": _psnr(edited, target, ~mask),
        "hand_psnr": _psnr(edited, target, hand & ~mask),
    }


def score_unaided(
    source: np.ndarray, edited: np.ndarray, task: str, chunks: tuple[int, int]
) -> tuple[dict[str, float | None], dict[str, str]]:
    """EgoEditBench's figures that need neither download nor target: (figures, why none).

    task: of the simulator; what applies to the task of EgoEditBench that it is like is measured,
    everything for one that is like none. chunks: frames of the first and of the later chunks.
    """
    from egoedit_ros.bench.grid import Pair, to_grid
    from egoedit_ros.bench.metrics.score import score_pair

    index = np.arange(len(source))
    on_grid = (np.stack([to_grid(frame) for frame in clip]) for clip in (source, edited))
    return score_pair(Pair(*on_grid, index, index), LIKE.get(task), chunks)


def mean_of(
    rows: list[dict[str, float | None]], names: tuple[str, ...] = METRICS
) -> dict[str, float | None]:
    """Mean of each figure over the rows that have it."""
    out: dict[str, float | None] = {}
    for name in names:
        values = [r[name] for r in rows if r[name] is not None]
        out[name] = float(np.mean(values)) if values else None
    return out
