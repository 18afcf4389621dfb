# SPDX-License-Identifier: Apache-2.0
"""The editor called directly on the graph's frames: what ROS costs is the difference."""

from __future__ import annotations

import time
from collections import Counter, defaultdict

import numpy as np

from egoedit_ros.bench import measure
from egoedit_ros.bench.recording import message_stamp
from egoedit_ros.bench.stream_run import Run, recording_of
from egoedit_ros.stream.editor import StreamEditor
from egoedit_ros.stream.session import ChunkSession
from egoedit_ros.stream.types import Frame, Instruction, StreamSettings

NANO = 1_000_000_000
MOST_LOSS = 0.01


def direct_latencies(
    session: ChunkSession,
    pictures: list[np.ndarray],
    hz: float,
    seconds: float,
    text: str,
    output_size: str = "model",
) -> list[tuple[int, float]]:
    """(chunk, milliseconds from a frame's due time until its chunk is edited), without a graph.

    pictures: uint8 ``[h, w, 3]``, taken round after round at ``hz`` for ``seconds``. Frames of a
    last chunk that does not fill are left out.
    """
    editor = StreamEditor(session, StreamSettings(output_size=output_size))
    editor.warm_up()
    editor.set_instruction(Instruction("direct", text))
    found: list[tuple[int, float]] = []
    begin = time.perf_counter_ns()
    for index in range(max(1, round(seconds * hz))):
        due = begin + round(index * NANO / hz)
        if (ahead := due - time.perf_counter_ns()) > 0:
            time.sleep(ahead / NANO)
        frame = Frame(due, pictures[index % len(pictures)], due)
        done = editor.push(frame)
        now = time.perf_counter_ns()
        found += [(one.chunk_index, (now - one.frame.arrival_ns) / 1e6) for one in done]
        if done:
            editor.settle()
    if editor.fault is not None:
        return []
    return found


def comparable_rate(fixed: dict) -> str | None:
    """The rate to compare graph and direct call at: the last that hardly loses a frame.

    At a rate that is too high for the editor the graph drops frames and the direct call falls
    behind, so that the two have nothing in common.
    """
    held = [rate for rate, figures in fixed.items() if figures["loss"] <= MOST_LOSS]
    return held[-1] if held else None


def chunk_latencies(run: Run) -> list[tuple[int, float]]:
    """(chunk, milliseconds from publication to arrival) of a run's frames, in order."""
    recording = recording_of(run)
    chunks = {message_stamp(m): m.chunk_index for m in recording.latencies}
    return [
        (chunks[stamp], ms)
        for stamp, _, ms in measure.frame_latencies(recording)
        if stamp in chunks
    ]


def graph_minus_direct(
    graph: list[tuple[int, float]], direct: list[tuple[int, float]]
) -> float | None:
    """Difference in ms of the median latencies, place by place in a chunk, mean over the places.

    A chunk's first frame waits longest for the others; the median over all frames would jump by a
    whole frame period when one frame more or less falls to one side of it.
    """
    places = _places(graph), _places(direct)
    if not all(places) or len(places[0]) != len(places[1]):
        return None
    pairs = zip(*places, strict=True)
    return round(float(np.mean([np.median(a) - np.median(b) for a, b in pairs])), 3)


def _places(latencies: list[tuple[int, float]]) -> list[list[float]]:
    """Latencies by place in the chunk, of all chunks of the usual length."""
    chunks: dict[int, list[float]] = defaultdict(list)
    for chunk, ms in latencies:
        chunks[chunk].append(ms)
    lengths = Counter(len(chunk) for chunk in chunks.values())
    if not lengths:
        return []
    usual = max(lengths, key=lambda n: (lengths[n], n))
    return [list(place) for place in zip(*(c for c in chunks.values() if len(c) == usual),
                                         strict=True)]  # fmt: skip
