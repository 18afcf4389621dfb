# SPDX-License-Identifier: Apache-2.0
from pathlib import Path
from types import SimpleNamespace as Message

import pytest

from egoedit_ros.bench import measure
from egoedit_ros.bench.recording import Arrival, Recording
from egoedit_ros.stream import names

MS = 1_000_000
PERIOD = 62_500_000
FRAMES = 11  # 1 + 4 + 4, then 2 that only a flush brings out


def header(stamp: int) -> Message:
    return Message(stamp=Message(sec=stamp // 10**9, nanosec=stamp % 10**9), frame_id="c")


def recording() -> Recording:
    """Frames at 16 fps, out 100 ms after the last of their chunk; the flush takes 2 s."""
    made = Recording(Path("."))
    chunk_of = [0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3]
    out_at = [0] + [4 * PERIOD] * 4 + [8 * PERIOD] * 4 + [8 * PERIOD + 2000 * MS] * 2
    for i in range(FRAMES):
        stamp = 10**9 + i * PERIOD
        made.published.append((stamp, i * PERIOD + 1))
        made.edited.append(Arrival(stamp, out_at[i] + 100 * MS + 1, 0))
        stages = {f"{s}_ms": 1.0 + k for k, s in enumerate(names.STAGES)}
        made.latencies.append(
            Message(
                header=header(stamp),
                chunk_index=chunk_of[i],
                outcome=names.OUTCOME_EDITED,
                deadline_missed=i == 3,
                instruction_id="a",
                **stages,
            )
        )
    status = Message(
        dropped_policy=0,
        dropped_error=0,
        host_memory_bytes=5 << 20,
        device_memory_bytes=7,
        model="null",
        device="cpu",
    )
    made.statuses, made.status_times = [status, status], [-5 * MS, 500 * MS]
    return made


def test_latency_is_publication_to_reception():
    figures = measure.figures(recording())
    assert figures["first_frame_ms"] == pytest.approx(100, abs=0.01)
    assert figures["latency_ms"]["max"] == pytest.approx(2000 + 100 - 62.5, abs=0.01)
    assert list(figures["latency_ms"]) == ["p50", "p90", "p95", "p99", "max"]


def test_the_first_frame_counts_from_the_first_one_published():
    made = recording()
    made.edited = made.edited[1:]  # the first was dropped
    assert measure.figures(made)["first_frame_ms"] == pytest.approx(4 * 62.5 + 100, abs=0.01)
    made.edited = []
    assert measure.figures(made)["first_frame_ms"] is None


def test_rates_leave_the_final_flush_out():
    figures = measure.figures(recording())
    assert figures["fps_in"] == pytest.approx(16)
    assert figures["fps_out"] == pytest.approx(16)


def test_counts_stages_and_memory():
    figures = measure.figures(recording())
    assert (figures["frames_in"], figures["frames_out"]) == (11, 11)
    assert figures["dropped"] == {"transport": 0, "policy": 0, "error": 0}
    assert figures["stages_ms"]["preprocess"] == 3.0
    assert figures["deadline_misses"] == 1
    assert figures["editor_memory_bytes"] == 5 << 20
    assert figures["editor_memory_series"] == [[0.5, 5 << 20]]
    assert measure.chunk_latents(recording()) == 1


def test_drops_sum_up_to_what_is_missing():
    made = recording()
    made.edited = made.edited[:6]
    made.statuses[-1].dropped_policy, made.statuses[-1].dropped_error = 2, 1
    figures = measure.figures(made)
    assert figures["dropped"] == {"transport": 2, "policy": 2, "error": 1}
    assert figures["frames_in"] == figures["frames_out"] + sum(figures["dropped"].values())
    stopped = measure.figures(made, interrupted=True)
    assert stopped["dropped"]["transport"] == 0 and stopped["unfinished"] == 2


def test_switches_count_from_the_later_of_sending_and_publishing():
    made = recording()
    at = 10**9 + 5 * PERIOD

    def instruction(id: str, stamp: int) -> Message:
        return Message(id=id, text=id, header=header(stamp))

    def switch(id: str, stamp: int) -> Message:
        return Message(id=id, text=id, header=header(stamp), switch_latency_ms=1.0)

    made.instructions = [instruction("first", 0), instruction("early", at), instruction("late", 0)]
    # One before the stream, one stamped ahead of its time, one given when frame 5 was out.
    made.instruction_sent = [-9 * MS, -8 * MS, 5 * PERIOD + 30 * MS]
    made.switches = [switch("first", 10**9), switch("early", at), switch("late", at)]
    expected = 3 * PERIOD / MS + 100
    assert measure.switch_times(made) == [
        pytest.approx(expected, abs=0.01),
        pytest.approx(expected - 30, abs=0.01),
    ]


def test_frames_that_share_a_stamp_are_matched_in_order():
    made = Recording(Path("."))
    made.published = [(5, 0), (5, 10 * MS)]
    made.edited = [Arrival(5, 100 * MS, 0), Arrival(5, 101 * MS, 0)]
    assert [ms for _, _, ms in measure.frame_latencies(made)] == [100, 91]


def test_nothing_recorded_gives_nulls_not_errors():
    figures = measure.figures(Recording(Path(".")))
    assert figures["frames_in"] == 0 and figures["first_frame_ms"] is None
    assert figures["latency_ms"]["p95"] is None and figures["fps_out"] is None
    assert figures["instruction_switch_ms"] == []
