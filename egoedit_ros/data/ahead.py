# SPDX-License-Identifier: Apache-2.0
"""Frames decoded ahead of their time, in bounded memory, round after round."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace

from egoedit_ros.data import cdr
from egoedit_ros.data.source import FrameSource, SerializedFrame, period_ns

MEBIBYTE = 1 << 20


def repeat(
    source: FrameSource, loops: int = 1, frame_id: str = "camera", fps: float = 0.0
) -> Iterator[SerializedFrame]:
    """The source's frames ``loops`` times (0: without end), restamped so that time goes on.

    Between rounds one median period passes. fps: 0 keeps the timing; else frames come evenly,
    with stamps to match.
    """
    done = shift = due_shift = 0
    while loops == 0 or done < loops:
        stamps: list[int] = []
        due = 0
        for index, frame in enumerate(source.serialized(frame_id)):
            stamp, due = frame.stamp_ns, frame.due_ns
            if fps:
                due = round(index * cdr.NANO / fps)
                stamp = (stamps[0] if stamps else stamp) + due
            stamps.append(stamp)
            if shift or stamp != frame.stamp_ns:
                data = cdr.with_stamp(frame.data, stamp + shift)
            else:
                data = frame.data
            yield replace(frame, stamp_ns=stamp + shift, due_ns=due + due_shift, data=data)
        if not stamps:
            return
        period = period_ns(stamps)
        shift += max(stamps) - min(stamps) + period
        due_shift += due + period
        done += 1


class AheadBuffer:
    """Runs an iterator of frames in a thread of its own and keeps what it gives in memory.

    The thread waits while more than ``max_bytes`` lie ready (but one frame always fits). What the
    iterator raises comes out of :meth:`__next__` after the frames before it.
    """

    def __init__(
        self,
        frames: Iterator[SerializedFrame],
        max_bytes: int = 256 * MEBIBYTE,
        convert: Callable[[SerializedFrame], SerializedFrame | None] | None = None,
    ) -> None:
        self._frames = frames
        self._convert = convert
        self._max_bytes = max_bytes
        self._ready: deque[SerializedFrame] = deque()
        self._bytes = 0
        self._changed = threading.Condition()
        self._ended = False
        self._stopped = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._fill, name="decode-ahead", daemon=True)
        self._thread.start()

    def _fill(self) -> None:
        try:
            for frame in self._frames:
                if self._convert is not None and (frame := self._convert(frame)) is None:
                    continue
                with self._changed:
                    while self._ready and self._bytes + len(frame.data) > self._max_bytes:
                        if self._stopped:
                            return
                        self._changed.wait()
                    if self._stopped:
                        return
                    self._ready.append(frame)
                    self._bytes += len(frame.data)
                    self._changed.notify_all()
        except BaseException as error:
            self._error = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def wait_filled(self, frames: int, timeout: float) -> None:
        """Wait until so many frames are ready, memory is full, all is read, or time is up (s)."""
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    self._ended or len(self._ready) >= frames or self._bytes >= self._max_bytes // 2
                ),
                timeout,
            )

    def __iter__(self) -> AheadBuffer:
        return self

    def __next__(self) -> SerializedFrame:
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._ended)
            if self._ready:
                frame = self._ready.popleft()
                self._bytes -= len(frame.data)
                self._changed.notify_all()
                return frame
        if self._error is not None:
            raise self._error
        raise StopIteration

    def stop(self) -> None:
        """End the thread; frames not yet taken are dropped."""
        with self._changed:
            self._stopped = self._ended = True
            self._ready.clear()
            self._changed.notify_all()
