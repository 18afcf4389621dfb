# SPDX-License-Identifier: Apache-2.0
"""Stage ``room_views``: pictures of rooms, and what is known of each
(:mod:`egoedit_ros.data.sim.rooms`), for the stages ``places`` and ``lights``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from egoedit_ros.errors import UserError
from egoedit_ros.train.scenes import make_scenes, save_scene, training_seeds


@dataclass(frozen=True)
class RoomViews:
    """seeds: rows of (first, count) of scenes that are filmed."""

    seeds: tuple = ((720_000, 1000),)
    workers: int | None = None


def _work(folder: Path, seeds: list[int], put) -> None:
    from egoedit_ros.data.sim.render import Simulator
    from egoedit_ros.data.sim.rooms import film_room

    simulator = Simulator()
    for seed in seeds:
        save_scene(folder, seed, film_room(simulator, seed))
        put(seed)


def make_rooms(folder: Path, views: RoomViews) -> Iterator[tuple[int, int]]:
    """Film the missing scenes, one file a scene; yields (done, of). Raises UserError for seeds that
    are none for training."""
    seeds = training_seeds("room_views", views.seeds)
    return make_scenes(_work, folder, seeds, views.workers, "rooms")


@dataclass(frozen=True, slots=True)
class Rooms:
    """What :func:`~egoedit_ros.data.sim.rooms.film_room` gives of all scenes of a folder."""

    pictures: np.ndarray
    lights: np.ndarray
    hands: np.ndarray
    things: np.ndarray

    @classmethod
    def read(cls, folder: Path) -> Rooms:
        """Raises UserError where the stage has left nothing."""
        from safetensors.numpy import load_file

        parts = [load_file(path) for path in sorted(folder.glob("*.safetensors"))]
        if not parts:
            raise UserError(f"no pictures in {folder}; run the stage room_views first")
        first = 0
        for part in parts:
            part["things"][:, 0] += first
            first += len(part["pictures"])
        return cls(**{name: np.concatenate([p[name] for p in parts]) for name in parts[0]})
