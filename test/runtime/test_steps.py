# SPDX-License-Identifier: Apache-2.0
"""The network in pieces of plain tensors does what the network does."""

import dataclasses

import numpy as np
import pytest
import torch
from runtime_support import SIZE, TEXT, pictures, small_model

from egoedit_ros.model.autoencoder import build_autoencoder
from egoedit_ros.model.config import AutoencoderConfig
from egoedit_ros.runtime.steps import STEP, PieceSession, TorchBackend, pieces_of
from egoedit_ros.stream.edit_session import EditSession


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _stream(session, count):
    session.set_instruction(TEXT, 3)
    return [session.run(chunk) for chunk in pictures(session, count)]


@pytest.mark.parametrize("window,sink", [(2, 0), (3, 1), (0, 0)])
@pytest.mark.parametrize("chunk_latents", [1, 3])
def test_a_session_in_pieces_equals_the_session(window, sink, chunk_latents):
    model = small_model(window_chunks=window, sink_chunks=sink)
    wanted = _stream(EditSession(model, SIZE, chunk_latents), 6)
    session = PieceSession(model, lambda s: TorchBackend(s.model, s.grid), SIZE, chunk_latents)
    got = _stream(session, 6)
    for a, b in zip(got, wanted, strict=True):
        assert np.abs(a.frames.astype(int) - b.frames).max() <= 1
    assert any((b.mask > 0).any() for b in wanted)  # so that there is something to compare


def test_an_autoencoder_with_a_past_of_its_own_stays_as_it_is():
    tiny = AutoencoderConfig(kind="taehv", latent_channels=8)
    model = small_model()
    config = dataclasses.replace(model.config, autoencoder=tiny)
    network = build_autoencoder(tiny).eval().requires_grad_(False)
    model = dataclasses.replace(model, config=config, autoencoder=network)
    assert pieces_of(model) == (STEP,)
    session = PieceSession(model, lambda s: TorchBackend(s.model, s.grid), SIZE)
    for a, b in zip(_stream(session, 3), _stream(EditSession(model, SIZE), 3), strict=True):
        assert np.abs(a.frames.astype(int) - b.frames).max() <= 1


def test_it_starts_anew_and_takes_new_instructions():
    model = small_model()
    one = EditSession(model, SIZE)
    two = PieceSession(model, lambda s: TorchBackend(s.model, s.grid), SIZE)
    for session in (one, two):
        _stream(session, 3)
        session.set_instruction("remove the mug", 4)
        session.run(next(pictures(session, 1)))
        session.reset()
    for a, b in zip(_stream(one, 3), _stream(two, 3), strict=True):
        assert np.abs(a.frames.astype(int) - b.frames).max() <= 1
