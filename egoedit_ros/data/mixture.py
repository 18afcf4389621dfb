# SPDX-License-Identifier: Apache-2.0
"""Several folders of encoded clips as one stream of training samples, in given proportions.

EgoEdit trains on 28% EgoEditData, 52% other video edits and 20% image edits (App. B.2). Which clip
is the n-th follows from the seed and n alone, so a run resumes from its step number, and any number
of processes read the same order. In every hundred samples each source has its exact share; within a
source every clip comes once before any comes again.
"""

from __future__ import annotations

import multiprocessing as mp
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from queue import Empty
from typing import Any

import numpy as np

from egoedit_ros.data.latents import LatentClip, LatentFolder
from egoedit_ros.errors import UserError

BLOCK = 100
AHEAD = 4  # batches that each reading process keeps ready
PAPER = {"egoeditdata": 28, "videos": 52, "images": 20}


@dataclass(frozen=True)
class Source:
    """One folder of latents and its weight; tasks, share: see :class:`LatentFolder`."""

    latents: Path
    weight: float
    name: str = ""
    tasks: tuple[str, ...] | None = None
    share: float = 1.0

    @staticmethod
    def of(values: dict) -> Source:
        """From a recipe's table ``{latents, weight, name, tasks, share}``. Raises UserError."""
        known = {"latents", "weight", "name", "tasks", "share"}
        if not isinstance(values, dict) or not {"latents", "weight"} <= values.keys() <= known:
            raise UserError(
                f"the source {values!r} must name latents and weight; it may name tasks and share"
            )
        try:
            weight, share = float(values["weight"]), float(values.get("share", 1.0))
        except (TypeError, ValueError):
            weight = share = -1.0
        if not 0 < weight < float("inf") or not 0 < share <= 1:
            raise UserError(f"the source {values!r}: weight must be above 0, share in 0..1")
        tasks = values.get("tasks")
        tasks = tuple(tasks.split(",") if isinstance(tasks, str) else tasks) if tasks else None
        latents = Path(values["latents"])
        return Source(latents, weight, str(values.get("name", latents.name)), tasks, share)


@dataclass(frozen=True, slots=True)
class Drawn:
    """The n-th sample: which source, and which of its clips."""

    source: int
    clip: int


class Mixture:
    """The samples of several sources. Raises UserError for a source that has nothing, and where
    latents or texts are of different sizes."""

    def __init__(self, sources: Sequence[Source], seed: int = 0) -> None:
        if not sources:
            raise UserError("the mixture has no source; name some with latents and weight")
        self.sources, self.seed = tuple(sources), seed
        self.folders = [LatentFolder(s.latents, s.tasks, s.share) for s in self.sources]
        self.counts = _counts([s.weight for s in self.sources])
        shapes = [folder.shape() for folder in self.folders]
        for source, shape in zip(self.sources, shapes, strict=True):
            if shape != shapes[0]:
                raise UserError(
                    f"{source.latents} has latents and texts of {shape}, "
                    f"{self.sources[0].latents} of {shapes[0]}; encode all of one size, alike"
                )

    def draw(self, number: int) -> Drawn:
        """The ``number``-th sample from 0 on."""
        block, place = divmod(number, BLOCK)
        order = _order(self.seed, block, self.counts)
        source = order[place]
        # Samples of this source before this one: whole blocks, and the begun one.
        before = block * self.counts[source] + order[:place].count(source)
        turn, position = divmod(before, len(self.folders[source]))
        return Drawn(
            source, _permutation(self.seed, source, turn, len(self.folders[source]))[position]
        )

    def clip(self, number: int, frames: int = 0) -> LatentClip:
        """The ``number``-th sample, of at least ``frames`` latent frames (pictures stand still)."""
        drawn = self.draw(number)
        return self.folders[drawn.source][drawn.clip].lasting(frames)

    def batch(
        self, step: int, size: int, frames: int = 0, rank: int = 0, count: int = 1
    ) -> list[LatentClip]:
        """The clips of a step; size: of the whole batch, of which process ``rank`` of ``count``
        gets every ``count``-th."""
        return [self.clip(step * size + i, frames) for i in range(rank, size, count)]

    def arrays(self, number: int, frames: int) -> LatentClip:
        """As :meth:`clip`, with numpy arrays."""
        drawn = self.draw(number)
        return self.folders[drawn.source].arrays(drawn.clip).lasting(frames)


def _counts(weights: list[float]) -> tuple[int, ...]:
    """How many of a hundred each source has: largest remainders, and none without any."""
    exact = np.array(weights) / sum(weights) * BLOCK
    counts = np.maximum(1, np.floor(exact)).astype(int)
    while counts.sum() < BLOCK:
        counts[np.argmax(exact - counts)] += 1
    while counts.sum() > BLOCK:
        counts[np.argmax(np.where(counts > 1, counts - exact, -np.inf))] -= 1
    return tuple(int(c) for c in counts)


@lru_cache(maxsize=8)
def _order(seed: int, block: int, counts: tuple[int, ...]) -> tuple[int, ...]:
    """The sources of a block's samples."""
    order = np.repeat(np.arange(len(counts)), counts)
    return tuple(int(i) for i in np.random.default_rng([seed, 1, block]).permutation(order))


@lru_cache(maxsize=16)
def _permutation(seed: int, source: int, turn: int, length: int) -> tuple[int, ...]:
    order = np.random.default_rng([seed, 2, source, turn]).permutation(length)
    return tuple(int(i) for i in order)


def _read(mixture: Mixture, asked: tuple, first: int, step: int, out: Any) -> None:
    """A reading process: every ``step``-th batch from ``first`` on, as numpy arrays."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends us
    size, stop, frames, rank, count = asked
    for index in range(first, stop, step):
        numbers = range(index * size + rank, (index + 1) * size, count)
        try:
            # As plain bytes: tensors in shared memory would be lost with the process.
            out.put([mixture.arrays(number, frames) for number in numbers])
        except UserError as error:
            out.put(str(error))
            return


def read_batches(
    mixture: Mixture,
    size: int,
    start: int,
    stop: int,
    frames: int = 0,
    workers: int = 2,
    rank: int = 0,
    count: int = 1,
) -> Iterator[tuple[int, list[LatentClip]]]:
    """Batches of steps ``start`` to ``stop``, read ahead by processes; yields (step, clips).

    frames, rank, count: as of :meth:`Mixture.batch`. The order does not depend on the number of
    workers; 0 reads in this process. Raises UserError, as one line, for a file that cannot be read
    or a process that dies. Leaving the iterator early ends the processes.
    """
    if workers < 1:
        for step in range(start, stop):
            yield step, mixture.batch(step, size, frames, rank, count)
        return
    context = mp.get_context("spawn")
    queues = [context.Queue(maxsize=AHEAD) for _ in range(workers)]
    asked = (size, stop, frames, rank, count)
    crew = [
        context.Process(target=_read, args=(mixture, asked, start + i, workers, queue), daemon=True)
        for i, queue in enumerate(queues)
    ]
    for process in crew:
        process.start()
    try:
        for step in range(start, stop):
            which = (step - start) % workers
            clips = _take(queues[which], crew[which], step)
            if isinstance(clips, str):
                raise UserError(clips)
            yield step, [clip.tensors() for clip in clips]
    finally:
        for process in crew:
            process.terminate()
            process.join()


def _take(queue: Any, process: Any, step: int) -> Any:
    while True:
        try:
            return queue.get(timeout=1.0)
        except Empty:
            # Once more after it ended: what it put last may just have arrived.
            if process.exitcode is None or not queue.empty():
                continue
            raise UserError(
                f"a reading process ended with code {process.exitcode} at step {step}; start "
                "again from the last checkpoint, with fewer workers if memory ran out"
            ) from None
