# SPDX-License-Identifier: Apache-2.0
"""Weights cast for a pass: what is computed in, and where gradients go."""

import pytest
import torch
from torch import nn

from egoedit_ros.model.precision import weights_as


def test_gradients_of_cast_weights_are_the_weights_own():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 2))
    kept = list(net.parameters())
    x = torch.randn(16, 6)
    net(x).square().mean().backward()
    wanted = [p.grad.clone() for p in kept]
    net.zero_grad()
    with weights_as(net.modules(), torch.bfloat16):
        made = net(x.bfloat16())
    assert made.dtype is torch.bfloat16
    made.float().square().mean().backward()
    for parameter, gradient in zip(kept, wanted, strict=True):
        assert parameter.grad.dtype is torch.float32
        assert (parameter.grad - gradient).norm() < 0.02 * gradient.norm()
    assert all(a is b for a, b in zip(net.parameters(), kept, strict=True))


def test_weights_are_put_back_when_a_pass_fails():
    net = nn.Linear(2, 2)
    kept = net.weight
    with pytest.raises(RuntimeError, match="dtype"), weights_as([net], torch.bfloat16):
        net(torch.zeros(1, 2))
    assert net.weight is kept


def test_only_the_modules_that_are_named_are_cast():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with weights_as([net[0]], torch.bfloat16):
        assert [m.weight.dtype for m in net] == [torch.bfloat16, torch.float32]
