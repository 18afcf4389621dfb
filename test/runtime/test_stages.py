# SPDX-License-Identifier: Apache-2.0
"""A session's chunks, overlapped on the CPU, are those of one chunk at a time."""

import numpy as np
import pytest
import torch
from runtime_support import SIZE, TEXT, pictures, small_model

from egoedit_ros.runtime.cpu import Split, best_split, candidate_splits, cpu_stream
from egoedit_ros.runtime.stages import ONE_LANE, STAGES, THREE_LANES, OverlappedStream
from egoedit_ros.stream.edit_session import EditSession

THREE = Split(THREE_LANES, (1, 1, 1))


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model():
    return small_model()


def _session(model, chunk_latents=1):
    session = EditSession(model, SIZE, chunk_latents)
    session.set_instruction(TEXT, 3)
    return session


def _alone(session, count):
    return [session.run(chunk) for chunk in pictures(session, count)]


@pytest.mark.parametrize("chunk_latents", [1, 3])
@pytest.mark.parametrize("groups", [ONE_LANE, THREE_LANES], ids=["one lane", "three lanes"])
def test_overlapped_chunks_are_the_same_bits(model, groups, chunk_latents):
    wanted = _alone(_session(model, chunk_latents), 6)
    session = _session(model, chunk_latents)
    with cpu_stream(session, Split(groups, (1,) * len(groups))) as stream:
        got = list(stream.run(pictures(session, 6)))
    for work, alone in zip(got, wanted, strict=True):
        assert np.array_equal(work.picture, alone.frames)
        assert np.array_equal(work.mask, alone.mask)


def test_an_instruction_given_between_chunks_acts_where_it_was_given(model):
    session = _session(model)
    wanted = _alone(session, 3)
    session.set_instruction("remove the mug", 5)
    wanted += [session.run(c) for c in pictures(session, 3, seed=1)]
    session = _session(model)
    with cpu_stream(session, THREE, depth=6) as stream:
        tickets = [stream.submit(c) for c in pictures(session, 3)]
        session.set_instruction("remove the mug", 5)  # chunks of the old one are still inside
        tickets += [stream.submit(c) for c in pictures(session, 3, seed=1)]
        for ticket, alone in zip(tickets, wanted, strict=True):
            assert np.array_equal(ticket.result(30).picture, alone.frames)


def test_reset_begins_a_new_stream(model):
    wanted = _alone(_session(model), 3)
    session = _session(model)
    with cpu_stream(session, THREE) as stream:
        list(stream.run(pictures(session, 4, seed=8)))
        stream.reset()
        assert session.frames_needed == 1
        got = list(stream.run(pictures(session, 3)))
    assert all(np.array_equal(w.picture, a.frames) for w, a in zip(got, wanted, strict=True))


def test_a_stage_that_raises_is_told_and_a_reset_mends_it(model):
    wanted = _alone(_session(model), 2)
    session = _session(model)
    with cpu_stream(session, THREE) as stream:
        with pytest.raises(RuntimeError):
            stream.submit(np.zeros((3, 8, 8, 3), np.uint8)).result(30)  # no such chunk
        stream.reset()
        got = list(stream.run(pictures(session, 2)))
    assert all(np.array_equal(w.picture, a.frames) for w, a in zip(got, wanted, strict=True))


def test_every_stage_is_in_the_timeline(model):
    session = _session(model)
    with cpu_stream(session, THREE) as stream:
        list(stream.run(pictures(session, 3)))
        seen = {(span.stage, span.chunk) for span in stream.executor.timeline}
    assert seen == {(name, chunk) for name in STAGES for chunk in range(3)}


def test_stages_cannot_be_left_out(model):
    from egoedit_ros.runtime.executor import Lane

    with pytest.raises(ValueError, match="in this order"):
        OverlappedStream(_session(model), lambda group: Lane(), (("encode",), ("decode",)))


@pytest.mark.parametrize("cores", [1, 2, 8])
def test_splits_to_measure_are_whole(cores):
    splits = candidate_splits(cores)
    assert splits[0] == Split(ONE_LANE, (cores,))
    for split in splits:
        assert tuple(n for group in split.groups for n in group) == STAGES
        assert len(split.threads) == len(split.groups) and min(split.threads) >= 1
    assert len({split.name for split in splits}) == len(splits)


def test_the_best_split_is_the_fastest_of_those_measured(model):
    splits = [Split(ONE_LANE, (1,)), THREE]
    best, figures = best_split(_session(model), splits, chunks=3)
    assert set(figures) == {s.name for s in splits}
    assert figures[best.name] == max(figures.values()) > 0
    assert torch.get_num_threads() == 1


def test_a_chunk_that_is_refused_for_want_of_room_takes_no_place(model):
    session = _session(model)
    with cpu_stream(session, Split(ONE_LANE, (1,)), depth=1) as stream:
        chunks = pictures(session, 2)
        ticket = stream.submit(next(chunks))
        second = next(chunks)
        if not ticket.done:
            with pytest.raises(TimeoutError):
                stream.submit(second, timeout=0)
        assert ticket.result(30).index == 0
        assert stream.submit(second, timeout=30).result(30).index == 1
