# SPDX-License-Identifier: Apache-2.0
"""Stage ``whole``: several stages in one process, and Self Forcing against a pair's target."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from egoedit_ros.data.clip import StoredClip, write_stored
from egoedit_ros.errors import UserError
from egoedit_ros.train.batches import FlowData
from egoedit_ros.train.rollout import RolloutData, draw_steps, train_rollout
from egoedit_ros.train.settings import TrainSettings
from egoedit_ros.train.stages import read_recipe, run_stage

RECIPES = Path(__file__).resolve().parents[2] / "config" / "train"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
STAGES = ("autoencoder", "flow", "causal", "rollout", "self_forcing", "decoder")
SHORT = {"lr": 0.003, "warmup": 2, "batch": 4, "log_every": 1}


def _clips(folder, numbers):
    folder.mkdir(parents=True)
    for number in numbers:
        rng = np.random.default_rng(number)
        source = np.full((13, 48, 64, 3), 120, np.uint8)
        target, hand = source.copy(), np.zeros(source.shape[:3], bool)
        y, x = rng.integers(4, 24), rng.integers(4, 36)
        source[:, y : y + 16, x : x + 16] = (200, 40, 40)
        target[:, y : y + 16, x : x + 16] = (40, 40, 200)
        text = ["make the red square blue"]
        write_stored(folder, StoredClip(number, ["recolour"], text, source, [target], hand))


def _recipe(tmp_path, stages=STAGES):
    recipe = {"model": read_recipe(RECIPES / "tiny.yaml")["model"]}
    out = tmp_path / "out"
    recipe["folders"] = {"output": out, "clips": tmp_path / "clips", "latents": tmp_path / "none"}
    recipe["whole"] = {
        "stages": list(stages),
        "device": "cpu",
        "validation": {"clips": 2, "workers": 0, "most": 16},
        "render": [{"workers": 0}],
        "clips": {"clips": 4, "pixels": 4, "edits": 1, "wait": 4},
    }
    stream = {"frames": 3, "crop": 0, "from_start": 0.5}
    at_start = lambda name: {"start": out / f"{name}.safetensors"}  # noqa: E731
    recipe |= {
        "autoencoder": SHORT | {"steps": 20, "crop": 32, "similarity": 0.5},
        "flow": SHORT | {"attention": "bidirectional", "steps": 6, "frames": 1, "crop": 4}
        | {"text_dropout": 0.2, "most_weight": 2.0, "mask_layer": 1, "optimizer": "muon"},
        "causal": SHORT | stream | at_start("flow") | {"steps": 4},
        "rollout": SHORT | stream | at_start("causal")
        | {"steps": 6, "square": 32, "of_steps": {1: 0.5, 2: 0.5}, "sample_every": 6},
        "self_forcing": SHORT | stream | at_start("rollout")
        | {"teacher": out / "flow.safetensors", "steps": 4, "critic_steps": 2, "nfe": 2},
        "decoder": SHORT | {"steps": 4, "frames": 3, "crop": 32, "transformer": "self_forcing"},
    }  # fmt: skip
    _clips(tmp_path / "clips" / "part0", range(900, 902))
    _clips(tmp_path / "clips" / "part1", range(4))
    return recipe


def test_all_stages_run_on_clips_in_memory_and_each_changes_what_it_starts_from(tmp_path):
    run_stage("whole", _recipe(tmp_path))
    made = {s: load_file(tmp_path / "out" / f"{s}.safetensors") for s in STAGES}
    for before, after in zip(STAGES[1:4], STAGES[2:5], strict=True):
        key = "blocks.0.attn1.to_q.weight"
        assert not torch.equal(made[before][key], made[after][key]), after
    # The decoder learns, the encoder and what latents mean stay.
    for key, value in made["decoder"].items():
        same = torch.equal(value, made["autoencoder"][key])
        assert same == (not key.startswith("decoder_")), key
    sample = json.loads((tmp_path / "out" / "rollout.samples.jsonl").read_text())
    assert {"sample_gain_1", "sample_ssim_4"} <= set(sample)
    rows = (tmp_path / "out" / "autoencoder.log.jsonl").read_text().splitlines()
    losses = [json.loads(row)["loss"] for row in rows]
    assert len(losses) == 20 and np.mean(losses[-4:]) < np.mean(losses[:4])


@pytest.mark.parametrize("frames", [1, 2])
def test_rollout_learns_on_squares(tmp_path, frames):
    """Of one chunk, and of streams: positions are relative, so a square's place is not needed."""
    recipe = _recipe(tmp_path, ("autoencoder", "flow", "rollout"))
    start = tmp_path / "out" / "flow.safetensors"
    recipe["rollout"] |= {"start": start, "frames": frames, "crop": 4}
    run_stage("whole", recipe)
    before, after = (load_file(tmp_path / "out" / f"{n}.safetensors") for n in ("flow", "rollout"))
    assert any(not torch.equal(before[name], after[name]) for name in after)


def test_in_bfloat16_a_stream_learns_the_same(tmp_path, monkeypatch):
    """Weights are cast for the transformer alone, and what is left is float32."""
    recipe = _recipe(tmp_path, ("autoencoder", "flow", "rollout"))
    out = tmp_path / "out"
    recipe["rollout"] |= {"start": out / "flow.safetensors", "frames": 3, "crop": 0, "steps": 2}
    recipe["rollout"] |= {"with_decoder": True, "optimizer": "adamw"}
    for module in ("loop", "rollout"):  # whatever this machine is fast at
        monkeypatch.setattr(f"egoedit_ros.train.{module}.best_dtype", lambda device: torch.float32)
    run_stage("whole", recipe)
    (out / "rollout.state.safetensors").unlink()
    first = json.loads((out / "rollout.log.jsonl").read_text().splitlines()[0])
    (out / "rollout.log.jsonl").unlink()
    monkeypatch.setattr("egoedit_ros.train.rollout.best_dtype", lambda device: torch.bfloat16)
    recipe["whole"]["stages"] = ["rollout"]
    run_stage("whole", recipe)
    other = json.loads((out / "rollout.log.jsonl").read_text().splitlines()[0])
    assert other["loss"] != first["loss"]
    for name in ("loss", "grad_norm", "gain", "ssim"):
        assert other[name] == pytest.approx(first[name], rel=0.03)
    assert {v.dtype for v in load_file(out / "rollout.safetensors").values()} == {torch.float32}


def test_the_decoder_can_learn_beside_the_transformer(tmp_path):
    recipe = _recipe(tmp_path, ("autoencoder", "flow", "rollout"))
    start = tmp_path / "out" / "flow.safetensors"
    recipe["rollout"] |= {"start": start, "frames": 2, "crop": 4, "with_decoder": True}
    run_stage("whole", recipe)
    out = tmp_path / "out"
    names = ("autoencoder", "decoder", "rollout", "flow")
    before, after, made, flow = (load_file(out / f"{name}.safetensors") for name in names)
    assert set(after) == set(before) and set(made) == set(flow)
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert changed and all(name.startswith("decoder_") for name in changed)
    recipe["rollout"]["pixels"] = 0
    recipe["folders"]["output"] = out
    recipe["whole"]["stages"] = ["rollout"]
    with pytest.raises(UserError, match="learns from pixels"):
        run_stage("whole", recipe)


@pytest.mark.parametrize(
    ("lora", "data", "given", "says"),
    [
        (0, {"text_dropout": 0.1}, {}, "rollout does not heed text_dropout"),
        (0, {"mask_layer": 1}, {}, "rollout does not heed mask_layer"),
        (0, {"rough_past": 0.0}, {}, "rollout does not heed rough_past"),
        (2, {}, {"with_decoder": True}, "leave out lora or with_decoder"),
    ],
)
def test_rollout_refuses_what_it_would_not_heed(tmp_path, lora, data, given, says):
    settings = TrainSettings(tmp_path, "rollout", lora=lora, device="cpu")
    with pytest.raises(UserError, match=says):
        train_rollout(settings, FlowData(Path(), **data), RolloutData(Path(), **given), None)


def test_rollout_alone_says_where_it_belongs(tmp_path):
    with pytest.raises(UserError, match="stages of whole"):
        run_stage("rollout", _recipe(tmp_path))
    recipe = _recipe(tmp_path / "b")
    recipe["whole"]["stages"] = ["flow", "latents"]
    with pytest.raises(UserError, match="no stage 'latents'"):
        run_stage("whole", recipe)
    recipe["whole"] = {"stages": ["flow"]}
    with pytest.raises(UserError, match="give render"):
        run_stage("whole", recipe)


@pytest.mark.parametrize("which", ["validation", "render"])
def test_seeds_whose_clips_are_never_taken_in_are_refused(tmp_path, which):
    recipe = _recipe(tmp_path)
    told = recipe["whole"]["validation"] if which == "validation" else recipe["whole"]["render"][0]
    told |= {"seed": 999_999, "clips": 2}
    with pytest.raises(UserError, match="2 clips from seed 999999 reach .* give a lower seed"):
        run_stage("whole", recipe)


def test_steps_are_drawn_by_their_chances_and_every_step_of_them_learns():
    rng = np.random.default_rng(0)
    drawn = [draw_steps(rng, {1: 0.5, 4: 0.5}) for _ in range(400)]
    assert {steps for steps, _ in drawn} == {1, 4}
    assert {step for steps, step in drawn if steps == 4} == {0, 1, 2, 3}
    assert 120 < sum(steps == 1 for steps, _ in drawn) < 280
