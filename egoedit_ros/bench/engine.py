# SPDX-License-Identifier: Apache-2.0
"""``bench engine``: how fast the editor itself is, by direct calls, without ROS."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import numpy as np

from egoedit_ros.runtime.film import INSTRUCTION, Film
from egoedit_ros.stream.session import ChunkSession

NEXT_INSTRUCTION = "turn the mug into a potted cactus"


def resident_bytes() -> int:
    """Memory of this process that is in RAM."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def run_chunks(session: ChunkSession, film: Film, chunks: int) -> list[float]:
    """Seconds of each of ``chunks`` chunks of the film, cache write included."""
    times = []
    for _ in range(chunks):
        frames = film.take(session.frames_needed)
        start = time.perf_counter()
        session.run(frames)
        session.settle()
        times.append(time.perf_counter() - start)
    return times


def measure_fps(session: ChunkSession, seconds: float = 8.0, everywhere: bool = False) -> float:
    """Frames per second of the steady stream: frames of a chunk over its median time.

    everywhere: of an edit all over the picture, see :class:`~egoedit_ros.runtime.film.Film`.
    """
    session.reset()
    session.set_instruction(INSTRUCTION, 0)
    film = Film(session.size, everywhere)
    run_chunks(session, film, 6)  # fills the window
    per_chunk = session.frames_needed
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end:
        times += run_chunks(session, film, 1)
    return per_chunk / float(np.median(times))


def measure_first_frame_ms(session: ChunkSession, runs: int = 10) -> float:
    """From the first camera frame of a stream to its edited frame, warm; median of ``runs``."""
    times = []
    for _ in range(runs):
        session.reset()
        session.set_instruction(INSTRUCTION, 0)
        frames = Film(session.size).take(session.frames_needed)
        start = time.perf_counter()
        session.run(frames)
        times.append(1e3 * (time.perf_counter() - start))
    return float(np.median(times))


def measure_switch(sessions: dict[str, ChunkSession], rounds: int = 7) -> dict[str, float]:
    """What a new instruction costs the chunk that it begins with, in ms; medians.

    sessions: one for each way to switch; they take turns, each between two instructions with a
    full window. ``text_ms``: encoding the text and its keys and values, the same for all;
    ``chunk_ms``: a chunk without a switch; ``NAME_ms``: what the switching chunk takes beyond it.
    """
    text: list[float] = []
    plain: list[float] = []
    switched: dict[str, list[float]] = {name: [] for name in sessions}
    films = {name: Film(session.size) for name, session in sessions.items()}
    for name, session in sessions.items():
        session.reset()
        session.set_instruction(INSTRUCTION, 0)
        run_chunks(session, films[name], 6)  # fills the window
    for round_ in range(rounds):
        for name, session in sessions.items():
            plain += run_chunks(session, films[name], 1)
            start = time.perf_counter()
            session.set_instruction((NEXT_INSTRUCTION, INSTRUCTION)[round_ % 2], 0)
            text.append(time.perf_counter() - start)
            switched[name] += run_chunks(session, films[name], 1)
            # A blend must be over, and its past made anew, before the next switch.
            run_chunks(session, films[name], getattr(session, "blend_chunks", 0) + 1)
    chunk = float(np.median(plain))
    more = {f"{name}_ms": 1e3 * (float(np.median(t)) - chunk) for name, t in switched.items()}
    return {"text_ms": 1e3 * float(np.median(text)), "chunk_ms": 1e3 * chunk, **more}


def soak(session: ChunkSession, chunks: int, tick: Callable[[int], None]) -> dict:
    """Run ``chunks`` chunks; time and memory of the last tenth against the second tenth.

    Beside wall time, which other work on the machine stretches (``load``: of a minute, at the
    beginning and at the end), the processor's own time is taken: ``cpu_time_ratio``.
    """
    session.reset()
    session.set_instruction(INSTRUCTION, 0)
    times, cpu, memory = [], [], []
    film = Film(session.size)
    load = [os.getloadavg()[0]]
    for done in range(chunks):
        start = time.process_time()
        times += run_chunks(session, film, 1)
        cpu.append(time.process_time() - start)
        memory.append(resident_bytes())
        tick(done + 1)
    tenth = max(1, chunks // 10)
    early, late = slice(tenth, 2 * tenth), slice(chunks - tenth, chunks)
    load.append(os.getloadavg()[0])
    return {
        "chunks": chunks,
        "time_ratio": float(np.median(times[late]) / np.median(times[early])),
        "cpu_time_ratio": float(np.median(cpu[late]) / np.median(cpu[early])),
        "chunk_ms": 1e3 * float(np.median(times)),
        "memory_growth_bytes": int(np.median(memory[late]) - np.median(memory[early])),
        "memory_bytes": memory[-1],
        "load": load,
    }
