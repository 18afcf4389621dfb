# SPDX-License-Identifier: Apache-2.0
"""Effects on one object: fire and frost as geoms in the scene, glow as light in the picture.

Sizes, places and motion follow fixed rules: the instruction names the effect and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

GLOWS = {
    "glow_gold": (255.0, 190.0, 60.0),
    "glow_blue": (70.0, 140.0, 255.0),
    "glow_green": (80.0, 255.0, 110.0),
}
ICE = (0.78, 0.90, 0.98, 1.0)
SPARKS, CRYSTALS = 90, 80
# Rough shapes, for where flames start and crystals sit: half axes in m, of assets' objects.
SHAPES = {
    "ball": ("ellipsoid", (0.040, 0.040, 0.040)),
    "cube": ("box", (0.036, 0.036, 0.036)),
    "can": ("cylinder", (0.033, 0.033, 0.050)),
    "mug": ("cylinder", (0.036, 0.036, 0.042)),
    "bottle": ("ellipsoid", (0.030, 0.030, 0.070)),
    "cone": ("cone", (0.042, 0.042, 0.052)),
    "cactus": ("ellipsoid", (0.036, 0.024, 0.062)),
    "book": ("box", (0.040, 0.0155, 0.055)),
}
FLAME = np.array([(1.0, 0.92, 0.45), (1.0, 0.62, 0.10), (0.95, 0.25, 0.04), (0.35, 0.08, 0.05)])


@dataclass(frozen=True)
class Speck:
    """A small ellipsoid to draw: place (m), half axes (m), rotation ``[3, 3]``, rgba, emission."""

    place: np.ndarray
    size: tuple[float, float, float]
    turn: np.ndarray
    rgba: tuple[float, float, float, float]
    emission: float


def specks(effect: str, kind: str, place: np.ndarray, turn: np.ndarray, time: float) -> list[Speck]:
    """What an effect adds around a thing of a kind at ``place`` and ``turn``.

    time: since the clip began (s), for what moves.
    """
    if effect == "fire":
        return _fire(SHAPES[kind][1], place, time)
    if effect == "frost":
        return _frost(*SHAPES[kind], place, turn)
    return []


def _fire(half: tuple[float, float, float], place: np.ndarray, time: float) -> list[Speck]:
    """Flames climb from the foot of the thing to well above it, upright however it is held."""
    rng = np.random.default_rng(20260104)
    radius, found = 0.5 * (half[0] + half[1]), []
    for angle, out, phase, rate in rng.random((SPARKS, 4)):
        age = (phase + time * (0.9 + 0.7 * rate)) % 1
        spread = radius * (1.15 - 0.95 * age * age) * (0.75 + 0.35 * out)
        sway = 0.005 * np.sin(2 * np.pi * (2 * time + phase))
        offset = (
            spread * np.cos(2 * np.pi * angle) + sway,
            spread * np.sin(2 * np.pi * angle),
            half[2] * (-0.9 + 1.6 * age) + (0.03 + 0.05 * out) * age,
        )
        wide = (0.010 + 0.005 * rate) * (0.7 + 1.2 * age * (1 - age)) * (1 - 0.5 * age)
        position = 2.999 * age
        low = int(position)
        rgb = FLAME[low] + (position - low) * (FLAME[low + 1] - FLAME[low])
        size, rgba = (wide, wide, 1.8 * wide), (*map(float, rgb), 0.7 * (1 - 0.6 * age))
        found.append(Speck(place + offset, size, np.eye(3), rgba, 1.0))
    return found


def _frost(
    shape: str, half: tuple[float, float, float], place: np.ndarray, turn: np.ndarray
) -> list[Speck]:
    """White crystals that sit on the thing and turn with it."""
    rng = np.random.default_rng(20260105)
    found = []
    for draws in rng.random((CRYSTALS, 4)):
        offset = _on_surface(shape, draws[:3]) * half
        wide = 0.003 + 0.0045 * draws[3] ** 2
        rgba = (0.97, 0.99, 1.0, 1.0)
        found.append(Speck(place + turn @ offset, (wide,) * 3, turn, rgba, 0.4))
    return found


def _on_surface(shape: str, draws: np.ndarray) -> np.ndarray:
    """A point on the surface of a shape with half axes 1, from three numbers in 0..1."""
    angle, up = 2 * np.pi * draws[0], 2 * draws[1] - 1
    around = np.array([np.cos(angle), np.sin(angle), 0.0])
    if shape == "box":
        point = 2 * draws - 1
        axis = int(3 * draws[0] * 0.9999)
        side = 3 * draws[0] - axis  # the rest of the number that chose the axis
        point[0] = 2 * side - 1
        point = np.roll(point, axis)
        point[(axis + 1) % 3] = 1.0 if draws[1] > 0.5 else -1.0
        return point
    if shape == "ellipsoid":
        return np.sqrt(1 - up**2) * around + [0, 0, up]
    if shape == "cone":
        return 0.5 * (1 - up) * around + [0, 0, up]
    top = draws[2] > 0.8  # a cylinder: a fifth of them on its lid
    return around * draws[1] + [0, 0, 1] if top else around + [0, 0, up]


def glow(picture: np.ndarray, mask: np.ndarray, color: tuple[float, float, float]) -> np.ndarray:
    """uint8 ``[h, w, 3]`` in which the things under ``mask`` (bool ``[h, w]``) shine."""
    height = picture.shape[0]
    solid = mask.astype(np.float32)
    near = cv2.GaussianBlur(solid, (0, 0), height / 192 * 5)
    wide = cv2.GaussianBlur(solid, (0, 0), height / 192 * 16)
    halo = np.clip(0.55 * near + 0.75 * wide, 0, 1)[..., None] * (1 - solid[..., None])
    light = np.array(color, np.float32)
    gray = picture.mean(-1, keepdims=True)
    lit = 0.65 * picture + 0.1 * gray + 0.4 * light
    # Not only added: on a white table the halo must show as well.
    out = picture + halo * (0.9 * light - 0.45 * picture)
    out = np.where(mask[..., None], lit, out)
    return np.clip(out, 0, 255).astype(np.uint8)
