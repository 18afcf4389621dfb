# SPDX-License-Identifier: Apache-2.0
"""``bench engine`` writes what the contract lists, and prints it."""

import functools
import json

import pytest
import torch
from runtime_support import small_model

from egoedit_ros.bench import engine
from egoedit_ros.cli.main import main
from egoedit_ros.model.checkpoint import save_editor


@pytest.fixture
def bundle(tmp_path, monkeypatch):
    monkeypatch.setenv("EGOEDIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(
        engine, "measure_fps", functools.partial(engine.measure_fps, seconds=0.05)
    )  # fmt: skip
    before = torch.get_num_threads()
    model = small_model(nfe=2)
    save_editor(tmp_path / "bundle", model.config, model.transformer, model.autoencoder)
    yield str(tmp_path / "bundle")
    torch.set_num_threads(before)


def _bench(bundle, tmp_path, *words):
    file = tmp_path / "engine.json"
    command = ["bench", "engine", "--model", bundle, "--threads", "1", "--json", str(file)]
    assert main([*command, *words]) == 0
    return json.loads(file.read_text())


def test_all_figures_are_there(bundle, tmp_path, capfd):
    content = _bench(bundle, tmp_path, "--soak", "20")
    for key in ("host", "versions", "git_revision", "command", "config", "input_sha256"):
        assert key in content
    assert content["speedup_vs_recompute"] == content["recompute"]["speedup"] > 0
    assert content["recompute"]["difference"] <= content["recompute"]["tolerance"]
    assert set(content["edge_fps"]) == {"2", "4"} and min(content["edge_fps"].values()) > 0
    assert content["edge_fps_everywhere"] > 0
    assert content["edge_nfe"] == 2
    assert content["edge_first_frame_ms"] > 0 and content["edge_memory_bytes"] > 0
    assert content["soak"]["chunks"] == 20 and content["soak"]["time_ratio"] > 0
    assert content["soak"]["cpu_time_ratio"] > 0 and len(content["soak"]["load"]) == 2
    switch = content["instruction_switch"]
    assert {"text_ms", "chunk_ms", "at_once_ms", "recache_ms", "blend_ms"} <= set(switch)
    assert switch["text_ms"] > 0 and switch["chunk_ms"] > 0
    assert content["overlap"]["best"] in content["overlap"]["fps"]
    assert content["config"]["threads"] == 1 and content["config"]["runtime"] == "torch"
    out, bar = capfd.readouterr()
    assert "20/20" in bar  # the soak's progress
    assert "a new instruction" in out and "recache" in out
    assert "times faster" in out and "agree" in out and "NOT AGREE" not in out


def test_onnx_runtime_can_be_measured(bundle, tmp_path):
    pytest.importorskip("onnxruntime")
    content = _bench(bundle, tmp_path, "--runtime", "onnx")
    assert content["config"]["runtime"] == "onnx" and content["config"]["dtype"] == "float32"
    assert min(content["edge_fps"].values()) > 0
