# SPDX-License-Identifier: Apache-2.0
"""Stage ``places``: guesses that are off are mended, as far as pictures show where bodies are."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as torch_save

from egoedit_ros.errors import UserError
from egoedit_ros.model.checkpoint import read_safetensors
from egoedit_ros.model.places import Places, apart
from egoedit_ros.model.pose import FRAME
from egoedit_ros.train.loop import TrainSettings
from egoedit_ros.train.places import PlacesData, guessed, train_places


@pytest.fixture(scope="module")
def rooms(tmp_path_factory):
    """A leaning bright bar whose lower end is the thing's origin; the hand is out of sight."""
    folder, rng = tmp_path_factory.mktemp("rooms"), np.random.default_rng(0)
    y, x = np.mgrid[:128, :128]
    for scene in range(3):
        pictures, things, hands = [], [], []
        for number in range(40):
            at, lean, unit = rng.uniform(50, 78, 2), rng.uniform(-0.3, 0.3), rng.uniform(18, 26)
            right, up = x - at[0], at[1] - y
            across = right * np.cos(lean) - up * np.sin(lean)
            along = right * np.sin(lean) + up * np.cos(lean)
            bar = (np.abs(across) < 0.3 * unit) & (along > 0) & (along < 1.5 * unit)
            pictures.append(np.where(bar[..., None], [220, 180, 40], 60).astype(np.uint8))
            c, s = np.cos(lean), np.sin(lean)
            slope = unit * np.array([[c, -0.6 * s, 0.8 * s], [s, 0.6 * c, -0.8 * c]])
            thing = np.concatenate([at, slope[:, [1, 0, 2]].ravel(), [0.8, 0, 0.6]])
            things.append(np.concatenate([[number, 0], thing]))
            hands.append(np.concatenate([[-300, -300], thing[2:], [0.4]]))
        rows = {"things": things, "hands": hands, "lights": np.zeros((40, 14))}
        rows = {k: np.stack(v).astype(np.float32) for k, v in rows.items()}
        save_file(rows | {"pictures": np.stack(pictures)}, folder / f"{scene}.safetensors")
    return folder


def _settings(folder, steps):
    return TrainSettings(
        folder, "places", steps=steps, lr=2e-3, warmup=20, log_every=5, ema=0.95,
        optimizer="muon",
    )  # fmt: skip


@pytest.mark.slow
def test_guesses_are_mended(rooms, tmp_path):
    made = train_places(_settings(tmp_path, 300), PlacesData(rooms, ("thing",), batch=32))
    rows = [json.loads(line) for line in (tmp_path / "places.log.jsonl").read_text().splitlines()]
    before, after = (sum(r[f"thing_{x}"] for r in rows[-15:]) for x in ("before", "at"))
    assert after < 0.6 * before
    assert read_safetensors(made).keys() == Places().state_dict().keys()


def test_it_begins_from_networks_that_are_not_told_where_a_cut_is(rooms, tmp_path):
    torch.manual_seed(1)
    weights = {k: v for k, v in Places().state_dict().items()}
    name = "thing.hidden.weight"
    weights[name] = weights[name][:, :-4].contiguous()
    torch_save(weights, tmp_path / "start.safetensors")
    settings = dataclasses.replace(_settings(tmp_path, 1), lr=1e-9)
    data = PlacesData(rooms, ("thing",), batch=4)
    made = read_safetensors(train_places(settings, data, tmp_path / "start.safetensors"))
    torch.testing.assert_close(made[name][:, :-4].float(), weights[name], atol=1e-3, rtol=0)
    assert made[name][:, -4:].abs().max() < 1e-3


def test_guesses_are_off_by_a_little_or_by_much():
    frame = torch.zeros(2000, FRAME)
    frame[:, 2], frame[:, 7], frame[:, 8] = 20.0, -20.0, 1.0
    true = apart(frame)
    guess = guessed(true, torch.Generator().manual_seed(0))
    off = (guess.at - true.at).norm(dim=1) / true.unit
    assert off.quantile(0.1) < 0.06 and off.quantile(0.95) > 0.4
    assert (guess.unit / true.unit).log().abs().mean() < 0.3
    assert (guess.lean - true.lean).abs().median() < 0.1


def test_bodies_that_there_are_not(rooms, tmp_path):
    with pytest.raises(UserError, match="choose from thing, hand"):
        train_places(_settings(tmp_path, 1), PlacesData(rooms, ("foot",)))
    with pytest.raises(UserError, match="no picture in .* shows a hand"):
        train_places(_settings(tmp_path, 1), PlacesData(rooms))


def test_without_pictures_it_says_which_stage_makes_them(tmp_path):
    with pytest.raises(UserError, match="run the stage room_views first"):
        train_places(_settings(tmp_path, 1), PlacesData(tmp_path / "none"))
