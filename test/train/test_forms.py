# SPDX-License-Identifier: Apache-2.0
"""Stages ``form_views`` and ``forms``: views of things and the hand, and a network that learns."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from egoedit_ros.data.sim.assets import HALF_HEIGHT
from egoedit_ros.data.sim.vocabulary import KINDS
from egoedit_ros.errors import UserError
from egoedit_ros.model.checkpoint import read_safetensors
from egoedit_ros.model.config import DetailConfig, get_config
from egoedit_ros.model.forms import Forms
from egoedit_ros.model.pose import UNIT
from egoedit_ros.train.forms import FormsData, FormViews, make_views, train_forms
from egoedit_ros.train.loop import TrainSettings

CONFIG = dataclasses.replace(get_config("edge"), detail=DetailConfig(forms=len(KINDS)))
SIDE, SCALE, TILT = 40, 25.0, 0.5  # cells of 2 pixels, pixels to a unit, rad


@pytest.fixture(scope="module")
def views(tmp_path_factory):
    folder = tmp_path_factory.mktemp("views")
    assert list(make_views(folder, FormViews(seeds=[[5, 3]], workers=1)))[-1] == (3, 3)
    return folder


def _train(folder, views, steps, start=None, **data):
    settings = TrainSettings(
        folder, "forms", steps=steps, lr=3e-3, warmup=20, log_every=5, ema=0.97, bf16=False,
        config=CONFIG,
    )  # fmt: skip
    return train_forms(settings, FormsData(views, **data), start)


def test_forms_are_learned_from_views(views, tmp_path):
    _train(tmp_path, views, 60, batch=8, lines=200)
    rows = [json.loads(line) for line in (tmp_path / "forms.log.jsonl").read_text().splitlines()]
    for body in ("thing", "hand"):
        assert np.mean([r[body] for r in rows[-3:]]) < 0.7 * rows[0][body]


def test_one_body_is_learned_on_from_weights_and_the_other_stays(views, tmp_path):
    (tmp_path / "on").mkdir()
    start = _train(tmp_path, views, 5, batch=4, lines=50)
    made = _train(tmp_path / "on", views, 5, start, bodies=["hand"], batch=4, lines=50)
    before, after = read_safetensors(start), read_safetensors(made)
    for name, tensor in after.items():
        assert torch.equal(tensor, before[name]) == (not name.startswith("hand.")), name
    with pytest.raises(UserError, match="choose from thing, hand"):
        _train(tmp_path / "no", views, 5, bodies=["foot"])


@pytest.mark.slow
def test_a_ball_is_round_and_as_large_as_it_is(tmp_path):
    """After half a minute of training, from the front and somewhat above."""
    list(make_views(tmp_path / "views", FormViews(seeds=[[20, 24]], workers=1)))
    made = read_safetensors(_train(tmp_path, tmp_path / "views", 500, batch=16, lines=300))
    forms = Forms(CONFIG.detail)
    forms.load_state_dict({k: v.float() for k, v in made.items()})
    right, tilt = torch.tensor([1.0, 0, 0]), torch.tensor(TILT)
    down = torch.stack([0 * tilt, -tilt.sin(), -tilt.cos()])
    middle = torch.full((2,), SIDE - 0.5)
    frame = torch.cat([middle, SCALE * right, SCALE * down, torch.linalg.cross(right, down)])
    pose = torch.cat([frame, frame, torch.zeros(1)])[None]
    kinds = torch.eye(len(KINDS) + 1)[[KINDS.index("ball")]]
    seen = forms(pose, kinds, (SIDE, SIDE), 2)[0]
    y, x = torch.meshgrid(*[2 * torch.arange(SIDE) + 0.5 - middle[0]] * 2, indexing="ij")
    radius = HALF_HEIGHT["ball"] / UNIT
    lower = SCALE * (1 - radius) * tilt.cos()  # a ball's middle is below the origin
    told = radius - (x**2 + (y - lower) ** 2).sqrt() / SCALE
    assert (seen[0] - told)[told.abs() < 0.3].abs().mean() < 0.1
    assert ((seen[0] > 0) == (told > 0)).float().mean() > 0.96
    facing = seen[4][told > 0.1]  # away from the camera
    assert (facing < 0).float().mean() > 0.9


def test_what_is_there_is_not_filmed_again(views):
    before = {p: p.stat().st_mtime_ns for p in views.iterdir()}
    assert list(make_views(views, FormViews(seeds=[[5, 3]], workers=1))) == [(3, 3)]
    assert {p: p.stat().st_mtime_ns for p in views.iterdir()} == before


@pytest.mark.parametrize("seeds", [[[999_999, 2]], [], [[5, 0]], [7], "7"])
def test_seeds_that_are_for_evaluation_or_none_are_refused(tmp_path, seeds):
    with pytest.raises(UserError, match="form_views: seeds"):
        next(make_views(tmp_path, FormViews(seeds=seeds)))


def test_without_views_it_says_which_stage_makes_them(tmp_path):
    with pytest.raises(UserError, match="run the stage form_views first"):
        train_forms(
            TrainSettings(tmp_path, "forms", steps=1, config=CONFIG), FormsData(tmp_path / "none")
        )
