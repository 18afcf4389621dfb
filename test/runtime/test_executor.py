# SPDX-License-Identifier: Apache-2.0
"""Chunks overlap, keep their order, hold each other back, and are dropped as told."""

import threading
import time

import pytest

from egoedit_ros.runtime.executor import Cancelled, Executor, Lane, Stage

NAMES = ("encode", "denoise", "decode")


def _plan(work=None, lane=Lane):
    """Each stage in a lane of its own; ``work`` of a stage by name, else it notes its name."""
    work = work or {}
    stages = [Stage(n, work.get(n, lambda item, n=n: [*item, n])) for n in NAMES]
    return [(lane(), [stage]) for stage in stages]


class Gates:
    """Stages that wait until the test lets a chunk through, and tell when they have begun."""

    def __init__(self):
        self.begun = {}
        self.open = {}

    def _event(self, where, stage, item):
        return where.setdefault((stage, item), threading.Event())

    def work(self, stage):
        def run(item):
            self._event(self.begun, stage, item).set()
            assert self._event(self.open, stage, item).wait(10)
            return item

        return run

    def let(self, stage, item):
        self._event(self.open, stage, item).set()

    def at_work(self, stage, item, timeout=10):
        return self._event(self.begun, stage, item).wait(timeout)


@pytest.fixture
def gates():
    return Gates()


def _gated(gates):
    return _plan({name: gates.work(name) for name in NAMES})


def test_every_chunk_goes_through_every_stage_in_order():
    with Executor(_plan()) as executor:
        results = list(executor.map([i] for i in range(20)))
    assert results == [[i, *NAMES] for i in range(20)]


def test_stages_see_the_chunks_in_order_however_long_they_take():
    seen = {name: [] for name in NAMES}

    def uneven(name):
        def run(item):
            seen[name].append(item)
            time.sleep(0.004 if (item + len(name)) % 3 == 0 else 0)
            return item

        return run

    with Executor(_plan({n: uneven(n) for n in NAMES})) as executor:
        assert list(executor.map(range(12))) == list(range(12))
    assert all(order == list(range(12)) for order in seen.values())


def test_neighbours_are_at_work_at_the_same_time(gates):
    with Executor(_gated(gates)) as executor:
        tickets = [executor.submit(i) for i in range(3)]
        for item in range(2):
            gates.let("encode", item)
        gates.let("denoise", 0)
        # 0 is decoded while 1 is denoised while 2 is encoded: nobody has been let on since.
        assert gates.at_work("decode", 0)
        assert gates.at_work("denoise", 1)
        assert gates.at_work("encode", 2)
        assert not any(ticket.done for ticket in tickets)
        for name in NAMES:
            for item in range(3):
                gates.let(name, item)
        assert [ticket.result(10) for ticket in tickets] == [0, 1, 2]


def test_overlap_shows_in_the_timeline():
    with Executor(_plan({n: lambda i: time.sleep(0.02) or i for n in NAMES})) as executor:
        list(executor.map(range(6)))
        spans = {(s.stage, s.chunk): s for s in executor.timeline}
    assert len(spans) == 18
    middle = spans["denoise", 3]
    for other in (spans["encode", 4], spans["decode", 2]):
        assert other.begin_ns < middle.end_ns and middle.begin_ns < other.end_ns


def test_no_more_than_depth_chunks_are_taken_in(gates):
    with Executor(_gated(gates), depth=2) as executor:
        first = executor.submit(0)
        executor.submit(1)
        with pytest.raises(TimeoutError):
            executor.submit(2, timeout=0.05)
        for name in NAMES:
            gates.let(name, 0)
        assert first.result(10) == 0
        executor.submit(2, timeout=10)
        for name in NAMES:
            gates.let(name, 1)
            gates.let(name, 2)


def test_cancelled_chunks_do_not_come_out_and_the_next_ones_do(gates):
    with Executor(_gated(gates)) as executor:
        tickets = [executor.submit(i) for i in range(3)]
        assert gates.at_work("encode", 0)
        canceller = threading.Thread(target=executor.cancel)
        canceller.start()
        time.sleep(0.02)
        gates.let("encode", 0)  # what is at work ends by itself
        canceller.join(10)
        assert not canceller.is_alive()
        for ticket in tickets:
            with pytest.raises(Cancelled):
                ticket.result(0)
        assert not gates.at_work("denoise", 0, 0)
        for name in NAMES:
            gates.let(name, 3)
        assert executor.submit(3).result(10) == 3


@pytest.mark.parametrize("where", NAMES)
def test_a_stage_that_raises(where):
    def fail(item):
        if item == 2:
            time.sleep(0.02)  # so that others are behind it
            raise ValueError("broken")
        return item

    plan = _plan({n: (fail if n == where else (lambda i: i)) for n in NAMES})
    with Executor(plan) as executor:
        tickets = []
        for item in range(5):
            try:
                tickets.append(executor.submit(item))
            except RuntimeError:
                break
        assert [t.result(10) for t in tickets[:2]] == [0, 1]
        with pytest.raises(ValueError, match="broken"):
            tickets[2].result(10)
        for ticket in tickets[3:]:
            with pytest.raises(Cancelled):
                ticket.result(10)
        with pytest.raises(RuntimeError, match="restart"):
            executor.submit(9)
        executor.restart()
        assert executor.submit(9).result(10) == 9


def test_a_lane_that_cannot_start_fails_its_chunks():
    class Broken(Lane):
        def open(self):
            raise OSError("no device")

    with Executor(_plan(lane=Broken)) as executor:
        with pytest.raises(OSError, match="no device"):
            executor.submit(0).result(10)


def test_lanes_wrap_the_work_in_their_own_thread():
    log = []

    class Noting(Lane):
        def open(self):
            log.append(("open", threading.get_ident()))

        def run(self, stage, item, mark):
            log.append((stage.name, threading.get_ident(), mark))
            return stage.work(item), f"after {stage.name}"

        def close(self):
            log.append(("close", threading.get_ident()))

    stages = [Stage(n, lambda i: i) for n in NAMES]
    with Executor([(Noting(), stages[:2]), (Noting(), stages[2:])]) as executor:
        executor.submit(0).result(10)
    work = {entry[0]: entry for entry in log if len(entry) == 3}
    assert work["encode"][1] == work["denoise"][1] != work["decode"][1]
    assert [work[n][2] for n in NAMES] == [None, "after encode", "after denoise"]
    assert sum(e[0] == "open" for e in log) == sum(e[0] == "close" for e in log) == 2


def test_closing_ends_the_threads_and_what_is_inside(gates):
    before = threading.active_count()
    executor = Executor(_gated(gates))
    ticket = executor.submit(0)
    assert gates.at_work("encode", 0)
    gates.let("encode", 0)
    gates.let("denoise", 0)
    gates.let("decode", 0)
    executor.close()
    assert ticket.done
    assert threading.active_count() == before
    with pytest.raises(RuntimeError, match="closed"):
        executor.submit(1)


def test_a_plan_without_stages_is_refused():
    for plan, depth in (([], 3), ([(Lane(), [])], 3), (_plan(), 0)):
        with pytest.raises(ValueError):
            Executor(plan, depth)
