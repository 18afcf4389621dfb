# SPDX-License-Identifier: Apache-2.0
"""Looks of the whole picture: weather, depth maps, and what an algorithm makes of any footage.

A look is a pure function of the rendered clip (and, for some, of its depth). What moves (rain,
snow) moves from the clip's first frame on, always the same way, so that the target is determined.
"""

from __future__ import annotations

import cv2
import numpy as np

from egoedit_ros.data.algorithmic import RECIPES

# Inverse depth between these distances (m) spans a depth map from white to black.
NEAREST, FARTHEST = 0.18, 3.0
FOG = (205.0, 210.0, 214.0)
WATER = (20.0, 95.0, 120.0)


def depth_map(depth: np.ndarray) -> np.ndarray:
    """float ``[t, h, w]`` in metres to uint8 ``[t, h, w, 3]``: near is white."""
    far, near = 1 / FARTHEST, 1 / NEAREST
    value = np.clip((1 / np.maximum(depth, 1e-3) - far) / (near - far), 0, 1)
    return np.repeat((255 * np.sqrt(value)).astype(np.uint8)[..., None], 3, axis=-1)


def fog(frames: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """The farther, the paler: half the light is lost at about half a metre."""
    return _mix(frames, FOG, 1 - np.exp(-1.5 * depth))


def underwater(frames: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Red is swallowed, and the distance turns blue-green."""
    tinted = frames * np.array((0.45, 0.88, 0.95), np.float32)
    return _mix(tinted, WATER, 1 - np.exp(-0.9 * depth))


def rain(frames: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """A grey day, and bright streaks that fall a tenth of the height a frame."""
    gray = frames.mean(-1, keepdims=True)
    out = 0.7 * (gray + 0.5 * (frames - gray)) + np.array((8, 12, 18))
    h, w = frames.shape[1:3]
    rng = np.random.default_rng(20260102)
    drops = rng.random((90, 3))
    for index in range(len(frames)):
        layer = np.zeros((h, w), np.float32)
        for x, y, size in drops:
            length = (0.05 + 0.06 * size) * h
            top = (y + 0.1 * index) % 1.15 * h - length
            start = (int(x * w), int(top))
            end = (int(x * w - 0.2 * length), int(top + length))
            cv2.line(layer, start, end, 0.35 + 0.25 * float(size), 1, cv2.LINE_AA)
        out[index] += layer[..., None] * (235 - out[index])
    return np.clip(out, 0, 255).astype(np.uint8)


def snow(frames: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """A pale day, and flakes that sink a fortieth of the height a frame and sway."""
    out = _mix(frames, (215.0, 222.0, 232.0), np.full(frames.shape[:3], 0.22)).astype(np.float32)
    h, w = frames.shape[1:3]
    rng = np.random.default_rng(20260103)
    flakes = rng.random((110, 4))
    for index in range(len(frames)):
        layer = np.zeros((h, w), np.float32)
        for x, y, size, phase in flakes:
            sway = 0.01 * np.sin(2 * np.pi * (index / 16 + phase))
            place = (x + sway) % 1 * w, (y + index / 40 * (0.6 + 0.8 * size)) % 1 * h
            radius = (0.006 + 0.006 * size) * h
            center = tuple(int(round(16 * p)) for p in place)
            cv2.circle(layer, center, int(16 * radius), 1.0, -1, cv2.LINE_AA, 4)
        layer = cv2.GaussianBlur(layer, (0, 0), h / 192 * 0.6)
        out[index] += layer[..., None] * (250 - out[index])
    return np.clip(out, 0, 255).astype(np.uint8)


def _mix(frames: np.ndarray, color: tuple[float, float, float], share: np.ndarray) -> np.ndarray:
    """``share`` ``[t, h, w]`` of the colour over the frames."""
    share = share[..., None].astype(np.float32)
    return (frames * (1 - share) + np.array(color, np.float32) * share).astype(np.uint8)


BY_DEPTH = {"fog": fog, "underwater": underwater}
WEATHER = {"rain": rain, "snow": snow} | BY_DEPTH


def needs_depth(look: str) -> bool:
    """Whether :func:`apply_look` looks at the depth."""
    return look == "depth" or look in BY_DEPTH


def apply_look(look: str, frames: np.ndarray, depth: np.ndarray | None) -> np.ndarray:
    """uint8 ``[t, h, w, 3]`` in a look; '' leaves them as they are.

    look: ``depth``, a name of :data:`WEATHER`, or one of the algorithmic recipes; depth: float
    ``[t, h, w]`` in metres where :func:`needs_depth` says so. Raises KeyError for other names.
    """
    if not look:
        return frames
    if look == "depth":
        return depth_map(depth)
    if look in WEATHER:
        return WEATHER[look](frames, depth)
    return RECIPES[look].run(frames)
