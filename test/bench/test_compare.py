# SPDX-License-Identifier: Apache-2.0
"""``bench compare``: changes, and whether they are more than the runs scatter."""

from __future__ import annotations

import copy
import json

import pytest

from egoedit_ros.bench.compare import compare
from egoedit_ros.cli.main import main


def run(p50: float, fps: float = 16.0) -> dict:
    latency = {"p50": p50, "p90": p50, "p95": p50, "p99": p50, "max": p50}
    return {
        "fps_out": fps,
        "loss": 0.0,
        "first_frame_ms": 10.0,
        "latency_ms": latency,
        "jitter_ms": None,
        "deadline_misses": 0,
        "usage": {"editor": {"cpu_percent": 50.0}},
        "ros_overhead_ms": [p50 / 100, p50 / 50],
    }


def result(*p50s: float) -> dict:
    runs = [run(p50) for p50 in p50s]
    middle = runs[len(runs) // 2]
    return {
        "peak_fps": 30.0,
        "fixed": {"16": middle | {"runs": runs}},
        "ros_overhead_ms": {"p50": middle["ros_overhead_ms"][0], "p95": 1.0},
        "baseline": {"null": {"runs": runs}},
        "input_sha256": "abc",
        "host": {"cpu": "x", "cores": 2},
        "config": {"model": "edge"},
        "git_revision": "1234",
    }


def verdicts(content: dict) -> dict[str, str]:
    return {c["figure"]: c["verdict"] for c in content["changes"]}


def test_a_change_counts_when_it_is_more_than_the_runs_scatter():
    before = result(100.0, 102.0, 104.0)
    assert set(verdicts(compare(before, before)).values()) == {"same"}
    assert verdicts(compare(before, result(103.0, 105.0, 106.0)))["16 Hz: latency_ms p50"] == "same"
    found = verdicts(compare(before, result(110.0, 111.0, 112.0)))
    assert found["16 Hz: latency_ms p50"] == "worse" and found["16 Hz: fps_out"] == "same"
    assert verdicts(compare(before, result(80.0, 81.0, 82.0)))["16 Hz: latency_ms p50"] == "better"
    # A second result that scatters widely proves nothing either.
    assert verdicts(compare(before, result(60.0, 120.0, 180.0)))["16 Hz: latency_ms p50"] == "same"


def test_more_frames_are_better_and_more_milliseconds_are_not():
    before, after = result(100.0, 101.0), result(100.0, 101.0)
    for one in (after["fixed"]["16"], *after["fixed"]["16"]["runs"]):
        one["fps_out"] = 20.0
    after["peak_fps"] = 20.0
    found = verdicts(compare(before, after))
    assert found["16 Hz: fps_out"] == "better" and found["peak_fps"] == "worse"


def test_what_is_in_one_only_and_what_is_missing_is_left_out():
    before, after = result(100.0), result(100.0)
    after["fixed"]["30"] = after["fixed"]["16"]
    after["peak_fps"] = None
    content = compare(before, after)
    assert content["only_in_one"] == ["30 Hz"]
    assert "peak_fps" not in verdicts(content) and "16 Hz: jitter_ms" not in verdicts(content)
    # One run each: no spread to hold against.
    assert not next(c for c in content["changes"] if c["figure"].endswith("latency_ms p50"))["runs"]


def test_conditions_that_differ_are_said(tmp_path, capsys):
    before, after = result(100.0, 101.0), copy.deepcopy(result(150.0, 151.0))
    after["host"]["cpu"], after["input_sha256"] = "y", "def"
    files = []
    for name, content in (("a", before), ("b", after)):
        files.append(str(tmp_path / f"{name}.json"))
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    out = tmp_path / "out.json"
    assert main(["bench", "compare", *files, "--json", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "processor: x -> y" in printed and "input: abc -> def" in printed
    assert "WORSE" in printed and "1234 -> 1234" in printed
    assert [c["condition"] for c in json.loads(out.read_text())["conditions"]] == [
        "input",
        "processor",
    ]


@pytest.mark.parametrize("text", ["", "[1]", '{"fixed": 3}', '{"items": []}'])
def test_other_files_are_refused_in_one_line(tmp_path, capsys, text):
    path = tmp_path / "x.json"
    path.write_text(text)
    assert main(["bench", "compare", str(path), str(path)]) == 2
    said = capsys.readouterr().err
    assert "bench stream" in said and said.count("\n") == 1
    assert main(["bench", "compare", str(tmp_path / "no"), str(path)]) == 2
