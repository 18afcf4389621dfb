# SPDX-License-Identifier: Apache-2.0
"""The editor's figures: status once a second, and the same in words for /diagnostics."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue

from egoedit_ros.msg import StreamStatus
from egoedit_ros.stream import names
from egoedit_ros.stream.intake import Counters
from egoedit_ros.stream.latency import Rate, Window

SILENT_S = 2.0


@dataclass
class Figures:
    """What is counted and measured from one activation to the next."""

    counters: Counters = field(default_factory=Counters)
    fps_in: Rate = field(default_factory=Rate)
    fps_out: Rate = field(default_factory=Rate)
    latency: Window = field(default_factory=Window)
    # Half a minute of a camera of 30 frames a second: what the stream benchmark quotes.
    overhead: Window = field(default_factory=lambda: Window(1024))
    deadline_misses: int = 0
    incompatible_qos: int = 0


@dataclass
class Snapshot:
    """What the node knows besides its figures at the moment of a report."""

    state: str = names.STATE_INACTIVE
    model: str = ""
    device: str = ""
    size: tuple[int, int] = (0, 0)
    instruction_id: str = ""
    instruction_text: str = ""
    pending_instructions: int = 0
    queue_depth: int = 0
    device_memory_bytes: int = 0
    deadline_ms: float = 0.0
    stamp_age_s: float | None = None
    silence_s: float = 0.0
    image_topic: str = ""
    publishers: int = 0
    reason: str = ""


def host_memory_bytes() -> int:
    """Resident memory of this process; 0 where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def status_message(figures: Figures, snapshot: Snapshot, stamp) -> StreamStatus:
    """StreamStatus of this moment."""
    frames_in, frames_out, dropped = figures.counters.snapshot()
    p50, p95, p99 = figures.latency.percentiles(50, 95, 99)
    message = StreamStatus(
        state=snapshot.state,
        model=snapshot.model,
        device=snapshot.device,
        instruction_id=snapshot.instruction_id,
        frames_in=frames_in,
        frames_out=frames_out,
        deadline_misses=figures.deadline_misses,
        fps_in=figures.fps_in.per_second(),
        fps_out=figures.fps_out.per_second(),
        latency_p50_ms=p50,
        latency_p95_ms=p95,
        latency_p99_ms=p99,
        queue_depth=snapshot.queue_depth,
        host_memory_bytes=host_memory_bytes(),
        device_memory_bytes=snapshot.device_memory_bytes,
        **{f"dropped_{cause}": dropped[cause] for cause in names.DROP_CAUSES},
    )
    message.header.stamp = stamp
    return message


def diagnostics_message(
    name: str, figures: Figures, snapshot: Snapshot, status: StreamStatus, new_drops: int
) -> DiagnosticArray:
    """DiagnosticArray with one status; new_drops: frames dropped since the last one."""
    level, summary = _verdict(figures, snapshot, status, new_drops)
    overhead_p50, overhead_p95 = figures.overhead.percentiles(50, 95)
    age = "unknown" if snapshot.stamp_age_s is None else f"{snapshot.stamp_age_s:.3f} s"
    width, height = snapshot.size
    values = {
        "model state": snapshot.state,
        "model": snapshot.model,
        "device": snapshot.device,
        "size": f"{width}x{height}",
        "input rate": f"{status.fps_in:.1f} Hz",
        "output rate": f"{status.fps_out:.1f} Hz",
        "stamp age": age,
        "latency p50": f"{status.latency_p50_ms:.1f} ms",
        "latency p95": f"{status.latency_p95_ms:.1f} ms",
        "latency budget": f"{snapshot.deadline_ms:.1f} ms",
        "deadline misses": status.deadline_misses,
        "ros overhead p50": f"{overhead_p50:.2f} ms",
        "ros overhead p95": f"{overhead_p95:.2f} ms",
        "frames in": status.frames_in,
        "frames out": status.frames_out,
        "dropped by transport": status.dropped_transport,
        "dropped by policy": status.dropped_policy,
        "dropped by error": status.dropped_error,
        "queue depth": status.queue_depth,
        "host memory": f"{status.host_memory_bytes / 2**20:.0f} MiB",
        "device memory": f"{status.device_memory_bytes / 2**20:.0f} MiB",
        "active instruction": snapshot.instruction_text or "none",
        "instruction id": snapshot.instruction_id,
        "instructions to come": snapshot.pending_instructions,
        "incompatible QoS events": figures.incompatible_qos,
        "image topic": snapshot.image_topic,
        "image publishers": snapshot.publishers,
    }
    report = DiagnosticStatus(
        level=level,
        name=f"{name}: stream",
        message=summary,
        hardware_id=snapshot.device or "none",
        values=[KeyValue(key=key, value=str(value)) for key, value in values.items()],
    )
    array = DiagnosticArray(status=[report])
    array.header.stamp = status.header.stamp
    return array


def _verdict(
    figures: Figures, snapshot: Snapshot, status: StreamStatus, new_drops: int
) -> tuple[bytes, str]:
    """Level and one line: the worst thing there is to say."""
    if snapshot.state == names.STATE_INACTIVE:
        if snapshot.reason:
            return DiagnosticStatus.ERROR, snapshot.reason
        return DiagnosticStatus.OK, "inactive"
    if snapshot.state == names.STATE_FAULT:
        return DiagnosticStatus.ERROR, f"model fault, camera passed through: {snapshot.reason}"
    topic = snapshot.image_topic
    if not snapshot.publishers:
        return DiagnosticStatus.WARN, f"nobody publishes {topic}"
    if figures.incompatible_qos and not status.frames_in:
        return DiagnosticStatus.WARN, f"a publisher of {topic} has an incompatible QoS; see the log"
    if snapshot.silence_s > SILENT_S:
        return DiagnosticStatus.WARN, f"no image on {topic} for {snapshot.silence_s:.0f} s"
    if new_drops:
        return DiagnosticStatus.WARN, f"{new_drops} frames dropped in the last second"
    if status.latency_p95_ms > snapshot.deadline_ms:
        over = f"p95 latency {status.latency_p95_ms:.0f} ms over {snapshot.deadline_ms:.0f} ms"
        return DiagnosticStatus.WARN, over
    return DiagnosticStatus.OK, snapshot.state
