# SPDX-License-Identifier: Apache-2.0
"""The worker's thread: every frame is sent or counted, also when things go wrong."""

import threading
import time

import numpy as np
import pytest

from egoedit_ros.stream.editor import StreamEditor
from egoedit_ros.stream.intake import Intake
from egoedit_ros.stream.session import NullSession
from egoedit_ros.stream.types import Frame, Instruction
from egoedit_ros.stream.worker import StreamWorker, WorkerHooks


class GatedSession(NullSession):
    """Waits in run until it is let go."""

    def __init__(self):
        super().__init__((8, 6), 1)
        self.go, self.running = threading.Event(), threading.Event()
        self.go.set()

    def run(self, frames):
        self.running.set()
        assert self.go.wait(20)
        return super().run(frames)


class Rig:
    def __init__(self, policy="all"):
        self.sent, self.reported, self.events = [], [], []
        self.intake = Intake(policy, 4)
        self.session = GatedSession()
        hooks = WorkerHooks(
            self.decode,
            lambda e: self.sent.append(e.frame.stamp_ns),
            lambda e, begin, end: self.reported.append((e.frame.stamp_ns, begin, end)),
            self.events.append,
            lambda: None,
        )
        self.worker = StreamWorker(self.intake, hooks)
        self.worker.flush_timeout = 60.0
        self.worker.editor = StreamEditor(self.session)
        self.worker.editor.set_instruction(Instruction("a", "make it blue"))

    def decode(self, arrival):
        if arrival.message == "bad":
            raise ValueError("corrupt")
        image = np.zeros((12, 16, 3), np.uint8)
        return Frame(arrival.stamp_ns, image, arrival.arrival_ns)

    def offer(self, stamps, message="good"):
        for stamp in stamps:
            self.intake.offer(stamp, message)

    def flush(self):
        return self.worker.flush().result(20)


@pytest.fixture
def rig():
    rig = Rig()
    yield rig
    rig.session.go.set()
    rig.worker.stop()


def wait_until(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_flush_comes_after_the_frames_that_wait(rig):
    rig.offer(range(7))
    assert rig.flush() == 2
    assert rig.sent == list(range(7)) == [s for s, _, _ in rig.reported]
    assert rig.intake.counters.inside == 0


def test_a_stream_that_stalls_is_flushed(rig):
    rig.worker.flush_timeout = 0.05
    rig.offer(range(3))
    wait_until(lambda: len(rig.sent) == 3)
    assert rig.sent == [0, 1, 2]


def test_a_bad_frame_is_counted_and_the_others_go_on(rig):
    rig.offer(range(3))
    rig.offer([3], "bad")
    rig.offer(range(4, 6))
    rig.flush()
    assert rig.sent == [0, 1, 2, 4, 5]
    assert rig.intake.counters.dropped["error"] == 1 and rig.intake.counters.inside == 0
    assert rig.events == ["frame dropped: corrupt"]


def test_nothing_of_the_old_stream_follows_a_restart(rig):
    rig.session.go.clear()
    rig.offer(range(100, 109))
    assert rig.session.running.wait(20)
    rig.worker.restart()
    rig.session.go.set()
    rig.offer(range(6))
    rig.flush()
    assert rig.sent == list(range(6))
    assert rig.intake.counters.dropped["policy"] == 9 and rig.intake.counters.inside == 0


def test_a_stamp_that_goes_back_stops_the_chunk_in_work(rig):
    rig.session.go.clear()
    rig.offer(range(100, 109))
    assert rig.session.running.wait(20)
    rig.offer(range(6))
    rig.session.go.set()
    rig.flush()
    assert rig.sent == list(range(6)) and rig.intake.counters.inside == 0


def test_latest_drops_whole_frames_while_the_model_is_busy():
    rig = Rig("latest")
    rig.session.go.clear()
    rig.offer([0])
    assert rig.session.running.wait(20)
    rig.offer(range(1, 41))
    rig.session.go.set()
    wait_until(lambda: len(rig.sent) == 5)
    assert rig.sent == [0, 37, 38, 39, 40]
    assert rig.intake.counters.dropped["policy"] == 36 and rig.intake.counters.inside == 0
    rig.worker.stop()


def test_paced_frames_are_spread_and_all_come(rig):
    rig.worker.paced = True
    rig.worker.frame_period_ns = 20_000_000
    rig.offer(range(5))
    rig.flush()
    assert rig.sent == list(range(5))
    begins = [begin for _, begin, _ in rig.reported]
    assert begins[4] - begins[1] > 0


def test_a_restart_does_not_wait_for_paced_frames(rig):
    rig.worker.paced = True
    hour_ns = 3_600_000_000_000
    for stamp in range(5):
        rig.intake.offer(stamp, "good", arrival_ns=stamp * hour_ns)
    wait_until(lambda: len(rig.reported) == 1 and not len(rig.intake))
    rig.worker.restart()
    rig.worker.paced = False
    rig.offer([0])
    rig.flush()
    assert rig.sent[-1] == 0 and rig.intake.counters.inside == 0


def test_what_a_call_raises_reaches_the_caller(rig):
    def fail():
        raise KeyError("x")

    with pytest.raises(KeyError):
        rig.worker.call(fail).result(20)
    assert rig.worker.call(lambda: 5).result(20) == 5


def test_stop_drops_what_is_inside(rig):
    rig.offer(range(4))
    wait_until(lambda: rig.sent == [0] and rig.worker.editor.waiting == 3)
    rig.worker.stop()
    assert rig.sent == [0] and rig.intake.counters.inside == 0


def test_a_flush_that_waits_is_answered_when_the_worker_stops(rig):
    rig.session.go.clear()
    rig.offer([0])
    assert rig.session.running.wait(20)
    rig.offer([1, 2])
    flushed = rig.worker.flush()
    stopping = threading.Thread(target=rig.worker.stop)
    stopping.start()
    wait_until(lambda: rig.worker.intake.generation > 0)
    rig.session.go.set()
    assert flushed.result(20) == 0
    stopping.join(20)
    assert rig.intake.counters.inside == 0


@pytest.mark.parametrize("where", ["push", "flush"])
def test_a_fault_beside_the_model_costs_frames_that_are_counted(rig, monkeypatch, where):
    rig.offer(range(3))
    rig.worker.call(lambda: None, after_frames=True).result(20)
    monkeypatch.setattr(rig.worker.editor, where, lambda *_: 1 / 0)
    if where == "push":
        rig.offer([3])
    else:
        rig.worker.flush_timeout = 0.05
    wait_until(lambda: rig.events)
    assert rig.events[0] == "frames dropped: ZeroDivisionError: division by zero"
    wait_until(lambda: rig.intake.counters.inside == 0)
    monkeypatch.undo()
    rig.worker.flush_timeout = 60.0
    rig.offer(range(4, 9))
    wait_until(lambda: len(rig.sent) == 6)
    assert rig.sent == [0, 4, 5, 6, 7, 8]
