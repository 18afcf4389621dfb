# SPDX-License-Identifier: Apache-2.0
"""``bench engine``: how fast the editor itself is, by direct calls, without ROS."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import numpy as np

from egoedit_ros.stream.session import ChunkSession

INSTRUCTION = "turn the red ball blue"


def resident_bytes() -> int:
    """Memory of this process that is in RAM."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _frames(session: ChunkSession, count: int, seed: int = 0) -> np.ndarray:
    """A moving noise picture, uint8 ``[count, h, w, 3]``: speed does not depend on content."""
    width, height = session.size
    rng = np.random.default_rng(seed)
    wide = rng.integers(0, 256, (height, width + count, 3), dtype=np.uint8)
    return np.stack([wide[:, i : i + width] for i in range(count)])


def run_chunks(session: ChunkSession, chunks: int) -> list[float]:
    """Seconds of each of ``chunks`` chunks, cache write included."""
    times = []
    for index in range(chunks):
        frames = _frames(session, session.frames_needed, index)
        start = time.perf_counter()
        session.run(frames)
        session.settle()
        times.append(time.perf_counter() - start)
    return times


def measure_fps(session: ChunkSession, seconds: float = 8.0) -> float:
    """Frames per second of the steady stream: frames of a chunk over its median time."""
    session.reset()
    session.set_instruction(INSTRUCTION, 0)
    run_chunks(session, 6)  # fills the window
    per_chunk = session.frames_needed
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end:
        times += run_chunks(session, 1)
    return per_chunk / float(np.median(times))


def measure_first_frame_ms(session: ChunkSession, runs: int = 10) -> float:
    """From the first camera frame of a stream to its edited frame, warm; median of ``runs``."""
    times = []
    for _ in range(runs):
        session.reset()
        session.set_instruction(INSTRUCTION, 0)
        frames = _frames(session, session.frames_needed)
        start = time.perf_counter()
        session.run(frames)
        times.append(1e3 * (time.perf_counter() - start))
    return float(np.median(times))


def soak(session: ChunkSession, chunks: int, tick: Callable[[int], None]) -> dict:
    """Run ``chunks`` chunks; time and memory of the last tenth against the second tenth."""
    session.reset()
    session.set_instruction(INSTRUCTION, 0)
    times, memory = [], []
    for done in range(chunks):
        times += run_chunks(session, 1)
        memory.append(resident_bytes())
        tick(done + 1)
    tenth = max(1, chunks // 10)
    early, late = slice(tenth, 2 * tenth), slice(chunks - tenth, chunks)
    return {
        "chunks": chunks,
        "time_ratio": float(np.median(times[late]) / np.median(times[early])),
        "memory_growth_bytes": int(np.median(memory[late]) - np.median(memory[early])),
    }
