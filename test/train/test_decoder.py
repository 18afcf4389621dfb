# SPDX-License-Identifier: Apache-2.0
"""The decoder's loss: what an eye would see of an edit that is not the target."""

import torch

from egoedit_ros.train.decoder import BORDER, change_loss, decoded_loss


def _streams():
    """Two streams of two latent frames, four pictures each: source, and a target that differs in a
    square."""
    rng = torch.Generator().manual_seed(0)
    source = (torch.rand(4, 1, 3, 16, 16, generator=rng) - 0.5).expand(4, 4, 3, 16, 16).clone()
    target = source.clone()
    target[..., 4:12, 4:12] = 0.8
    return source, target


def test_the_exact_target_costs_nothing_and_the_source_much():
    source, target = _streams()
    edited = (source != target).any(2).float()
    exact, report = decoded_loss(target, 60 * edited - 30, source, target, count=2)
    undone, before = decoded_loss(source, 60 * edited - 30, source, target, count=2)
    assert exact < 1e-3 < 0.3 < undone
    assert report["gain"] > 0.999 and abs(before["gain"]) < 1e-6


def test_a_jump_where_latent_frames_meet_costs_only_inside_a_stream():
    _, target = _streams()
    weight = torch.ones(4, 4, 1, 16, 16)
    made = target.clone()
    made[1] += 0.1  # the second latent frame of the first stream
    jump = change_loss(made, target, weight, 2)
    # One of the seven changes of one of two streams, the one that weighs most.
    torch.testing.assert_close(jump, torch.tensor(BORDER * 0.1 / 14))
    inside = target.clone()
    inside[0, 2:] += 0.1
    inside[1] += 0.1  # the same jump two pictures earlier
    torch.testing.assert_close(change_loss(inside, target, weight, 2), jump / BORDER)
    assert change_loss(made, target, weight, 1) < 1e-6
    made = target.clone()
    made[:2] += 0.1  # all of a stream: nothing jumps
    assert change_loss(made, target, weight, 2) < 1e-6
