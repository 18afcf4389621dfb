# SPDX-License-Identifier: Apache-2.0
"""What was edited follows the camera's motion: a temporal filter along the source's optical flow.

Each latent frame is decoded by itself, and errors that are new four times a second are what an eye
takes for flicker. But how things move is known: the camera's own pictures show it. So the edited
picture before is carried along the source's flow (DIS, Kroeger et al. 2016) to where things are
now, and blended with what the network made: most of it at a latent frame's first picture, where
the jump would be, less in the next ones, so that the difference is made up over all of them.
Errors that differ from one latent frame to the next are averaged by the way.

Blended is where the edit is or was, and only where the flow explains the camera's own picture:
what it carries wrongly there it would carry wrongly in the edit. Colours that are carried are held
near those that were made around their place, as temporal antialiasing does it (Karis 2014), so that
nothing leaves a trail: at first not very near, or the jump would be back, then nearer.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

MARGIN = 8  # pixels around the edit that the flow is found in
SMALLEST = 64  # side of what it is found in
# Of 255: how far the camera's picture may be off, on average over 5x5 pixels, from what the flow
# makes of the one before. By as much, carried pixels count in full; by twice as much not at all.
SOURCE_OFF = 20
# For each of a latent frame's pictures: how far a carried colour may be from the mean of what was
# made around it (5x5), in deviations of those and, beside that, of 255.
DEVIATIONS = (2.0, 1.5, 1.0, 1.0)
NEAR = (50.0, 20.0, 8.0, 2.0)
# Less is not carried: it would spread from picture to picture and never be nothing.
FAINTEST = 1 / 8
GROUP = 4  # pictures of a latent frame


@dataclass(slots=True)
class _Picture:
    """Source and edited ``[h, w, 3]`` and mask ``[h, w]``, uint8, of the picture before."""

    source: np.ndarray
    edited: np.ndarray
    mask: np.ndarray


class Steadier:
    """Holds a stream's picture before. weights: of what is carried, 0..1, for each of a latent
    frame's pictures."""

    def __init__(self, weights: tuple[float, ...]) -> None:
        self.weights = weights
        self._last: _Picture | None = None
        self._flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
        self._flow.setFinestScale(0)
        # A third of the time, and no worse here.
        self._flow.setVariationalRefinementIterations(0)
        self._flow.setGradientDescentIterations(12)

    def __call__(
        self,
        source: np.ndarray,
        edited: np.ndarray,
        mask: np.ndarray,
        first: bool,
        joins: bool,
        weights: tuple[float, ...] = (),
    ) -> tuple[np.ndarray, np.ndarray]:
        """A chunk's edited pictures ``[n, h, w, 3]``, uint8 rgb, steadied, and where the edit is in
        them ``[n, h, w]``: where that is 0 they are the source's.

        first: the chunk begins its stream, with a latent frame of one picture. joins: the picture
        before shows the same edit. weights: for this chunk, instead of the usual ones.
        """
        weights = weights or self.weights
        if not joins:
            self._last = None
        there = mask.max(0)
        if self._last is not None:
            there = np.maximum(there, self._last.mask)
        box = _box(there)
        if box is not None:
            edited, mask = edited.copy(), mask.copy()
            for index in range(len(edited)):
                place = (index - first) % GROUP
                if self._last is not None and weights[place]:
                    pictures = (source[index], edited[index], mask[index])
                    self._blend(*pictures, box, place, weights[place])
                self._last = _Picture(source[index], edited[index], mask[index])
        self._last = _Picture(source[-1].copy(), edited[-1].copy(), mask[-1].copy())
        return edited, mask

    def _blend(self, source, edited, mask, box, place: int, weight: float) -> None:
        before, here = self._last, edited[box]
        now, past = source[box], before.source[box]
        flow = self._flow.calc(*(cv2.cvtColor(x, cv2.COLOR_RGB2GRAY) for x in (now, past)), None)
        height, width = flow.shape[:2]
        flow[..., 0] += np.arange(width, dtype=np.float32)
        flow[..., 1] += np.arange(height, dtype=np.float32)[:, None]
        seen, was = (_carried(x, flow, cv2.INTER_LINEAR) for x in (past, before.mask[box]))
        # What is carried many times over must not lose its edges by it.
        carried = _carried(before.edited[box], flow, cv2.INTER_CUBIC).astype(np.float32)
        share = np.maximum(mask[box], was) * np.float32(weight / 255)
        red, green, blue = cv2.split(cv2.absdiff(seen, now))
        off = cv2.blur(cv2.max(cv2.max(red, green), blue), (5, 5))
        share *= np.clip(2 - off / np.float32(SOURCE_OFF), 0, 1)
        share[share < FAINTEST] = 0
        mean, spread = _around(here)
        room = DEVIATIONS[place] * spread + NEAR[place]
        change = np.clip(carried, mean - room, mean + room) - here
        here[:] = cv2.add(here, change * share[..., None], dtype=cv2.CV_8U)
        mask[box] = np.maximum(mask[box], np.ceil(share * 255).astype(np.uint8))


def _carried(picture: np.ndarray, flow: np.ndarray, how: int) -> np.ndarray:
    return cv2.remap(picture, flow, None, how, borderMode=cv2.BORDER_REPLICATE)


def _around(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of each pixel's 5x5 neighbours, float32 ``[h, w, 3]``."""
    values = picture.astype(np.float32)
    mean, square = cv2.blur(values, (5, 5)), cv2.blur(values * values, (5, 5))
    return mean, np.sqrt(np.maximum(square - mean * mean, 0))


def _box(there: np.ndarray) -> tuple[slice, slice] | None:
    """Where ``there`` [h, w] is not 0, with a margin; None: nowhere."""
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
