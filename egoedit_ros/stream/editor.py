# SPDX-License-Identifier: Apache-2.0
"""The streaming rules around a session: frames in one by one, edited frames out by the chunk.

No threads and no ROS: the node's worker and ``egoedit edit`` both drive it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from egoedit_ros.stream.names import STATE_ACTIVE, STATE_FAULT, STATE_PASSTHROUGH
from egoedit_ros.stream.picture import Geometry, compose, to_model, untouched
from egoedit_ros.stream.session import ChunkResult, ChunkSession, frames_in_chunk
from egoedit_ros.stream.types import EditedFrame, Frame, Instruction, StreamSettings

NS_PER_MS = 1e6
WARM_UP_TEXT = "make it blue"

_Pictures = list[tuple[np.ndarray, np.ndarray]]


@dataclass(slots=True)
class _Waiting:
    """A frame in the chunk being gathered, with its picture at the model's size."""

    frame: Frame
    small: np.ndarray
    prepared_ns: int


class StreamEditor:
    """One stream through one session.

    Every pushed frame comes out exactly once, in order, or is counted in :attr:`dropped` (by a
    reset, a stamp that goes back or a size that changes). Frames with the stamp of the one before
    are kept like any other. A session that raises never stops the frames: that chunk is passed
    through, :attr:`fault` says why, and the next chunk tries again.

    session: owned by this object from here on. settings: read at each chunk; ``bypass`` may be
    changed at any time, the rest may not. on_event: called with one line when the stream restarts
    by itself or the session fails.
    """

    def __init__(
        self,
        session: ChunkSession,
        settings: StreamSettings | None = None,
        on_event: Callable[[str], None] | None = None,
    ) -> None:
        self.session = session
        self.settings = settings or StreamSettings()
        self.dropped = 0
        self.fault: str | None = None
        self.fault_count = 0
        self.instruction: Instruction | None = None
        self._on_event = on_event or (lambda line: None)
        # Instructions may be given from another thread; a deque's append and popleft are atomic.
        self._given: deque[Instruction] = deque()
        self._pending: list[Instruction] = []
        self._given_count = 0
        self._announced = True
        self._in_session: Instruction | None = None
        self._buffer: list[_Waiting] = []
        self._last: Frame | None = None
        self._first_chunk = True
        self._session_unsure = False
        self._frame_index = 0
        self._chunk_index = 0

    @property
    def state(self) -> str:
        """``fault`` after a chunk the session failed on, else ``active`` or ``passthrough``."""
        if self.fault is not None:
            return STATE_FAULT
        return STATE_ACTIVE if self._edits() else STATE_PASSTHROUGH

    @property
    def waiting(self) -> int:
        """Frames gathered for the next chunk."""
        return len(self._buffer)

    @property
    def pending(self) -> int:
        """Instructions whose stamp the stream has not reached."""
        return len(self._pending) + len(self._given)

    @property
    def streaming(self) -> bool:
        """Whether a stream has begun that :meth:`flush` would end."""
        return self._last is not None

    def warm_up(self) -> None:
        """Run a first and a later chunk of nothing, so that the first real ones are not slow.

        Raises what the session raises.
        """
        width, height = self.session.size
        self.session.set_instruction(WARM_UP_TEXT, 0)
        for _ in range(2):
            n = self.session.frames_needed
            self.session.run(np.zeros((n, height, width, 3), np.uint8))
        self._forget_session()

    def set_instruction(self, instruction: Instruction) -> Instruction:
        """Edit by it from the first chunk whose first frame is not before its stamp.

        With stamp 0: from the next chunk that starts to be computed. Of several that are due, the
        one with the latest stamp (then the one given last) is taken. Returns it with an id.
        """
        self._given_count += 1
        if not instruction.id:
            instruction = replace(instruction, id=f"instruction-{self._given_count}")
        self._given.append(instruction)
        return instruction

    def push(self, frame: Frame) -> list[EditedFrame]:
        """Take one frame. Returns the frames of the chunk that it completed, if it did."""
        if not frame.started_ns:
            frame.started_ns = time.perf_counter_ns()
        reason = self._break(frame)
        if reason is not None:
            self._on_event(f"new stream: {reason}; {self.reset()} frames dropped")
        small = to_model(self.geometry(frame), frame.image)
        self._buffer.append(_Waiting(frame, small, time.perf_counter_ns()))
        self._last = frame
        done: list[EditedFrame] = []
        while self._buffer and len(self._buffer) >= self._needed():
            done += self._next_chunk()
        return done

    def flush(self) -> list[EditedFrame]:
        """End the stream: what is left is padded with its last frame, edited, trimmed."""
        done: list[EditedFrame] = []
        while self._buffer:
            done += self._next_chunk()
        if self._last is not None:
            self._forget_stream()
        return done

    def settle(self) -> None:
        """Finish what the next chunk needs: to be called once a chunk's frames are sent."""
        if self._session_unsure or self._last is None:
            return
        try:
            self.session.settle()
        except Exception as error:
            self._failed(error)

    def reset(self) -> int:
        """Forget the stream. Returns how many frames were dropped with it."""
        count = len(self._buffer)
        self._buffer.clear()
        self.dropped += count
        self._forget_stream()
        return count

    def memory_bytes(self) -> int:
        """Bytes that the session holds on its device."""
        return self.session.memory_bytes()

    def geometry(self, frame: Frame) -> Geometry:
        """How this frame, the model's picture and the one that is sent lie on one another."""
        camera = (frame.image.shape[1], frame.image.shape[0])
        settings = self.settings
        return Geometry(camera, tuple(self.session.size), settings.fit, settings.output_size)

    def _break(self, frame: Frame) -> str | None:
        """Why this frame cannot follow the last one, or None."""
        last = self._last
        if last is None:
            return None
        if frame.stamp_ns < last.stamp_ns:
            return f"stamps went back by {(last.stamp_ns - frame.stamp_ns) / 1e9:.3f} s"
        if frame.image.shape != last.image.shape:
            (h0, w0), (h1, w1) = last.image.shape[:2], frame.image.shape[:2]
            return f"size went from {w0}x{h0} to {w1}x{h1}"
        return None

    def _needed(self) -> int:
        return frames_in_chunk(self.session.chunk_latents, self._first_chunk)

    def _edits(self) -> bool:
        instruction = self.instruction
        return bool(instruction and instruction.text) and not self.settings.bypass

    def _next_chunk(self) -> list[EditedFrame]:
        """Edit or pass on the first frames of the buffer; fewer than a chunk are padded."""
        start_ns = time.perf_counter_ns()
        self._switch(self._buffer[0].frame.stamp_ns)
        needed = self._needed()
        chunk, self._buffer = self._buffer[:needed], self._buffer[needed:]
        frames = np.stack([w.small for w in chunk])
        if len(chunk) < needed:
            frames = np.concatenate([frames, np.repeat(frames[-1:], needed - len(chunk), 0)])
        result, pictures = self._run(chunk, frames) if self._edits() else (None, None)
        if result is None:
            if not self._edits():
                self._skip(frames)
            pictures = [untouched(self.geometry(w.frame), w.frame.image, w.small) for w in chunk]
        ready_ns = time.perf_counter_ns()
        encode, denoise, decode = _shares(result, (ready_ns - start_ns) / NS_PER_MS)
        announce = not self._announced and (result is not None or not self._edits_wanted())
        self._announced = self._announced or announce
        done = []
        for position, (waiting, (image, mask)) in enumerate(zip(chunk, pictures, strict=True)):
            frame = waiting.frame
            waited = frame.started_ns - frame.arrival_ns + start_ns - waiting.prepared_ns
            stages = {
                "transport": frame.transport_ms,
                "buffer": waited / NS_PER_MS,
                "preprocess": (waiting.prepared_ns - frame.started_ns) / NS_PER_MS,
                "encode": encode,
                "denoise": denoise,
                "decode": decode,
            }
            done.append(
                EditedFrame(
                    frame=frame,
                    image=image,
                    mask=mask,
                    edited=result is not None,
                    frame_index=self._frame_index,
                    chunk_index=self._chunk_index,
                    instruction=self.instruction,
                    first_of_instruction=announce and position == 0,
                    stages=stages,
                    ready_ns=ready_ns,
                    chunk_size=len(chunk),
                    position=position,
                )
            )
            self._frame_index += 1
        self._chunk_index += 1
        return done

    def _edits_wanted(self) -> bool:
        return bool(self.instruction and self.instruction.text)

    def _switch(self, stamp_ns: int) -> None:
        """Put the instruction in force that is due for a chunk beginning at this stamp."""
        while self._given:
            self._pending.append(self._given.popleft())
        due = [i for i in self._pending if i.stamp_ns <= stamp_ns]
        if not due:
            return
        self._pending = [i for i in self._pending if i.stamp_ns > stamp_ns]
        # max() takes the first of equals, so the later given go first.
        self.instruction = max(reversed(due), key=lambda i: i.stamp_ns or stamp_ns)
        self._announced = False
        if any(i.reset for i in due):
            self._forget_session()

    def _run(
        self, chunk: list[_Waiting], frames: np.ndarray
    ) -> tuple[ChunkResult, _Pictures] | tuple[None, None]:
        """Edit and compose a chunk; (None, None) when that failed."""
        try:
            self._mend()
            start = time.perf_counter()
            if self._in_session is not self.instruction:
                self.session.set_instruction(self.instruction.text, self.instruction.seed)
                self._in_session = self.instruction
            text_ms = (time.perf_counter() - start) * 1e3
            result = self.session.run(frames)
            if result.frames.shape != frames.shape or result.mask.shape != frames.shape[:3]:
                raise RuntimeError(
                    f"session returned {result.frames.shape} and {result.mask.shape}"
                    f" for frames of {frames.shape}"
                )
            pictures = [
                compose(self.geometry(w.frame), w.frame.image, result.frames[i], result.mask[i])
                for i, w in enumerate(chunk)
            ]
        except Exception as error:  # a fault may be anything; the frames go on
            self._failed(error)
            return None, None
        self._went_well()
        return replace(result, encode_ms=result.encode_ms + text_ms), pictures

    def _skip(self, frames: np.ndarray) -> None:
        """Tell the session of frames that it does not edit."""
        try:
            self._mend()
            self.session.skip(frames)
        except Exception as error:
            self._failed(error)
        else:
            self._went_well()

    def _went_well(self) -> None:
        self._first_chunk = False
        if self.fault is not None:
            self.fault = None
            self._on_event("model works again")

    def _mend(self) -> None:
        """After a fault the session's past is not to be relied on: begin it anew."""
        if self._session_unsure:
            self._session_reset()

    def _failed(self, error: Exception) -> None:
        """Note a fault. The session's next chunk is a stream's first one again."""
        first = self.fault is None
        self.fault = (f"{type(error).__name__}: {error}".splitlines() or [""])[0]
        self.fault_count += 1
        self._first_chunk = self._session_unsure = True
        self._in_session = None
        if first:
            self._on_event(f"model fault, passing the camera through: {self.fault}")

    def _session_reset(self) -> None:
        self._in_session = None
        self._session_unsure = True
        self.session.reset()
        self._session_unsure = False

    def _forget_session(self) -> None:
        """New stream for the session; a session that cannot is tried again at the next chunk."""
        self._first_chunk = True
        try:
            self._session_reset()
        except Exception as error:
            self._failed(error)

    def _forget_stream(self) -> None:
        self._last = None
        self._forget_session()


def _shares(result: ChunkResult | None, wall_ms: float) -> tuple[float, float, float]:
    """(encode, denoise, decode) in ms, which together are the chunk's whole time.

    What the session does not name (compositing, resizing, copying) is decoding. A device's own
    clock may say more than the wall's; then its figures are scaled down to fit.
    """
    if result is None:
        return 0.0, 0.0, wall_ms
    encode, denoise = max(0.0, result.encode_ms), max(0.0, result.denoise_ms)
    if encode + denoise > wall_ms:
        scale = wall_ms / (encode + denoise)
        return encode * scale, denoise * scale, 0.0
    return encode, denoise, wall_ms - encode - denoise
