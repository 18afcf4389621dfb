# SPDX-License-Identifier: Apache-2.0
"""What processes take of the machine: processor time, memory, and the GPU's load."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from pathlib import Path

from egoedit_ros.errors import UserError

_TICK_S = 1.0 / os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
SAMPLE_EVERY_S = 0.5


def parse_watch(words: list[str]) -> dict[str, int]:
    """``['editor:123']`` -> process id by name. Raises UserError."""
    watched = {}
    for word in words:
        name, colon, pid = word.rpartition(":")
        if not (name and colon and pid.isascii() and pid.isdigit()):
            raise UserError(f"watch has {word!r}; write NAME:PID")
        watched[name] = int(pid)
    return watched


def cpu_seconds(pid: int) -> float | None:
    """Processor time that a process has used, all threads; None if it is not there."""
    try:
        # The name in brackets may hold anything, so count from behind it.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) * _TICK_S
    except (OSError, IndexError, ValueError):
        return None


def memory_bytes(pid: int) -> int:
    """Resident memory of a process; 0 if it is not there."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
    except (OSError, IndexError, ValueError):
        return 0


class Usage:
    """Watches processes from :meth:`start` to :meth:`stop`.

    watched: process id by name. 100 percent is one core. Where there is ``nvidia-smi``, ``gpu`` is
    watched too.
    """

    def __init__(self, watched: dict[str, int]) -> None:
        self.watched = watched
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._stopping.clear()
        self._began = time.monotonic()
        self._cpu = {name: cpu_seconds(pid) for name, pid in self.watched.items()}
        self._memory = dict.fromkeys(self.watched, 0)
        self._gpu: list[tuple[float, float]] = []
        self._thread = threading.Thread(target=self._sample, name="usage", daemon=True)
        self._thread.start()

    def stop(self) -> dict[str, dict[str, float]]:
        """``{name: {cpu_percent, memory_bytes}}``: mean, and the most seen; of ``gpu`` likewise."""
        self._stopping.set()
        self._thread.join()
        elapsed = max(time.monotonic() - self._began, 1e-3)
        found: dict[str, dict[str, float]] = {}
        for name, pid in self.watched.items():
            now, before = cpu_seconds(pid), self._cpu[name]
            if now is None or before is None:
                continue
            percent = 100 * (now - before) / elapsed
            found[name] = {"cpu_percent": round(percent, 1), "memory_bytes": self._memory[name]}
        if self._gpu:
            loads, sizes = zip(*self._gpu, strict=True)
            mean = sum(loads) / len(loads)
            found["gpu"] = {"gpu_percent": round(mean, 1), "memory_bytes": int(max(sizes) * 2**20)}
        return found

    def _sample(self) -> None:
        smi = shutil.which("nvidia-smi")
        while True:
            for name, pid in self.watched.items():
                self._memory[name] = max(self._memory[name], memory_bytes(pid))
            if smi and (seen := _gpu(smi)):
                self._gpu.append(seen)
            if self._stopping.wait(SAMPLE_EVERY_S):
                return


def _gpu(smi: str) -> tuple[float, float] | None:
    """(load in percent, MiB used) of the first GPU."""
    words = [smi, "--query-gpu=utilization.gpu,memory.used", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(words, capture_output=True, text=True, timeout=5, check=True).stdout
        load, used = said.splitlines()[0].split(",")
        return float(load), float(used)
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None
