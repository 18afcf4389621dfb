# SPDX-License-Identifier: Apache-2.0
"""Where the time went: stages of a frame that add up, and figures over the last frames."""

from __future__ import annotations

import time
from collections import deque

import numpy as np

from egoedit_ros.stream.names import STAGES
from egoedit_ros.stream.types import EditedFrame

NS_PER_MS = 1e6


def finish(edited: EditedFrame, begin_ns: int, end_ns: int) -> tuple[dict[str, float], float]:
    """Stages and total, in ms, of a frame whose publication took from begin to end.

    Waiting between :attr:`EditedFrame.ready_ns` and the publication is added to ``buffer``. The
    total is measured by itself: publication of the camera's frame until the edited one's publish
    returned.
    """
    stages = {stage: edited.stages.get(stage, 0.0) for stage in STAGES}
    stages["buffer"] += (begin_ns - edited.ready_ns) / NS_PER_MS
    stages["publish"] = (end_ns - begin_ns) / NS_PER_MS
    total = edited.frame.transport_ms + (end_ns - edited.frame.arrival_ns) / NS_PER_MS
    return stages, total


def overhead_ms(edited: EditedFrame, end_ns: int) -> float:
    """What ROS costs a frame: arrival to first stage, and last stage to publish returned."""
    before = edited.frame.started_ns - edited.frame.arrival_ns
    return (before + end_ns - edited.ready_ns) / NS_PER_MS


def transport_ms(source_ns: int, now_ns: int, limit_ms: float = 5000.0) -> float:
    """Source timestamp to now, by the system clock; 0 where the two are not comparable.

    Clocks count as not comparable where there is no source timestamp, where it lies in the future
    or where it is older than ``limit_ms``.
    """
    if source_ns <= 0:
        return 0.0
    elapsed = (now_ns - source_ns) / NS_PER_MS
    return elapsed if 0.0 <= elapsed <= limit_ms else 0.0


def chunk_period_ms(chunk_latents: int, fps: float) -> float:
    """Time that the camera takes for one chunk of ``4 * chunk_latents`` frames."""
    return 4 * chunk_latents / fps * 1e3


class Window:
    """Percentiles over the last ``length`` values."""

    def __init__(self, length: int = 512) -> None:
        self._values: deque[float] = deque(maxlen=length)

    def add(self, value: float) -> None:
        self._values.append(value)

    def percentiles(self, *points: float) -> list[float]:
        """Percentiles (0..100); zeros while there is no value."""
        values = tuple(self._values)
        if not values:
            return [0.0] * len(points)
        return [float(p) for p in np.percentile(values, points)]


class Rate:
    """Events per second over the last ``span`` seconds."""

    def __init__(self, span: float = 3.0) -> None:
        self._span_ns = int(span * 1e9)
        self._times: deque[int] = deque(maxlen=4096)

    def add(self, now_ns: int | None = None) -> None:
        self._times.append(time.perf_counter_ns() if now_ns is None else now_ns)

    def per_second(self, now_ns: int | None = None) -> float:
        """Events a second; 0 when the last one is older than the span."""
        now_ns = time.perf_counter_ns() if now_ns is None else now_ns
        recent = [t for t in tuple(self._times) if now_ns - t <= self._span_ns]
        if len(recent) < 2 or recent[-1] == recent[0]:
            return 0.0
        return (len(recent) - 1) * 1e9 / (recent[-1] - recent[0])

    @property
    def period_ns(self) -> int:
        """Mean time between the last events, 0 while not known."""
        times = tuple(self._times)[-32:]
        return (times[-1] - times[0]) // (len(times) - 1) if len(times) > 1 else 0
