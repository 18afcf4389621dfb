# SPDX-License-Identifier: Apache-2.0
"""The form in which a stream runs the transformer computes what the transformer does."""

import pytest
import torch
import torch.nn.functional as F

from egoedit_ros.model.cache import KeyValueCache
from egoedit_ros.model.config import TransformerConfig
from egoedit_ros.model.inference import Blend, StreamTransformer, gelu_
from egoedit_ros.model.transformer import Transformer

GRID = (3, 4)
FORMS = {
    "wan": {},
    "bare": {"cross_attn_norm": False, "qk_norm": False},
    "wide": {"heads": 4, "head_dim": 32, "patch": (1, 2, 2)},
}


def _net(seed=0, dtype=torch.float32, **changes):
    sizes = {"layers": 3, "heads": 2, "head_dim": 24, "ffn_dim": 64, "in_channels": 8,
             "out_channels": 4, "text_dim": 16, "text_len": 6, "freq_dim": 32}  # fmt: skip
    torch.manual_seed(seed)
    net = Transformer(TransformerConfig(**sizes | changes)).eval().requires_grad_(False)
    return net.to(dtype)


def _texts(net, count):
    shape = (1, net.config.text_len, net.config.text_dim)
    return [net.text(torch.randn(shape)) for _ in range(count)]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("chunk,window,sink", [(1, 2, 0), (3, 3, 1), (2, 0, 0)])
def test_it_gives_what_the_transformer_gives(form, chunk, window, sink):
    net = _net(**FORMS[form])
    stream = StreamTransformer(net)
    plain, ours = (KeyValueCache(net, GRID, chunk, window, sink) for _ in range(2))
    (text,) = _texts(net, 1)
    noisy, clean = (net.modulation(torch.full((1, 1), t)) for t in (937.5, 0.0))
    for latents in torch.randn(6, 1, chunk, net.config.in_channels, 6, 8):
        tokens = net.embed(latents)
        wanted = net(tokens, noisy, text, plain.attend(store=False), GRID)
        got = stream.output(tokens, stream.modulation(937.5), text, ours, GRID)
        assert (got - wanted).abs().max() <= 1e-4 * max(1.0, float(wanted.abs().max()))
        plain.remember(tokens, clean, text)
        stream.remember(tokens, stream.modulation(0.0), text, ours)
        for a, b in zip(plain.past(), ours.past(), strict=True):
            assert (a[0] - b[0]).abs().max() <= 1e-4 and (a[1] - b[1]).abs().max() <= 1e-4


def test_it_follows_the_transformer_in_bfloat16():
    net = _net(dtype=torch.bfloat16)
    stream, (text,) = StreamTransformer(net), _texts(net, 1)
    plain, ours = (KeyValueCache(net, GRID, 1, 2) for _ in range(2))
    for latents in torch.randn(4, 1, 1, net.config.in_channels, 6, 8):
        tokens = net.embed(latents)
        noisy, clean = (net.modulation(torch.full((1, 1), t)) for t in (937.5, 0.0))
        wanted = net(tokens, noisy, text, plain.attend(store=False), GRID).float()
        got = stream.output(tokens, stream.modulation(937.5), text, ours, GRID).float()
        assert got.isfinite().all() and (got - wanted).norm() <= 0.05 * wanted.norm()
        plain.remember(tokens, clean, text)
        stream.remember(tokens, stream.modulation(0.0), text, ours)


def test_the_tokens_it_is_given_stay_as_they_are():
    net = _net()
    stream, (text,) = StreamTransformer(net), _texts(net, 1)
    cache = KeyValueCache(net, GRID, 1, 2)
    tokens = net.embed(torch.randn(1, 1, net.config.in_channels, 6, 8))
    before = tokens.clone()
    stream.output(tokens, stream.modulation(500.0), text, cache, GRID)
    stream.remember(tokens, stream.modulation(0.0), text, cache)
    assert torch.equal(tokens, before)


def test_a_blend_lies_between_its_texts_and_is_them_at_the_ends():
    net = _net()
    stream, (one, other) = StreamTransformer(net), _texts(net, 2)
    cache = KeyValueCache(net, GRID, 1, 2)
    tokens = net.embed(torch.randn(1, 1, net.config.in_channels, 6, 8))
    modulation = stream.modulation(500.0)

    def output(text):
        return stream.output(tokens, modulation, text, cache, GRID)

    def mixed(weight):
        return output(Blend(((one, 1 - weight), (other, weight))))

    assert torch.allclose(mixed(0.0), output(one), atol=1e-5)
    assert torch.allclose(mixed(1.0), output(other), atol=1e-5)
    ends = [(mixed(w) - output(one)).norm().item() for w in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert ends == sorted(ends) and ends[-1] > 10 * ends[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gelu_is_torchs(dtype):
    x = torch.linspace(-30, 30, 4001).to(dtype)
    wanted = F.gelu(x, approximate="tanh")
    assert (gelu_(x.clone()).float() - wanted.float()).abs().max() <= 1e-5
