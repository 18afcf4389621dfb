# SPDX-License-Identifier: Apache-2.0
"""What processes take, of real processes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from egoedit_ros.bench.stream_usage import Usage, cpu_seconds, memory_bytes, parse_watch
from egoedit_ros.errors import UserError

BUSY = "x = bytearray(30 << 20)\nprint('go', flush=True)\nwhile True: pass"


def test_a_busy_process_and_one_that_is_gone(monkeypatch):
    monkeypatch.setenv("PATH", "")
    busy = subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    try:
        busy.stdout.readline()
        usage = Usage({"busy": busy.pid, "gone": gone.pid})
        before = cpu_seconds(busy.pid)
        usage.start()
        while cpu_seconds(busy.pid) < before + 0.1:
            pass
        found = usage.stop()
    finally:
        busy.kill()
        busy.wait()
    assert set(found) == {"busy"}
    assert found["busy"]["cpu_percent"] > 0 and found["busy"]["memory_bytes"] > 30 << 20
    assert cpu_seconds(gone.pid) is None and memory_bytes(gone.pid) == 0


def test_a_gpu_is_watched_where_there_is_one(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho '37, 1024'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    usage = Usage({"me": os.getpid()})
    usage.start()
    found = usage.stop()
    assert found["gpu"] == {"gpu_percent": 37.0, "memory_bytes": 2**30}
    tool.write_text("#!/bin/sh\nexit 9\n")
    usage.start()
    assert "gpu" not in usage.stop()


@pytest.mark.parametrize("word", ["editor", ":12", "editor:x", "editor:-1"])
def test_what_is_no_process_is_refused(word):
    with pytest.raises(UserError, match="NAME:PID"):
        parse_watch([word])
    assert parse_watch(["a:b:7"]) == {"a:b": 7}
