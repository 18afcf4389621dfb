# SPDX-License-Identifier: Apache-2.0
"""The critic beside a rollout tells smears from pictures, and its loss pulls towards pictures."""

import torch
import torch.nn.functional as F

from egoedit_ros.train.adversary import Adversary, adversary_loss, critic_loss, near_edit


def _pairs(count, seed):
    """source, target with a white square at some place, and the mean of all places."""
    rng = torch.Generator().manual_seed(seed)
    source = torch.full((count, 4, 3, 32, 32), -0.5)
    target = source.clone()
    for row in range(count):
        y, x = torch.randint(8, 13, (2,), generator=rng).tolist()
        target[row, :, :, y : y + 12, x : x + 12] = 1.0
    edited = ((target - source).abs().amax(2) > 0.1).float()
    smear = F.avg_pool2d(target.flatten(0, 1), 9, 1, 4).unflatten(0, (count, 4))
    return source, target, smear, near_edit(edited)


def _taught():
    torch.manual_seed(0)
    critic = Adversary(width=8)
    optimizer = torch.optim.Adam(critic.parameters(), 2e-3)
    for step in range(60):
        source, target, smear, near = _pairs(8, step)
        loss, report = critic_loss(critic, smear, target, source, near)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return critic, report


def test_a_critic_learns_to_tell_and_its_loss_prefers_the_picture():
    critic, report = _taught()
    assert report["right"] > 0.9
    source, target, smear, near = _pairs(8, 1000)
    smear.requires_grad_(True)
    bad = adversary_loss(critic, smear, target, source, near)
    assert bad > adversary_loss(critic, target, target, source, near)
    bad.backward()
    step = smear.detach() - 0.01 * smear.grad / smear.grad.abs().max()
    assert adversary_loss(critic, step, target, source, near) < bad


def test_what_is_far_from_the_edit_says_nothing():
    critic = Adversary(width=8)
    source, target, _, near = _pairs(2, 0)
    made = target.clone()
    made[..., :4, :] = 0.3  # outside the patches that count
    near = near * 0
    near[..., 3, 3] = 1
    made.requires_grad_(True)
    said = critic(made, source)[-1]
    (said * near).sum().backward()
    assert made.grad[..., 16:, 16:].abs().sum() > 0
    loss, report = critic_loss(critic, made, target, source, torch.zeros_like(near))
    assert loss == 0 and report["right"] == 0


def test_patches_near_an_edit_are_those_beside_it():
    edited = torch.zeros(1, 4, 64, 64)
    edited[0, 2, 30, 30] = 1
    near = near_edit(edited)
    assert near.shape == (1, 1, 8, 8) and near.sum() == 9 and near[0, 0, 2:5, 2:5].all()
