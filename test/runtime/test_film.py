# SPDX-License-Identifier: Apache-2.0
"""What speed is measured on has something to edit in it, and moves without a jump."""

import numpy as np
import pytest

from egoedit_ros.runtime.film import INSTRUCTION, PERIOD, Film
from egoedit_ros.stream.session import open_session


def _red(picture):
    red, green, blue = np.moveaxis(picture.astype(int), -1, 0)
    return (red > 1.8 * green) & (red > 1.8 * blue)


def test_a_red_ball_moves_over_the_picture_and_comes_back():
    film = Film((256, 192))
    frames = np.concatenate([film.take(1), film.take(4), film.take(PERIOD - 4)])
    assert frames.shape == (PERIOD + 1, 192, 256, 3) and frames.dtype == np.uint8
    places = [np.flatnonzero(_red(f).any(0)).mean() for f in frames]
    assert 30 < np.ptp(places) < 60 and np.abs(np.diff(places)).max() < 4
    assert all(0.02 < _red(f).mean() < 0.1 for f in frames)
    assert np.array_equal(frames[0], frames[-1])
    assert np.array_equal(frames[:5], Film((256, 192)).take(5))


@pytest.mark.parametrize("size", [(32, 32), (64, 48), (832, 480)])
def test_films_of_any_size(size):
    for everywhere in (False, True):
        assert Film(size, everywhere).take(4).shape == (4, size[1], size[0], 3)


def test_the_bundled_editor_edits_the_ball_and_of_noise_far_more():
    edited = []
    for everywhere in (False, True):
        session = open_session("edge", "cpu")
        session.set_instruction(INSTRUCTION, 0)
        film = Film(session.size, everywhere)
        made = [session.run(film.take(session.frames_needed)) for _ in range(3)][-1]
        edited.append((made.mask > 0).mean())
        if not everywhere:
            y, x = np.argwhere(made.mask[0] == 255).mean(0).astype(int)
            red, _, blue = made.frames[0, y, x].astype(int)
            assert blue > red
    assert 0.02 < edited[0] < 0.15 and edited[1] > 2 * edited[0]
