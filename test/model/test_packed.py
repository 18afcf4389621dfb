# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest
import torch

from egoedit_ros.errors import UserError
from egoedit_ros.model.packed import pack, unpack

PATH = Path("detail.safetensors")


def test_convolutions_take_a_byte_and_come_back_within_half_a_step():
    torch.manual_seed(0)
    weights = torch.randn(8, 4, 3, 3) * torch.logspace(-3, 1, 8)[:, None, None, None]
    weights[3] = 0
    given = {"a.weight": weights, "a.bias": torch.randn(8), "b.weight": torch.randn(5, 6)}
    stored = pack(given)
    assert stored["a.weight"].dtype == torch.int8
    again = unpack(stored, PATH)
    assert again.keys() == given.keys()
    half = weights.flatten(1).abs().amax(1)[:, None, None, None] / 254
    assert ((again["a.weight"] - weights).abs() <= half * 1.001 + 1e-9).all()
    for name in ("a.bias", "b.weight"):
        assert torch.equal(again[name], given[name])


def test_large_matrices_take_a_byte_too():
    torch.manual_seed(0)
    given = {"a.weight": torch.randn(128, 1028)}
    stored = pack(given)
    assert stored["a.weight"].dtype == torch.int8
    half = given["a.weight"].abs().amax(1, keepdim=True) / 254
    again = unpack(stored, PATH)["a.weight"]
    assert ((again - given["a.weight"]).abs() <= half * 1.001).all()


def test_what_is_not_packed_is_left():
    given = {"a.weight": torch.randn(8, 4, 3, 3)}
    assert unpack(given, PATH) == given


@pytest.mark.parametrize("steps", [torch.ones(7), torch.ones(8, 1)])
def test_steps_that_do_not_fit(steps):
    stored = pack({"a.weight": torch.randn(8, 4, 3, 3)}) | {"a.weight.steps": steps}
    with pytest.raises(UserError, match="damaged"):
        unpack(stored, PATH)


def test_steps_of_no_weights():
    with pytest.raises(UserError, match="damaged"):
        unpack({"a.weight.steps": torch.ones(8)}, PATH)
