# SPDX-License-Identifier: Apache-2.0
"""Two processes give what one gives with the whole batch, and go on from their own shards."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from train_support import TINY, cache_clips, tiny_recipe

from egoedit_ros.errors import UserError
from egoedit_ros.model.transformer import Transformer
from egoedit_ros.train.loop import Trainer, TrainSettings
from egoedit_ros.train.parallel import Group
from egoedit_ros.train.stages import run_stage

# The first test waits for all runs, on machines of any speed.
pytestmark = pytest.mark.timeout(900)
ROOT = Path(__file__).resolve().parents[2]
# What torchrun's processes do, several stages in one start.
SCRIPT = """
import json, sys
from egoedit_ros.train.parallel import end
from egoedit_ros.train.stages import run_stage
for stage, recipe in json.loads(sys.argv[1]):
    run_stage(stage, recipe)
end()
"""


def _recipe(folder, output, steps=4, schedule="cosine", every=1):
    start = str(folder / "teacher.safetensors")
    common = {
        "steps": steps, "batch": 4, "frames": 3, "crop": 0, "warmup": 1, "lr": 0.003,
        "log_every": 1, "save_every": 2, "device": "cpu", "start": start, "schedule": schedule,
        "bf16": False,
    }  # fmt: skip
    distil = {"teacher": start, "guidance": 2.0, "critic_steps": every, "recompute": True}
    return tiny_recipe(folder, output) | {
        "flow": common | {"attention": "bidirectional", "text_dropout": 0.5},
        "self_forcing": common | distil,
    }


def _two(work):
    """The stages of ``work`` in two processes, with the variables that torchrun sets."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    crew = []
    for rank in range(2):
        own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_PORT": port}
        own |= {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": 1, "PYTHONPATH": ROOT}
        crew.append(
            subprocess.Popen(
                [sys.executable, "-c", SCRIPT, json.dumps(work)],
                env=os.environ | {k: str(v) for k, v in own.items()},
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    try:
        for process in crew:
            _, errors = process.communicate(timeout=600)
            assert process.returncode == 0, errors[-3000:]
    finally:
        for process in crew:
            process.kill()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders ``one``, ``two`` (the same run), and two's that were stopped after step 2: ``part``,
    like ``whole``, and ``seldom``, before the generator's first step, like ``seldom_whole``."""
    folder = tmp_path_factory.mktemp("runs")
    cache_clips(folder / "latents")
    torch.manual_seed(4)
    save_file(Transformer(TINY.transformer).state_dict(), folder / "teacher.safetensors")
    for stage in ("flow", "self_forcing"):
        run_stage(stage, _recipe(folder, "one"))
    _two(
        [
            ("flow", _recipe(folder, "two")),
            ("self_forcing", _recipe(folder, "two")),
            ("flow", _recipe(folder, "whole", schedule="constant")),
            ("flow", _recipe(folder, "part", steps=2, schedule="constant")),
            ("flow", _recipe(folder, "part", schedule="constant")),
            *(("self_forcing", _recipe(folder, "seldom", n, "constant", every=3)) for n in (2, 4)),
            ("self_forcing", _recipe(folder, "seldom_whole", 4, "constant", every=3)),
        ]
    )
    return folder


def _rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["flow", "self_forcing"])
def test_two_processes_are_one_with_the_whole_batch(runs, stage):
    alone, both = (_rows(runs / n / f"{stage}.log.jsonl") for n in ("one", "two"))
    assert [r["step"] for r in both] == [1, 2, 3, 4]
    for a, b in zip(alone, both, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-3, abs=1e-5)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-2, abs=1e-4)
    alone, both = (load_file(runs / n / f"{stage}.safetensors") for n in ("one", "two"))
    assert alone.keys() == both.keys()
    start = load_file(runs / "teacher.safetensors")
    assert max((alone[k] - start[k]).abs().max() for k in alone) > 3e-3
    for name, value in alone.items():
        torch.testing.assert_close(both[name], value, atol=3e-4, rtol=1e-2)


@pytest.mark.slow
def test_shards_resume_exactly(runs):
    assert len(list((runs / "part" / "flow.state").glob("*.safetensors"))) == 2
    one, other = (load_file(runs / n / "flow.safetensors") for n in ("whole", "part"))
    assert all(torch.equal(one[k], other[k]) for k in one)
    assert [r["step"] for r in _rows(runs / "part" / "flow.log.jsonl")] == [1, 2, 3, 4]


@pytest.mark.slow
def test_a_distillation_resumes_exactly_before_its_generator_has_learnt(runs):
    folders = ("seldom_whole", "seldom")
    one, other = (load_file(runs / n / "self_forcing.safetensors") for n in folders)
    start = load_file(runs / "teacher.safetensors")
    assert any(not torch.equal(one[k], start[k]) for k in one)
    assert all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.slow
def test_one_process_does_not_go_on_with_shards(runs):
    with pytest.raises(UserError, match="was written by several processes"):
        run_stage("flow", _recipe(runs, "part", schedule="constant"))


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"lora": 2}, "leave out lora and muon"),
        ({"optimizer": "muon"}, "leave out lora and muon"),
        ({"sample_every": 5}, "egoedit train sample"),
    ],
)
def test_what_only_one_process_can_do_is_told(tmp_path, more, says):
    with pytest.raises(UserError, match=says):
        Trainer(
            nn.Linear(2, 2), TrainSettings(tmp_path, "x", **more), lambda *_: None,
            group=Group(0, 2),
        )  # fmt: skip


def test_the_processes_noise_is_one_draw():
    whole = Group().normal(torch.Generator().manual_seed(1), (4, 3))
    parts = [Group(r, 2).normal(torch.Generator().manual_seed(1), (2, 3)) for r in range(2)]
    assert torch.equal(torch.stack(parts, 1).flatten(0, 1), whole)
