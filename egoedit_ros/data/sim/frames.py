# SPDX-License-Identifier: Apache-2.0
"""Where a scene's thing and hand are in the camera's picture (:mod:`egoedit_ros.model.pose`)."""

from __future__ import annotations

import numpy as np

from egoedit_ros.data.sim.assets import HALF_HEIGHT
from egoedit_ros.data.sim.scene import GRASP, Scene, camera_at, hand_at, thing_at
from egoedit_ros.model.pose import UNIT


def seen_frame(
    scene: Scene, time: float, size: tuple[int, int], origin: np.ndarray, turn: np.ndarray
) -> np.ndarray:
    """The frame of a body as the head camera sees it at ``time`` (s): ``[FRAME]``.

    size: (width, height) of the picture; origin: in m; turn: ``[3, 3]``, its axes in columns."""
    place, axes = camera_at(scene, time)
    width, height = size
    focal = height / 2 / np.tan(np.radians(scene.camera["fovy"]) / 2)
    x, y, z = axes.T @ (origin - place)  # looks along -z
    seen = np.array([width / 2 - focal * x / z, height / 2 + focal * y / z]) - 0.5
    slope = focal / -z * np.array([[1, 0, -x / z], [0, -1, y / z]])
    along = slope @ axes.T @ turn * UNIT
    line = turn.T @ (origin - place)
    return np.concatenate([seen, along.ravel(), line / np.linalg.norm(line)])


def body_at(scene: Scene, index: int, time: float) -> tuple[np.ndarray, np.ndarray]:
    """Origin (m) and axes ``[3, 3]``, in columns, of a thing at ``time`` (s), of the hand for -1.

    A thing's origin is ``UNIT`` above its base, whatever it is: what replaces it has the same."""
    if index < 0:
        arm, hand, _ = hand_at(scene, time)
        return arm + hand @ GRASP, hand
    middle, turn = thing_at(scene, index, time)
    return middle + turn @ np.array([0, 0, UNIT - HALF_HEIGHT[scene.things[index].kind]]), turn


def pose_at(scene: Scene, index: int, time: float, size: tuple[int, int]) -> np.ndarray:
    """The frames of a thing and of the hand at ``time`` (s), and its curl: float32 ``[POSE]``."""
    bodies = [seen_frame(scene, time, size, *body_at(scene, which, time)) for which in (index, -1)]
    return np.concatenate([*bodies, [hand_at(scene, time)[2]]]).astype(np.float32)
