# SPDX-License-Identifier: Apache-2.0
"""Weights cast for a pass: what is computed in, and where gradients go."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from egoedit_ros.model.precision import best_dtype, weights_as


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


@pytest.mark.parametrize(
    ("probes", "wanted"),
    [
        ((False, False), torch.float32),
        ((True, False), torch.bfloat16),
        ((False, True), torch.bfloat16),
        ((None, None), torch.float32),  # a torch that cannot tell
    ],
)
def test_a_cpu_computes_in_bfloat16_only_where_it_has_instructions_for_it(
    monkeypatch, probes, wanted
):
    # oneDNN says so of every CPU with AVX-512.
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True, raising=False)
    for name, there in zip(("_is_avx512_bf16", "_is_amx_tile"), probes, strict=True):
        if there is None:
            monkeypatch.delattr(torch.cpu, f"{name}_supported", raising=False)
        else:
            told = lambda there=there: there  # noqa: E731
            monkeypatch.setattr(torch.cpu, f"{name}_supported", told, raising=False)
    assert best_dtype("cpu") is wanted


@pytest.mark.parametrize(("native", "wanted"), [(False, torch.float32), (True, torch.bfloat16)])
def test_a_gpu_that_emulates_bfloat16_computes_in_float32(monkeypatch, native, wanted):
    asked = []
    monkeypatch.setattr(torch.cuda, "device", lambda d: asked.append(str(d)) or nullcontext())
    told = lambda including_emulation=True: native or including_emulation  # noqa: E731
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", told)
    assert best_dtype("cuda:1") is wanted
    assert asked == ["cuda:1"]
