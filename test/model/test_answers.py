# SPDX-License-Identifier: Apache-2.0
"""Of several answers one is shown and no mean, and what was sure is told to the next chunk."""

import torch

from egoedit_ros.model.answers import Answers, Before, Outlines, Whole, choose, surprise, told_next
from egoedit_ros.model.places import AWAY
from egoedit_ros.model.pose import FRAME, POSE


def _answers(colors, logits):
    """One pixel with these grey answers; the camera's and the decoder's are as good as none."""
    colors, logits = [0.5, 0.5, *colors], [-20.0, -20.0, *logits]
    shape = (1, len(colors), 3, 1, 1)
    colors = torch.tensor(colors)[None, :, None, None, None].expand(shape)
    logits = torch.tensor(logits)[None, :, None, None]
    return Answers(colors, logits, torch.full_like(logits, 0.02))


def _shown(answers):
    return float((choose(answers)[:, :, None] * answers.colors).sum(1).mean())


def test_of_two_likely_colours_one_is_shown_and_not_their_mean():
    answers = _answers([0.1, 0.9, 0.5], [1.0, 1.6, -3.0])
    weights = answers.logits.softmax(1)[:, :, None]
    mean = float((weights * answers.colors).sum(1).mean())
    assert 0.4 < mean < 0.65
    assert _shown(answers) > 0.85


def test_answers_that_are_alike_count_together():
    """One answer has most weight, but three that agree have more."""
    assert _shown(_answers([0.1, 0.85, 0.9, 0.95], [1.0, 0.6, 0.6, 0.6])) > 0.8


def test_a_target_is_less_surprising_where_it_is_expected():
    answers = _answers([0.1, 0.9], [0.0, 2.0])
    at = {v: float(surprise(answers, torch.full((1, 3, 1, 1), v))) for v in (0.9, 0.1, 0.5)}
    assert at[0.9] < at[0.1] < at[0.5]


def test_what_was_sure_is_told_on_and_what_was_not_stays():
    whole = Whole(torch.zeros(2, 3, 8, 8), 10, 20, Before(torch.ones(1, FRAME), None, None))
    pose = torch.zeros(2, POSE)
    pose[1, FRAME] = 3.0
    answers = Answers(None, None, None, pose, None, Outlines(None, 1.0, 0.0))
    got = told_next(answers, whole)
    assert got.thing[0, :2].tolist() == [20, 10] and got.hand[0, :2].tolist() == [23, 10]
    answers.outlines = Outlines(None, 0.2, 0.0)
    got = told_next(answers, whole)
    assert got.thing is whole.before.thing and got.hand is None and got.light is None
    pose[:, FRAME] = AWAY
    answers.outlines = Outlines(None, 1.0, 0.0)
    assert told_next(answers, whole).hand is None
    answers.outlines = None
    assert told_next(answers, whole) is whole.before
