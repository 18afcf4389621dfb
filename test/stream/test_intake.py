# SPDX-License-Identifier: Apache-2.0
"""No frame vanishes without being counted, whatever the policy."""

import pytest

from egoedit_ros.errors import UserError
from egoedit_ros.stream.intake import Arrival, Intake


def drain(intake):
    items = []
    while (item := intake.take(0.0)) is not None:
        items.append(item)
    return items


def stamps(intake):
    return [i.stamp_ns for i in drain(intake) if isinstance(i, Arrival)]


def test_all_keeps_every_frame():
    intake = Intake("all", 4)
    for stamp in range(50):
        intake.offer(stamp, None)
    assert stamps(intake) == list(range(50))
    assert sum(intake.counters.dropped.values()) == 0


def test_latest_keeps_the_newest_chunk_and_counts_the_rest():
    intake = Intake("latest", 4)
    for stamp in range(50):
        intake.offer(stamp, None)
    assert len(intake) == 4
    assert stamps(intake) == [46, 47, 48, 49]
    assert intake.counters.dropped["policy"] == 46
    assert intake.counters.frames_in == 50


def test_stamps_that_repeat_are_kept():
    intake = Intake("all", 4)
    for stamp in (5, 5, 5):
        assert intake.offer(stamp, None) is None
    assert stamps(intake) == [5, 5, 5]


@pytest.mark.parametrize("policy", ["all", "latest"])
def test_a_stamp_that_goes_back_begins_a_new_stream(policy):
    intake = Intake(policy, 4)
    for stamp in (10, 11, 12):
        intake.offer(stamp, None)
    before = intake.generation
    assert "back" in intake.offer(3, None)
    assert intake.generation == before + 1
    assert stamps(intake) == [3]
    assert intake.counters.dropped["policy"] == 3


def test_another_size_begins_a_new_stream():
    intake = Intake("all", 4)
    intake.offer(1, None, (64, 48))
    assert "64x48 to 32x24" in intake.offer(2, None, (32, 24))
    assert stamps(intake) == [2]


def test_nothing_old_goes_out_after_a_restart():
    intake = Intake("all", 4)
    intake.offer(1, None)
    old = intake.take(0.0)
    intake.restart()
    with intake.going_out(old.generation) as current:
        assert not current


def test_actions_go_first_or_after_the_frames_and_survive_a_restart():
    intake = Intake("latest", 1)
    calls = []
    intake.offer(1, None)
    intake.post(lambda: calls.append("flush"), after_frames=True)
    intake.post(lambda: calls.append("now"))
    intake.offer(2, None)  # pushes frame 1 out, not the action
    items = drain(intake)
    assert [isinstance(i, Arrival) for i in items] == [False, False, True]
    intake.post(lambda: calls.append("flush"), after_frames=True)
    intake.restart()
    for item in items[:2] + drain(intake):
        item()
    assert calls == ["now", "flush", "flush"]


def test_unknown_policy_is_refused():
    with pytest.raises(UserError, match="latest, all"):
        Intake("sometimes", 4)
