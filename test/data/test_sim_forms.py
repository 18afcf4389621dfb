# SPDX-License-Identifier: Apache-2.0
"""Where the simulator says that bodies are is where its pictures show them."""

from dataclasses import replace

import numpy as np
import pytest

from egoedit_ros.data.sim.assets import HALF_HEIGHT
from egoedit_ros.data.sim.forms import SIZE, film_forms, lines_of, outline
from egoedit_ros.data.sim.frames import pose_at
from egoedit_ros.data.sim.render import Simulator
from egoedit_ros.data.sim.scene import draw_scene
from egoedit_ros.data.sim.vocabulary import KINDS
from egoedit_ros.model.pose import FRAME, POSE, UNIT


@pytest.fixture(scope="module")
def simulator():
    simulator = Simulator(*SIZE)
    yield simulator
    simulator.close()


def _alone(seed, kind):
    scene = draw_scene(seed, 5.0)
    return replace(scene, things=(replace(scene.things[0], kind=kind),))


@pytest.mark.parametrize("later", [0.0, 2.0])
def test_a_thing_is_seen_where_its_frame_is(simulator, later):
    scene = _alone(4, "ball")
    pose = pose_at(scene, 0, scene.start + later, SIZE)
    assert pose.shape == (POSE,)
    geoms, _ = simulator.film_body(scene, scene.start + later, "ball")
    y, x = np.nonzero(geoms >= 0)
    slope = pose[2:8].reshape(2, 3)
    middle = pose[:2] + slope @ (0, 0, HALF_HEIGHT["ball"] / UNIT - 1)
    assert np.hypot(*(middle - (x.mean(), y.mean()))) < 3  # of 768 pixels
    unit = np.linalg.norm(slope) / np.sqrt(2)
    assert np.sqrt(len(x) / np.pi) == pytest.approx(HALF_HEIGHT["ball"] / UNIT * unit, rel=0.03)
    # The line of sight is what a picture cannot tell two points of apart.
    assert np.abs(slope @ pose[8:FRAME]).max() < 1e-3 * unit


def test_the_same_is_at_the_same_place_of_a_smaller_picture():
    scene = _alone(4, "mug")
    large, small = (pose_at(scene, 0, scene.start, size) for size in (SIZE, (256, 192)))
    np.testing.assert_allclose(large[:2] + 0.5, 3 * (small[:2] + 0.5), rtol=1e-4)
    np.testing.assert_allclose(large[2:8], 3 * small[2:8], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(large[8:FRAME], small[8:FRAME], atol=1e-5)


def test_lines_tell_what_the_picture_shows(simulator):
    scene, rng = _alone(4, "cube"), np.random.default_rng(0)
    lines = lines_of(simulator, scene, scene.start, "cube", rng)
    inside, told = lines["inside"], lines["told"].astype(np.float32)
    assert ((told[:, 0] > 0) == inside).all() and 0.2 < inside.mean() < 0.9
    assert (told[:, 1] < 0).all()  # all of a cube is of one paint
    # A cube's faces look along its axes, and towards the camera.
    largest = np.abs(told[inside, 2:5]).max(-1)
    assert np.median(largest) > 0.99
    assert (told[inside, 2:5] @ lines["line"] < 0.1).mean() > 0.97


def test_outlines_are_told_to_a_unit_and_no_farther():
    mask = np.zeros((40, 60), bool)
    mask[10:30, 20:40] = True
    told = outline(mask, 5.0)
    assert told[20, 30] == 1.0 and told[20, 21] == pytest.approx(0.3, abs=0.11) and told[0, 0] == -1
    assert (outline(np.zeros((4, 4), bool), 5.0) == -1).all()


def test_views_of_a_seed_are_the_same_each_time(simulator):
    first, second = (film_forms(simulator, 12) for _ in range(2))
    assert [v["kind"] for v in first] == [v["kind"] for v in second] and len(first) > 2
    assert all(-1 <= v["kind"] < len(KINDS) for v in first)
    for a, b in zip(first, second, strict=True):
        assert all(np.array_equal(a[name], b[name]) for name in a)
