# SPDX-License-Identifier: Apache-2.0
"""The tables that are made of the benchmarks' files, and their places in the documentation."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from bench.test_stream_plan import Rig

from egoedit_ros.bench.stream_plan import Plan, run_plan

ROOT = Path(__file__).resolve().parents[2]
SHARED = {
    "host": {"cpu": "A processor", "cores": 2},
    "config": {"model": "edge", "runs": 2},
    "git_revision": "0123456789abcdef",
    "command": "egoedit bench",
}


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("tables", ROOT / "tools" / "bench_tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tables")
    stream = run_plan(Rig(most=50.0), Plan(rates=("16", "own"), runs=2, seconds=2.0, switches=3))
    stream |= {"ros_overhead_ms": {"p50": 1.234, "p95": 2.5}, "graph_minus_direct_ms": None}
    figures = {"edit_gain": 0.876, "ssim_gain": 0.5, "keep_psnr": 33.21, "hand_psnr": None}
    unaided = {"edit_strength": 4.25, "hands_kept": None}
    contents = {
        "stream": stream,
        "engine": {
            "edge_fps": {"2": 40.0},
            "edge_first_frame_ms": 22.0,
            "edge_memory_bytes": 300 << 20,
            "speedup_vs_recompute": 3.4,
        },
        "sim": {
            **{"mean": figures, "tasks": {"remove": figures}, "clips": []},
            "unaided": {"mean": unaided, "tasks": {"remove": unaided}},
        },
    }
    for name, content in contents.items():
        (folder / f"{name}.json").write_text(json.dumps(content | SHARED))
    return {name: folder / f"{name}.json" for name in contents}


def test_one_table_of_all(tool, files, capsys):
    tool.main([str(path) for path in files.values()])
    lines = capsys.readouterr().out.splitlines()
    assert len({line.count("|") for line in lines}) == 1
    table = "\n".join(lines)
    for words in (
        "| engine | frames/s at 2 NFE | 40.0 |",
        "| edits | edit_gain | 0.876 |",
        "| edits | hand_psnr | - |",
        "| graph | at 16 Hz | ",
        "| graph | at 25.0 Hz (own) |",
        "p50 1.23, p95 2.50 ms",
    ):
        assert words in table
    assert "hands kept" not in table  # measured nowhere


def test_the_documentation_has_the_places_and_only_they_change(tool, files):
    text = tool.DOCS.read_text()
    found = tool.load(list(files.values()))
    filled = tool.fill(text, found)
    assert "| remove | 0.876 | 0.500 | 33.2 | - | 4.25 |" in filled
    assert "A processor, 2 cores; model edge, runs 2; revision 012345678; `egoedit bench`" in filled
    assert "own timing (25.0 Hz)" in filled
    assert tool.fill(filled, found) == filled
    heads = [line for line in text.splitlines() if line.startswith("#")]
    assert [line for line in filled.splitlines() if line.startswith("#")] == heads
    with pytest.raises(SystemExit, match="lacks the markers"):
        tool.fill("nothing", found)


def test_other_files_are_refused(tool, files, tmp_path):
    path = tmp_path / "x.json"
    path.write_text("{}")
    with pytest.raises(SystemExit, match="no benchmark"):
        tool.load([path])
    path.write_text("{")
    with pytest.raises(SystemExit, match="cannot read"):
        tool.load([path])
    with pytest.raises(SystemExit, match="second file"):
        tool.load([files["sim"], files["sim"]])
