# SPDX-License-Identifier: Apache-2.0
"""One run of the stream benchmark: what was sent and came back, and the figures of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from egoedit_ros.bench import measure
from egoedit_ros.bench.recording import Arrival, Recording
from egoedit_ros.data.cdr import NANO
from egoedit_ros.stream import names

DEADLINE_SLACK_MS = 100.0
UNKNOWN = "unknown"
# The rate that is the input's own timing.
OWN = "own"


@dataclass(slots=True)
class Run:
    """What one run at one rate came to. Times are ns of this machine's monotonic clock.

    kind: warm_up, probe, fixed or switches. rate: as asked for, ``own`` or Hz as text; hz: the
    same as a number. published, edited: [stamp, time]. latencies, switches: the messages' fields.
    instructions: [id, time sent]. dropped: what the editor counted in this run, None where nobody
    counts. overhead_ms: [p50, p95] as the editor tells. flushed_ns: when the rest of the stream was
    asked for, 0 if it was not. odd: messages with a stamp that was not sent. usage: by node,
    ``cpu_percent`` and ``memory_bytes``.
    """

    kind: str
    rate: str
    hz: float
    published: list[list[int]] = field(default_factory=list)
    edited: list[list[int]] = field(default_factory=list)
    latencies: list[dict] = field(default_factory=list)
    instructions: list[list] = field(default_factory=list)
    switches: list[dict] = field(default_factory=list)
    dropped: dict[str, int] | None = None
    overhead_ms: list[float] | None = None
    flushed_ns: int = 0
    odd: int = 0
    odd_stamp: int | None = None
    device_memory_bytes: int = 0
    usage: dict[str, dict[str, float]] = field(default_factory=dict)

    def as_json(self) -> dict:
        """For a file."""
        return asdict(self)

    @property
    def lost(self) -> int:
        """Frames sent of which none came back."""
        return max(0, len(self.published) - len(self.edited))

    @property
    def loss(self) -> float:
        """Share of the frames sent that did not come back."""
        return self.lost / len(self.published) if self.published else 1.0


def recording_of(run: Run) -> Recording:
    """The run in the form that the replay's figures and plots are made of.

    Frames that came only because the stream was ended (a chunk that did not fill) are left out:
    they waited for the end, not for the editor.
    """
    until = run.flushed_ns or np.iinfo(np.int64).max
    edited = [Arrival(stamp, mono, mono) for stamp, mono in run.edited if mono < until]
    kept = {arrival.stamp for arrival in edited}
    recording = Recording(Path())
    recording.published = [tuple(pair) for pair in run.published]
    recording.edited = edited
    recording.latencies = [_message(m) for m in run.latencies if m["stamp"] in kept]
    recording.switches = [_message(m) for m in run.switches]
    recording.instructions = [_message({"stamp": 0, "id": i, "text": t}) for i, t, _ in _sent(run)]
    recording.instruction_sent = [mono for _, _, mono in _sent(run)]
    return recording


def _sent(run: Run) -> list[tuple[str, str, int]]:
    texts = {switch["id"]: switch["text"] for switch in run.switches}
    return [(id, texts.get(id, ""), mono) for id, mono in run.instructions]


def _message(fields: dict) -> SimpleNamespace:
    sec, nanosec = divmod(fields["stamp"], NANO)
    header = SimpleNamespace(stamp=SimpleNamespace(sec=sec, nanosec=nanosec))
    return SimpleNamespace(header=header, **fields)


def deadline_ms(hz: float, chunk_latents: int | None) -> float:
    """One chunk period at this rate and 100 ms; without chunks, one frame's period."""
    frames = 4 * chunk_latents if chunk_latents else 1
    return round(1e3 * frames / hz + DEADLINE_SLACK_MS, 3)


def figures_of(run: Run, deadline: float = 0.0) -> dict:
    """The keys of report.json for one run, and what only this benchmark has.

    deadline: ms, 0 for the default. Durations are the benchmark's own: publication of the camera
    frame to arrival of the edited one; stages are the editor's.
    """
    recording = recording_of(run)
    figures = measure.figures(recording)
    for name in ("editor_memory_series", "editor_memory_bytes", "unreadable"):
        figures.pop(name)
    latents = measure.chunk_latents(recording)
    figures["chunk_latents"] = latents
    figures["deadline_ms"] = deadline or deadline_ms(run.hz, latents)
    late = [ms for _, _, ms in measure.frame_latencies(recording) if ms > figures["deadline_ms"]]
    figures["deadline_misses"] = len(late)
    figures["frames_out"] = len(run.edited)
    figures["dropped"] = dropped_of(run)
    figures["loss"] = round(run.loss, 5)
    figures["device_memory_bytes"] = run.device_memory_bytes or None
    figures["ros_overhead_ms"] = run.overhead_ms
    inside = [m["total_ms"] - m["transport_ms"] for m in run.latencies]
    figures["node_ms"] = percentiles(inside, 50, 95)
    figures["usage"] = run.usage
    if not run.latencies:
        figures["stages_ms"] = dict.fromkeys(names.STAGES)
        figures["passthrough"] = None
    return figures


def dropped_of(run: Run) -> dict[str, int]:
    """Lost frames by cause; ``unknown`` where the node under test does not count its drops."""
    causes = dict.fromkeys(names.DROP_CAUSES, 0)
    if run.dropped is None:
        return {**causes, UNKNOWN: run.lost}
    causes["policy"] = min(run.lost, run.dropped.get("policy", 0))
    causes["error"] = min(run.lost - causes["policy"], run.dropped.get("error", 0))
    # What never came back and that the editor does not know of was lost on the way.
    causes["transport"] = run.lost - causes["policy"] - causes["error"]
    return causes


def median_of(runs: list[dict]) -> dict:
    """Medians over runs of the same keys, at any depth; what is no number is the first run's."""
    first = runs[0]
    return {key: _median([run.get(key) for run in runs]) for key in first}


def _median(values: list) -> object:
    present = [value for value in values if value is not None]
    if not present:
        return None
    if isinstance(present[0], dict):
        keys = dict.fromkeys(key for value in present for key in value)
        return {key: _median([value.get(key) for value in present]) for key in keys}
    if isinstance(present[0], list):
        if all(isinstance(one, int | float) for value in present for one in value):
            same = len({len(value) for value in present}) == 1
            return [_median(list(c)) for c in zip(*present, strict=True)] if same else present[0]
        return present[0]
    if isinstance(present[0], bool) or not isinstance(present[0], int | float):
        return present[0]
    middle = float(np.median(present))
    whole = all(isinstance(value, int) for value in present) and middle.is_integer()
    return int(middle) if whole else round(middle, 3)


def percentiles(values: list[float], *points: int) -> dict[str, float | None]:
    """``p50`` and so on of some milliseconds; None without values."""
    if not values:
        return {f"p{point}": None for point in points}
    return {f"p{p}": round(float(np.percentile(values, p)), 3) for p in points}
