# SPDX-License-Identifier: Apache-2.0
"""Stage ``room_views``: pictures of rooms, and what is known of each
(:mod:`egoedit_ros.data.sim.rooms`), for the stages ``places`` and ``lights``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from egoedit_ros.data.clip import cannot_write
from egoedit_ros.data.crew import run_crew
from egoedit_ros.data.sim.vocabulary import EVALUATION_SEED
from egoedit_ros.errors import UserError


@dataclass(frozen=True)
class RoomViews:
    """seeds: rows of (first, count) of scenes that are filmed."""

    seeds: tuple = ((720_000, 1000),)
    workers: int | None = None

    def all(self) -> list[int]:
        """Raises UserError for no seed, and for those that are kept for evaluation."""
        try:
            seeds = [first + i for first, count in self.seeds for i in range(count)]
        except (TypeError, ValueError):
            seeds = []
        if not seeds or min(seeds) < 0 or max(seeds) >= EVALUATION_SEED:
            raise UserError(
                f"room_views: seeds are {self.seeds!r}; give rows of [first, count] below "
                f"{EVALUATION_SEED}, from where on they are for evaluation"
            )
        return seeds


def _work(folder: Path, seeds: list[int], put) -> None:
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    from egoedit_ros.data.sim.render import Simulator
    from egoedit_ros.data.sim.rooms import film_room

    simulator = Simulator()
    for seed in seeds:
        path = folder / f"{seed}.safetensors"
        part = path.with_suffix(f".{os.getpid()}.part")
        try:
            save_file(film_room(simulator, seed), part)
            part.replace(path)
        except (SafetensorError, OSError) as error:
            raise cannot_write(path, error) from None
        finally:
            part.unlink(missing_ok=True)
        put(seed)


def make_rooms(folder: Path, views: RoomViews) -> Iterator[tuple[int, int]]:
    """Film the missing scenes, one file a scene; yields (done, of)."""
    seeds = views.all()
    folder.mkdir(parents=True, exist_ok=True)
    missing = [seed for seed in seeds if not (folder / f"{seed}.safetensors").exists()]
    done = len(seeds) - len(missing)
    yield done, len(seeds)
    if missing:
        for _ in run_crew(_work, folder, missing, views.workers, "rooms"):
            done += 1
            yield done, len(seeds)


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
