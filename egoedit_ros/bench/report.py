# SPDX-License-Identifier: Apache-2.0
"""What a replay leaves in its folder beside the bag: report.json, report.html, side_by_side.mp4."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from egoedit_ros.bench import measure
from egoedit_ros.bench.recording import BAG, Recording, load, picture_sizes
from egoedit_ros.errors import UserError

REPORT_JSON = "report.json"
REPORT_HTML = "report.html"
SIDE_BY_SIDE = "side_by_side.mp4"
# What a replay may have left here before; nothing else in a folder is ever removed.
LEFT_BEHIND = (REPORT_JSON, REPORT_HTML, SIDE_BY_SIDE, BAG, "logs")
PACKAGES = ("egoedit_ros", "torch", "numpy", "rosbags", "av", "ros-jazzy-rclpy")


def write_reports(
    folder: Path,
    settings: dict,
    interrupted: bool = False,
    error: str = "",
    progress: Callable[[int], None] = lambda done: None,
) -> dict:
    """Measure the recording in ``folder`` and write the three files. Returns report.json's dict.

    settings: what the run was asked for: ``input``, ``input_sha256``, ``model``, ``device``,
    ``size``, ``chunk_latents``, ``deadline_ms``, ``policy``, ``rate``, ``command``,
    ``instructions``. What the editor itself said of model and device goes before it. progress: is
    told the frames of the video so far. Raises UserError if nothing can be read.
    """
    recording = load(folder)
    report = make_report(recording, settings, interrupted, error)
    write_json(report, folder / REPORT_JSON)
    # Only these need a plotting library and fonts; the figures are safe already.
    from egoedit_ros.bench.page import write_page
    from egoedit_ros.bench.side_by_side import write_video

    write_page(report, recording, folder / REPORT_HTML)
    if recording.edited:
        write_video(recording, folder / SIDE_BY_SIDE, progress)
    return report


def make_report(
    recording: Recording, settings: dict, interrupted: bool = False, error: str = ""
) -> dict:
    """The contents of report.json."""
    last = recording.statuses[-1] if recording.statuses else None
    try:
        sizes = picture_sizes(recording.folder)
    except UserError:
        sizes = None
    size = "x".join(map(str, sizes[1])) if sizes else settings.get("size")
    return {
        **measure.figures(recording, interrupted),
        "deadline_ms": settings.get("deadline_ms"),
        "model": (last.model if last else "") or settings.get("model"),
        "device": (last.device if last else "") or settings.get("device"),
        "size": size,
        "chunk_latents": measure.chunk_latents(recording) or settings.get("chunk_latents"),
        "policy": settings.get("policy"),
        "rate": settings.get("rate"),
        "seed": settings.get("seed"),
        "instructions": settings.get("instructions", []),
        "interrupted": interrupted,
        **({"error": error} if error else {}),
        "input": settings.get("input"),
        "input_sha256": settings.get("input_sha256"),
        "command": settings.get("command"),
        "host": host(),
        "versions": versions(),
    }


def write_json(content: dict, path: Path) -> None:
    """Write JSON at once or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def host() -> dict:
    """The machine: processor, cores this process may use, memory, system."""
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
    }


def versions() -> dict:
    """Versions of this package and of what it stands on; only what is installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package.removeprefix("ros-jazzy-")] = version(package)
        except PackageNotFoundError:
            continue
    if distro := os.environ.get("ROS_DISTRO"):
        found["ros_distro"] = distro
    return found


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
