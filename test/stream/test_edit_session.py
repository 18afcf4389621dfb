# SPDX-License-Identifier: Apache-2.0
"""Streams through real weights: determinism, isolation, framing, and what may be asked for."""

import numpy as np
import pytest
import torch

from egoedit_ros.errors import UserError
from egoedit_ros.stream.edit_session import EditSession, load_model
from egoedit_ros.stream.session import open_session

SIZE = (64, 48)


@pytest.fixture(scope="module")
def edge():
    return load_model("edge", "cpu")


def _stream(chunks, first=True, seed=0):
    rng = np.random.default_rng(seed)
    counts = [1 if first and i == 0 else 4 for i in range(chunks)]
    return [rng.integers(0, 256, (n, SIZE[1], SIZE[0], 3), dtype=np.uint8) for n in counts]


def _run(session, chunks, text="turn the red ball blue", seed=3):
    session.set_instruction(text, seed)
    return [session.run(c).frames for c in chunks]


def test_same_stream_same_bits(edge):
    chunks = _stream(5)
    one = _run(EditSession(edge, SIZE), chunks)
    other = _run(EditSession(edge, SIZE), chunks)
    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_settling_early_changes_nothing(edge):
    chunks = _stream(4)
    lazy, eager = EditSession(edge, SIZE), EditSession(edge, SIZE)
    wanted = _run(lazy, chunks)
    eager.set_instruction("turn the red ball blue", 3)
    for chunk, frames in zip(chunks, wanted, strict=True):
        assert np.array_equal(eager.run(chunk).frames, frames)
        eager.settle()


def test_two_streams_on_one_model_do_not_touch(edge):
    mine, yours = _stream(4, seed=1), _stream(4, seed=2)
    alone = _run(EditSession(edge, SIZE), mine)
    a, b = EditSession(edge, SIZE), EditSession(edge, SIZE)
    a.set_instruction("turn the red ball blue", 3)
    b.set_instruction("remove the mug", 9)
    for x, y, wanted in zip(mine, yours, alone, strict=True):
        got = a.run(x).frames
        b.run(y)
        assert np.array_equal(got, wanted)


def test_reset_starts_a_new_stream(edge):
    chunks = _stream(3)
    session = EditSession(edge, SIZE)
    first = _run(session, chunks)
    session.reset()
    assert session.frames_needed == 1
    again = _run(session, chunks)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))


def test_framing_is_wans(edge):
    session = EditSession(edge, SIZE, chunk_latents=3)
    assert session.frames_needed == 9
    session.skip(np.zeros((9, SIZE[1], SIZE[0], 3), np.uint8))
    assert session.frames_needed == 12
    session.set_instruction("remove the ball", 0)
    result = session.run(np.zeros((12, SIZE[1], SIZE[0], 3), np.uint8))
    assert result.frames.shape == (12, SIZE[1], SIZE[0], 3) and result.frames.dtype == np.uint8
    assert result.mask.shape == (12, SIZE[1], SIZE[0])


def test_outside_the_mask_pixels_are_the_cameras(edge):
    session = EditSession(edge, SIZE)
    session.set_instruction("turn the red ball blue", 0)
    for chunk in _stream(3):
        result = session.run(chunk)
        kept = result.mask == 0
        assert np.array_equal(result.frames[kept], chunk[kept])


def test_the_state_does_not_grow(edge):
    session = EditSession(edge, SIZE)
    session.set_instruction("remove the mug", 0)
    before = session.memory_bytes()
    for chunk in _stream(12):
        session.run(chunk)
    assert session.memory_bytes() == before > 0


@pytest.mark.parametrize("size", [(250, 192), (16, 16), (0, 0)])
def test_a_size_that_does_not_fit(edge, size):
    with pytest.raises(UserError, match="multiples of 16"):
        EditSession(edge, size if all(size) else (8, 8))


def test_an_unknown_model():
    with pytest.raises(UserError, match="no model"):
        open_session("no/such/model")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_is_never_silently_replaced():
    with pytest.raises(UserError, match="no CUDA"):
        open_session("edge", "cuda")
