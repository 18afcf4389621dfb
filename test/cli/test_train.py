# SPDX-License-Identifier: Apache-2.0
"""``egoedit train`` from clips to a model folder that loads, in small; and wrong recipes."""

import pytest
import yaml

from egoedit_ros.cli.main import main


def _recipe(tmp_path, **more):
    recipe = {
        "model": "edge",
        "folders": {n: str(tmp_path / n) for n in ("output", "clips", "latents")},
        "autoencoder": {"steps": 2, "batch": 2, "crop": 32, "warmup": 1, "save_every": 2},
        "flow": {"steps": 2, "batch": 1, "crop": 8, "warmup": 1, "optimizer": "muon"},
        "bundle": {"folder": str(tmp_path / "bundle")},
    } | more
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return str(path)


@pytest.mark.egl
@pytest.mark.slow
def test_from_nothing_to_a_model(tmp_path):
    recipe = _recipe(tmp_path)
    clips = ["data", "sim", "-o", str(tmp_path / "clips"), "--clips", "2", "--workers", "1"]
    assert main(clips) == 0
    for stage in ("autoencoder", "latents", "flow", "bundle"):
        assert main(["train", stage, "--config", recipe]) == 0
    assert main(["train", "flow", "--config", recipe]) == 0  # done already: ends at once

    from egoedit_ros.stream.session import open_session

    session = open_session(str(tmp_path / "bundle"), "cpu", (64, 48))
    assert session.name == "edge"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "not a table"),
        ("model: edge", "names no folder"),
        (": : :", "cannot read"),
        ("folders: {output: a, clips: b, latents: c}\nflow: {wings: 2}", "does not fit"),
        ("folders: {output: a, clips: b, latents: c}\nflow: 3", "must be a table"),
    ],
)
def test_a_recipe_that_is_wrong_is_told_in_one_line(tmp_path, capsys, text, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    assert main(["train", "flow", "--config", str(path)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_no_clips_and_no_latents(tmp_path, capsys):
    recipe = _recipe(tmp_path)
    assert main(["train", "autoencoder", "--config", recipe]) == 2
    assert "egoedit data sim" in capsys.readouterr().err
    assert main(["train", "flow", "--config", recipe]) == 2
    assert "egoedit train latents" in capsys.readouterr().err
