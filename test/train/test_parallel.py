# SPDX-License-Identifier: Apache-2.0
"""Two processes give what one gives with the whole batch, and go on from their own shards."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from train_support import TINY, cache_clips

from egoedit_ros.model.transformer import Transformer

ROOT = Path(__file__).resolve().parents[2]


def _recipe(tmp_path, folder, steps, **more):
    teacher = tmp_path / "teacher.safetensors"
    if not teacher.exists():
        torch.manual_seed(4)
        save_file(Transformer(TINY.transformer).state_dict(), teacher)
    model = {
        "base": "edge",
        "name": "tiny",
        "size": [64, 48],
        "nfe": 2,
        "transformer": {
            "layers": 2, "heads": 2, "head_dim": 24, "ffn_dim": 48, "in_channels": 8,
            "out_channels": 4, "freq_dim": 16,
        },
        "autoencoder": {"latent_channels": 4},
    }  # fmt: skip
    common = {
        "steps": steps, "batch": 4, "frames": 3, "crop": 0, "warmup": 1, "lr": 0.003,
        "log_every": 1, "save_every": 2, "device": "cpu", "start": str(teacher),
    } | more  # fmt: skip
    folders = {"output": str(tmp_path / folder), "clips": "none", "latents": str(tmp_path / "lat")}
    distil = common | {"teacher": str(teacher), "guidance": 2.0, "critic_steps": 1}
    recipe = {
        "model": model,
        "folders": folders,
        "flow": common | {"attention": "bidirectional", "text_dropout": 0.5},
        "self_forcing": distil | {"recompute": True},
    }
    path = tmp_path / f"{folder}.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return str(path)


def _run(processes, *arguments):
    """``egoedit train`` as it is started by hand: alone, or through torchrun."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    start = [sys.executable, "-m"]
    if processes > 1:
        start += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
    command = [*start, "egoedit_ros.cli.main", "train", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)


def _rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["flow", "self_forcing"])
def test_two_processes_are_one_with_the_whole_batch(tmp_path, stage):
    cache_clips(tmp_path / "lat")
    one, two = (_recipe(tmp_path, name, 4) for name in ("one", "two"))
    for processes, recipe in ((1, one), (2, two)):
        done = _run(processes, stage, "--config", recipe)
        assert done.returncode == 0, done.stderr[-2000:]
    alone, both = (_rows(tmp_path / n / f"{stage}.log.jsonl") for n in ("one", "two"))
    assert [r["step"] for r in both] == [1, 2, 3, 4]
    for a, b in zip(alone, both, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-3, abs=1e-5)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-2, abs=1e-4)
    alone, both = (load_file(tmp_path / n / f"{stage}.safetensors") for n in ("one", "two"))
    assert alone.keys() == both.keys()
    start = load_file(tmp_path / "teacher.safetensors")
    assert max((alone[k] - start[k]).abs().max() for k in alone) > 3e-3
    for name, value in alone.items():
        torch.testing.assert_close(both[name], value, atol=2e-4, rtol=1e-2)


@pytest.mark.slow
def test_shards_resume_exactly_and_are_not_mixed_with_one_process(tmp_path):
    cache_clips(tmp_path / "lat")
    constant = {"schedule": "constant"}
    whole = _recipe(tmp_path, "whole", 4, **constant)
    first = _recipe(tmp_path, "part", 2, **constant)
    assert _run(2, "flow", "--config", whole).returncode == 0
    assert _run(2, "flow", "--config", first).returncode == 0
    state = tmp_path / "part" / "flow.state"
    assert len(list(state.glob("*.safetensors"))) == 2
    second = _recipe(tmp_path, "part", 4, **constant)
    done = _run(2, "flow", "--config", second)
    assert done.returncode == 0, done.stderr[-2000:]
    one, other = (load_file(tmp_path / n / "flow.safetensors") for n in ("whole", "part"))
    assert all(torch.equal(one[k], other[k]) for k in one)
    alone = _run(1, "flow", "--config", second)
    assert alone.returncode == 2 and "was written by several processes" in alone.stderr


@pytest.mark.slow
def test_what_only_one_process_can_do_is_told(tmp_path):
    cache_clips(tmp_path / "lat")
    recipe = _recipe(tmp_path, "out", 2, lora=2)
    done = _run(2, "flow", "--config", recipe)
    assert done.returncode != 0
    assert "several processes train whole weights with adamw" in done.stderr
