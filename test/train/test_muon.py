# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from egoedit_ros.train.muon import Muon, orthogonalise


@pytest.mark.parametrize("shape", [(8, 8), (12, 4), (4, 12)])
def test_singular_values_end_near_one_and_directions_stay(shape):
    torch.manual_seed(0)
    matrices = torch.randn(3, *shape)
    made = orthogonalise(matrices)
    values = torch.linalg.svdvals(made)
    assert values.min() > 0.5
    assert values.max() < 1.5
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    inner = u.mT @ made @ vh.mT  # diagonal where the singular vectors are the same
    off = inner - torch.diag_embed(torch.diagonal(inner, dim1=-2, dim2=-1))
    assert off.abs().max() < 1e-3


def test_steps_as_torch_does_where_torch_is_fast_enough_to_ask():
    torch.manual_seed(0)
    mine = [torch.nn.Parameter(torch.randn(6, 4)), torch.nn.Parameter(torch.randn(4, 4))]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in mine]
    a = Muon(mine, lr=0.01, weight_decay=0.1, dtype=torch.bfloat16)
    b = torch.optim.Muon(theirs, lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        for left, right in zip(mine, theirs, strict=True):
            left.grad = torch.randn_like(left)
            right.grad = left.grad.clone()
        a.step()
        b.step()
    for left, right in zip(mine, theirs, strict=True):
        torch.testing.assert_close(
            left, right, atol=1e-3, rtol=0
        )  # of three steps of 4e-3, in bf16


def test_a_closure_is_refused():
    optimizer = Muon([torch.nn.Parameter(torch.ones(2, 2))], lr=0.1)
    with pytest.raises(ValueError, match="closure"):
        optimizer.step(lambda: None)
