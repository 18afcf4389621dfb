# SPDX-License-Identifier: Apache-2.0
"""How steady an edited clip is: flow-compensated difference, flicker, jumps at chunk borders.

Pictures are uint8 ``[n, h, w, 3]`` rgb, the source's and the edit's of the same moments. All is
measured at 256x192, against what the source itself does.
"""

from __future__ import annotations

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


def small(frames: np.ndarray) -> np.ndarray:
    """The clip at 256x192, uint8."""
    return np.stack([cv2.resize(f, SIZE, interpolation=cv2.INTER_AREA) for f in frames])


def warp_errors(source: np.ndarray, edited: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean absolute difference of each frame to the one before it, moved by the source's flow.

    Takes clips as :func:`small` makes them. Returns float ``[n-1]`` in grey levels, of the source
    and of the edit; NaN where the source's flow holds nowhere (a cut).
    """
    flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    greys = [cv2.cvtColor(f, cv2.COLOR_RGB2GRAY) for f in source]
    height, width = greys[0].shape
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    found = np.full((2, len(greys) - 1), np.nan)
    for i, (before, after) in enumerate(zip(greys, greys[1:], strict=False)):
        back = flow.calc(after, before, None)
        forth = flow.calc(before, after, None)
        to_x, to_y = x + back[..., 0], y + back[..., 1]
        returned = cv2.remap(forth, to_x, to_y, cv2.INTER_LINEAR)
        visible = np.hypot(*np.moveaxis(back + returned, -1, 0)) < MOST_MISS
        visible &= (to_x >= 0) & (to_x <= width - 1) & (to_y >= 0) & (to_y <= height - 1)
        if visible.mean() < FEWEST_VISIBLE:
            continue
        for row, clip in enumerate((source, edited)):
            moved = cv2.remap(clip[i], to_x, to_y, cv2.INTER_LINEAR).astype(np.int16)
            found[row, i] = np.abs(moved - clip[i + 1])[visible].mean()
    return found[0], found[1]


def temporal_error(errors: tuple[np.ndarray, np.ndarray]) -> float | None:
    """Flow-compensated difference of the edit over the source's own; 1 = as steady. None: cuts."""
    source, edited = (np.nanmean(e) if np.isfinite(e).any() else np.nan for e in errors)
    ratio = (edited + FLOOR) / (source + FLOOR)
    return float(ratio) if np.isfinite(ratio) else None


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
    errors: tuple[np.ndarray, np.ndarray], edited_index: np.ndarray, borders: list[int]
) -> float | None:
    """Flow-compensated difference across chunk borders over that within chunks, less the source's.

    edited_index: number in the edited file of each frame compared. 1 = no jumps. None with fewer
    than two borders.
    """
    source, edited = errors
    ratio = (edited + FLOOR) / (source + FLOOR)
    steps = zip(edited_index, edited_index[1:], strict=False)
    at = np.array([any(a < border <= z for border in borders) for a, z in steps])
    known = np.isfinite(ratio)
    if (at & known).sum() < FEWEST_BORDERS or not (~at & known).any():
        return None
    return float(ratio[at & known].mean() / ratio[~at & known].mean())
