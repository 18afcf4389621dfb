# SPDX-License-Identifier: Apache-2.0
"""An edit gets the camera's edges where it follows them, keeps its own shape where it does not, and
what is not edited stays the camera's."""

import cv2
import numpy as np
import pytest
from runtime_support import SIZE, TEXT, pictures, small_model

from egoedit_ros.stream.edges import near_sure, sharpen
from egoedit_ros.stream.edit_session import EditSession

RED, BLUE, TABLE = (180, 40, 30), (40, 50, 180), (150, 140, 120)


def _disc(color, radius=26, centre=(64, 48)):
    picture = np.full((96, 128, 3), TABLE, np.uint8)
    return cv2.circle(picture, centre, radius, color, -1)


def _soft(picture, sigma=2.5):
    return cv2.GaussianBlur(picture, (0, 0), sigma)


def _mask(source, edited, level=2):
    return (np.abs(source.astype(int) - edited).max(-1) > level).astype(np.uint8) * 255


def _error(a, b):
    return float(((a.astype(float) - b) ** 2).mean())


def _sharpened(source, edited, mask):
    return sharpen(source[None], edited[None], mask[None])[0]


def test_a_new_colour_gets_the_edges_of_the_thing_it_is_on():
    source, wanted = _disc(RED), _disc(BLUE)
    soft = _soft(wanted)
    made = _sharpened(source, soft, _mask(source, soft))
    assert _error(made, wanted) < 0.25 * _error(soft, wanted)


def test_texture_of_the_camera_comes_back_under_a_new_colour():
    rng = np.random.default_rng(0)
    grain = cv2.GaussianBlur(rng.normal(0, 40, (96, 128)), (0, 0), 1)[..., None]
    source, wanted = (np.clip(_disc(c) + grain, 0, 255).astype(np.uint8) for c in (RED, BLUE))
    near = _disc(0, radius=32)[..., :1] == 0
    soft = np.where(near, _soft(wanted), source)  # the camera's picture around it, as in a stream
    made = _sharpened(source, soft, near[..., 0].astype(np.uint8))
    assert _error(made, wanted) < 0.4 * _error(soft, wanted)


def test_a_new_thing_keeps_its_own_shape_and_gets_steeper_edges():
    """A square in the disc's place: the camera has nothing to say of its corners."""
    source = _disc(RED, radius=14)
    wanted = np.full_like(source, TABLE)
    wanted[20:76, 36:92] = BLUE
    soft = _soft(wanted)
    made = _sharpened(source, soft, np.full(source.shape[:2], 255, np.uint8))
    assert _error(made, wanted) < _error(soft, wanted)
    steepest = lambda x: np.abs(np.diff(x[48].astype(int), axis=0)).max()  # noqa: E731
    assert steepest(made) > 1.1 * steepest(soft)


def test_what_is_laid_keeps_its_edges_and_a_pixel_around_them():
    source, edited = _disc(RED), _soft(_disc(BLUE))
    laid = np.zeros(source.shape[:2], np.uint8)
    laid[30:70, 40:80] = 255
    full = np.full_like(laid, 255)
    made = sharpen(source[None], edited[None], full[None], laid[None])[0]
    assert np.array_equal(made[29:71, 39:81], edited[29:71, 39:81])
    other = _sharpened(source, edited, full)
    assert np.array_equal(made[:28], other[:28]) and not np.array_equal(made, other)


def test_pixels_outside_the_mask_stay_to_the_bit_and_inputs_are_not_written_to():
    rng = np.random.default_rng(1)
    source, edited = rng.integers(0, 256, (2, 3, 60, 80, 3), np.uint8)
    mask = np.zeros((3, 60, 80), np.uint8)
    mask[0, 20:40, 30:50] = 1
    mask[2, :5, :5] = 255
    before = edited.copy()
    made = sharpen(source, edited, mask)
    assert np.array_equal(edited, before)
    assert np.array_equal(made[mask == 0], edited[mask == 0])
    assert np.array_equal(made[1], edited[1])
    assert not np.array_equal(made[0], edited[0])


def test_a_picture_that_was_not_changed_stays_nearly_as_it_is():
    """A mask that is too wide must cost the camera's picture next to nothing."""
    rng = np.random.default_rng(2)
    source = cv2.resize(rng.integers(0, 256, (24, 32, 3), np.uint8), (128, 96))
    made = _sharpened(source, source, np.full((96, 128), 255, np.uint8))
    assert np.abs(made.astype(int) - source).max() <= 3


@pytest.mark.parametrize("level", [0, 255])
def test_flat_pictures_divide_by_nothing(level):
    source = np.full((1, 40, 40, 3), level, np.uint8)
    edited = 255 - source
    with np.errstate(all="raise"):
        made = sharpen(source, edited, np.full((1, 40, 40), 255, np.uint8))
    assert np.array_equal(made, edited)


@pytest.mark.parametrize("size", [(32, 32), (1, 1), (2, 300), (300, 3)])
def test_pictures_of_any_size(size):
    rng = np.random.default_rng(3)
    source, edited = rng.integers(0, 256, (2, 2, *size, 3), np.uint8)
    made = sharpen(source, edited, np.full((2, *size), 255, np.uint8))
    assert made.shape == edited.shape and made.dtype == np.uint8


def test_what_is_faint_counts_only_beside_what_is_sure():
    mask = np.zeros((2, 40, 60), np.uint8)
    mask[0, 10:20, 10:20] = 255
    mask[0, 10:20, 20:23] = mask[0, 30:35, 40:50] = mask[1, 5:9, 5:9] = 90
    kept = near_sure(mask)
    assert np.array_equal(kept[0, 10:20, 10:23], mask[0, 10:20, 10:23])
    assert not kept[0, 30:35, 40:50].any() and not kept[1].any()


def test_a_session_sharpens_where_its_model_says_so():
    plain, sharp = (EditSession(small_model(sharpen=s), SIZE) for s in (False, True))
    chunk = next(pictures(plain, 1))
    for session in (plain, sharp):
        session.set_instruction(TEXT, 3)
    one, other = plain.run(chunk), sharp.run(chunk)
    assert np.array_equal(one.mask, other.mask)
    assert np.array_equal(sharpen(chunk, one.frames, one.mask), other.frames)
    assert not np.array_equal(one.frames, other.frames)
