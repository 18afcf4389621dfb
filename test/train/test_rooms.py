# SPDX-License-Identifier: Apache-2.0
"""Stages ``room_views`` and ``lights``: pictures of rooms, and what is learned from them."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from egoedit_ros.data.sim.render import Simulator
from egoedit_ros.data.sim.rooms import light_at
from egoedit_ros.data.sim.scene import draw_scene
from egoedit_ros.data.sim.vocabulary import COLORS, KINDS
from egoedit_ros.errors import UserError
from egoedit_ros.model.checkpoint import fill, read_safetensors
from egoedit_ros.model.config import DetailConfig, get_config
from egoedit_ros.model.forms import SEEN, TOLD, Forms
from egoedit_ros.model.light import LIGHT, Lights, shade
from egoedit_ros.model.pose import FRAME
from egoedit_ros.train.lights import (
    LightsData,
    colored_texts,
    light_loss,
    second_colors,
    train_lights,
    varied,
)
from egoedit_ros.train.loop import TrainSettings
from egoedit_ros.train.rooms import Rooms, RoomViews, make_rooms

DETAIL = DetailConfig(forms=len(KINDS), lights=len(COLORS))
CONFIG = dataclasses.replace(get_config("edge"), detail=DETAIL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rooms")
    assert list(make_rooms(folder, RoomViews(seeds=[[5, 4]], workers=1)))[-1] == (4, 4)
    return folder


def test_things_are_where_they_are_said_to_be(folder):
    """At a thing's place the picture shows that thing: other colours than a little beside."""
    rooms = Rooms.read(folder)
    assert rooms.pictures.shape == (12, 192, 256, 3) and rooms.lights.shape == (12, LIGHT)
    assert rooms.hands.shape == (12, FRAME + 1) and rooms.things[:, 0].max() == 11
    scene = draw_scene(5, 5.0)
    simulator = Simulator()
    time = scene.start + np.random.default_rng([5, 11]).uniform(0, 5.0, 3)[0]
    assert np.array_equal(simulator.render_frame(scene, time), rooms.pictures[0])
    gone = dataclasses.replace(scene.things[0], visible=False)
    empty = dataclasses.replace(scene, things=(gone, *scene.things[1:]))
    changed = np.abs(simulator.render_frame(empty, time).astype(int) - rooms.pictures[0]).sum(-1)
    assert rooms.things[0, 1] == KINDS.index(scene.things[0].kind)
    x, y = rooms.things[0, 2:4].round().astype(int)
    inside = 0 <= x < 256 and 0 <= y < 192
    assert not inside or changed[max(y - 8, 0) : y + 9, max(x - 8, 0) : x + 9].max() > 30


def test_what_is_there_is_not_filmed_again(folder):
    before = {p: p.stat().st_mtime_ns for p in folder.iterdir()}
    assert list(make_rooms(folder, RoomViews(seeds=[[5, 4]], workers=1))) == [(4, 4)]
    assert {p: p.stat().st_mtime_ns for p in folder.iterdir()} == before


@pytest.mark.parametrize("seeds", [[[999_999, 2]], [], [[5, 0]], [7], "7"])
def test_seeds_that_are_for_evaluation_or_none_are_refused(tmp_path, seeds):
    with pytest.raises(UserError, match="room_views: seeds"):
        next(make_rooms(tmp_path, RoomViews(seeds=seeds)))
    with pytest.raises(UserError, match="lights: seeds"):
        colored_texts(seeds)


def test_without_pictures_it_says_which_stage_makes_them(tmp_path):
    with pytest.raises(UserError, match="run the stage room_views first"):
        Rooms.read(tmp_path)


def test_the_light_is_the_one_in_which_a_scene_is_rendered():
    """A ball's middle is of its own colour times what falls on it there, in a shadow or not."""
    simulator = Simulator()
    right = []
    for seed in range(12):
        scene = draw_scene(seed, 1.0)
        ball = dataclasses.replace(scene.things[0], kind="ball", rgb=(0.4, 0.4, 0.4), x=0, y=0)
        scene = dataclasses.replace(scene, things=(ball,), held=-1)
        picture = simulator.render_frame(scene, scene.start) / 255
        geoms, depth = simulator.film_body(scene, scene.start, "ball")
        rows, columns = np.nonzero(geoms >= 0)
        if len(rows) < 400:
            continue
        row, column = int(np.median(rows)), int(np.median(columns))
        around = picture[row - 2 : row + 3, column - 2 : column + 3].reshape(-1, 3)
        if np.ptp(around, 0).max() > 0.1:  # a shadow's edge, or a hand
            continue
        light = torch.from_numpy(light_at(scene, scene.start))[None]
        rest, key = shade(light, torch.tensor([[0.0, 0.0, -1.0]])[..., None])
        lit, dark = (0.4 * x[0, :, 0].numpy() for x in (rest + key, rest))
        off = min(np.abs(around.mean(0) - x).max() for x in (lit, dark))
        right.append(off < 0.05)
    assert len(right) > 4 and np.mean(right) > 0.8


def test_mirrored_pictures_have_their_light_from_the_other_side():
    torch.manual_seed(0)
    noise = torch.Generator().manual_seed(1)
    pictures, lights = torch.rand(64, 3, 6, 8) * 0.5, torch.rand(64, LIGHT)
    got, other = varied(pictures, lights, noise)
    mirrored = other[:, 8] < 0
    assert 10 < mirrored.sum() < 54 and torch.equal(mirrored, other[:, 11] < 0)
    brighter = (other[:, 0] / lights[:, 0])[:, None, None, None]
    straight = torch.where(mirrored[:, None, None, None], got.flip(3), got)
    assert ((straight - pictures * brighter).abs().mean((1, 2, 3)) < 0.03).all()
    assert float(light_loss(other, other, noise)[0]) < 0.02 + 0.2  # directions are no unit vectors


def test_texts_say_what_colour_a_thing_has_then():
    told = colored_texts(((300_000, 12),))
    names = list(COLORS)
    named = [text for text, color in told if names[color] in text.split()]
    assert len(told) > 30 and len(named) > 0.5 * len(told)


class _Capped(Forms):
    """Whatever the pose: all is a second material that faces the camera."""

    def forward(self, pose, kinds, size, step):
        seen = torch.full((1, SEEN, *size), -1.0)
        seen[:, :2], seen[:, 2:TOLD] = 1.0, torch.tensor([0.0, 0, -1, 0])[:, None, None]
        return seen


def test_second_materials_have_the_colour_that_is_seen_over_the_light():
    light = np.array([0.4] * 3 + [0.5] * 3 + [0.0, 0.2, 0, 0, -1, 0, 0, -1], np.float32)
    color = np.array([0.2, 0.6, 0.4])
    picture = np.full((64, 64, 3), (255 * color * 1.1).round(), np.uint8)
    things = np.zeros((1, 2 + FRAME), np.float32)
    things[0, 1] = KINDS.index("mug")
    rooms = Rooms(picture[None], light[None], np.zeros((1, FRAME + 1), np.float32), things)
    got = second_colors(_Capped(DETAIL), rooms)
    torch.testing.assert_close(
        got[KINDS.index("mug")], torch.tensor(color).float(), atol=0.01, rtol=0
    )
    assert (got[KINDS.index("ball")] == 0.5).all()


def _train(tmp_path, folder, steps, config=CONFIG):
    from safetensors.torch import save_file

    torch.manual_seed(0)
    save_file(Forms(DETAIL).state_dict(), tmp_path / "forms.safetensors")
    settings = TrainSettings(
        tmp_path, "lights", steps=steps, lr=2e-3, warmup=10, log_every=5, ema=0.9, config=config
    )
    data = LightsData(folder, tmp_path / "forms.safetensors", ((300_000, 25),), 12, 64)
    return train_lights(settings, data)


@pytest.mark.slow
def test_lights_and_colours_are_learned(folder, tmp_path):
    made = _train(tmp_path, folder, 120)
    rows = [json.loads(line) for line in (tmp_path / "lights.log.jsonl").read_text().splitlines()]
    first, last = rows[:3], rows[-3:]
    assert np.mean([r["light"] for r in last]) < 0.8 * np.mean([r["light"] for r in first])
    assert np.mean([r["colors"] for r in last]) > 0.6
    lights = Lights(384, len(COLORS), len(KINDS))
    fill(lights, read_safetensors(made), made)
    torch.testing.assert_close(
        lights.colors.float(), torch.tensor(list(COLORS.values())), atol=2e-3, rtol=0
    )


def test_a_network_of_other_colours_is_refused(folder, tmp_path):
    few = dataclasses.replace(CONFIG, detail=dataclasses.replace(DETAIL, lights=3))
    with pytest.raises(UserError, match="3 lights and 8 forms"):
        _train(tmp_path, folder, 1, few)
