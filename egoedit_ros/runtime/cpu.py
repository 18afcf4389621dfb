# SPDX-License-Identifier: Apache-2.0
"""The CPU executor: a lane is a thread with its own share of the cores."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from egoedit_ros.runtime.executor import Lane
from egoedit_ros.runtime.film import Film
from egoedit_ros.runtime.stages import ONE_LANE, THREE_LANES, OverlappedStream

if TYPE_CHECKING:
    from egoedit_ros.stream.edit_session import EditSession


class CpuLane(Lane):
    """A thread whose tensor operations use ``threads`` cores."""

    def __init__(self, threads: int) -> None:
        self.threads = threads

    def open(self) -> None:
        # With OpenMP the count is the calling thread's own.
        torch.set_num_threads(self.threads)


@dataclass(frozen=True, slots=True)
class Split:
    """How the cores are shared: ``threads[i]`` for the stages ``groups[i]``."""

    groups: tuple[tuple[str, ...], ...]
    threads: tuple[int, ...]

    @property
    def name(self) -> str:
        return " | ".join(
            f"{'+'.join(group)}: {count}"
            for group, count in zip(self.groups, self.threads, strict=True)
        )


def candidate_splits(cores: int) -> list[Split]:
    """Ways to share ``cores`` worth measuring: one lane with all of them first."""
    splits = [Split(ONE_LANE, (cores,))]
    if cores == 1:
        return splits
    front, middle, back = THREE_LANES
    splits.append(Split((front + middle, back), (max(1, cores // 2), max(1, cores // 2))))
    splits.append(Split((front, middle + back), (max(1, cores // 4), max(1, cores * 3 // 4))))
    # The transformer gets what the autoencoder leaves; one core too many fills the gaps.
    for side in range(1, max(1, cores // 4) + 1):
        splits.append(Split(THREE_LANES, (side, max(1, cores - 2 * side), side)))
    return splits


@contextmanager
def cpu_stream(session: EditSession, split: Split, depth: int = 3) -> Iterator[OverlappedStream]:
    """The session overlapped on the CPU; the calling thread keeps its thread count."""
    threads = torch.get_num_threads()
    lanes = iter(split.threads)
    stream = OverlappedStream(
        session, lambda group: CpuLane(next(lanes)), split.groups, max(depth, len(split.groups))
    )
    try:
        yield stream
    finally:
        stream.close()
        # New threads start with the count that was set last anywhere.
        torch.set_num_threads(threads)


def measure_split(session: EditSession, split: Split, chunks: int = 12) -> float:
    """Frames per second of a steady stream with this split; the session begins anew.

    The session must have an instruction.
    """
    session.reset()
    film = Film(session.size)

    def pictures(count: int) -> Iterator[np.ndarray]:
        for _ in range(count):
            yield film.take(session.frames_needed)

    with cpu_stream(session, split) as stream:
        for _ in stream.run(pictures(session.model.config.window_chunks + 2)):
            pass
        start = time.perf_counter()
        frames = sum(len(work.picture) for work in stream.run(pictures(chunks)))
        return frames / (time.perf_counter() - start)


def best_split(
    session: EditSession, splits: Sequence[Split] | None = None, chunks: int = 12
) -> tuple[Split, dict[str, float]]:
    """Measure all splits; the fastest, and every one's frames per second by name.

    Results depend on the thread counts in the last bit, so a stream keeps the split it began with.
    """
    splits = splits or candidate_splits(torch.get_num_threads())
    figures = {split.name: measure_split(session, split, chunks) for split in splits}
    return max(splits, key=lambda split: figures[split.name]), figures
