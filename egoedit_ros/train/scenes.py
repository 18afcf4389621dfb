# SPDX-License-Identifier: Apache-2.0
"""What stages that film scenes share: which seeds they may take, and a file a scene, or none."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from egoedit_ros.data.clip import cannot_write
from egoedit_ros.data.crew import Work, run_crew
from egoedit_ros.data.sim.vocabulary import EVALUATION_SEED
from egoedit_ros.errors import UserError


def training_seeds(stage: str, rows: tuple) -> list[int]:
    """Seeds of rows of (first, count). Raises UserError for no seed, and for those that are kept
    for evaluation."""
    try:
        seeds = [first + i for first, count in rows for i in range(count)]
    except (TypeError, ValueError):
        seeds = []
    if not seeds or min(seeds) < 0 or max(seeds) >= EVALUATION_SEED:
        raise UserError(
            f"{stage}: seeds are {rows!r}; give rows of [first, count] below {EVALUATION_SEED}, "
            "from where on they are for evaluation"
        )
    return seeds


def save_scene(folder: Path, seed: int, arrays: dict[str, np.ndarray]) -> None:
    """Write a scene's file. Raises UserError where it cannot be written."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    path = _path(folder, seed)
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        save_file(arrays, part)
        part.replace(path)
    except (SafetensorError, OSError) as error:
        raise cannot_write(path, error) from None
    finally:
        part.unlink(missing_ok=True)


def make_scenes(
    work: Work, folder: Path, seeds: list[int], workers: int | None, name: str
) -> Iterator[tuple[int, int]]:
    """Have the missing scenes' files made by ``work`` (of :func:`run_crew`, with the folder as its
    setting); yields (done, of)."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [seed for seed in seeds if not _path(folder, seed).exists()]
    done = len(seeds) - len(missing)
    yield done, len(seeds)
    if missing:
        for _ in run_crew(work, folder, missing, workers, name):
            done += 1
            yield done, len(seeds)


def _path(folder: Path, seed: int) -> Path:
    return folder / f"{seed}.safetensors"
