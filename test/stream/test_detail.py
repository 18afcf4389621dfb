# SPDX-License-Identifier: Apache-2.0
"""A chunk's edit drawn anew: in a square around it, with the camera's pixels as they are."""

import dataclasses

import numpy as np
import pytest
import torch
from runtime_support import TEXT, pictures, small_model

from egoedit_ros.model.answers import Before
from egoedit_ros.model.config import DetailConfig, get_config
from egoedit_ros.model.detail import DetailNet
from egoedit_ros.stream.detail import SQUARES, Drawn, Square, draw, square_around, tell
from egoedit_ros.stream.edit_session import EditSession
from egoedit_ros.stream.steady import Steadier

HEIGHT, WIDTH = 192, 256
CELLS = (HEIGHT // 8, WIDTH // 8)
INSIDE = (slice(70, 110), slice(150, 190))


@pytest.fixture
def net():
    """Random weights with something to say everywhere."""
    torch.manual_seed(0)
    small = DetailConfig(widths=(8, 16, 16), blocks=(1, 1))
    net = DetailNet(dataclasses.replace(get_config("edge"), detail=small)).eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return net.requires_grad_(False)


def _chunk(count=4, seed=0):
    rng = np.random.default_rng(seed)
    source = rng.integers(0, 256, (count, HEIGHT, WIDTH, 3), dtype=np.uint8)
    made, mask = source.copy(), np.zeros(source.shape[:3], np.uint8)
    made[:, *INSIDE] = 255 - made[:, *INSIDE]
    mask[:, *INSIDE] = 255
    return source, made, mask


def _drawn(net, source, made, mask, first=False):
    frames = 1 + (len(source) - 1) // 4
    told = tell(net, torch.ones(4, 384))
    latents = torch.zeros(frames, 128, *CELLS)
    return draw(net, told, source, made, mask, latents, first)


def test_the_square_is_around_what_is_edited_and_as_small_as_will_do():
    source, made, mask = _chunk()
    square = square_around(source, made, mask)
    assert square.size == SQUARES[0]
    assert (square.row % 8, square.column % 8) == (0, 0)
    assert abs(square.row + square.size / 2 - 90) <= 6
    assert abs(square.column + square.size / 2 - 170) <= 6
    assert made[0, *square.pixels].shape[:2] == (square.size, square.size)
    assert mask[0, ::8, ::8][square.cells].shape == (square.size // 8, square.size // 8)
    mask[:] = 0
    assert square_around(source, made, mask) is None


def test_more_is_edited_in_a_greater_square_which_stays_within_the_picture():
    source, made, mask = _chunk()
    made[:, :70, -70:], mask[:, :70, -70:] = 255 - source[:, :70, -70:], 255
    mask[:, 70:] = 0
    assert square_around(source, made, mask) == Square(96, 0, WIDTH - 96)
    made[:], mask[:] = 255 - source, 255
    assert square_around(source, made, mask).size == SQUARES[-1]
    small = [x[:, :64, 100:164] for x in (source, made, mask)]
    assert square_around(*small) == Square(64, 0, 0)
    assert square_around(*(x[:, :48] for x in small)) is None


def test_where_no_square_holds_all_a_thing_is_in_it_and_not_its_shadow():
    source = np.full((4, HEIGHT, WIDTH, 3), 120, np.uint8)
    made, mask = source.copy(), np.full(source.shape[:3], 255, np.uint8)
    made[:, 8:60, 100:150] += 100
    made[:, 140:180, 100:180] -= 20
    square = square_around(source, made, mask)
    assert square.size == SQUARES[-1] and square.row == 0
    assert square.column <= 100 and square.column + square.size >= 150


def test_only_the_square_is_drawn_anew(net):
    source, made, mask = _chunk()
    before = made.copy(), mask.copy()
    got = _drawn(net, source, made, mask)
    shown, seen = got.picture, got.mask
    assert np.array_equal(made, before[0]) and np.array_equal(mask, before[1])
    outside = np.ones((HEIGHT, WIDTH), bool)
    outside[square_around(source, made, mask).pixels] = False
    assert np.array_equal(shown[:, outside], made[:, outside])
    assert np.array_equal(seen[:, outside], mask[:, outside])
    assert not np.array_equal(shown[:, *INSIDE], made[:, *INSIDE])


def test_where_the_answer_is_the_camera_its_pixels_come_back_to_the_bit(net):
    net.out.weight.zero_()
    net.out.bias.zero_()
    net.out.bias[:4] = 20.0  # of the camera's answer, at each of four pixels
    source, made, mask = _chunk()
    got = _drawn(net, source, made, mask)
    shown, seen = got.picture, got.mask
    assert np.array_equal(shown[:, *INSIDE], source[:, *INSIDE])
    assert not seen[:, *INSIDE].any()


def test_nothing_edited_and_everything_edited_are_left_as_they_are(net):
    source, made, mask = _chunk()
    for level in (0, 255):
        mask[:] = level
        got = _drawn(net, source, made, mask)
        assert got.picture is made and got.mask is mask and got.laid is None


def test_a_first_chunk_and_a_chunk_of_several_latents_are_drawn(net):
    for count, first in ((1, True), (5, True), (8, False)):
        source, made, mask = _chunk(count)
        shown = _drawn(net, source, made, mask, first).picture
        assert shown.shape == source.shape
        assert all((a != b).any() for a, b in zip(shown, made, strict=True))


def _sessions(size):
    """A stream of a small editor with a detail network, and one without."""
    torch.manual_seed(1)
    model = small_model()
    config = dataclasses.replace(
        model.config, size=(128, 96), detail=DetailConfig(widths=(8, 16, 16), blocks=(1, 1))
    )
    detail = DetailNet(config).eval()
    for parameter in detail.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    made = [
        EditSession(dataclasses.replace(model, config=config, detail=net), size=size)
        for net in (detail.requires_grad_(False), None)
    ]
    for session in made:
        session.set_instruction(TEXT, 3)
    return made


@pytest.mark.parametrize(("size", "drawn"), [((128, 96), True), ((160, 96), False)])
def test_a_stream_is_drawn_anew_at_its_models_own_size(monkeypatch, size, drawn):
    monkeypatch.setattr("egoedit_ros.stream.detail.WHOLE", 1.1)  # random masks are everywhere
    with_one, without = _sessions(size)
    shown = []
    for chunk in pictures(with_one, 3):
        shown.append([session.run(chunk).frames for session in (with_one, without)])
    assert any(not np.array_equal(a, b) for a, b in shown) == drawn


@pytest.mark.parametrize(("heeded", "given"), [((0.0, 0.9), (0.5,) * 4), ((0.2, 0.0), ())])
def test_where_forms_are_heeded_a_stream_is_steadied_as_its_model_says(monkeypatch, heeded, given):
    session, _ = _sessions((128, 96))
    config = dataclasses.replace(session.model.config, steady=(0.9,) * 4, steady_forms=(0.5,) * 4)
    session = EditSession(dataclasses.replace(session.model, config=config), size=(128, 96))
    session.set_instruction(TEXT, 3)
    monkeypatch.setattr(DetailNet, "heeded", lambda *_: heeded)
    got, steadied = [], Steadier.__call__

    def call(self, *args):
        got.append(args[-1])
        return steadied(self, *args)

    monkeypatch.setattr(Steadier, "__call__", call)
    for chunk in pictures(session, 2):
        session.run(chunk)
    assert got and all(weights == given for weights in got)


def test_a_stream_remembers_where_things_were_until_the_edit_changes(monkeypatch):
    """What a chunk tells goes to the next one of the same edit, and to no other."""
    session, _ = _sessions((128, 96))
    told, given = [], []

    def drawn(*args):
        given.append(args[-1])
        told.append(Before(light=torch.zeros(1, 14)))
        return Drawn(args[3], args[4], told[-1])

    monkeypatch.setattr("egoedit_ros.stream.edit_session.draw", drawn)
    chunks = pictures(session, 6)
    for _ in range(3):
        session.run(next(chunks))
    session.set_instruction("remove the mug", 3)
    session.run(next(chunks))
    session.skip(next(chunks))
    session.run(next(chunks))
    assert given[0] is None and given[1] is told[0] and given[2] is told[1]
    assert given[3] is None and given[4] is None
