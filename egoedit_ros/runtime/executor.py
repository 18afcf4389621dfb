# SPDX-License-Identifier: Apache-2.0
"""Runs a chunk through a row of stages, several chunks at a time, in order.

One scheduling logic for every device: each lane is a thread that serves some neighbouring stages.
What a lane does around a piece of work (set its thread count, make a CUDA stream current, wait for
the event of the stage before) is the lane's own, see :class:`Lane`, cpu.py and cuda.py.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any


class Cancelled(Exception):
    """The chunk was dropped: by :meth:`Executor.cancel`, or because one before it failed."""


@dataclass(frozen=True, slots=True)
class Stage:
    """A named step of a chunk's way: takes what the stage before returned."""

    name: str
    work: Callable[[Any], Any]


class Lane:
    """How stages run that share one thread. This one does nothing special.

    All methods but the constructor are called in the lane's own thread.
    """

    def open(self) -> None:
        """Before the first piece of work."""

    def run(self, stage: Stage, item: Any, mark: Any) -> tuple[Any, Any]:
        """Do a stage's work. mark: what the stage before left to wait for, None at first.

        Returns the result and what the next stage has to wait for.
        """
        return stage.work(item), mark

    def close(self) -> None:
        """After the last."""


@dataclass(frozen=True, slots=True)
class Span:
    """When a chunk was in a stage, in ns of ``time.perf_counter_ns``."""

    stage: str
    chunk: int
    begin_ns: int
    end_ns: int


class Ticket:
    """A chunk that was handed in; :meth:`result` waits for what comes of it."""

    def __init__(self, chunk: int) -> None:
        self.chunk = chunk
        self._done = threading.Event()
        self._value: Any = None
        self._error: BaseException | None = None

    @property
    def done(self) -> bool:
        return self._done.is_set()

    def result(self, timeout: float | None = None) -> Any:
        """The last stage's result. Raises what a stage raised, Cancelled or TimeoutError."""
        if not self._done.wait(timeout):
            raise TimeoutError(f"chunk {self.chunk} is not done")
        if self._error is not None:
            raise self._error
        return self._value

    def _settle(self, value: Any, error: BaseException | None) -> None:
        self._value, self._error = value, error
        self._done.set()


@dataclass(slots=True)
class _Job:
    ticket: Ticket
    item: Any
    mark: Any = None


class Executor:
    """Overlaps chunks: while one is in a stage, the next may be in the stage before.

    plan: lanes in the order of the way, each with the stages that it serves one after another.
    depth: chunks inside at a time; :meth:`submit` waits while there are as many (back-pressure).

    Chunks stay in order in every stage. A chunk is edited in the light of those before it, so when
    a stage raises, its chunk's ticket raises that, the chunks behind it are cancelled, those before
    it come out, and nothing is taken in until :meth:`restart`.
    """

    def __init__(self, plan: Sequence[tuple[Lane, Sequence[Stage]]], depth: int = 3) -> None:
        if depth < 1 or not plan or not all(stages for _, stages in plan):
            raise ValueError("an executor needs a stage in every lane, and a depth of 1 or more")
        self.depth = depth
        self.timeline: deque[Span] = deque(maxlen=4096)
        self._changed = threading.Condition()
        self._inside = 0
        self._next_chunk = 0
        self._dropped_from: int | None = None  # chunks from this number on are not to be run
        self._failure: BaseException | None = None
        self._closed = False
        self._inboxes: list[queue.SimpleQueue[_Job | None]] = [queue.SimpleQueue() for _ in plan]
        self._threads = [
            threading.Thread(
                target=self._serve, args=(i, lane, list(stages)), name=f"lane-{i}", daemon=True
            )
            for i, (lane, stages) in enumerate(plan)
        ]
        for thread in self._threads:
            thread.start()

    def wait_for_room(self, timeout: float | None = None) -> None:
        """Wait until a chunk can be handed in.

        Raises TimeoutError if there was no room in time, RuntimeError after a failure (until
        :meth:`restart`) and after :meth:`close`.
        """
        with self._changed:
            if not self._changed.wait_for(
                lambda: self._inside < self.depth or self._closed or self._failure, timeout
            ):
                raise TimeoutError(f"{self._inside} chunks are inside already")
            if self._closed:
                raise RuntimeError("the executor is closed")
            if self._failure is not None:
                raise RuntimeError(f"a chunk failed ({self._failure}); call restart")

    def submit(self, item: Any, timeout: float | None = None) -> Ticket:
        """Hand a chunk in. Waits and raises as :meth:`wait_for_room` does."""
        with self._changed:
            self.wait_for_room(timeout)
            job = _Job(Ticket(self._next_chunk), item)
            self._next_chunk += 1
            self._inside += 1
            self._inboxes[0].put(job)
        return job.ticket

    def map(self, items: Iterable[Any]) -> Iterator[Any]:
        """Results of all items, in order; hands in as many ahead as there is room for."""
        waiting: deque[Ticket] = deque()
        for item in items:
            waiting.append(self.submit(item))
            while waiting and (waiting[0].done or len(waiting) >= self.depth):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def cancel(self) -> None:
        """Drop the chunks inside; on return no stage is at work. A stage cannot be interrupted."""
        with self._changed:
            self._drop_from(0)
            self._changed.wait_for(lambda: not self._inside)
            if self._failure is None:
                self._dropped_from = None

    def restart(self) -> None:
        """Take chunks in again after a failure; what is inside is dropped first."""
        self.cancel()
        with self._changed:
            self._failure = self._dropped_from = None

    def close(self) -> None:
        """Drop what is inside and end the threads."""
        with self._changed:
            self._closed = True
            self._drop_from(0)
            self._changed.notify_all()
        self._inboxes[0].put(None)
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> Executor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _drop_from(self, chunk: int) -> None:
        first = self._dropped_from
        self._dropped_from = chunk if first is None else min(first, chunk)

    def _is_dropped(self, chunk: int) -> bool:
        with self._changed:
            return self._dropped_from is not None and chunk >= self._dropped_from

    def _serve(self, index: int, lane: Lane, stages: list[Stage]) -> None:
        """A lane's thread: jobs in order, each to the next lane or, from the last, to its owner."""
        last = index + 1 == len(self._inboxes)
        broken: BaseException | None = None
        try:
            lane.open()
        except BaseException as error:
            broken = error
        while (job := self._inboxes[index].get()) is not None:
            error = broken or self._through(lane, stages, job)
            if error is not None:
                self._leave(job, error)
            elif last:
                self._leave(job, None)
            else:
                self._inboxes[index + 1].put(job)
        if not last:
            self._inboxes[index + 1].put(None)
        if broken is None:
            lane.close()

    def _through(self, lane: Lane, stages: list[Stage], job: _Job) -> BaseException | None:
        """Take a job through a lane's stages; what went wrong, or None."""
        for stage in stages:
            if self._is_dropped(job.ticket.chunk):
                return Cancelled(f"chunk {job.ticket.chunk} was dropped before {stage.name}")
            begin = time.perf_counter_ns()
            try:
                job.item, job.mark = lane.run(stage, job.item, job.mark)
            except BaseException as error:
                return error
            self.timeline.append(Span(stage.name, job.ticket.chunk, begin, time.perf_counter_ns()))
        return None

    def _leave(self, job: _Job, error: BaseException | None) -> None:
        with self._changed:
            chunk = job.ticket.chunk
            if error is None and self._dropped_from is not None and chunk >= self._dropped_from:
                error = Cancelled(f"chunk {chunk} was dropped")
            if error is not None and not isinstance(error, Cancelled):
                self._failure = self._failure or error
                self._drop_from(chunk + 1)
            job.ticket._settle(job.item, error)
            self._inside -= 1
            self._changed.notify_all()
