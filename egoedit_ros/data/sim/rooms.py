# SPDX-License-Identifier: Apache-2.0
"""Pictures of scenes, and what is to be known of each: where things and the hand are, what light
falls. To learn from one picture (:mod:`egoedit_ros.model.places`, :mod:`egoedit_ros.model.light`).
"""

from __future__ import annotations

import numpy as np

from egoedit_ros.data.sim.frames import pose_at
from egoedit_ros.data.sim.render import Simulator
from egoedit_ros.data.sim.scene import Scene, camera_at, draw_scene
from egoedit_ros.data.sim.vocabulary import KINDS
from egoedit_ros.model.pose import FRAME

SECONDS = 5.0
FILL = (0, 1, -1)  # where the fill shines to
CAMERA = 0.3  # what comes from the camera


def light_at(scene: Scene, time: float) -> np.ndarray:
    """The light at ``time`` (s) as the camera sees it: float32 ``[LIGHT]``."""
    _, axes = camera_at(scene, time)
    seen = axes * [1, -1, -1]  # right, down, away

    def towards(shines: tuple) -> np.ndarray:
        return -(np.asarray(shines) / np.linalg.norm(shines)) @ seen

    light = scene.light
    parts = [light["ambient"], light["key"], light["fill"][:1], [CAMERA]]
    return np.concatenate([*parts, towards(light["dir"]), towards(FILL)]).astype(np.float32)


def film_room(simulator: Simulator, seed: int, pictures: int = 3) -> dict[str, np.ndarray]:
    """Some moments of a scene. pictures: uint8 ``[P, h, w, 3]``; lights: ``[P, LIGHT]``; hands:
    frame and curl ``[P, FRAME + 1]``; things: of each picture's, its number, its kind's, and its
    frame ``[T, 2 + FRAME]``."""
    scene, rng = draw_scene(seed, SECONDS), np.random.default_rng([seed, 11])
    size = simulator.size
    out: dict[str, list] = {name: [] for name in ("pictures", "lights", "hands", "things")}
    for number, time in enumerate(scene.start + rng.uniform(0, SECONDS, pictures)):
        poses = [pose_at(scene, i, float(time), size) for i in range(len(scene.things))]
        for thing, pose in zip(scene.things, poses, strict=True):
            about = [number, KINDS.index(thing.kind)]
            out["things"].append(np.concatenate([about, pose[:FRAME]]).astype(np.float32))
        out["hands"].append(poses[0][FRAME:])
        out["lights"].append(light_at(scene, float(time)))
        out["pictures"].append(simulator.render_frame(scene, float(time)))
    return {name: np.stack(rows) for name, rows in out.items()}
