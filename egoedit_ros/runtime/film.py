# SPDX-License-Identifier: Apache-2.0
"""What speed is measured on: how long a chunk takes depends on how much of it is edited."""

from __future__ import annotations

import numpy as np

INSTRUCTION = "turn the red ball blue"
WANDER = 48  # pixels that the camera goes to the right and back
PERIOD = 96  # frames of that


class Film:
    """A red ball on a patterned table, seen by a camera that wanders; endless, the same each time.

    size: (width, height). everywhere: noise instead, which the bundled editor takes for something
    to edit all over the picture: a chunk that costs much.
    """

    def __init__(self, size: tuple[int, int], everywhere: bool = False) -> None:
        self.width, height = size
        rng = np.random.default_rng(0)
        shape = (height, self.width + WANDER)
        if everywhere:
            self._wide = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
        else:
            self._wide = _table(shape, rng)
        self._taken = 0

    def take(self, count: int) -> np.ndarray:
        """The next ``count`` frames, uint8 ``[count, h, w, 3]`` rgb."""
        frames = np.arange(self._taken, self._taken + count)
        self._taken += count
        places = np.rint(WANDER * (0.5 - 0.5 * np.cos(2 * np.pi * frames / PERIOD))).astype(int)
        return np.stack([self._wide[:, p : p + self.width] for p in places])


def _table(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """The ball is a third of the picture high: 7 % of its pixels in that of ``edge``."""
    import cv2

    height, width = shape
    coarse = rng.uniform(110, 160, (max(2, height // 16), max(2, width // 16))).astype(np.float32)
    wood = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    picture = wood[..., None] * np.array([1.05, 1.0, 0.85], np.float32)
    radius = height / 6
    rows, columns = np.indices(shape, np.float32)
    down, right = (rows - 0.55 * height) / radius, (columns - 0.5 * width) / radius
    distance = np.sqrt(down**2 + right**2)
    shadow = np.clip(1.6 - np.hypot(down - 0.9, 0.6 * (right - 0.3)), 0.0, 0.5)
    picture *= 1 - shadow[..., None]
    lit = np.clip(0.75 - 0.35 * down - 0.2 * right, 0.25, 1.1)[..., None]
    ball = lit * np.array([205, 35, 30], np.float32)
    inside = np.clip((1 - distance) * radius, 0, 1)[..., None]
    return np.clip(np.rint(picture + inside * (ball - picture)), 0, 255).astype(np.uint8)
