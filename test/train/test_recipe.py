# SPDX-License-Identifier: Apache-2.0
"""``config/train/tiny.yaml``: every stage, each from the last one's checkpoint, to a model that
edits a stream; and what the recipes say."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from egoedit_ros.cli.main import main
from egoedit_ros.data.clip import StoredClip, write_stored
from egoedit_ros.errors import UserError
from egoedit_ros.train.batches import FlowData
from egoedit_ros.train.stages import STAGES, read_recipe, recipe_config, run_stage

# The first test waits for all stages, on machines of any speed.
pytestmark = pytest.mark.timeout(900)
RECIPES = Path(__file__).resolve().parents[2] / "config" / "train"
# Tested in test_whole.py and, the last seven, in test_forms.py, test_detail.py, test_places.py and
# test_rooms.py.
ELSEWHERE = ("flow_whole", "whole", "rollout", "form_views", "forms", "detail_samples", "detail",
             "places", "room_views", "lights")  # fmt: skip
TRAINED = ("autoencoder", "flow", "dmd", "causal", "self_forcing", "decoder")


def _clips(folder, numbers):
    """A square that moves over a slope of grey; the edit gives it another colour."""
    folder.mkdir(parents=True)
    for number in numbers:
        rng = np.random.default_rng(number)
        source = np.empty((5, 48, 64, 3), np.uint8)
        source[:] = np.linspace(40, 200, 64, dtype=np.uint8)[None, None, :, None]
        target, hand = source.copy(), np.zeros(source.shape[:3], bool)
        y, x = rng.integers(4, 24), rng.integers(4, 36)
        for t in range(5):
            source[t, y : y + 16, x + t : x + t + 16] = (200, 40, 40)
            target[t, y : y + 16, x + t : x + t + 16] = (40, 40, 200)
        write_stored(
            folder,
            StoredClip(number, ["recolour"], ["make the red square blue"], source, [target], hand),
        )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder in which all stages have been run."""
    folder = tmp_path_factory.mktemp("recipe")
    _clips(folder / "tiny" / "clips", range(4))
    _clips(folder / "tiny" / "validation", range(1_000_000, 1_000_002))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for stage in STAGES:
            if stage not in ELSEWHERE:
                assert main(["train", stage, "--config", str(RECIPES / "tiny.yaml")]) == 0, stage
        yield folder


@pytest.mark.slow
def test_every_stage_leaves_its_weights_and_its_curve(trained):
    for stage in TRAINED:
        weights = load_file(trained / "tiny" / f"{stage}.safetensors")
        assert all(torch.isfinite(v).all() for v in weights.values()), stage
    rows = [json.loads(x) for x in (trained / "tiny" / "flow.log.jsonl").open()]
    assert rows and all(np.isfinite(r["loss"]) for r in rows)
    assert list((trained / "tiny" / "tb" / "flow").iterdir())


@pytest.mark.slow
def test_each_stage_begins_with_the_last_ones_weights(trained):
    """Small rates and few steps: much nearer to the stage before than to another network."""
    chain = [load_file(trained / "tiny" / f"{s}.safetensors")
             for s in ("flow", "dmd", "causal", "self_forcing")]  # fmt: skip
    names = [n for n in chain[0] if "blocks." in n and chain[0][n].ndim == 2]
    for before, after in zip(chain, chain[1:], strict=False):
        moved = sum((after[n] - before[n]).square().sum() for n in names)
        size = sum(before[n].square().sum() for n in names)
        assert 0 < moved < 0.05 * size


@pytest.mark.slow
def test_samples_are_a_video_and_figures(trained):
    from egoedit_ros.data.video import VideoReader

    for stage, steps in (("flow", [30]), ("dmd", [4]), ("self_forcing", [4])):
        folder = trained / "tiny" / f"{stage}.samples"
        rows = [json.loads(x) for x in (folder.with_suffix(".samples.jsonl")).open()]
        assert [r["step"] for r in rows] == steps
        assert "sample_edit_gain" in rows[0] and "sample_ssim_gain" in rows[0]
        frames = [rgb for _, rgb in VideoReader(folder / f"step_{steps[0]:06d}.mp4")]
        assert len(frames) == 5 and frames[0].shape == (48, 3 * 64, 3)  # source, edit, target
    figures = json.loads(
        (trained / "tiny" / "samples" / "self_forcing" / "figures.json").read_text()
    )
    assert set(figures) >= {"edit_gain", "ssim_gain", "keep_psnr"}


@pytest.mark.slow
def test_the_bundle_edits_a_stream(trained):
    from egoedit_ros.stream.session import open_session

    session = open_session(str(trained / "tiny" / "bundle"), "cpu")
    assert session.name == "tiny" and session.size == (64, 48)
    session.set_instruction("make the red square blue", seed=0)
    for count in (1, 4, 4):
        assert session.run(np.zeros((count, 48, 64, 3), np.uint8)).frames.shape[0] == count


@pytest.mark.slow
def test_a_stage_that_is_done_ends_at_once_and_another_config_is_refused(trained, capsys):
    recipe = read_recipe(RECIPES / "tiny.yaml")
    before = (trained / "tiny" / "dmd.safetensors").read_bytes()
    run_stage("dmd", recipe)
    assert (trained / "tiny" / "dmd.safetensors").read_bytes() == before
    recipe["dmd"]["lr"] = 0.5
    path = trained / "other.yaml"
    path.write_text(yaml.safe_dump(recipe))
    assert main(["train", "dmd", "--config", str(path)]) == 2
    assert "lr was 0.0001, is 0.5" in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(p.stem for p in RECIPES.glob("*.yaml")))
def test_recipes_name_stages_and_settings_that_exist(name):
    recipe = read_recipe(RECIPES / f"{name}.yaml")
    assert set(recipe) - {"model", "folders"} <= set(STAGES)
    config = recipe_config(recipe)
    assert config.transformer.in_channels == 2 * config.transformer.out_channels


@pytest.mark.parametrize("name", sorted(p.stem for p in RECIPES.glob("*.yaml")))
def test_recipes_give_no_stage_what_it_does_not_heed(name):
    recipe = read_recipe(RECIPES / f"{name}.yaml")
    known = {f.name for f in dataclasses.fields(FlowData)}
    for stage in ("dmd", "self_forcing", "rollout"):
        section = {k: v for k, v in recipe.get(stage, {}).items() if k in known}
        FlowData(Path(), **section).refuse_flow_only(stage)


def _section(tmp_path, stage, section, **more):
    recipe = read_recipe(RECIPES / "tiny.yaml") | more
    recipe["folders"] = {k: str(tmp_path / k) for k in ("output", "clips", "latents")}
    return stage, recipe | {stage: section}


@pytest.mark.parametrize(
    ("stage", "section", "more", "says"),
    [
        ("dmd", {}, {}, "names no teacher"),
        ("dmd", {"teacher": "nowhere"}, {}, "no teacher at nowhere; run the stage"),
        ("flow", {"start": "nowhere"}, {}, "no start at nowhere"),
        ("autoencoder", {"start": "nowhere"}, {}, "no start at nowhere; run the stage"),
        ("flow", {"mask_layer": 1, "lora": 2}, {}, "leave out lora or mask_layer"),
        ("flow", {"wings": 2}, {}, "does not fit"),
        ("flow", {"views": 3}, {}, "views must be a list"),
        ("flow", {"device": "tpu"}, {}, "use auto, cpu or cuda"),
        ("flow", {"sample_every": 5}, {}, "sample_every without samples"),
        ("flow", {"samples": {"way": "euler"}}, {}, "folders: validation"),
        ("causal", {"attention": "bidirectional"}, {}, "leave out attention"),
        ("latents", {"wings": 1}, {}, "latents has no setting wings"),
        ("sample", {}, {}, "names no checkpoint"),
        ("flow", {}, {"model": 3}, "model must be a name, or a table"),
        ("flow", {}, {"model": {"base": "edge", "wings": 2}}, "model does not fit"),
        ("flow", {}, {"model": "enormous"}, "no model called 'enormous'"),
        ("flow", {}, {"folders": {}}, "no latents in"),
        ("dream", {}, {}, "no stage called 'dream'"),
    ],
)
def test_wrong_recipes_are_told_before_anything_is_trained(tmp_path, stage, section, more, says):
    stage, recipe = _section(tmp_path, stage, section, **more)
    with pytest.raises(UserError, match=says):
        run_stage(stage, recipe)
    assert not (tmp_path / "output" / f"{stage}.safetensors").exists()


@pytest.mark.parametrize("stage", ["dmd", "self_forcing"])
@pytest.mark.parametrize("where", ["section", "view"])
@pytest.mark.parametrize("setting", ["text_dropout", "mask_layer", "rough_past"])
def test_distilling_refuses_what_it_does_not_heed(tmp_path, stage, where, setting):
    teacher = tmp_path / "teacher.safetensors"
    teacher.touch()
    given = {setting: 1}
    if where == "view":
        given = {"views": [{"weight": 1.0} | given]}
    stage, recipe = _section(tmp_path, stage, {"teacher": str(teacher), "crop": 0} | given)
    with pytest.raises(UserError, match=f"{stage} does not heed {setting}; leave it out"):
        run_stage(stage, recipe)


def test_the_autoencoder_begins_with_the_weights_it_is_given(tmp_path, monkeypatch):
    start = tmp_path / "start.safetensors"
    start.touch()
    given = []
    monkeypatch.setattr(
        "egoedit_ros.train.autoencoder.train_autoencoder", lambda *args: given.append(args)
    )
    stage, recipe = _section(tmp_path, "autoencoder", {"start": str(start), "batch": 3})
    run_stage(stage, recipe)
    ((_, data, begun),) = given
    assert begun == start and data.batch == 3
