# SPDX-License-Identifier: Apache-2.0
"""Both ends of a graph under test: plays frames at a rate, takes what comes out."""

from __future__ import annotations

import threading
import time

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image
from std_srvs.srv import Trigger

from egoedit_ros.bench.stream_input import Frames
from egoedit_ros.bench.stream_plan import hertz
from egoedit_ros.bench.stream_run import OWN, Run
from egoedit_ros.bench.stream_usage import Usage
from egoedit_ros.data import cdr
from egoedit_ros.errors import UserError
from egoedit_ros.msg import ActiveInstruction, EditInstruction, FrameLatency, StreamStatus
from egoedit_ros.nodes import diagnosis, qos
from egoedit_ros.stream import names

DEPTH = 100
SETTLE_S = 0.3
# A stream is over when nothing came for twice its longest pause, and at least for this long.
QUIET_S = 0.4
LONGEST_QUIET_S = 30.0
STATUS_S = 2.0
SWITCH_PAUSE_S = 0.5
LONGEST_SWITCH_S = 20.0
OVERHEAD_KEYS = ("ros overhead p50", "ros overhead p95")


class Stopped(Exception):
    """SIGINT or SIGTERM came while a run was on."""


class BenchRig:
    """The :class:`egoedit_ros.bench.stream_plan.Rig` over DDS.

    A thread has to spin ``node`` while :meth:`play` runs. image_topic, output_topic: empty for the
    editor's. texts: instructions that take turns. wait, silence: seconds to wait for the graph, and
    for a first frame.
    """

    def __init__(
        self,
        node: Node,
        frames: Frames,
        usage: Usage,
        stop: threading.Event,
        image_topic: str = "",
        output_topic: str = "",
        texts: list[str] | tuple[str, ...] = ("make it blue",),
        wait: float = 60.0,
        silence: float = 10.0,
    ) -> None:
        self.node, self.frames, self.usage, self.stop = node, frames, usage, stop
        self.texts, self.wait_timeout, self.silence_timeout = texts, wait, silence
        self.own_hz = frames.own_hz
        self.status: StreamStatus | None = None
        self._last_stamp = 0
        self._given = 0
        self._arrived: list[tuple[int, int]] = []
        self._latency: list[bytes] = []
        self._active: list[bytes] = []
        self._active_ids: set[str] = set()
        self._overhead: list[float] | None = None
        self._sample: bytes | None = None
        self._stale = False
        self._make_endpoints(image_topic, output_topic)

    def _make_endpoints(self, image_topic: str, output_topic: str) -> None:
        node = self.node
        compressed = self.frames.msgtype == cdr.COMPRESSED
        image = node.resolve_topic_name(names.TOPIC_IMAGE)
        topic = image_topic or (names.compressed_topic(image) if compressed else image)
        self.profile = QoSProfile(depth=DEPTH, reliability=ReliabilityPolicy.RELIABLE)
        kind = CompressedImage if compressed else Image
        self.images = node.create_publisher(kind, topic, self.profile)
        self.image_topic = self.images.topic_name
        self.output_topic = node.resolve_topic_name(output_topic or names.TOPIC_EDITED)
        self.edited = None
        notes = QoSProfile(depth=1000, reliability=ReliabilityPolicy.RELIABLE)
        node.create_subscription(
            FrameLatency, names.TOPIC_LATENCY, self._latency.append, notes, raw=True
        )
        node.create_subscription(StreamStatus, names.TOPIC_STATUS, self._on_status, 10)
        node.create_subscription(
            ActiveInstruction, names.TOPIC_ACTIVE, self._on_active, qos.latched(DEPTH), raw=True
        )
        node.create_subscription(DiagnosticArray, names.TOPIC_DIAGNOSTICS, self._on_diagnostics, 10)
        self.instructions = node.create_publisher(
            EditInstruction, names.TOPIC_INSTRUCTION, qos.latched(1)
        )

    # What comes out (executor's thread)

    def _on_edited(self, data: bytes) -> None:
        mono_ns = time.monotonic_ns()
        self._arrived.append((cdr.stamp_ns(data), mono_ns))
        if self._sample is None:
            self._sample = data

    def _on_status(self, status: StreamStatus) -> None:
        self.status = status

    def _on_active(self, data: bytes) -> None:
        self._active.append(data)
        self._active_ids.add(_parsed(data, cdr.ACTIVE_INSTRUCTION).id)

    def _on_diagnostics(self, array: DiagnosticArray) -> None:
        for status in array.status:
            values = {pair.key: pair.value for pair in status.values}
            if all(key in values for key in OVERHEAD_KEYS):
                self._overhead = [float(values[key].split()[0]) for key in OVERHEAD_KEYS]

    @property
    def output_size(self) -> str | None:
        """WIDTHxHEIGHT of what comes out; None where that is no raw image."""
        if self._sample is None or self.edited.msg_type is not Image:
            return None
        image = _parsed(self._sample, cdr.IMAGE)
        return f"{image.width}x{image.height}"

    # The rig (caller's thread)

    def meet(self) -> None:
        """Wait for both ends of the graph and subscribe. Raises UserError with a diagnosis."""
        msgtype = self.frames.msgtype
        offered = self._until(
            lambda: self.node.get_publishers_info_by_topic(self.output_topic), self.wait_timeout
        )
        if not offered:
            line = diagnosis.why_not_sent(self.node, self.output_topic, cdr.IMAGE)
            raise UserError(f"waited {self.wait_timeout:g} s: {line}")
        kind = diagnosis.message_class(offered[0].topic_type)
        profile = diagnosis.matching_profile(self.node, self.output_topic, DEPTH)
        self.edited = self.node.create_subscription(
            kind, self.output_topic, self._on_edited, profile, raw=True
        )
        met = self._until(
            lambda: self.images.get_subscription_count() and self.edited.get_publisher_count(),
            self.wait_timeout,
        )
        if not met:
            line = diagnosis.why_not_taken(self.node, self.image_topic, msgtype, self.profile)
            raise UserError(f"waited {self.wait_timeout:g} s: {line}")
        self._wait(SETTLE_S)

    def idle(self, seconds: float) -> dict:
        """What the processes take while nothing is sent."""
        self.usage.start()
        self._wait(seconds)
        return self.usage.stop()

    def play(self, kind: str, rate: str, seconds: float, switches: int = 0) -> Run:
        """See :class:`egoedit_ros.bench.stream_plan.Rig`. Raises Stopped, and UserError where
        nothing at all comes out."""
        run = Run(kind, rate, hertz(rate, self.own_hz))
        if not self._given and self.instructions.get_subscription_count():
            self.instruct()
        if self._stale:
            # What the run before lost is not to be counted again.
            self._next_status()
        before = self.status
        del self._arrived[:], self._latency[:], self._active[:]
        self.usage.start()
        self._publish_all(run, seconds, switches)
        if not self._arrived:
            self._until(lambda: self._arrived, self.silence_timeout)
        run.usage = self.usage.stop()
        self._finish(run)
        self._stale = kind == "probe"
        if not self._stale:
            self._next_status()
            self._take_counts(run, before)
        self._collect(run)
        if kind == "warm_up" and not run.edited:
            line = diagnosis.why_silent(
                self.node,
                self.image_topic,
                self.output_topic,
                len(run.published),
                run.odd,
                run.odd_stamp,
            )
            raise UserError(line)
        return run

    def _publish_all(self, run: Run, seconds: float, switches: int) -> None:
        stamps = max(time.time_ns(), self._last_stamp + cdr.NANO)
        own, period = run.rate == OWN, cdr.NANO / run.hz
        start = time.monotonic_ns()
        end = round(seconds * cdr.NANO)
        last_due = index = 0
        turns = _Switches(self, run, switches) if switches else None
        while True:
            due = self.frames.due_ns(index) if own else round(index * period)
            if due >= end if turns is None else turns.over():
                return
            stamp = stamps + due
            data = self.frames.message(index, stamp)
            ahead = start + due - time.monotonic_ns()
            if ahead > 0:
                self._wait(ahead / cdr.NANO)
            elif -ahead > max(due - last_due, 1):
                # Too late by a whole frame: go on from here rather than send a burst.
                start -= ahead
            last_due = due
            now = time.monotonic_ns()
            self.images.publish(data)
            run.published.append([stamp, now])
            self._last_stamp = stamp
            index += 1
            if turns is not None:
                turns.step()

    def instruct(self, run: Run | None = None) -> str:
        id, text = f"bench-{self._given}", self.texts[self._given % len(self.texts)]
        self._given += 1
        now = time.monotonic_ns()
        self.instructions.publish(EditInstruction(id=id, text=text))
        if run is not None:
            run.instructions.append([id, now])
        return id

    def _finish(self, run: Run) -> None:
        """Take what is on its way, end the stream, take what that brings."""
        total = len(run.published)
        self._until_quiet(total)
        run.flushed_ns = time.monotonic_ns()
        if self._flush():
            self._until_quiet(total)
        elif len(self._arrived) < total:
            # Others end a stream by themselves, after a while.
            self._wait(1.0)
            self._until_quiet(total)

    def _until_quiet(self, total: int) -> None:
        """Until all is there, or nothing came for twice the longest pause so far."""
        begin = time.monotonic_ns()
        while len(self._arrived) < total:
            times = [mono for _, mono in self._arrived]
            pauses = [b - a for a, b in zip(times, times[1:], strict=False)]
            quiet = min(LONGEST_QUIET_S, max(QUIET_S, 2 * max(pauses, default=0) / cdr.NANO))
            since = max(begin, times[-1] if times else 0)
            if time.monotonic_ns() - since > quiet * cdr.NANO:
                return
            self._wait(0.05)

    def _flush(self) -> bool:
        kind = "std_srvs/srv/Trigger"
        found = [
            name
            for name, kinds in self.node.get_service_names_and_types()
            if name.endswith("/flush") and kind in kinds
        ]
        if len(found) != 1:
            return False
        client = self.node.create_client(Trigger, found[0])
        try:
            answer = client.call_async(Trigger.Request())
            return bool(self._until(answer.done, LONGEST_QUIET_S))
        finally:
            self.node.destroy_client(client)

    def _next_status(self) -> None:
        """Wait for what the editor tells of itself once a second, where there is one that does."""
        if self.status is None and not self.node.count_publishers(names.TOPIC_STATUS):
            return
        old, overhead = self.status, self._overhead
        self._until(lambda: self.status is not old and self._overhead is not overhead, STATUS_S)

    def _take_counts(self, run: Run, before: StreamStatus | None) -> None:
        """What the editor counted since ``before``."""
        after, before = self.status, before or StreamStatus()
        if after is None:
            return
        run.dropped = {
            cause: max(0, getattr(after, f"dropped_{cause}") - getattr(before, f"dropped_{cause}"))
            for cause in names.DROP_CAUSES
        }
        run.device_memory_bytes = int(after.device_memory_bytes)
        run.overhead_ms = self._overhead

    def _collect(self, run: Run) -> None:
        """Put what came into the run, matched by full stamp, each stamp once."""
        sent = {stamp for stamp, _ in run.published}
        seen: set[int] = set()
        for stamp, mono in self._arrived:
            if stamp in sent and stamp not in seen:
                seen.add(stamp)
                run.edited.append([stamp, mono])
            else:
                run.odd_stamp = stamp if not run.odd else run.odd_stamp
                run.odd += 1
        run.latencies = _fields(self._latency, cdr.FRAME_LATENCY, sent)
        run.switches = _fields(self._active, cdr.ACTIVE_INSTRUCTION, sent)

    def is_active(self, id: str) -> bool:
        """Whether the editor has said that an instruction is in force."""
        return id in self._active_ids

    def _until(self, condition, seconds: float):
        """The condition's value once it is true; its last value when time is up."""
        end = time.monotonic() + seconds
        while not (value := condition()) and time.monotonic() < end:
            self._wait(0.02)
        return value

    def _wait(self, seconds: float) -> None:
        if self.stop.wait(seconds):
            raise Stopped


class _Switches:
    """Gives instructions while frames go on: the next one a while after the last took effect."""

    def __init__(self, rig: BenchRig, run: Run, count: int) -> None:
        self._rig, self._run, self._count = rig, run, count
        self._waiting_for = ""
        self._next = time.monotonic() + SWITCH_PAUSE_S
        self._giving_up = 0.0

    def step(self) -> None:
        """Look whether it is time; called after each frame."""
        now = time.monotonic()
        if self._waiting_for:
            if not self._rig.is_active(self._waiting_for) and now < self._giving_up:
                return
            self._waiting_for = ""
            # Not in step with the chunks: every place in a chunk is to be met.
            self._next = now + SWITCH_PAUSE_S + 0.137 * len(self._run.instructions) % 0.25
        elif now >= self._next and len(self._run.instructions) < self._count:
            self._waiting_for = self._rig.instruct(self._run)
            self._giving_up = now + LONGEST_SWITCH_S

    def over(self) -> bool:
        """Whether all were given and took effect, and a little while has passed since."""
        if not self._rig.instructions.get_subscription_count():
            return True
        given = len(self._run.instructions)
        return given >= self._count and not self._waiting_for and time.monotonic() >= self._next


def _parsed(data: bytes, msgtype: str):
    return cdr.typestore().deserialize_cdr(data, msgtype)


def _fields(messages: list[bytes], msgtype: str, sent: set[int]) -> list[dict]:
    """The messages' fields, numbers and texts, of those whose stamp was sent."""
    found = []
    for data in messages:
        stamp = cdr.stamp_ns(data)
        if stamp not in sent:
            continue
        message = _parsed(data, msgtype)
        values = {
            name: getattr(message, name)
            for name in message.__dataclass_fields__
            if not name.isupper() and name not in ("header", "__msgtype__")
        }
        found.append({"stamp": stamp, **values})
    return found
