# SPDX-License-Identifier: Apache-2.0
"""The figures of a replay, from what was recorded of it; the contract defines each."""

from __future__ import annotations

from collections import Counter, defaultdict, deque

import numpy as np

from egoedit_ros.bench.recording import Recording, message_stamp
from egoedit_ros.stream import names

PERCENTILES = (50, 90, 95, 99)
FRAMES_PER_LATENT = 4
NS_PER_MS = 1e6
NANO = 1e9


def figures(recording: Recording, interrupted: bool = False) -> dict:
    """The measured part of report.json (docs: "What a replay leaves in its folder")."""
    latency = frame_latencies(recording)
    values = np.array([ms for _, _, ms in latency])
    frames_in, frames_out = len(recording.published), len(recording.edited)
    last = recording.statuses[-1] if recording.statuses else None
    dropped = {
        "transport": 0,
        "policy": int(last.dropped_policy) if last else 0,
        "error": int(last.dropped_error) if last else 0,
    }
    # What never came and that the editor does not know of was lost on the way; in a replay that
    # was stopped, it was simply still on its way.
    rest = max(0, frames_in - frames_out - dropped["policy"] - dropped["error"])
    if not interrupted:
        dropped["transport"] = rest
    memory = memory_series(recording)
    return {
        "frames_in": frames_in,
        "frames_out": frames_out,
        "dropped": dropped,
        **({"unfinished": rest} if interrupted else {}),
        "unreadable": recording.unreadable,
        "passthrough": sum(m.outcome == names.OUTCOME_PASSTHROUGH for m in recording.latencies),
        "fps_in": _rate([mono for _, mono in recording.published]),
        "fps_out": _rate(_steady_arrivals(recording)),
        "first_frame_ms": _first_frame(recording),
        "latency_ms": percentiles(values),
        "stages_ms": {
            stage: _median([getattr(m, f"{stage}_ms") for m in recording.latencies])
            for stage in names.STAGES
        },
        "jitter_ms": _jitter([a.mono_ns for a in recording.edited]),
        "deadline_misses": sum(bool(m.deadline_missed) for m in recording.latencies),
        "instruction_switch_ms": switch_times(recording),
        "editor_memory_bytes": max((size for _, size in memory), default=None),
        "editor_memory_series": memory,
        "device_memory_bytes": max(
            (int(s.device_memory_bytes) for s in recording.statuses), default=None
        ),
    }


def percentiles(values: np.ndarray) -> dict[str, float | None]:
    """p50, p90, p95, p99 and max in ms; None without values."""
    if not len(values):
        return {**{f"p{p}": None for p in PERCENTILES}, "max": None}
    found = {f"p{p}": _rounded(np.percentile(values, p)) for p in PERCENTILES}
    return {**found, "max": _rounded(values.max())}


def frame_latencies(recording: Recording) -> list[tuple[int, int, float]]:
    """(stamp, time published, latency in ms) of each edited frame received, in order received.

    Publication by the replay to reception by the recorder. Frames that share a stamp are matched
    in order.
    """
    waiting: dict[int, deque[int]] = defaultdict(deque)
    for stamp, mono in recording.published:
        waiting[stamp].append(mono)
    found = []
    for arrival in recording.edited:
        if waiting[arrival.stamp]:
            sent = waiting[arrival.stamp].popleft()
            found.append((arrival.stamp, sent, (arrival.mono_ns - sent) / NS_PER_MS))
    return found


def _first_frame(recording: Recording) -> float | None:
    """Milliseconds from the first frame published to the first one received, whichever that is:
    frames dropped or lost before it count as waiting. None without either."""
    if not recording.published or not recording.edited:
        return None
    return _rounded((recording.edited[0].mono_ns - recording.published[0][1]) / NS_PER_MS)


def switch_times(recording: Recording) -> list[float]:
    """Milliseconds from an instruction to the first frame received edited by it, for each switch.

    Counted from the later of sending it and publishing that frame. The one given before the first
    frame is no switch.
    """
    published = dict(reversed(recording.published))
    received: dict[int, int] = {}
    for arrival in recording.edited:
        received.setdefault(arrival.stamp, arrival.mono_ns)
    given = {
        one.id: (mono, message_stamp(one))
        for one, mono in zip(recording.instructions, recording.instruction_sent, strict=False)
    }
    first_stamp, start = recording.published[0] if recording.published else (0, 0)
    times = []
    for switch in recording.switches:
        stamp = message_stamp(switch)
        if switch.id not in given or stamp not in published or stamp not in received:
            continue
        sent, applies_from = given[switch.id]
        if sent < start and applies_from <= first_stamp:
            continue
        times.append(_rounded((received[stamp] - max(sent, published[stamp])) / NS_PER_MS))
    return times


def memory_series(recording: Recording) -> list[list[float]]:
    """[seconds since the first frame, resident bytes of the editor] for each status."""
    start = recording.published[0][1] if recording.published else 0
    pairs = zip(recording.status_times, recording.statuses, strict=False)
    return [
        [round((mono - start) / NANO, 2), int(status.host_memory_bytes)]
        for mono, status in pairs
        if start and mono >= start and status.host_memory_bytes
    ]


def chunk_latents(recording: Recording) -> int | None:
    """Latent frames to a chunk, from how many frames came with the same chunk index."""
    counts = Counter(m.chunk_index for m in recording.latencies)
    sizes = Counter(n for n in counts.values() if n % FRAMES_PER_LATENT == 0)
    return sizes.most_common(1)[0][0] // FRAMES_PER_LATENT if sizes else None


def _steady_arrivals(recording: Recording) -> list[int]:
    """Arrivals of edited frames without the final flush, whose frames did not fill a chunk."""
    counts = Counter(m.chunk_index for m in recording.latencies)
    arrivals = [a.mono_ns for a in recording.edited]
    if len(counts) < 3:
        return arrivals
    final = counts[max(counts)]
    short = final < max(counts.values())
    return arrivals[: len(arrivals) - final] if short else arrivals


def _rate(times: list[int]) -> float | None:
    if len(times) < 2 or times[-1] <= times[0]:
        return None
    return round((len(times) - 1) * NANO / (times[-1] - times[0]), 3)


def _jitter(times: list[int]) -> float | None:
    """Mean absolute second difference of arrival times in ms (ros2_benchmark's definition)."""
    if len(times) < 3:
        return None
    return _rounded(np.abs(np.diff(np.array(times, np.float64), n=2)).mean() / NS_PER_MS)


def _median(values: list[float]) -> float | None:
    return _rounded(np.median(values)) if values else None


def _rounded(value: float) -> float:
    return round(float(value), 3)
