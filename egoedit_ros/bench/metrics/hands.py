# SPDX-License-Identifier: Apache-2.0
"""Are the hands where they were? Landmarks by mediapipe's hand models, which its wheel carries.

The one place that imports mediapipe, which is optional.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import numpy as np

# Every so many frames: hands move slowly against the frame rate, and detection costs the most.
EVERY = 4
# A landmark counts as kept within this share of the hand's extent.
KEPT_WITHIN = 0.15
LEAST_CONFIDENCE = 0.5
FEWEST_HANDS = 3

Hands = list[np.ndarray]  # landmarks of each hand of a frame, float [21, 2] in shares of the frame


def missing() -> str | None:
    """Why hands cannot be found here, or None."""
    try:
        with _quiet():
            _detector()
    except Exception as error:  # a wheel that does not fit fails in its own way
        return f"mediapipe: {type(error).__name__}: {error}".splitlines()[0][:160]
    return None


def find_hands(frame: np.ndarray) -> Hands:
    """Up to two hands of uint8 ``[h, w, 3]`` rgb; each frame by itself."""
    with _quiet():
        found = _detector().process(np.ascontiguousarray(frame)).multi_hand_landmarks
    return [np.array([[p.x, p.y] for p in hand.landmark], np.float32) for hand in found or []]


def hands_kept(source: list[Hands], edited: list[Hands], aspect: float) -> float | None:
    """% of the landmarks of the source's hands that lie at the same place in the edit.

    source, edited: the hands of each frame looked at. aspect: width over height of the picture. A
    hand that is not found any more has lost all of its landmarks. None with fewer than three hands
    in the source.
    """
    scale = np.array([aspect, 1.0], np.float32)
    shares: list[float] = []
    for before, after in zip(source, edited, strict=True):
        # Nearest pairs first, so that a hand which is left does not stand in for one that went.
        distances = {
            (i, j): np.linalg.norm((one - two) * scale, axis=1)
            for i, one in enumerate(before)
            for j, two in enumerate(after)
        }
        kept = [0.0] * len(before)
        while distances:
            i, j = min(distances, key=lambda pair: distances[pair].mean())
            extent = float(np.linalg.norm((before[i].max(0) - before[i].min(0)) * scale))
            kept[i] = float((distances[i, j] < KEPT_WITHIN * extent).mean())
            distances = {k: d for k, d in distances.items() if k[0] != i and k[1] != j}
        shares += kept
    return 100 * float(np.mean(shares)) if len(shares) >= FEWEST_HANDS else None


@lru_cache(maxsize=1)
def _detector():
    from mediapipe.python.solutions.hands import Hands as Detector

    return Detector(
        static_image_mode=True,
        max_num_hands=2,
        model_complexity=1,
        min_detection_confidence=LEAST_CONFIDENCE,
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Swallow what mediapipe's C++ writes to the standard error output on every start."""
    keep = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(keep, 2)
        os.close(keep)
        os.close(nowhere)
