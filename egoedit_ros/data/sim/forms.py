# SPDX-License-Identifier: Apache-2.0
"""What things and the hand look like alone, from where head cameras are: to learn their forms from.

Of each view some lines of sight are kept: where they pass, and what the picture says of them
(:mod:`egoedit_ros.model.forms`).
"""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np

from egoedit_ros.data.sim.frames import body_at, pose_at
from egoedit_ros.data.sim.render import Simulator
from egoedit_ros.data.sim.scene import Scene, camera_at, draw_scene
from egoedit_ros.data.sim.vocabulary import KINDS
from egoedit_ros.model.forms import OUTLINE
from egoedit_ros.model.pose import FRAME, UNIT

SIZE = (768, 576)  # finer than what is edited: outlines between pixels
LINES = 1200  # kept of a view
REACH = 2.6  # units from the origin
LEAST = 300  # pixels of the body in a view
SECONDS = 5.0
USUAL_ROWS = 192


def outline(inside: np.ndarray, unit: float) -> np.ndarray:
    """How far each pixel is inside (positive) or outside of a mask, in units of ``unit`` pixels."""
    if not inside.any():
        return np.full(inside.shape, -OUTLINE, np.float32)
    within = cv2.distanceTransform(inside.astype(np.uint8), cv2.DIST_L2, 5)
    beyond = cv2.distanceTransform((~inside).astype(np.uint8), cv2.DIST_L2, 5)
    far = np.where(inside, within - 0.5, 0.5 - beyond) / unit
    return np.clip(far, -OUTLINE, OUTLINE).astype(np.float32)


def faces(depth: np.ndarray, focal: float) -> np.ndarray:
    """The normals of what a depth map (m) shows, as the camera sees them (right, down, away)."""
    rows, columns = depth.shape
    y, x = np.mgrid[:rows, :columns]
    points = np.stack(
        [(x - columns / 2 + 0.5) / focal, (y - rows / 2 + 0.5) / focal, 1 + 0 * x], -1
    )
    points = points * depth[..., None]
    right, down = np.gradient(points, axis=1), np.gradient(points, axis=0)
    normal = np.cross(down, right)
    return normal / np.linalg.norm(normal, axis=-1, keepdims=True).clip(1e-9)


def lines_of(simulator: Simulator, scene: Scene, time: float, kind: str, rng) -> dict | None:
    """Lines of sight on a kind of thing, or on the ``hand``, and what is to be known of each.

    None where too little of it is seen. points ``[P, 3]``, line ``[3]``, near (pixels that a unit
    is seen as, in a picture of ``USUAL_ROWS``), curl, told ``[P, TOLD]``, inside ``[P]``."""
    if kind != "hand":
        thing = replace(scene.things[0], kind=kind)
        scene = replace(scene, things=(thing,))
    pose = pose_at(scene, 0, time, SIZE)
    frame = pose[FRAME : 2 * FRAME] if kind == "hand" else pose[:FRAME]
    at, slope, line = frame[:2], frame[2:8].reshape(2, 3), frame[8:]
    if (at < 0).any() or (at >= SIZE).any():
        return None
    geoms, depth = simulator.film_body(scene, time, kind)
    inside = geoms >= 0
    if inside.sum() < LEAST:
        return None
    unit = float(np.linalg.norm(slope) / np.sqrt(2))
    far = outline(inside, unit)
    second = outline(simulator.of_second_material(geoms), unit)
    y, x = np.mgrid[: SIZE[1], : SIZE[0]]
    points = (np.stack([x, y], -1) - at) @ np.linalg.pinv(slope).T
    within = np.linalg.norm(points, axis=-1) < REACH
    weight = np.where(
        within, 0.1 + 0.9 * ((np.abs(far) < 0.15) | (np.abs(second) < 0.1)) + 0.3 * inside, 0
    )
    chosen = rng.choice(weight.size, LINES, p=weight.ravel() / weight.sum())
    focal = SIZE[1] / 2 / np.tan(np.radians(scene.camera["fovy"]) / 2)
    place, axes = camera_at(scene, time)
    origin, turn = body_at(scene, -1 if kind == "hand" else 0, time)
    ahead = -axes[:, 2] @ (origin - place)
    normal = faces(depth, focal) @ (axes * [1, -1, -1]).T @ turn
    told = np.concatenate(
        [far[..., None], second[..., None], normal, (depth[..., None] - ahead) / UNIT], -1
    )
    return {
        "points": points.reshape(-1, 3)[chosen].astype(np.float16),
        "line": line.astype(np.float32),
        "near": np.float32(unit * USUAL_ROWS / SIZE[1]),
        "curl": np.float32(pose[-1]),
        "told": told.reshape(-1, told.shape[-1])[chosen].clip(-4, 4).astype(np.float16),
        "inside": inside.ravel()[chosen],
    }


def film_forms(simulator: Simulator, seed: int, things: int = 3) -> list[dict]:
    """Views of some kinds of things in the place of a scene's first, and of the hand; kind: of each
    its number, -1 the hand's."""
    rng = np.random.default_rng([seed, 6])
    scene = draw_scene(seed, SECONDS)
    out = []
    for kind in (*rng.permutation(len(KINDS))[:things], -1, -1):
        time = scene.start + float(rng.uniform(0, SECONDS))
        name = "hand" if kind < 0 else KINDS[kind]
        lines = lines_of(simulator, scene, time, name, rng)
        if lines is not None:
            out.append(lines | {"kind": np.int64(kind)})
    return out
