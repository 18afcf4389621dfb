# SPDX-License-Identifier: Apache-2.0
"""The CUDA executor: a stream to each lane, page-locked rings, CUDA graphs.

No GPU was at hand when this was written. Since then ``egoedit doctor --gpu`` has run the graphs of
``edge`` on an H200 (docs/runtime.md); lanes and rings have NOT RUN YET. The scheduling is
executor.py's, which the CPU tests cover.

Streams and events are PyCUDA's, in torch's own (primary) context, so that TensorRT takes their
handles and torch takes them as external streams. All CUDA imports are in :func:`driver`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from egoedit_ros.errors import UserError
from egoedit_ros.model.device import no_cuda_because
from egoedit_ros.runtime.executor import Lane, Stage
from egoedit_ros.runtime.stages import THREE_LANES, OverlappedStream
from egoedit_ros.runtime.steps import PieceSession, TorchBackend
from egoedit_ros.stream.edit_session import ChunkWork
from egoedit_ros.stream.session import ChunkResult

DEPTH = 3


def require_cuda() -> None:
    """Raise UserError unless torch sees a CUDA device."""
    if not torch.cuda.is_available():
        raise UserError(
            f"no CUDA device here: {no_cuda_because()}; this needs a machine with an NVIDIA GPU"
        )


def driver() -> Any:
    """``pycuda.driver``, initialised. Raises UserError where CUDA or PyCUDA is missing."""
    require_cuda()
    try:
        import pycuda.driver as cuda
    except ImportError:
        raise UserError("PyCUDA is missing: pip install -e '.[gpu]'") from None
    torch.cuda.init()
    cuda.init()
    return cuda


class Context:
    """torch's context on the current device, for PyCUDA: retained, never a second one.

    A context is current in a thread; push() and pop() once in each thread that uses PyCUDA.
    """

    def __init__(self) -> None:
        self.cuda = driver()
        torch.zeros(1, device="cuda")  # torch makes the primary context now, with its own flags
        self._context = self.cuda.Device(torch.cuda.current_device()).retain_primary_context()

    def push(self) -> None:
        self._context.push()

    def pop(self) -> None:
        self._context.pop()


class CudaLane(Lane):
    """A thread with a CUDA stream of its own. Work is queued on it and waited for by events.

    The stream is one that waits for the default stream (PyCUDA's default): an instruction's keys
    and values are made there, by whoever calls ``set_instruction``. A chunk's tensors go from
    stream to stream without ``record_stream``: its ChunkWork holds them until emit has waited for
    the last stream, so the allocator cannot give them away before.

    spans: (stage, begin event, end event) of what was queued, for :func:`timeline`.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self.spans: list[tuple[str, Any, Any]] = []

    def open(self) -> None:
        self._context.push()
        self._stream = self._context.cuda.Stream()
        self._torch = torch.cuda.ExternalStream(self._stream.handle)

    def run(self, stage: Stage, item: Any, mark: Any) -> tuple[Any, Any]:
        if mark is not None:
            self._stream.wait_for_event(mark)
        begin, end = self._context.cuda.Event(), self._context.cuda.Event()
        begin.record(self._stream)
        with torch.cuda.stream(self._torch):
            item = stage.work(item)
        end.record(self._stream)
        self.spans = self.spans[-511:] + [(stage.name, begin, end)]
        return item, end

    def close(self) -> None:
        self._stream.synchronize()
        self._context.pop()


def timeline(lanes: Sequence[CudaLane]) -> list[dict[str, object]]:
    """When the GPU was at which stage: begin and end in ms from the first of all events.

    Call it in a thread in which the context is current, once the executor is idle.
    """
    spans = [span for lane in lanes for span in lane.spans]
    for _, _, end in spans:
        end.synchronize()
    if not spans:
        return []
    origin = spans[0][1]
    rows = [
        {"stage": name, "begin_ms": origin.time_till(begin), "end_ms": origin.time_till(end)}
        for name, begin, end in spans
    ]
    zero = min(row["begin_ms"] for row in rows)
    return [
        row | {"begin_ms": row["begin_ms"] - zero, "end_ms": row["end_ms"] - zero} for row in rows
    ]


class PinnedRing:
    """Page-locked host memory for the pictures of ``depth`` chunks, used in turn."""

    def __init__(self, context: Context, shape: tuple[int, ...], depth: int = DEPTH) -> None:
        context.push()
        try:
            slots = [context.cuda.pagelocked_empty(shape, np.uint8) for _ in range(depth)]
        finally:
            context.pop()
        self._slots = [torch.from_numpy(slot) for slot in slots]
        self._next = 0

    def take(self, count: int) -> Tensor:
        """The next slot's first ``count`` pictures; free again ``depth`` calls later."""
        slot = self._slots[self._next]
        self._next = (self._next + 1) % len(self._slots)
        return slot[:count]


class CudaSession(PieceSession):
    """A stream on a GPU: frames in and out by page-locked rings, the network in a backend."""

    def __init__(self, context: Context, model, make_backend, *args, **options) -> None:
        super().__init__(model, make_backend, *args, **options)
        width, height = self.size
        frames = (4 * self.chunk_latents, height, width)
        # One slot more than chunks inside: a slot is taken before the oldest chunk has left.
        self._in = PinnedRing(context, (*frames, 3), DEPTH + 1)
        self._out = PinnedRing(context, (*frames, 3), DEPTH + 1)
        self._mask_out = PinnedRing(context, frames, DEPTH + 1)

    @torch.inference_mode()
    def ingest(self, work: ChunkWork) -> ChunkWork:
        pinned = self._in.take(len(work.frames))
        pinned.numpy()[:] = work.frames
        work.pixels = pinned.to(self.model.device, non_blocking=True).permute(0, 3, 1, 2)
        return work

    @torch.inference_mode()
    def emit(self, work: ChunkWork) -> ChunkWork:
        picture, mask = (r.take(len(work.frames)) for r in (self._out, self._mask_out))
        picture.copy_(work.picture, non_blocking=True)
        mask.copy_(work.mask, non_blocking=True)
        torch.cuda.current_stream().synchronize()
        work.picture, work.mask = picture.numpy().copy(), mask.numpy().copy()
        return self._finished(work)

    def run(self, frames: np.ndarray) -> ChunkResult:
        """As EditSession.run; the durations are the GPU's, by events."""
        start = time.perf_counter()
        work = self.begin(frames)
        events = [torch.cuda.Event(enable_timing=True) for _ in range(4)]
        events[0].record()
        for index, names in enumerate((("ingest", "encode"), ("denoise",), ("decode", "emit"))):
            for name in names:
                work = getattr(self, name)(work)
            events[index + 1].record()
        events[-1].synchronize()
        encode, denoise, _ = (a.elapsed_time(b) for a, b in zip(events, events[1:], strict=False))
        whole = 1e3 * (time.perf_counter() - start)
        return ChunkResult(work.picture, work.mask, encode, denoise, whole - encode - denoise)


class GraphBackend(TorchBackend):
    """The pieces captured as CUDA graphs: one for each set of input shapes, made on first use.

    A stream uses few: the past grows to the window and stays there; run that many chunks one by
    one before overlapping them, since capturing waits for the whole device. Inputs that are the
    very tensors of the last call are not copied again, so they must not be changed in place.
    """

    name = "cuda graphs"

    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        self._graphs: dict[tuple, _Captured] = {}
        self._capturing = threading.Lock()  # lanes must not capture at the same time

    def run(self, piece: str, *inputs: Tensor) -> tuple[Tensor, ...]:
        key = (piece, *(tuple(x.shape) for x in inputs))
        if key not in self._graphs:
            with self._capturing:
                self._graphs[key] = _Captured(self.pieces[piece], inputs)
        return self._graphs[key](inputs)


def graph_backend(session: PieceSession) -> GraphBackend:
    """For a session's ``make_backend``."""
    return GraphBackend(session.model, session.grid)


class _Captured:
    """A module's run on fixed shapes, recorded."""

    def __init__(self, module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._inputs = [x.clone(memory_format=torch.preserve_format) for x in inputs]
        self._last: list[Tensor | None] = list(inputs)
        current = torch.cuda.current_stream()
        side = torch.cuda.Stream()
        side.wait_stream(current)
        with torch.cuda.stream(side):  # lazy initialisation must not fall into the capture
            for _ in range(2):
                module(*self._inputs)
        current.wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        # Only this thread's calls are held to a capture's rules; other lanes go on.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._outputs = module(*self._inputs)

    def __call__(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        for index, (static, given) in enumerate(zip(self._inputs, inputs, strict=True)):
            if self._last[index] is not given:
                static.copy_(given)
                self._last[index] = given
        self._graph.replay()
        return tuple(out.clone() for out in self._outputs)


def cuda_stream(session: CudaSession, context: Context) -> tuple[OverlappedStream, list[CudaLane]]:
    """The session overlapped, with a CUDA stream each to encoder, transformer and decoder."""
    lanes: list[CudaLane] = []

    def lane(group: Sequence[str]) -> CudaLane:
        lanes.append(CudaLane(context))
        return lanes[-1]

    return OverlappedStream(session, lane, THREE_LANES, DEPTH), lanes
