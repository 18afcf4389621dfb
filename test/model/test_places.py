# SPDX-License-Identifier: Apache-2.0
"""Where bodies are is looked at again in cuts that are put straight by a guess."""

import math

import pytest
import torch

from egoedit_ros.model.places import (
    AWAY,
    FOUND,
    LOST,
    SIDE,
    TOLD,
    USUAL,
    PlaceNet,
    Places,
    Seen,
    apart,
    cut,
    cut_by,
    harmonics_of,
    in_picture,
    likeliest,
    together,
)
from egoedit_ros.model.pose import FRAME, POSE


def _frames(count, at=40.0):
    """Bodies of 15 to 30 pixels to a unit, turned and tilted at random: ``[N, FRAME]``."""
    g = torch.Generator().manual_seed(5)
    axes = torch.linalg.qr(torch.randn(count, 3, 3, generator=g))[0]
    unit = 15 + 15 * torch.rand(count, 1, generator=g)
    slope = unit[:, :, None] * axes[:, :2]
    line = torch.linalg.cross(axes[:, 0], axes[:, 1], dim=1)
    return torch.cat([torch.full((count, 2), at), slope.flatten(1), line], 1)


def test_a_frame_taken_apart_is_put_together_again():
    frames = _frames(20)
    seen = apart(frames)
    torch.testing.assert_close(together(seen), frames, atol=1e-4, rtol=1e-4)
    assert ((seen.unit > 14.9) & (seen.unit < 30.1)).all()


def test_how_a_body_is_turned_about_its_upright_axis_is_in_its_turn_alone():
    frames = _frames(20)
    c, s = math.cos(0.7), math.sin(0.7)
    about = torch.tensor([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    slope = (frames[:, 2:8].unflatten(1, (2, 3)) @ about).flatten(1)
    turned = torch.cat([frames[:, :2], slope, frames[:, 8:] @ about], 1)
    one, other = apart(frames), apart(turned)
    torch.testing.assert_close(one.slopes, other.slopes, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(one.tilt, other.tilt, atol=1e-4, rtol=1e-4)
    moved = (one.turn - other.turn) % (2 * math.pi)
    torch.testing.assert_close(moved, torch.full((20,), 0.7), atol=1e-3, rtol=1e-3)


def test_a_cut_is_upright_around_the_place_and_tells_where_the_picture_ends():
    """A bar that leans to the right by 30 degrees stands in the middle of its cut."""
    y, x = torch.meshgrid(*[torch.arange(128.0)] * 2, indexing="ij")
    lean, at = math.radians(30), torch.tensor([[30.0, 70.0]])
    right, up = x - at[0, 0], at[0, 1] - y
    across = right * math.cos(lean) - up * math.sin(lean)
    along = right * math.sin(lean) + up * math.cos(lean)
    bar = ((across.abs() < 4) & (along > 0) & (along < 30)).float().expand(1, 3, -1, -1)
    got = cut(bar, at, torch.tensor([20.0]), torch.tensor([lean]), 2.0)
    assert got.shape == (1, 4, SIDE, SIDE)
    lit = (got[0, 0] > 0).nonzero().float().mean(0)
    assert abs(lit[1] - (SIDE - 1) / 2) < 0.7  # in the middle across
    assert abs(lit[0] - ((SIDE - 1) / 2 - 15 / 20 / 2 * SIDE / 2)) < 0.7  # and above it
    there = got[0, 3]
    assert there[SIDE // 2, SIDE // 2] == 1 and there[:, 0].min() == 0  # beyond the left side
    assert (got[0, :3][:, there == 0] == 0).all()


def test_what_is_told_of_a_cut_is_put_into_the_picture():
    """Told exactly what is off, any guess leads to the truth."""
    true = apart(_frames(10))
    off = torch.randn(10, 2, generator=torch.Generator().manual_seed(1)) * 4
    c, s = math.cos(0.2), math.sin(0.2)
    slopes = 1.1 * torch.tensor([[c, -s], [s, c]]) @ true.slopes
    guess = Seen(true.at + off, slopes, true.tilt, true.turn)
    c, s = guess.lean.cos(), guess.lean.sin()
    back = torch.stack([c, s, -s, c], -1).unflatten(-1, (2, 2)) / guess.unit[:, None, None]
    at = (back @ (true.at - guess.at)[..., None])[..., 0]
    told = torch.cat([at, (back @ true.slopes).flatten(1), true.tilt, harmonics_of(true.turn),
                      torch.full((10, 1), 0.3)], 1)  # fmt: skip
    seen, harmonics, curl = in_picture(told, guess)
    torch.testing.assert_close(seen.at, true.at, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(seen.slopes, true.slopes, atol=1e-3, rtol=1e-3)
    assert torch.equal(harmonics, harmonics_of(true.turn)) and torch.allclose(curl, curl[:1])


@pytest.mark.parametrize("turn", [-2.5, 0.0, 1.3])
def test_the_likeliest_turn_is_one_that_there_is(turn):
    """Known, it is that; of two that are likely it is one of them, not what is between."""
    known = harmonics_of(torch.full((4,), turn))
    assert abs(float(likeliest(known)) - turn) < 0.05
    both = (harmonics_of(torch.tensor([turn])) + harmonics_of(torch.tensor([turn + 2.0]))) / 2
    found = float(likeliest(both))
    off = min(abs((found - t + math.pi) % (2 * math.pi) - math.pi) for t in (turn, turn + 2.0))
    assert off < 0.3


def test_only_what_is_asked_for_is_looked_at_again():
    torch.manual_seed(0)
    places = Places().eval()
    for net in (places.thing, places.hand):
        torch.nn.init.normal_(net.out.weight, std=0.05)
        torch.nn.init.normal_(net.out.bias, std=0.3)
    frames = _frames(4)
    pose = torch.cat([frames, frames.flip(0), torch.full((4, 1), 0.5)], 1)
    assert pose.shape == (4, POSE)
    pictures = torch.rand(4, 3, 80, 96)
    thing, _ = places(pose, pictures, True, False)
    assert torch.equal(thing[:, FRAME:], pose[:, FRAME:]) and not torch.equal(thing, pose)
    hand, sure = places(pose, pictures, False, True)
    assert sure[0] == 1  # no thing was looked for
    assert torch.equal(hand[:, :FRAME], pose[:, :FRAME]) and not torch.equal(hand, pose)
    turns = apart(thing[:, :FRAME]).turn
    assert torch.allclose(turns, turns[:1], atol=1e-4)  # one for a chunk's pictures
    assert torch.isfinite(places(torch.zeros_like(pose), pictures, True, True)[0]).all()


def test_a_cut_and_where_it_is_are_what_the_network_takes():
    """In the middle of the view 0 and 0, at its upper left corner nearly -1 and -1."""
    net, guess = PlaceNet(2.0), apart(_frames(2))
    guess = Seen(torch.tensor([[63.5, 31.5], [0.0, 0.0]]), guess.slopes, guess.tilt, guess.turn)
    cuts, where = cut_by(guess, torch.rand(2, 3, 64, 128), net.reach)
    assert cuts.shape == (2, 4, SIDE, SIDE) and net(cuts, where).shape[0] == 2
    torch.testing.assert_close(where[0, :2], torch.zeros(2), atol=1e-6, rtol=0)
    torch.testing.assert_close(where[1, :2], torch.tensor([1 / 128, 1 / 64]) - 1)
    torch.testing.assert_close(where[:, 2].exp() * USUAL, guess.unit)
    torch.testing.assert_close(where[:, 3], guess.lean)


def test_poses_are_looked_at_again_where_they_are_asked_for():
    """A network that says nothing leaves a place where it was guessed."""
    torch.manual_seed(0)
    places, frames = Places(), _frames(2)
    for net in (places.thing, places.hand):
        torch.nn.init.zeros_(net.out.weight)
    pose = torch.cat([frames, frames, torch.zeros(2, 1)], 1)
    got, sure = places(pose, torch.rand(2, 3, 64, 128), True, False)
    assert sure == (1, 1)  # it does not move
    torch.testing.assert_close(got[:, :2], pose[:, :2])
    assert torch.equal(got[:, FRAME:], pose[:, FRAME:])
    assert not torch.equal(got[:, 2:FRAME], pose[:, 2:FRAME]) and got.shape == (2, POSE)


def test_a_thing_that_is_hardly_seen_is_looked_for_where_it_was():
    """Guesses on the left of the view move at each look; where it was, on the right, they stay."""
    torch.manual_seed(0)
    places, frames, last = Places(), _frames(2), _frames(1)
    last[:, 0] = 90.0

    class Net(torch.nn.Module):
        reach = 2.0

        def forward(self, cuts, where):
            told = torch.zeros(len(cuts), TOLD)
            told[:, 0] = torch.where(where[:, 0] < 0, 2 * LOST, 0.0)
            told[:, [2, 6]] = 1.0
            return told

    places.thing = Net()
    pose = torch.cat([frames, frames, torch.zeros(2, 1)], 1)
    picture = torch.rand(2, 3, 64, 128)
    assert places(pose, picture, True, False)[1][0] == 0
    got, sure = places(pose, picture, True, False, (last, None))
    assert sure[0] == 1
    torch.testing.assert_close(got[:, :2], last[:, :2].expand(2, -1))
    last[:, 0] = 45.0  # nor is it sure there
    assert places(pose, picture, True, False, (last, None))[1][0] == 0


def test_a_place_that_moves_when_it_is_looked_at_once_more_is_not_sure():
    torch.manual_seed(0)
    places, frames = Places(), _frames(2)
    torch.nn.init.zeros_(places.thing.out.weight)
    pose = torch.cat([frames, frames, torch.zeros(2, 1)], 1)
    told = []
    for off in (FOUND / 2, (FOUND + LOST) / 2, 2 * LOST):
        places.thing.out.bias.data[0] = off  # units to the right, at each look
        slopes = torch.zeros(6)
        slopes[0] = slopes[4] = 1.0  # what is seen is a unit large, as it was guessed
        places.thing.out.bias.data[2:8] = slopes
        told.append(places(pose, torch.rand(2, 3, 64, 128), True, False)[1][0])
    assert told[0] == 1 and 0.2 < told[1] < 0.8 and told[2] == 0


@pytest.mark.parametrize(("off", "far"), [(2 * LOST, False), (0.0, True), (0.0, False)])
def test_a_hand_that_is_not_found_or_far_from_the_thing_is_put_away(off, far):
    torch.manual_seed(0)
    places, frames = Places(), _frames(2)
    for net in (places.thing, places.hand):
        torch.nn.init.zeros_(net.out.weight)
    slopes = torch.zeros(6)
    slopes[0] = slopes[4] = 1.0
    places.hand.out.bias.data[2:8] = slopes
    places.hand.out.bias.data[0] = off
    hand = frames.clone()
    hand[:, 0] += 500 * far
    pose = torch.cat([frames, hand, torch.zeros(2, 1)], 1)
    got, sure = places(pose, torch.rand(2, 3, 64, 128), True, True)
    gone = far or off > 0
    assert sure == (1, not gone)
    assert bool((got[:, FRAME : FRAME + 2] == AWAY).all()) == gone
    torch.testing.assert_close(got[:, :2], pose[:, :2])
