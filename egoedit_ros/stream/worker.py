# SPDX-License-Identifier: Apache-2.0
"""The thread that owns the model: takes frames from the intake, edits them, hands them out."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from egoedit_ros.stream.editor import StreamEditor
from egoedit_ros.stream.intake import Arrival, Intake
from egoedit_ros.stream.latency import Rate
from egoedit_ros.stream.types import EditedFrame, Frame

IDLE_S = 0.5


@dataclass(slots=True)
class WorkerHooks:
    """What the worker calls, all from its own thread (publish and report: the pacer's if paced).

    decode: message to frame; what it raises drops the frame as an error. publish: send one frame.
    report: after a frame is out, with begin and end of its publication (``perf_counter_ns``).
    event: one line about something out of the ordinary. dropped: after frames were dropped.
    """

    decode: Callable[[Arrival], Frame]
    publish: Callable[[EditedFrame], None]
    report: Callable[[EditedFrame, int, int], None]
    event: Callable[[str], None]
    dropped: Callable[[], None]


class StreamWorker:
    """Runs one :class:`StreamEditor`, set by :attr:`editor`, in one thread.

    flush_timeout: seconds without a frame that end the stream. paced: spread a chunk's frames
    over its period. frame_period_ns: the camera's nominal period, until it is measured.
    """

    def __init__(self, intake: Intake, hooks: WorkerHooks) -> None:
        self.intake = intake
        self.editor: StreamEditor | None = None
        self.flush_timeout = 1.0
        self.paced = False
        self.frame_period_ns = int(1e9 / 16)
        self._hooks = hooks
        self._arrivals = Rate()
        self._generation = intake.generation
        self._counted_dropped = 0
        self._stopping = False
        self._pacer = _Pacer(self._send)
        self._thread = threading.Thread(target=self._run, name="stream-worker", daemon=True)
        self._thread.start()

    def call(self, function: Callable[[], Any], after_frames: bool = False) -> Future:
        """Have the worker run ``function``; its result or exception is in the future."""
        future: Future = Future()

        def action() -> None:
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

        self.intake.post(action, after_frames)
        return future

    def flush(self) -> Future:
        """End the stream once what waits is edited. The future holds how many frames that sent."""

        def action() -> int:
            self._follow_restart()
            if self.editor is None:
                return 0
            done = self.editor.flush()
            self._emit(done, self._generation)
            self._pacer.drain()
            return len(done)

        return self.call(action, after_frames=True)

    def restart(self) -> None:
        """Forget the stream: on return nothing of it comes out any more."""
        self.intake.restart()
        self._pacer.clear_soon()

    def stop(self, timeout: float = 10.0) -> None:
        """End both threads; what is inside is dropped."""
        self._stopping = True
        self.restart()
        self.intake.post(lambda: None)
        self._thread.join(timeout)
        self._pacer.stop()

    def _run(self) -> None:
        while not self._stopping:
            try:
                self._turn()
            except Exception as error:  # a fault of one turn must not end the stream
                self._hooks.event(f"stream worker: {type(error).__name__}: {error}")
        self._follow_restart()
        # Who asked for something meanwhile, a flush say, still waits for an answer.
        while (item := self.intake.take(0)) is not None:
            if isinstance(item, Arrival):
                self._drop("policy")
            else:
                item()

    def _turn(self) -> None:
        item = self.intake.take(self._patience())
        self._follow_restart()
        if isinstance(item, Arrival):
            self._edit(item)
        elif item is not None:
            item()
        elif self._stalled():
            self._emit(self._made(self.editor.flush), self._generation)

    def _patience(self) -> float:
        """Seconds to wait for something to do: no longer than until the stream times out."""
        if self.editor is None or not self.editor.streaming:
            return IDLE_S
        return min(IDLE_S, max(0.001, self.flush_timeout - self._silence()))

    def _stalled(self) -> bool:
        streaming = self.editor is not None and self.editor.streaming
        return streaming and self._silence() >= self.flush_timeout

    def _silence(self) -> float:
        return (time.perf_counter_ns() - self.intake.last_arrival_ns) / 1e9

    def _edit(self, arrival: Arrival) -> None:
        started_ns = time.perf_counter_ns()
        if arrival.generation != self._generation or self.editor is None:
            self._drop("policy")
            return
        self._arrivals.add(arrival.arrival_ns)
        try:
            frame = self._hooks.decode(arrival)
        except Exception as error:  # whatever is wrong with a picture, the next may be right
            self._hooks.event(f"frame dropped: {error}")
            self._drop("error")
            return
        frame.started_ns = started_ns
        done = self._made(lambda: self.editor.push(frame), coming=1)
        self._count_dropped()
        self._emit(done, arrival.generation)
        if done:
            self.editor.settle()

    def _made(self, work: Callable[[], list[EditedFrame]], coming: int = 0) -> list[EditedFrame]:
        """What the editor makes of the frames it holds and ``coming`` more. Faults of the model
        are its own; one beside it costs these frames, and they are counted."""
        editor = self.editor
        inside, before = editor.waiting + coming, editor.dropped
        try:
            return work()
        except Exception as error:
            self._hooks.event(f"frames dropped: {type(error).__name__}: {error}")
            editor.reset()
            self._count_dropped()
            if lost := inside - (editor.dropped - before):
                self._drop("error", lost)
            return []

    def _follow_restart(self) -> None:
        """Forget the old stream, if the intake began a new one since the last look."""
        if self._generation == self.intake.generation:
            return
        self._generation = self.intake.generation
        self._arrivals = Rate()
        if self.editor is not None:
            self.editor.reset()
            self._count_dropped()

    def _count_dropped(self) -> None:
        """Add what the editor dropped by itself to the counters."""
        if self.editor is None or self.editor.dropped == self._counted_dropped:
            return
        self._drop("policy", self.editor.dropped - self._counted_dropped)
        self._counted_dropped = self.editor.dropped

    def _drop(self, cause: str, count: int = 1) -> None:
        self.intake.counters.drop(cause, count)
        self._hooks.dropped()

    def _emit(self, done: list[EditedFrame], generation: int) -> None:
        if not done:
            return
        if self.paced:
            self._pacer.put(done, generation, self._arrivals.period_ns or self.frame_period_ns)
            return
        # Reports wait until the whole chunk is out, so that they hold up no picture.
        self._pacer.drain()
        for edited, begin_ns, end_ns in [t for e in done if (t := self._publish(e, generation))]:
            self._report(edited, begin_ns, end_ns)

    def _send(self, edited: EditedFrame, generation: int) -> None:
        """Publish and report one frame: the pacer's way."""
        sent = self._publish(edited, generation)
        if sent is not None:
            self._report(*sent)

    def _publish(self, edited: EditedFrame, generation: int) -> tuple[EditedFrame, int, int] | None:
        with self.intake.going_out(generation) as current:
            if not current:
                self._drop("policy")
                return None
            begin_ns = time.perf_counter_ns()
            try:
                self._hooks.publish(edited)
            except Exception as error:
                self._hooks.event(f"frame could not be published: {error}")
                self._drop("error")
                return None
            end_ns = time.perf_counter_ns()
            self.intake.counters.went_out()
        return edited, begin_ns, end_ns

    def _report(self, edited: EditedFrame, begin_ns: int, end_ns: int) -> None:
        try:
            self._hooks.report(edited, begin_ns, end_ns)
        except Exception as error:
            self._hooks.event(f"latency could not be reported: {error}")


class _Pacer:
    """Sends a chunk's frames one by one over the chunk's period, in a thread of its own."""

    def __init__(self, send: Callable[[EditedFrame, int], None]) -> None:
        self._send = send
        self._queue: deque[tuple[int, EditedFrame, int]] = deque()
        self._last_due_ns: int | None = None
        self._changed = threading.Condition()
        self._busy = False
        self._hurry = False
        self._stopping = False
        self._thread: threading.Thread | None = None

    def put(self, done: list[EditedFrame], generation: int, period_ns: int) -> None:
        """Schedule a chunk: after the one before, but no more than its own length from now."""
        now_ns = time.perf_counter_ns()
        with self._changed:
            first = now_ns
            if self._last_due_ns is not None:
                first = max(now_ns, self._last_due_ns + period_ns)
                first = min(first, now_ns + period_ns * len(done))
            for index, edited in enumerate(done):
                self._last_due_ns = first + index * period_ns
                self._queue.append((self._last_due_ns, edited, generation))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="pacer", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def drain(self) -> None:
        """Wait until all that is scheduled is out."""
        with self._changed:
            self._changed.wait_for(lambda: not self._queue and not self._busy)

    def clear_soon(self) -> None:
        """Let what is scheduled fall out at once; a restart has made it stale."""
        with self._changed:
            self._hurry = bool(self._queue)
            self._changed.notify_all()

    def stop(self) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(10.0)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._stopping)
                if not self._queue:
                    return
                due_ns, edited, generation = self._queue[0]
                wait_s = (due_ns - time.perf_counter_ns()) / 1e9
                if wait_s > 0 and not self._hurry and not self._stopping:
                    self._changed.wait(wait_s)
                    continue
                self._queue.popleft()
                self._busy = True
            self._send(edited, generation)
            with self._changed:
                self._busy = False
                if not self._queue:
                    self._hurry = False
                self._changed.notify_all()
