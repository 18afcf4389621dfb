# SPDX-License-Identifier: Apache-2.0
import torch

from egoedit_ros.model.text import get_text_encoder


def test_wording_that_means_the_same_is_near():
    encoder = get_text_encoder("minilm", 48)

    def mean(text):
        tokens = encoder(text)
        return tokens[tokens.abs().sum(-1) > 0].mean(0)

    same = torch.cosine_similarity(mean("make the mug red"), mean("turn the cup red"), dim=0)
    other = torch.cosine_similarity(mean("make the mug red"), mean("remove the bottle"), dim=0)
    assert same > other


def test_shape_padding_and_truncation():
    encoder = get_text_encoder("minilm", 48)
    short, long = encoder("hi"), encoder("cactus " * 500)
    assert short.shape == long.shape == (48, 384)
    assert not short[10:].any() and long[-1].any()
    assert torch.isfinite(encoder("ünïcode 🌵")).all()
