# SPDX-License-Identifier: Apache-2.0
"""Of bodies that are known by heart whole outlines are shown, unless they are in a wrong place."""

import torch

from egoedit_ros.model.answers import Answers, Outlines, choose
from egoedit_ros.model.forms import SEEN, TOLD, doubled
from egoedit_ros.model.light import Paint
from egoedit_ros.model.show import show

SIDE = 32
TABLE, GREEN, SKIN, PURPLE = (
    torch.tensor(c) for c in ([0.4] * 3, [0.1, 0.6, 0.1], [0.8, 0.6, 0.5], [0.5, 0.1, 0.6])
)


def _square(begin, end, inner=1.0, outer=-1.0):
    out = torch.full((SIDE // 2, SIDE // 2), outer)
    out[begin // 2 : end // 2, begin // 2 : end // 2] = inner
    return out


def _answers(thing, hand, heeded, camera=PURPLE, own=(TABLE, GREEN), logits=(0.0, 0.0)):
    """Everywhere the own colours are as likely as ``logits`` say; the camera's and the decoder's
    hardly are. thing, hand: outlines ``[side, side]``; the hand's answer is skin."""
    colors = torch.stack([camera, own[0], *own, GREEN, SKIN])
    colors = colors[None, :, :, None, None].expand(1, -1, -1, SIDE, SIDE).contiguous()
    likely = torch.tensor([-9.0, -9.0, *logits, -9.0, -9.0])[None, :, None, None]
    likely = likely.expand(1, -1, SIDE, SIDE).contiguous()
    seen = torch.full((1, SEEN, SIDE // 2, SIDE // 2), -1.0)
    seen[0, 0], seen[0, TOLD] = thing, hand
    seen[0, 2:5] = torch.tensor([0.0, 0.0, -1.0])[:, None, None]
    pose = torch.zeros(1, 23)
    outlines = Outlines(seen, *heeded, *doubled(seen[:, : 2 * TOLD]).split(TOLD, 1))
    return Answers(colors, likely, torch.full_like(likely, 0.02), pose, None, outlines)


def _shown(answers):
    got = show(answers)
    assert torch.allclose(got.shares.sum(1), torch.ones(1, SIDE, SIDE), atol=1e-4)
    return (got.shares[:, :, None] * got.colors).sum(1)[0].permute(1, 2, 0)


def _off(shown, color):
    return float((shown - color).abs().max())


NOWHERE = _square(0, 0)


def test_a_thing_is_shown_as_far_as_its_outline_reaches():
    """Answers are torn between table and thing, and put it two pixels too far to the right."""
    answers = _answers(_square(10, 22), NOWHERE, (1.0, 0.0))
    answers.logits[:, 2, :, :] += 0.6
    answers.logits[:, 3, 10:22, 12:24] += 1.2
    shown = _shown(answers)
    assert _off(shown[12:20, 11:21], GREEN) < 0.15
    assert max(_off(shown[:, :9], TABLE), _off(shown[:, 23:], TABLE)) < 0.15
    answers.outlines = None
    usual = _shown(answers)
    assert _off(usual[11:21, 11], TABLE) < 0.1 and _off(usual[11:21, 23], GREEN) < 0.1


# All faces look at the camera, so that what falls on them is 1.
PAINT = Paint(
    torch.tensor([[*[0.5] * 3, *[0.0] * 3, 0.0, 0.5, 0, -1, 0, 0, 0, -1.0]]),
    torch.tensor([8.0, 0.0]),
    torch.stack([GREEN, PURPLE]),
    torch.full((3,), 0.9),
)


def test_a_thing_is_painted_in_its_texts_colour_though_it_is_decoded_in_another():
    answers = _answers(_square(8, 24), NOWHERE, (1.0, 0.0), own=(TABLE, 0.7 * GREEN + 0.12))
    answers.logits[:, 3, 8:24, 8:24] += 4.0
    answers.logits[:, 2] += 1.0
    answers.outlines.paint = PAINT
    shown = _shown(answers)
    assert _off(shown[10:22, 10:22], GREEN) < 0.05
    assert max(_off(shown[:, :6], TABLE), _off(shown[:, 26:], TABLE)) < 0.1
    answers.outlines.paint = None
    assert _off(_shown(answers)[14:18, 14:18], GREEN) > 0.06


def test_nothing_is_painted_where_nothing_is_edited():
    """The thing is taken to be where all that is sure to be shown is the camera's."""
    answers = _answers(_square(4, 14), NOWHERE, (1.0, 0.0), camera=SKIN)
    answers.logits[:, 0, :, :18] = 3.0
    answers.logits[:, 3, :, 18:] = 3.0
    answers.outlines.paint = PAINT
    assert _off(_shown(answers)[:, :14], SKIN) < 0.1


def test_an_outline_in_a_wrong_place_is_not_heeded():
    """The answers are sure enough that the thing is everywhere; a small outline does not cut it."""
    answers = _answers(_square(4, 10), NOWHERE, (1.0, 0.0), logits=(0.0, 2.0))
    assert _off(_shown(answers), GREEN) < 0.1


def test_fingers_that_come_to_be_seen_are_whole():
    """The camera sees the palm, and the end of a finger comes to be seen below it."""
    hand = torch.maximum(_square(14, 18), torch.where(torch.arange(16)[:, None] < 7, 1.0, -1.0))
    shown = {}
    for heeded in (1.0, 0.0):
        answers = _answers(NOWHERE, hand, (0.0, heeded), SKIN, (TABLE, SKIN), (0.8, 0.0))
        answers.logits[:, 0, :14] = 9.0
        shown[heeded] = _shown(answers)
        assert _off(shown[heeded][:12], SKIN) < 0.1 and _off(shown[heeded][22:], TABLE) < 0.1
    assert _off(shown[1.0][15:17, 15:17], SKIN) < 0.15
    assert _off(shown[0.0][15:], TABLE) < 0.1


def test_what_a_thing_hid_of_a_hand_is_seen_beside_what_takes_its_place():
    """And a finger that the camera sees before the thing stays before it."""
    hand = torch.maximum(_square(14, 18), torch.where(torch.arange(16)[:, None] < 7, 1.0, -1.0))
    thing = torch.full((SIDE // 2, SIDE // 2), -1.0)
    thing[2:14, 11:14] = 1.0
    answers = _answers(thing, hand, (1.0, 0.0), SKIN, (TABLE, GREEN), (0.8, 0.0))
    answers.logits[:, 0, :14] = 9.0
    answers.logits[:, 3, 14:28, 22:28] = 9.0
    shown = _shown(answers)
    assert _off(shown[15:17, 15:17], SKIN) < 0.2
    assert _off(shown[2:12], SKIN) < 0.1 and _off(shown[17:26, 24:26], GREEN) < 0.1


def test_a_hand_that_the_camera_sees_stays_outside_of_the_forms_outline():
    answers = _answers(NOWHERE, NOWHERE, (0.0, 1.0), camera=SKIN)
    answers.logits[:, 0] = 3.0
    assert (show(answers).shares[:, 0] > 0.95).all()


def test_nothing_is_changed_where_forms_are_not_to_be_heeded():
    answers = _answers(_square(10, 22), _square(2, 8), (0.0, 0.0))
    got = show(answers)
    assert got.colors is answers.colors and torch.equal(got.shares, choose(answers))
    answers.outlines = None
    assert torch.equal(show(answers).shares, got.shares)


def test_what_is_in_front_ends_where_the_camera_shows_its_edge():
    """An arm before the thing: the network is torn over three pixels on both sides of its edge."""
    answers = _answers(_square(4, 28), _square(0, SIDE), (1.0, 0.0))
    answers.colors[:, 0, :, :, :16] = SKIN[:, None, None]
    answers.logits[:, 3] = 4.0
    answers.logits[:, 0, :, :13] = 12.0
    answers.logits[:, 0, :, 13:19] = 6.5
    answers.outlines.paint = PAINT
    shown = _shown(answers)
    assert _off(shown[8:24, 8:16], SKIN) < 0.1 and _off(shown[8:24, 16:24], GREEN) < 0.4


def test_where_a_painted_thing_is_laid_is_told():
    answers = _answers(_square(8, 24), NOWHERE, (1.0, 0.0))
    answers.logits[:, 3, 8:24, 8:24] += 4.0
    assert show(answers).laid.max() < 0.01  # its colours are those that are decoded
    answers.outlines.paint = PAINT
    laid = show(answers).laid[0]
    assert laid[10:22, 10:22].min() > 0.9
    laid[7:25, 7:25] = 0
    assert laid.max() < 0.01
