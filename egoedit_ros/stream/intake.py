# SPDX-License-Identifier: Apache-2.0
"""Where frames wait for the worker, and where each one that does not come out is counted."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass

from egoedit_ros.errors import UserError
from egoedit_ros.stream.names import DROP_CAUSES
from egoedit_ros.stream.types import POLICIES


class Counters:
    """Frames in, out and dropped by cause; thread-safe.

    ``frames_in == frames_out + sum(dropped) + frames inside`` at any moment.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.frames_in = 0
        self.frames_out = 0
        self.dropped = dict.fromkeys(DROP_CAUSES, 0)

    def came_in(self, count: int = 1) -> None:
        with self._lock:
            self.frames_in += count

    def went_out(self, count: int = 1) -> None:
        with self._lock:
            self.frames_out += count

    def drop(self, cause: str, count: int = 1) -> None:
        with self._lock:
            self.dropped[cause] += count

    def lost_on_the_way(self, count: int) -> None:
        """Frames sent that never arrived: in, and dropped by transport."""
        with self._lock:
            self.frames_in += count
            self.dropped["transport"] += count

    def snapshot(self) -> tuple[int, int, dict[str, int]]:
        """(frames_in, frames_out, dropped by cause), all of one moment."""
        with self._lock:
            return self.frames_in, self.frames_out, dict(self.dropped)

    @property
    def inside(self) -> int:
        """Frames that came in and neither went out nor were dropped."""
        frames_in, frames_out, dropped = self.snapshot()
        return frames_in - frames_out - sum(dropped.values())


@dataclass(slots=True, frozen=True)
class Arrival:
    """A message as it came in; decoding it is the worker's work."""

    stamp_ns: int
    message: object
    arrival_ns: int
    transport_ms: float
    generation: int


class Intake:
    """Queue between the executor, which only stores, and the worker, which takes.

    policy ``all`` keeps every frame. policy ``latest`` keeps the newest ``capacity`` frames, one
    chunk of them, so that a slow editor falls behind by no more than that; the others are counted
    as dropped by policy. A stamp before the last one, or another size, starts a new stream: what
    waited is dropped, and :attr:`generation` goes up so that the worker drops what it holds.
    """

    def __init__(self, policy: str, capacity: int, counters: Counters | None = None) -> None:
        if policy not in POLICIES:
            raise UserError(f"policy is {policy!r}; use one of: {', '.join(POLICIES)}")
        self.policy = policy
        self.capacity = max(1, capacity)
        self.counters = counters or Counters()
        self.generation = 0
        self.last_arrival_ns = 0
        self.last_stamp_ns: int | None = None
        self._last_size: tuple[int, int] | None = None
        self._frames: deque[Arrival | Callable[[], None]] = deque()
        self._depth = 0
        self._actions: deque[Callable[[], None]] = deque()
        self._ready = threading.Condition()
        # Held while a frame goes out, so that none of the old stream follows a restart.
        self._gate = threading.RLock()

    def __len__(self) -> int:
        """Frames waiting."""
        return self._depth

    def offer(
        self,
        stamp_ns: int,
        message: object,
        size: tuple[int, int] | None = None,
        transport_ms: float = 0.0,
        arrival_ns: int | None = None,
    ) -> str | None:
        """Store a frame. Returns why a new stream began with it, or None.

        size: (width, height) where the message tells without being decoded.
        """
        arrival_ns = time.perf_counter_ns() if arrival_ns is None else arrival_ns
        self.counters.came_in()
        reason = None
        if self.last_stamp_ns is not None and stamp_ns < self.last_stamp_ns:
            reason = f"stamps went back by {(self.last_stamp_ns - stamp_ns) / 1e9:.3f} s"
        elif size is not None and self._last_size is not None and size != self._last_size:
            reason = "size went from {}x{} to {}x{}".format(*self._last_size, *size)
        if reason is not None:
            self.restart()
        with self._ready:
            self.last_stamp_ns, self._last_size = stamp_ns, size or self._last_size
            self.last_arrival_ns = arrival_ns
            if self.policy == "latest" and self._depth >= self.capacity:
                self._drop_oldest()
            self._frames.append(
                Arrival(stamp_ns, message, arrival_ns, transport_ms, self.generation)
            )
            self._depth += 1
            self._ready.notify()
        return reason

    def post(self, action: Callable[[], None], after_frames: bool = False) -> None:
        """Have the worker call ``action``: next, or after the frames that wait now."""
        with self._ready:
            (self._frames if after_frames else self._actions).append(action)
            self._ready.notify()

    def take(self, timeout: float) -> Arrival | Callable[[], None] | None:
        """Next action or frame; None when there was none for ``timeout`` seconds."""
        with self._ready:
            if not self._actions and not self._frames:
                self._ready.wait(timeout)
            if self._actions:
                return self._actions.popleft()
            if not self._frames:
                return None
            item = self._frames.popleft()
            if isinstance(item, Arrival):
                self._depth -= 1
            return item

    def restart(self) -> int:
        """Forget the stream: drop what waits, let nothing older out. Returns how many waited."""
        with self._gate, self._ready:
            self.generation += 1
            dropped = self._depth
            # Actions that waited behind the frames (a flush) still have someone waiting for them.
            self._actions.extend(i for i in self._frames if not isinstance(i, Arrival))
            self._frames.clear()
            self._depth = 0
            self.last_stamp_ns = self._last_size = None
            self._ready.notify()
        self.counters.drop("policy", dropped)
        return dropped

    @contextmanager
    def going_out(self, generation: int):
        """Yields whether a frame of that generation may still go out; holds off a restart."""
        with self._gate:
            yield generation == self.generation

    def _drop_oldest(self) -> None:
        for index, item in enumerate(self._frames):
            if isinstance(item, Arrival):
                del self._frames[index]
                self._depth -= 1
                self.counters.drop("policy")
                return
