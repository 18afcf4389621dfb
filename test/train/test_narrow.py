# SPDX-License-Identifier: Apache-2.0
"""A detail network that tells its text by fewer numbers: how far it says the same."""

import torch
from runtime_support import small_config

from egoedit_ros.model.config import DetailConfig
from egoedit_ros.model.detail import PLACES, DetailNet
from egoedit_ros.train.narrow import narrow_text


def _net(told, seed=0):
    """Whose blocks heed the text."""
    torch.manual_seed(seed)
    net = DetailNet(small_config(detail=DetailConfig((8, 16, 16), (1, 1), told=told)))
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return net


def _said(net, embedded):
    rng = torch.Generator().manual_seed(1)
    source, made = (torch.rand(4, 3, 32, 32, generator=rng) for _ in range(2))
    latents = torch.randn(4, 16, 4, 4, generator=rng)
    with torch.inference_mode():
        answers = net(
            source, made, source[:, :1], latents, torch.arange(4) % PLACES, net.read(embedded)
        )
    return torch.cat([answers.logits, answers.widths, answers.colors.flatten(1, 2)], 1)


def test_what_no_block_heeds_is_left_out_without_a_trace():
    wide, narrow = _net(24), _net(9, seed=1)
    unheeded = torch.arange(24) % 3 > 0
    for name, layer in wide.named_modules():
        if name.endswith("blocks.0.text"):
            layer.weight.data[:, unheeded] = 0
    texts = torch.randn(60, 6, 384)
    narrow_text(wide, narrow, texts.split(20))
    others = torch.randn(4, 6, 384)
    assert torch.allclose(_said(narrow, others), _said(wide, others), atol=1e-4)
    assert not torch.allclose(_said(narrow, others), _said(narrow, texts[:4]), atol=1e-2)


def test_the_more_numbers_stay_the_nearer_it_is():
    wide = _net(24)
    texts, others = torch.randn(90, 6, 384), torch.randn(4, 6, 384)
    errors = []
    for told in (24, 20, 4):
        narrow = _net(told, seed=1)
        narrow_text(wide, narrow, texts.split(30))
        errors.append(float((_said(narrow, others) - _said(wide, others)).abs().mean()))
    assert errors[0] < 1e-4 < errors[1] < 0.8 * errors[2]
