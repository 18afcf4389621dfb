# SPDX-License-Identifier: Apache-2.0
"""The transformer is diffusers' Wan, and the cache gives what one masked pass gives."""

import pytest
import torch

from egoedit_ros.errors import UserError
from egoedit_ros.model.cache import KeyValueCache
from egoedit_ros.model.config import TransformerConfig
from egoedit_ros.model.transformer import Transformer, causal_attend, token_grid

SMALL = TransformerConfig(
    layers=3, heads=2, head_dim=24, ffn_dim=64, in_channels=8, out_channels=4, text_dim=16,
    text_len=6, freq_dim=32, anchored=False,
)  # fmt: skip
WIDER = TransformerConfig(
    layers=2, heads=4, head_dim=32, ffn_dim=96, in_channels=12, out_channels=6, text_dim=20,
    text_len=5, freq_dim=64, anchored=False,
)  # fmt: skip
GRID = (3, 4)


def _model(config, seed=0):
    torch.manual_seed(seed)
    return Transformer(config).eval().requires_grad_(False)


def _whole_clip(model, latents, timestep, text, chunk=None, window=None):
    frames = latents.shape[1]
    y, x = token_grid(*GRID, latents.device)
    cos, sin = model.rope.angles(torch.arange(frames), y, x)
    attend = causal_attend(cos, sin, model.config.heads, chunk or frames, window)
    modulation = model.modulation(torch.full((latents.shape[0], 1), timestep))
    return model(model.embed(latents), modulation, model.text(text), attend, GRID)


@pytest.mark.parametrize("config", [SMALL, WIDER], ids=["small", "wider"])
def test_whole_clip_equals_diffusers(config):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(1)
    theirs = diffusers.WanTransformer3DModel(
        patch_size=config.patch, num_attention_heads=config.heads,
        attention_head_dim=config.head_dim, in_channels=config.in_channels,
        out_channels=config.out_channels, text_dim=config.text_dim, freq_dim=config.freq_dim,
        ffn_dim=config.ffn_dim, num_layers=config.layers, cross_attn_norm=True, eps=config.eps,
        rope_max_seq_len=64,
    ).eval()  # fmt: skip
    ours = _model(config)
    ours.load_state_dict(theirs.state_dict())
    latents = torch.randn(2, 5, config.in_channels, 2 * GRID[0], 2 * GRID[1])
    text = torch.randn(2, config.text_len, config.text_dim)
    with torch.no_grad():
        wanted = theirs(
            latents.transpose(1, 2), torch.tensor([637.0, 637.0]), text, return_dict=False
        )[0]
        got = _whole_clip(ours, latents, 637.0, text)
    assert (got.transpose(1, 2) - wanted).abs().max() <= 1e-4


@pytest.mark.parametrize("chunk", [1, 3])
@pytest.mark.parametrize("window", [1, 2])
def test_cache_equals_block_causal_pass(chunk, window):
    # With one layer and a window that never slides, or with as many frames as the window holds,
    # a masked pass has the same past as the cache at every layer.
    model = _model(SMALL)
    chunks = window + 1
    clean = torch.randn(1, chunks * chunk, SMALL.in_channels, 6, 8)
    text = torch.randn(1, SMALL.text_len, SMALL.text_dim)
    wanted = _whole_clip(model, clean, 0.0, text, chunk, window)
    cache = KeyValueCache(model, GRID, chunk, window)
    context, zero = model.text(text), model.modulation(torch.zeros(1, 1))
    got = []
    for start in range(0, chunks * chunk, chunk):
        tokens = model.embed(clean[:, start : start + chunk])
        got.append(model(tokens, zero, context, cache.attend(store=True), GRID))
        cache.advance()
    assert (torch.cat(got, 1) - wanted).abs().max() <= 1e-4


def test_positions_do_not_run_out():
    # The same chunks give the same output however long ago the stream began. Layer by layer the
    # past reaches back window x layers chunks; after that nothing of the start is left.
    model = _model(SMALL)
    text = torch.randn(1, SMALL.text_len, SMALL.text_dim)
    context, zero = model.text(text), model.modulation(torch.zeros(1, 1))
    tail = torch.randn(9, 1, 1, SMALL.in_channels, 6, 8)
    ends = []
    for before in (0, 40):
        cache = KeyValueCache(model, GRID, 1, 2)
        for latents in [*torch.randn(before, 1, 1, SMALL.in_channels, 6, 8), *tail]:
            end = model(model.embed(latents), zero, context, cache.attend(store=True), GRID)
            cache.advance()
        ends.append(end)
    assert (ends[0] - ends[1]).abs().max() <= 1e-5


def test_rerunning_a_chunk_does_not_change_the_past():
    model = _model(SMALL)
    context = model.text(torch.randn(1, SMALL.text_len, SMALL.text_dim))
    zero = model.modulation(torch.zeros(1, 1))
    first, second = (model.embed(torch.randn(1, 1, SMALL.in_channels, 6, 8)) for _ in range(2))
    cache = KeyValueCache(model, GRID, 1, 2)
    model(first, zero, context, cache.attend(store=True), GRID)
    cache.advance()
    runs = [model(second, zero, context, cache.attend(store=False), GRID) for _ in range(3)]
    assert torch.equal(runs[0], runs[2])


def test_source_half_of_the_embedding_adds_up():
    model = _model(SMALL)
    noise, source = torch.randn(2, 1, 2, 4, 6, 8).unbind(0)
    whole = model.embed(torch.cat([noise, source], dim=2))
    parts = model.embed(noise) + model.embed(source, SMALL.out_channels, bias=False)
    assert torch.allclose(whole, parts, atol=1e-5)


def test_a_sink_as_large_as_the_window_is_refused():
    with pytest.raises(UserError, match="sink"):
        KeyValueCache(_model(SMALL), GRID, 1, window_chunks=2, sink_chunks=2)


def test_the_sink_is_kept_and_the_rest_slides():
    model = _model(SMALL)
    context = model.text(torch.randn(1, SMALL.text_len, SMALL.text_dim))
    zero = model.modulation(torch.zeros(1, 1))
    chunks = torch.randn(6, 1, 1, SMALL.in_channels, 6, 8)

    def last(first_chunk):
        cache = KeyValueCache(model, GRID, 1, window_chunks=2, sink_chunks=1)
        for latents in [first_chunk, *chunks]:
            end = model(model.embed(latents), zero, context, cache.attend(store=True), GRID)
            cache.advance()
        return end

    one, other = torch.randn(2, 1, 1, SMALL.in_channels, 6, 8)
    assert not torch.allclose(last(one), last(other), atol=1e-4)


@pytest.mark.parametrize("window", [0, 1, 3])
def test_remembering_leaves_what_a_whole_pass_leaves(window):
    model = _model(SMALL)
    context = model.text(torch.randn(1, SMALL.text_len, SMALL.text_dim))
    zero = model.modulation(torch.zeros(1, 1))
    whole, short = (KeyValueCache(model, GRID, 1, window) for _ in range(2))
    for latents in torch.randn(5, 1, 1, SMALL.in_channels, 6, 8):
        tokens = model.embed(latents)
        model(tokens, zero, context, whole.attend(store=True), GRID)
        whole.advance()
        short.remember(tokens, zero, context)
        for a, b in zip(whole.past(), short.past(), strict=True):
            assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])
    assert len(short.past()) == (SMALL.layers if window else 0)


def test_a_past_too_large_for_the_memory_is_said(monkeypatch):
    monkeypatch.setattr("egoedit_ros.model.memory.free_memory", lambda device: 10_000)
    with pytest.raises(UserError, match="a past of 4 chunks needs"):
        KeyValueCache(_model(SMALL), GRID, 1, window_chunks=4)
