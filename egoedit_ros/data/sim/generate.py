# SPDX-License-Identifier: Apache-2.0
"""Writes clips of the simulator to disk: one safetensors file a seed, resumable, on all cores."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from egoedit_ros.data.clip import StoredClip, clip_path, read_clip, write_stored
from egoedit_ros.data.crew import run_crew
from egoedit_ros.data.sim.crossed import draw_crossed
from egoedit_ros.data.sim.edits import draw_task_edits
from egoedit_ros.data.sim.scene import draw_scene
from egoedit_ros.data.sim.vocabulary import TASKS
from egoedit_ros.errors import UserError

__all__ = ["FRAMES", "StoredClip", "clip_path", "generate", "read_clip", "write_clip"]

FRAMES = 13


def write_clip(
    simulator, folder: Path, seed: int, frames: int, edits: int, tasks: tuple[str, ...] = TASKS
) -> None:
    """Render the clip of ``seed`` and put it in ``folder``, whole or not at all. edits 0: crossed
    ones (:mod:`egoedit_ros.data.sim.crossed`)."""
    scene = draw_scene(seed, frames / 16)
    if not edits:
        drawn, pairs, told = draw_crossed(scene)
        clip = simulator.render_clip(scene, drawn, frames)
        names, texts = map(list, zip(*told, strict=True))
        stored = StoredClip(seed, names, texts, clip.source, clip.targets, clip.hand, "", pairs)
        write_stored(folder, stored)
        return
    drawn = draw_task_edits(scene, edits, tasks)
    clip = simulator.render_clip(scene, drawn, frames)
    names, texts = [e.task for e in drawn], [e.instruction for e in drawn]
    write_stored(folder, StoredClip(seed, names, texts, clip.source, clip.targets, clip.hand))


def _work(setting: tuple, seeds: list[int], put) -> None:
    from egoedit_ros.data.sim.render import Simulator

    folder, size, frames, edits, tasks = setting
    simulator = Simulator(*size)
    for seed in seeds:
        write_clip(simulator, folder, seed, frames, edits, tasks)
        put(seed)


def generate(
    folder: Path,
    first_seed: int,
    count: int,
    size: tuple[int, int] = (256, 192),
    frames: int = FRAMES,
    edits: int = 3,
    workers: int | None = None,
    tasks: tuple[str, ...] = TASKS,
) -> Iterator[int]:
    """Write the missing clips of ``count`` seeds; yields how many exist after each one.

    Raises UserError when a clip of the first seeds is there with other tasks, or a process dies.
    """
    folder.mkdir(parents=True, exist_ok=True)
    seeds = range(first_seed, first_seed + count)
    missing = [s for s in seeds if not clip_path(folder, s).exists()]
    there = next((s for s in seeds if clip_path(folder, s).exists()), None)
    if there is not None:
        _check_tasks(folder, there, frames, edits, tasks)
    yield count - len(missing)
    if missing:
        setting = (folder, size, frames, edits, tasks)
        done = run_crew(_work, setting, missing, workers, "simulator")
        for number, _ in enumerate(done, count - len(missing) + 1):
            yield number


def _check_tasks(folder: Path, seed: int, frames: int, edits: int, tasks: tuple[str, ...]) -> None:
    """A folder holds the clips of one command: another one's would be mixed in unseen."""
    clip, scene = read_clip(clip_path(folder, seed)), draw_scene(seed, frames / 16)
    if edits:
        wanted = [e.task for e in draw_task_edits(scene, edits, tasks)]
    else:
        wanted = [task for task, _ in draw_crossed(scene)[2]]
    if clip.tasks != wanted:
        raise UserError(
            f"{folder} has clips with other tasks ({', '.join(clip.tasks)} for seed {seed}, not "
            f"{', '.join(wanted)}); choose another folder"
        )
