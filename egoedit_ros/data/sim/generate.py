# SPDX-License-Identifier: Apache-2.0
"""Writes clips of the simulator to disk: one safetensors file a seed, resumable, on all cores."""

from __future__ import annotations

import json
import multiprocessing as mp
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from queue import Empty

import numpy as np

from egoedit_ros.data.sim.scene import draw_edits, draw_scene
from egoedit_ros.errors import UserError

FRAMES = 13


@dataclass(frozen=True, slots=True)
class StoredClip:
    """A clip read back. source, targets ``[n_edits]``: uint8 ``[t, h, w, 3]``; hand: bool."""

    seed: int
    tasks: list[str]
    instructions: list[str]
    source: np.ndarray
    targets: list[np.ndarray]
    hand: np.ndarray


def clip_path(folder: Path, seed: int) -> Path:
    return folder / f"{seed:08d}.safetensors"


def write_clip(simulator, folder: Path, seed: int, frames: int, edits: int) -> None:
    """Render the clip of ``seed`` and put it in ``folder``, whole or not at all."""
    from safetensors.numpy import save_file

    scene = draw_scene(seed, frames / 16)
    clip = simulator.render_clip(scene, draw_edits(scene, edits), frames)
    arrays = {"source": clip.source, "hand": np.packbits(clip.hand, axis=-1)}
    arrays |= {f"target{i}": t for i, t in enumerate(clip.targets)}
    meta = {
        "seed": seed,
        "tasks": [e.task for e in clip.edits],
        "instructions": [e.instruction for e in clip.edits],
    }
    part = clip_path(folder, seed).with_suffix(f".{os.getpid()}.part")
    save_file(arrays, part, metadata={"clip": json.dumps(meta)})
    part.replace(clip_path(folder, seed))


def read_clip(path: Path) -> StoredClip:
    """Read one clip. Raises UserError when the file is not one of ours or is cut short."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            meta = json.loads(file.metadata()["clip"])
            source = file.get_tensor("source")
            hand = np.unpackbits(file.get_tensor("hand"), axis=-1).astype(bool)
            targets = [file.get_tensor(f"target{i}") for i in range(len(meta["tasks"]))]
    except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
        raise UserError(f"{path} is no simulator clip ({error}); delete it and run again") from None
    return StoredClip(meta["seed"], meta["tasks"], meta["instructions"], source, targets, hand)


def _work(folder: str, seeds: list[int], size: tuple[int, int], frames: int, edits: int, done):
    from egoedit_ros.data.sim.render import Simulator

    simulator = Simulator(*size)
    for seed in seeds:
        write_clip(simulator, Path(folder), seed, frames, edits)
        done.put(seed)


def generate(
    folder: Path,
    first_seed: int,
    count: int,
    size: tuple[int, int] = (256, 192),
    frames: int = FRAMES,
    edits: int = 3,
    workers: int | None = None,
) -> Iterator[int]:
    """Write the missing clips of ``count`` seeds; yields how many exist after each one."""
    folder.mkdir(parents=True, exist_ok=True)
    seeds = range(first_seed, first_seed + count)
    missing = [s for s in seeds if not clip_path(folder, s).exists()]
    workers = max(1, min(workers or os.cpu_count() or 1, len(missing)))
    context = mp.get_context("spawn")  # an EGL context does not survive a fork
    done = context.Queue()
    crew = [
        context.Process(
            target=_work, args=(str(folder), missing[i::workers], size, frames, edits, done)
        )
        for i in range(workers)
        if missing[i::workers]
    ]
    for process in crew:
        process.start()
    made = count - len(missing)
    yield made
    try:
        while made < count:
            try:
                done.get(timeout=1.0)
            except Empty:
                dead = [p for p in crew if p.exitcode not in (None, 0)]
                if dead:
                    raise UserError(
                        f"a simulator process ended with code {dead[0].exitcode}; what it wrote "
                        "is kept: run the same command again to go on"
                    ) from None
                continue
            made += 1
            yield made
    finally:
        for process in crew:
            if made < count:
                process.terminate()
            process.join()
