# SPDX-License-Identifier: Apache-2.0
"""A rollout in training is what a session does, step by step; where its gradient goes."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from train_support import TINY, VELOCITY

from egoedit_ros.errors import UserError
from egoedit_ros.model.autoencoder import EdgeAutoencoder
from egoedit_ros.model.text import get_text_encoder
from egoedit_ros.model.transformer import Transformer
from egoedit_ros.stream.edit_session import EditModel, EditSession
from egoedit_ros.train.batches import FlowData
from egoedit_ros.train.parallel import recompute_blocks
from egoedit_ros.train.self_forcing import rollout_stream, stream_rollout


def _network(config):
    torch.manual_seed(0)
    return Transformer(config.transformer)


def _noise_of_session(seed):
    """Noise as a session draws it: a stream for each chunk."""
    streams = {}

    def draw(shape, index):
        if index not in streams:
            streams[index] = torch.Generator().manual_seed(seed * 1_000_003 + index)
        return torch.randn(shape, generator=streams[index])

    return draw


@pytest.mark.parametrize("config", [TINY, VELOCITY], ids=["anchored", "velocity"])
@pytest.mark.parametrize("chunk", [1, 2])
def test_a_rollout_equals_a_session_chunk_by_chunk(config, chunk):
    config = dataclasses.replace(config, chunk_latents=chunk)
    net = _network(config).requires_grad_(False)
    autoencoder = EdgeAutoencoder(config.autoencoder).requires_grad_(False)
    model = EditModel(config, net, autoencoder, torch.device("cpu"), torch.float32)
    session = EditSession(model)
    session.set_instruction("make it blue", seed=7)
    rng = np.random.default_rng(0)
    sources, streamed = [], []
    for _ in range(5):  # longer than the window
        frames = rng.integers(0, 255, (session.frames_needed, 48, 64, 3), dtype=np.uint8)
        work = session.denoise(session.encode(session.ingest(session.begin(frames))))
        sources.append(work.latents[0])
        streamed.append(work.edited)
    text = get_text_encoder("minilm", config.transformer.text_len)("make it blue")[None]
    made = rollout_stream(
        net, config, torch.cat(sources)[None].clone(), text, config.nfe - 1, config.nfe,
        _noise_of_session(7),
    )  # fmt: skip
    torch.testing.assert_close(made[0], torch.cat(streamed), atol=1e-5, rtol=1e-5)


def _rollout(config, net, frames=3, exit_step=1, source=None, **how):
    torch.manual_seed(1)
    made = torch.randn(2, frames, 4, 6, 8)
    source = made if source is None else source
    rng = torch.Generator().manual_seed(2)
    text = torch.zeros(2, 48, 384)
    return rollout_stream(
        net, config, source, text, exit_step, 3,
        lambda shape, _: torch.randn(shape, generator=rng), **how,
    )  # fmt: skip


def test_no_gradient_crosses_from_chunk_to_chunk_through_the_cache():
    net = _network(TINY)
    source = torch.randn(2, 3, 4, 6, 8, requires_grad=True)
    made = _rollout(TINY, net, source=source)
    made[:, 1].sum().backward()
    assert source.grad[:, 1].abs().max() > 0
    assert source.grad[:, 0].abs().max() == 0 and source.grad[:, 2].abs().max() == 0


def test_every_chunk_leaves_by_the_same_step_and_only_it_has_a_gradient():
    net = _network(TINY)
    calls, forward = [], net.forward
    net.forward = lambda *a: calls.append(torch.is_grad_enabled()) or forward(*a)
    for exit_step in range(3):
        calls.clear()
        _rollout(TINY, net, exit_step=exit_step)
        assert calls == ([False] * exit_step + [True]) * 3


def test_the_first_chunk_is_hidden_while_the_last_is_made():
    net = _network(TINY).requires_grad_(False)
    source = torch.randn(2, 3, 4, 6, 8)
    other = source.clone()
    other[:, 0] += 1

    def last_moves(frames, **how):
        one, two = (
            _rollout(TINY, net, frames, source=s[:, :frames], **how) for s in (source, other)
        )
        return [(one[:, i] - two[:, i]).abs().max().item() > 1e-6 for i in range(frames)]

    # Two chunks: the last sees the first or nothing at all.
    assert last_moves(2, hide_first=False) == [True, True]
    assert last_moves(2) == [True, False]
    # Three: it still sees the second, which saw the first.
    hidden, shown = (_rollout(TINY, net, 3, source=source, hide_first=h) for h in (True, False))
    assert torch.equal(hidden[:, :2], shown[:, :2])
    assert (hidden[:, 2] - shown[:, 2]).abs().max() > 1e-6


def test_of_two_chunks_the_stage_hides_none():
    net = _network(TINY).requires_grad_(False)
    source = torch.randn(2, 2, 4, 6, 8)
    other = source.clone()
    other[:, 0] += 1
    rollout = stream_rollout(TINY, 3, FlowData(latents=None, crop=0, frames=2))

    def last_chunk(source):
        rng = torch.Generator().manual_seed(2)
        batch = SimpleNamespace(source=source, text=torch.zeros(2, 48, 384))
        return rollout(net, batch, 1, lambda shape: torch.randn(shape, generator=rng))[:, 1]

    assert (last_chunk(source) - last_chunk(other)).abs().max() > 1e-6


def test_a_chunk_that_left_the_window_needs_no_hiding():
    net = _network(TINY).requires_grad_(False)
    hidden, shown = (_rollout(TINY, net, 5, hide_first=h) for h in (True, False))
    assert torch.equal(hidden, shown)


def test_recomputing_sees_the_past_of_its_time():
    gradients = []
    for recompute in (False, True):
        net = _network(TINY)
        if recompute:
            recompute_blocks(net)
        _rollout(TINY, net, 4).square().mean().backward()
        gradients.append({n: p.grad for n, p in net.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(
    ("more", "says"),
    [({"crop": 8}, "set crop: 0"), ({"frames": 1}, "two or more"), ({"frames": 5}, "whole chunks")],
)
def test_clips_that_are_no_stream_are_refused(more, says):
    data = FlowData(latents=None, **{"crop": 0, "frames": 4} | more)
    with pytest.raises(UserError, match=says):
        stream_rollout(dataclasses.replace(TINY, chunk_latents=2), 3, data)
