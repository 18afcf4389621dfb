# SPDX-License-Identifier: Apache-2.0
"""Flicker of an edit is taken out along the camera's motion, and nothing else is touched."""

import cv2
import numpy as np
import pytest
from runtime_support import SIZE, TEXT, pictures, small_model

from egoedit_ros.stream.edit_session import EditSession
from egoedit_ros.stream.steady import Steadier

WEIGHTS = (0.95, 0.9, 0.85, 0.8)
SIDE = 28


def _film(chunks, flicker=30, speed=1):
    """A textured square that moves over a textured table, and a green one in its place, lighter in
    every other latent frame: source, edited, mask, and where the square's corner is."""
    rng = np.random.default_rng(0)
    count = 1 + 4 * (chunks - 1)
    table = rng.integers(90, 130, (96, 128, 3), np.uint8)
    square = rng.integers(0, 255, (SIDE, SIDE, 1), np.uint8) // 3 + 120
    source = np.repeat(table[None], count, 0)
    edited, mask, corners = source.copy(), np.zeros((count, 96, 128), np.uint8), []
    for t in range(count):
        y, x = 30, 20 + speed * t
        corners.append((y, x))
        lighter = flicker * ((t + 3) // 4 % 2)
        source[t, y : y + SIDE, x : x + SIDE] = square
        edited[t, y : y + SIDE, x : x + SIDE] = (40 + lighter, 160, 40)
        mask[t, y : y + SIDE, x : x + SIDE] = 255
    return source, edited, mask, corners


def _run(steadier, source, edited, mask, joins=True):
    made = [steadier(source[:1], edited[:1], mask[:1], True, False)[0]]
    for t in range(1, len(source), 4):
        here = slice(t, t + 4)
        made.append(steadier(source[here], edited[here], mask[here], False, joins)[0])
    return np.concatenate(made)


def _red_inside(pictures, corners):
    return [
        p[y + 6 : y + SIDE - 6, x + 6 : x + SIDE - 6, 0].mean()
        for p, (y, x) in zip(pictures, corners, strict=True)
    ]


def test_a_jump_between_latent_frames_is_made_up_over_several_pictures():
    source, edited, mask, corners = _film(6)
    red = _red_inside(_run(Steadier(WEIGHTS), source, edited, mask), corners)
    assert np.abs(np.diff(_red_inside(edited, corners))).max() == 30
    assert np.abs(np.diff(red)).max() < 12
    assert np.ptp(red[5:]) > 3  # it follows, if slowly


def test_the_square_moves_and_leaves_no_trail():
    source, edited, mask, corners = _film(6, flicker=0, speed=3)
    made = _run(Steadier(WEIGHTS), source, edited, mask)
    for picture, wanted, (y, x) in zip(made[1:], edited[1:], corners[1:], strict=True):
        inside = np.abs(picture.astype(int) - wanted)[y : y + SIDE, x : x + SIDE]
        assert inside.mean() < 4


def test_what_is_not_edited_stays_to_the_bit():
    source, edited, mask, _ = _film(6, speed=3)
    steadier, shown = Steadier(WEIGHTS), []
    for t in range(1, len(source), 4):
        here = slice(t, t + 4)
        shown.append(steadier(source[here], edited[here], mask[here], False, True))
    made, where = (np.concatenate(x) for x in zip(*shown, strict=True))
    assert (where[mask[1:] > 0] > 0).all()
    assert np.mean(where[mask[1:] == 0] > 64) < 0.02  # a rim, at most
    assert np.array_equal(made[where == 0], source[1:][where == 0])
    nothing = _run(Steadier(WEIGHTS), source, source, np.zeros_like(mask))
    assert np.array_equal(nothing, source)


def test_the_mask_does_not_spread_with_time():
    source, edited, mask, _ = _film(20, speed=1)
    steadier, near = Steadier(WEIGHTS), np.ones((25, 25), np.uint8)
    for t in range(1, len(source), 4):
        here = slice(t, t + 4)
        _, where = steadier(source[here], edited[here], mask[here], False, True)
    for made, given in zip(where, mask[here], strict=True):
        assert not made[cv2.dilate(given, near) == 0].any()


def test_a_picture_that_the_flow_does_not_explain_is_left_as_it_was_made():
    source, edited, mask, _ = _film(3)
    source[5:] = 255 - source[5:]  # a cut
    edited[5:] = np.where(mask[5:, ..., None] > 0, edited[5:], source[5:])
    made = _run(Steadier(WEIGHTS), source, edited, mask)
    assert np.abs(made[5].astype(int) - edited[5]).mean() < 1  # 1.8 were the square carried


def test_the_inputs_are_not_written_to():
    source, edited, mask, _ = _film(3)
    kept = edited.copy()
    _run(Steadier(WEIGHTS), source, edited, mask)
    assert np.array_equal(edited, kept)


@pytest.mark.parametrize("size", [(32, 32), (16, 200), (300, 40)])
def test_pictures_of_any_size(size):
    rng = np.random.default_rng(1)
    source = rng.integers(0, 255, (9, *size, 3), np.uint8)
    edited = 255 - source
    mask = np.zeros((9, *size), np.uint8)
    mask[:, size[0] // 2 :, size[1] // 2 :] = 255
    assert _run(Steadier(WEIGHTS), source, edited, mask).shape == source.shape


def test_a_session_carries_nothing_over_to_another_instruction():
    steady, plain = (EditSession(small_model(steady=weights), SIZE) for weights in (WEIGHTS, ()))
    as_made = []
    for text in (TEXT, "remove the mug"):
        for session in (steady, plain):
            session.set_instruction(text, 3)
        for _ in range(2):
            chunk = np.repeat(next(pictures(steady, 1))[:1], steady.frames_needed, 0)
            one, other = steady.run(chunk).frames, plain.run(chunk).frames
            as_made.append(np.array_equal(one[0], other[0]))
    assert as_made == [True, False, True, False]


def test_a_chunk_may_be_steadied_less():
    source, edited, mask, _ = _film(2)
    made = []
    for weights in ((), (0.5, 0.2, 0.2, 0.2)):
        steadier = Steadier(WEIGHTS)
        steadier(source[:1], edited[:1], mask[:1], True, False)
        shown, _ = steadier(source[1:], edited[1:], mask[1:], False, True, weights)
        made.append(float(np.abs(shown.astype(int) - edited[1:]).mean()))
    assert 0 < made[1] < made[0] / 2
