# SPDX-License-Identifier: Apache-2.0
"""A stream's state: caches, seed, instruction and framing. Models are shared, sessions are not."""

from __future__ import annotations

import gc
import sys
import time
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from egoedit_ros.errors import UserError

FRAMES_PER_LATENT = 4
RUNTIMES = ("torch", "compile", "onnx", "graphs", "tensorrt")


@dataclass(slots=True)
class ChunkResult:
    """What one chunk came to.

    frames: uint8 ``[n, h, w, 3]`` rgb; mask: uint8 ``[n, h, w]``, 255 where the edit replaced the
    camera's pixel; durations in milliseconds by a monotonic clock.
    """

    frames: np.ndarray
    mask: np.ndarray
    encode_ms: float
    denoise_ms: float
    decode_ms: float


class ChunkSession(Protocol):
    """One stream through one model. Not thread-safe: one worker owns it."""

    name: str
    device: str
    size: tuple[int, int]
    chunk_latents: int

    @property
    def frames_needed(self) -> int:
        """Pixel frames that the next chunk takes (1 + 4(n-1) first, then 4n)."""

    def set_instruction(self, text: str, seed: int) -> None:
        """Edit by ``text`` from the next :meth:`run` on."""

    def run(self, frames: np.ndarray) -> ChunkResult:
        """Edit one chunk: uint8 ``[frames_needed, h, w, 3]`` rgb at :attr:`size`."""

    def skip(self, frames: np.ndarray) -> None:
        """Tell the session of a chunk that was passed through unedited."""

    def reset(self) -> None:
        """Forget the stream; the next chunk is a first one."""

    def settle(self) -> None:
        """Finish what the next chunk needs but this chunk's frames do not: call it after they
        are sent (optional; the next :meth:`run` does it otherwise)."""

    def memory_bytes(self) -> int:
        """Bytes held on the device by this session's state."""


def frames_in_chunk(chunk_latents: int, first: bool) -> int:
    """Wan's framing: a stream's first latent frame holds 1 pixel frame, each other one 4."""
    return FRAMES_PER_LATENT * chunk_latents - (FRAMES_PER_LATENT - 1 if first else 0)


class NullSession:
    """Returns what it is given: the measure of what everything around the model costs."""

    name = "null"
    device = "cpu"

    def __init__(self, size: tuple[int, int] = (256, 192), chunk_latents: int = 1) -> None:
        self.size = size
        self.chunk_latents = chunk_latents
        self._first = True

    @property
    def frames_needed(self) -> int:
        return frames_in_chunk(self.chunk_latents, self._first)

    def set_instruction(self, text: str, seed: int) -> None:
        pass

    def run(self, frames: np.ndarray) -> ChunkResult:
        start = time.perf_counter()
        self._first = False
        mask = np.zeros(frames.shape[:3], np.uint8)
        return ChunkResult(frames, mask, 0.0, (time.perf_counter() - start) * 1e3, 0.0)

    def skip(self, frames: np.ndarray) -> None:
        self._first = False

    def reset(self) -> None:
        self._first = True

    def settle(self) -> None:
        pass

    def memory_bytes(self) -> int:
        return 0


def forget_models() -> None:
    """Let go of the models that are kept for the next session, so that their memory is free and
    files that changed are read anew. Open sessions keep theirs."""
    module = sys.modules.get("egoedit_ros.stream.edit_session")
    if module is None:
        return
    module.load_model.cache_clear()
    gc.collect()
    if module.torch.cuda.is_initialized():
        module.torch.cuda.empty_cache()


def open_session(
    model: str = "edge",
    device: str = "auto",
    size: tuple[int, int] | None = None,
    chunk_latents: int | None = None,
    nfe: int | None = None,
    preserve: bool = True,
    threads: int | None = None,
    runtime: str = "torch",
    recache: bool = False,
    blend_chunks: int = 0,
) -> ChunkSession:
    """Load ``model`` and open a stream on it.

    model: ``null``, a bundled name (``edge``) or a path to weights. size: (width, height), the
    model's own if None. runtime: what computes, see docs/runtime.md. recache, blend_chunks: what a
    new instruction does, see :class:`~egoedit_ros.stream.edit_session.EditSession`. Raises
    UserError when the model, the device or the runtime is not there.
    """
    if model == "null":
        return NullSession(size or (256, 192), chunk_latents or 1)
    from egoedit_ros.stream.edit_session import EditSession, load_model

    if threads:
        import torch

        torch.set_num_threads(threads)
    if runtime not in RUNTIMES:
        raise UserError(f"no runtime called {runtime!r}; use one of: {', '.join(RUNTIMES)}")
    if runtime != "torch":
        from egoedit_ros.runtime.open import open_in

        return open_in(
            runtime, model, device, size, chunk_latents, nfe, preserve, recache, blend_chunks
        )
    return EditSession(
        load_model(model, device), size, chunk_latents, nfe, preserve, recache, blend_chunks
    )
