# SPDX-License-Identifier: Apache-2.0
"""The course of a stream benchmark and its figures, with a rig whose behaviour is known."""

from __future__ import annotations

import numpy as np
import pytest

from egoedit_ros.bench.stream_direct import (
    chunk_latencies,
    comparable_rate,
    direct_latencies,
    graph_minus_direct,
)
from egoedit_ros.bench.stream_plan import Plan, hertz, highest_rate, probe_of, run_plan
from egoedit_ros.bench.stream_run import Run, dropped_of, figures_of, median_of
from egoedit_ros.bench.stream_table import markdown, summary
from egoedit_ros.errors import UserError
from egoedit_ros.stream.session import NullSession

MS = 1_000_000
START = 1_700_000_000_000_000_000


class Rig:
    """A graph that edits 4 frames at a time in 5 ms and cannot take more than ``most`` Hz."""

    own_hz = 25.0

    def __init__(self, most: float = 1e9, player: float = 1e9) -> None:
        self.most, self.player = most, player
        self.played: list[tuple[str, str]] = []
        self.begin = START

    def idle(self, seconds: float) -> dict:
        return {"editor": {"cpu_percent": 1.0, "memory_bytes": 5}}

    def play(self, kind: str, rate: str, seconds: float, switches: int = 0) -> Run:
        self.played.append((kind, rate))
        run = Run(kind, rate, hertz(rate, self.own_hz))
        hz = min(run.hz, self.player)
        count = round((seconds or 2.0) * hz) // 4 * 4
        kept = 1.0 if run.hz <= self.most else self.most / run.hz
        for i in range(count):
            run.published.append([self.begin + i, self.begin + round(i * 1e9 / hz)])
        for chunk in range(round(count * kept) // 4):
            ready = run.published[4 * chunk + 3][1] + 5 * MS
            for place in range(4):
                stamp = run.published[4 * chunk + place][0]
                run.edited.append([stamp, ready + place * MS // 10])
                run.latencies.append(latency(stamp, chunk))
        for i in range(switches):
            stamp, sent = run.published[4 * i + 4]
            run.instructions.append([f"i{i}", sent - 10 * MS])
            run.switches.append({"stamp": stamp, "id": f"i{i}", "text": "x"})
        run.dropped = {"policy": run.lost, "error": 0, "transport": 0}
        run.overhead_ms = [1.0, 2.0]
        run.usage = {"editor": {"cpu_percent": 50.0, "memory_bytes": 7}}
        self.begin += 10**12
        return run


def latency(stamp: int, chunk: int) -> dict:
    stages = ("transport", "buffer", "preprocess", "encode", "denoise", "decode", "publish")
    return {
        "stamp": stamp,
        "frame_index": 0,
        "chunk_index": chunk,
        "instruction_id": "i",
        "outcome": 0,
        "deadline_missed": False,
        "total_ms": 5.0,
        **{f"{s}_ms": 0.5 for s in stages},
    }


@pytest.mark.parametrize(
    "most, at_most, expected, limited_by",
    [(37.0, 240.0, 37.0, "graph"), (3.0, 240.0, 3.0, "graph"), (1e6, 60.0, 60.0, "most")],
)
def test_the_highest_rate_is_found(most, at_most, expected, limited_by):
    rig = Rig(most)
    found = highest_rate(
        lambda hz: probe_of(rig.play("probe", f"{hz:g}", 8.0), 0.05), 16.0, at_most
    )
    # 5% may be lost, and the search stops 4% short of it.
    assert 0.93 * expected <= found["peak_fps"] <= 1.11 * expected
    assert found["limited_by"] == limited_by and len(found["probes"]) < 15
    assert all(p["held"] == (p["limited_by"] == "") for p in found["probes"])


def test_a_player_that_is_too_slow_is_named_as_the_limit():
    rig = Rig(player=50.0)
    found = highest_rate(lambda hz: probe_of(rig.play("probe", f"{hz:g}", 8.0), 0.05), 16.0, 240.0)
    assert found["limited_by"] == "player" and 45 < found["peak_fps"] <= 53


def test_not_even_one_frame_a_second():
    rig = Rig(most=0.2)
    found = highest_rate(lambda hz: probe_of(rig.play("probe", f"{hz:g}", 40.0), 0.05), 16.0, 240.0)
    assert found["peak_fps"] is None


def test_the_whole_course():
    rig, kept, told = Rig(most=50.0), [], []
    plan = Plan(rates=("10", "own"), runs=3, seconds=4.0, switches=5, limit=100.0)
    content = run_plan(rig, plan, kept.append, told.append)
    kinds = [kind for kind, _ in rig.played]
    assert kinds[0] == "warm_up" and kinds.count("fixed") == 6 and kinds[-1] == "switches"
    assert [run.kind for run in kept] == ["fixed"] * 6 + ["switches"]
    assert 46 < content["peak_fps"] < 55
    assert content["limit"]["limited_by"] == "graph" and not content["limit"]["held"]
    ten = content["fixed"]["10"]
    assert len(ten["runs"]) == 3 and ten["loss"] == 0 and ten["chunk_latents"] == 1
    assert ten["fps_in"] == pytest.approx(10, abs=0.1)
    assert ten["latency_ms"]["max"] == pytest.approx(305, abs=0.2)
    assert ten["deadline_ms"] == 500 and ten["deadline_misses"] == 0
    assert ten["dropped"] == {"transport": 0, "policy": 0, "error": 0}
    # The frame was published after the instruction: counted from then.
    assert content["instruction_switch_ms"]["p50"] == pytest.approx(5 + 3e3 / 16, abs=0.5)
    assert len(content["switches"]["ms"]) == 5
    assert "own timing, run 3" in told
    table = markdown(content)
    assert "| 10 Hz | 10.0 |" in table and "own timing (25.0 Hz)" in table
    assert dict(summary(content))["highest rate"].endswith(" fps")


def test_what_is_lost_is_lost_once():
    run = Rig(most=8.0).play("fixed", "16", 4.0)
    assert run.lost == 32
    run.dropped = {"policy": 20, "error": 5}
    assert dropped_of(run) == {"transport": 7, "policy": 20, "error": 5}
    run.dropped = {"policy": 1000, "error": 5}
    assert dropped_of(run) == {"transport": 0, "policy": 32, "error": 0}
    run.dropped = None
    assert dropped_of(run)["unknown"] == 32


def test_frames_that_only_the_end_brought_do_not_count_as_late():
    run = Rig().play("fixed", "16", 1.0)
    late = run.edited[-1][1] + 10**9
    run.published.append([START - 1, run.published[-1][1] + MS])
    run.edited.append([START - 1, late])
    run.flushed_ns = late - MS
    figures = figures_of(run)
    assert figures["frames_out"] == len(run.published) and figures["latency_ms"]["max"] < 250


def test_a_run_of_which_nothing_came_has_no_figures_rather_than_zeros():
    run = Run("fixed", "10", 10.0, published=[[START + i, START + i * 100 * MS] for i in range(9)])
    figures = figures_of(run)
    assert figures["loss"] == 1 and figures["frames_out"] == 0
    assert figures["latency_ms"]["p50"] is None and figures["fps_out"] is None
    assert figures["stages_ms"]["encode"] is None


def test_medians_go_into_depth_and_leave_out_what_is_missing():
    runs = [{"a": {"x": v}, "n": n, "name": "m"} for v, n in ((1.0, 3), (9.0, 4), (2.0, None))]
    assert median_of(runs) == {"a": {"x": 2.0}, "n": 3.5, "name": "m"}


@pytest.mark.parametrize("rate", ["fast", "0", "-3", "nan", "1e9", ""])
def test_rates_that_are_none_are_refused(rate):
    with pytest.raises(UserError, match="rate"):
        Plan(rates=(rate,))


def test_a_rate_twice_is_refused():
    with pytest.raises(UserError, match="twice"):
        Plan(rates=("10", "10"))


def test_graph_less_direct_call_does_not_hang_on_where_the_median_falls():
    graph = chunk_latencies(Rig().play("fixed", "16", 4.0))
    direct = [(chunk, ms - 1.5) for chunk, ms in graph]
    assert graph_minus_direct(graph, direct) == pytest.approx(1.5, abs=1e-3)
    # One frame less, as when the first chunk has one frame only.
    assert graph_minus_direct(graph[1:], direct) == pytest.approx(1.5, abs=1e-3)
    assert graph_minus_direct(graph, []) is None
    threes = [(i // 3, 1.0) for i in range(9)]
    assert graph_minus_direct(graph, threes) is None


def test_the_rate_to_compare_at_is_one_that_was_held():
    fixed = {"10": {"loss": 0.0}, "16": {"loss": 0.005}, "30": {"loss": 0.4}}
    assert comparable_rate(fixed) == "16"
    assert comparable_rate({"30": {"loss": 0.4}}) is None


def test_direct_calls_hold_whole_chunks():
    pictures = [np.full((24, 32, 3), i, np.uint8) for i in range(3)]
    found = direct_latencies(NullSession((32, 24)), pictures, 200.0, 0.1, "make it blue")
    # 1, then 4 frames at a time: of 20, the last 3 fill no chunk.
    assert [chunk for chunk, _ in found] == [0] + [i // 4 + 1 for i in range(16)]
    # The first of a chunk waits for three more.
    assert found[1][1] > 15.0 - 0.1 and all(ms >= 0 for _, ms in found)
