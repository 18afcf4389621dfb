# SPDX-License-Identifier: Apache-2.0
"""What was edited follows the camera's motion: a temporal filter along the source's optical flow.

Each latent frame is decoded by itself, and errors that are new four times a second are what an eye
takes for flicker. But how things move is known: the camera's own pictures show it. So the edited
picture before is carried along the source's flow (DIS, Kroeger et al. 2016) to where things are
now, and blended with what the network made: most of it at a latent frame's first picture, where
the jump would be, less in the next ones, so that the difference is made up over all of them.
Errors that differ from one latent frame to the next are averaged by the way.

Blended is only where the edit is, and only where the flow explains the camera's own picture: what
it carries wrongly there it would carry wrongly in the edit. And where what was made is quite
another thing than what is carried, it is believed: behind something that was taken away things
move as the camera's picture does not show.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

MARGIN = 16  # pixels around the edit that the flow is found in
SMALLEST = 64  # side of what it is found in
# Of 255: how far what is carried may be off, on average over 5x5 pixels, from the camera's picture
# and from what was made. By as much it counts in full, by twice as much not at all.
SOURCE_OFF, EDIT_OFF = 20, 60
GROUP = 4  # pictures of a latent frame


@dataclass(slots=True)
class _Picture:
    """Source and edited ``[h, w, 3]`` uint8 of the picture before."""

    source: np.ndarray
    edited: np.ndarray


class Steadier:
    """Holds a stream's picture before. weights: of what is carried, 0..1, for each of a latent
    frame's pictures."""

    def __init__(self, weights: tuple[float, ...]) -> None:
        self.weights = weights
        self._last: _Picture | None = None
        self._flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
        self._flow.setFinestScale(0)
        self._flow.setVariationalRefinementIterations(0)  # half of the time, and no worse here

    def __call__(
        self, source: np.ndarray, edited: np.ndarray, mask: np.ndarray, first: bool, joins: bool
    ) -> np.ndarray:
        """A chunk's edited pictures, steadied: uint8 ``[n, h, w, 3]`` rgb, mask ``[n, h, w]``.

        first: the chunk begins its stream, with a latent frame of one picture. joins: the picture
        before shows the same edit.
        """
        if not joins:
            self._last = None
        box = _box(mask)
        if box is not None:
            edited = edited.copy()
            for index in range(len(edited)):
                weight = self.weights[(index - first) % GROUP]
                if self._last is not None and weight:
                    self._blend(source[index], edited[index], mask[index], box, weight)
                self._last = _Picture(source[index], edited[index])
        self._last = _Picture(source[-1].copy(), edited[-1].copy())
        return edited

    def _blend(self, source, edited, mask, box, weight: float) -> None:
        before = self._last
        now, past = source[box], before.source[box]
        flow = self._flow.calc(*(cv2.cvtColor(x, cv2.COLOR_RGB2GRAY) for x in (now, past)), None)
        height, width = flow.shape[:2]
        flow[..., 0] += np.arange(width, dtype=np.float32)
        flow[..., 1] += np.arange(height, dtype=np.float32)[:, None]
        carried, seen = (
            cv2.remap(x, flow, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
            for x in (before.edited[box], past)
        )
        here = edited[box]
        share = mask[box] * np.float32(weight / 255)
        for one, other, most in ((seen, now, SOURCE_OFF), (carried, here, EDIT_OFF)):
            off = cv2.blur(cv2.absdiff(one, other).max(-1), (5, 5))
            share *= np.clip(2 - off / np.float32(most), 0, 1)
        change = (carried.astype(np.float32) - here) * share[..., None]
        here[:] = np.rint(here + change).astype(np.uint8)


def _box(mask: np.ndarray) -> tuple[slice, slice] | None:
    """Where in a chunk's pictures the edit is, with a margin; None: nowhere."""
    there = mask.any(0)
    sides = []
    for axis in (1, 0):
        found = np.flatnonzero(there.any(axis))
        if not len(found):
            return None
        size = there.shape[1 - axis]
        begin, end = found[0] - MARGIN, found[-1] + 1 + MARGIN
        short = max(0, SMALLEST - (end - begin))
        begin = max(0, min(begin - short // 2, size - SMALLEST))
        sides.append(slice(begin, min(size, max(end + short, begin + SMALLEST))))
    return sides[0], sides[1]
