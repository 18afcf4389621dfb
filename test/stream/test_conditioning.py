# SPDX-License-Identifier: Apache-2.0
"""A new instruction: at once, over some chunks, and with the past made anew under it."""

import numpy as np
import pytest
import torch
from runtime_support import SIZE, TEXT, pictures, small_model

from egoedit_ros.errors import UserError
from egoedit_ros.model.inference import Blend
from egoedit_ros.runtime.steps import PieceSession, TorchBackend
from egoedit_ros.stream.conditioning import MAX_TEXTS, TextSwitch
from egoedit_ros.stream.edit_session import EditSession

OTHER = "remove the mug"


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model():
    return small_model(window_chunks=3, sink_chunks=1)


def _weights(context, target):
    if isinstance(context, Blend):
        return sum(weight for text, weight in context.parts if text is target)
    return float(context is target)


def _run(session, chunks, switch_at=None):
    """Frames of each chunk; another instruction from chunk ``switch_at`` on."""
    session.set_instruction(TEXT, 3)
    frames = []
    for index, chunk in enumerate(chunks):
        if index == switch_at:
            session.set_instruction(OTHER, 3)
        frames.append(session.run(chunk).frames)
    return frames


def test_the_new_text_takes_over_step_by_step():
    one, other = object(), object()
    switch = TextSwitch(3)
    switch.switch(one)
    assert switch.next() is one
    switch.switch(other)
    contexts = [switch.next() for _ in range(5)]
    assert [_weights(c, other) for c in contexts] == pytest.approx([0.25, 0.5, 0.75, 1, 1])
    assert [_weights(c, one) for c in contexts] == pytest.approx([0.75, 0.5, 0.25, 0, 0])
    assert contexts[3] is other


def test_a_switch_within_a_blend_goes_on_from_where_it_is():
    one, two, three = object(), object(), object()
    switch = TextSwitch(1)
    switch.switch(one)
    switch.next()
    switch.switch(two)
    assert _weights(switch.next(), two) == 0.5
    switch.switch(three)
    blend = switch.next()
    assert [_weights(blend, text) for text in (one, two, three)] == [0.25, 0.25, 0.5]
    assert switch.next() is three


def test_many_switches_do_not_pile_up():
    switch = TextSwitch(50)
    for _ in range(40):
        switch.switch(object())
        context = switch.next()
    assert len(context.parts) <= MAX_TEXTS
    assert sum(weight for _, weight in context.parts) == pytest.approx(1)


def test_no_blend_is_a_hard_switch(model):
    hard = EditSession(model, SIZE)
    chunks = list(pictures(hard, 1)) + list(pictures_after(hard, 5))
    wanted = _run(hard, chunks, 2)
    got = _run(EditSession(model, SIZE, blend_chunks=0), chunks, 2)
    assert all(np.array_equal(a, b) for a, b in zip(got, wanted, strict=True))


def test_a_blend_begins_at_the_old_text_and_ends_at_the_new(model):
    session = EditSession(model, SIZE, blend_chunks=2)
    session.set_instruction(TEXT, 3)
    chunks = list(pictures(session, 1)) + list(pictures_after(session, 5))
    contexts = []
    for index, chunk in enumerate(chunks):
        if index == 2:
            session.set_instruction(OTHER, 3)
        work = session.begin(chunk)
        contexts.append(work.context)
        for stage in ("ingest", "encode", "denoise"):
            work = getattr(session, stage)(work)
    new = session._context
    assert [_weights(c, new) for c in contexts] == pytest.approx([0, 0, 1 / 3, 2 / 3, 1, 1])
    assert contexts[4] is new  # the very conditioning that a hard switch has


def test_a_new_stream_does_not_blend(model):
    session = EditSession(model, SIZE, blend_chunks=4)
    chunks = list(pictures(session, 1)) + list(pictures_after(session, 2))
    _run(session, chunks, 2)
    session.reset()
    assert session.begin(chunks[0]).context is session._context


def test_other_runtimes_refuse_to_blend(model):
    with pytest.raises(UserError, match="--runtime torch"):
        PieceSession(model, lambda s: TorchBackend(s.model, s.grid), SIZE, blend_chunks=2)


def test_an_impossible_blend(model):
    with pytest.raises(UserError, match="blend_chunks"):
        EditSession(model, SIZE, blend_chunks=-1)


def make_plain(model):
    return EditSession(model, SIZE, recache=True)


def make_pieces(model):
    return PieceSession(model, lambda s: TorchBackend(s.model, s.grid), SIZE, recache=True)


@pytest.mark.parametrize("make", [make_plain, make_pieces])
@pytest.mark.parametrize("settle", [False, True])
def test_the_past_is_made_anew_under_the_new_text(model, make, settle):
    """It holds then what a stream has whose chunks in sight had that text all along."""
    session = make(model)
    session.set_instruction(TEXT, 3)
    chunks = list(pictures(session, 1)) + list(pictures_after(session, 6))
    past = []
    for chunk in chunks[:-1]:
        work = session.denoise(session.encode(session.ingest(session.begin(chunk))))
        past.append(session._unsettled[:2])
        if settle:
            session.settle()
    session.set_instruction(OTHER, 3)
    session.run(chunks[-1])
    got = session._cache.past()

    fresh = make(model)
    fresh.set_instruction(OTHER, 3)
    with torch.inference_mode():
        # The sink, then the last two of a window of three.
        for index in (0, len(past) - 2, len(past) - 1):
            fresh._remember(*past[index], fresh._context)
        wanted = fresh._cache.past()
    assert work.edited is not None
    for a, b in zip(got, wanted, strict=True):
        assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])


def test_without_recache_the_past_keeps_its_text(model):
    sessions = [EditSession(model, SIZE, recache=recache) for recache in (False, True)]
    chunks = list(pictures(sessions[0], 1)) + list(pictures_after(sessions[0], 5))
    kept, anew = (_run(session, chunks, 4) for session in sessions)
    for a, b in zip(kept[:4], anew[:4], strict=True):
        assert np.array_equal(a, b)  # nothing is different before the switch
    pasts = [session._cache.past() for session in sessions]
    assert any(not torch.equal(a[0], b[0]) for a, b in zip(*pasts, strict=True))


def test_recache_is_the_same_settled_early_or_late(model):
    early, late = (EditSession(model, SIZE, recache=True) for _ in range(2))
    chunks = list(pictures(early, 1)) + list(pictures_after(early, 6))
    wanted = _run(late, chunks, 4)
    early.set_instruction(TEXT, 3)
    for index, chunk in enumerate(chunks):
        if index == 4:
            early.set_instruction(OTHER, 3)
        assert np.array_equal(early.run(chunk).frames, wanted[index])
        early.settle()


def test_what_recache_keeps_does_not_grow(model):
    session = EditSession(model, SIZE, recache=True)
    session.set_instruction(TEXT, 3)
    sizes = []
    for chunk in list(pictures(session, 1)) + list(pictures_after(session, 9)):
        session.run(chunk)
        session.settle()
        sizes.append(session.memory_bytes())
    assert sizes[-1] == sizes[3] > sizes[0]


def pictures_after(session, count):
    """Chunks after a stream's first one."""
    rng = np.random.default_rng(1)
    width, height = session.size
    for _ in range(count):
        shape = (4 * session.chunk_latents, height, width, 3)
        yield rng.integers(0, 256, shape, dtype=np.uint8)
