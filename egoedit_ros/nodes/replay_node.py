# SPDX-License-Identifier: Apache-2.0
"""Plays a bag or a video as a camera: lossless or in real time, once the others are ready."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path

from builtin_interfaces.msg import Time
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Bool, UInt64
from std_srvs.srv import Trigger

from egoedit_ros.data import cdr
from egoedit_ros.data.ahead import AheadBuffer, repeat
from egoedit_ros.data.source import FrameSource, SerializedFrame, open_source
from egoedit_ros.errors import UserError
from egoedit_ros.msg import EditInstruction, FrameLatency, StreamStatus
from egoedit_ros.nodes.process import (
    TOPIC_RECORDED,
    TOPIC_RECORDER_READY,
    declare,
    run_process,
)
from egoedit_ros.stream import names

WAITABLE = ("editor", "recorder", "instruction")
READY_STATES = (names.STATE_ACTIVE, names.STATE_PASSTHROUGH, names.STATE_FAULT)
# Discovery is told to both sides one after the other; a first frame in between would be lost.
SETTLE_S = 0.3
# Longer than DDS takes to notice that a process was killed and a launch file to start it again.
LEFT_ALONE_S = 30.0
FRAMES_BEFORE_START = 16


class ReplayNode(Node):
    """Publishes the frames of its input; :meth:`play` does the work in the caller's thread."""

    def __init__(self) -> None:
        super().__init__("replay")
        self.input = declare(self, "input", "", "bag (folder, .mcap, .db3) or video file")
        self.topic = declare(self, "topic", "", "image topic of the bag; empty: its only one")
        self.rate = declare(self, "rate", 1.0, "speed: 2.0 plays twice as fast", 0.01, 1000.0)
        self.fps = declare(
            self, "fps", 0.0, "frames per second, with stamps to match; 0: the input's", 0.0, 1000.0
        )
        self.loop = declare(self, "loop", 1, "how often; 0: without end", 0, 1_000_000)
        self.policy = declare(
            self, "policy", "all", "all: wait for the editor, lose nothing; latest: real time"
        )
        self.max_in_flight = declare(
            self,
            "max_in_flight",
            24,
            "policy all: frames published and not yet edited; two chunks of the model or more",
            1,
            10_000,
        )
        self.wait_for = [
            name
            for name in declare(
                self, "wait_for", ["editor", "recorder"], f"start after these: {WAITABLE}"
            )
            if name
        ]
        self.wait_timeout = declare(
            self, "wait_timeout", 60.0, "seconds to wait for them", 0.0, 86_400.0
        )
        self.compressed = declare(self, "compressed", False, "publish JPEG instead of raw images")
        self.publish_clock = declare(self, "publish_clock", True, "publish /clock by the stamps")
        self.frame_id = declare(self, "frame_id", "camera", "frame_id of a video's frames")
        self.jpeg_quality = declare(self, "jpeg_quality", 95, "for compressed", 1, 100)
        self.events_file = declare(
            self, "events", "", "file to note each publication in, one JSON object a line"
        )
        if self.policy not in ("all", "latest"):
            raise UserError(f"policy is {self.policy!r}; use all or latest")
        if unknown := set(self.wait_for) - set(WAITABLE):
            raise UserError(f"wait_for has {sorted(unknown)}; use: {', '.join(WAITABLE)}")
        if not self.input:
            raise UserError("parameter input is empty; give a bag or a video file")
        self.source: FrameSource = open_source(self.input, self.topic or None)

        self.published = 0
        self.frames_failed = 0
        self.editor_state = ""
        self._edited = 0
        self._recorded = 0
        self._recorder_ready = False
        self._instructed = False
        self._status: StreamStatus | None = None
        self._base: StreamStatus | None = None
        self._alone_since: float | None = None
        self._progress = threading.Condition()
        self._make_endpoints()

    def _make_endpoints(self) -> None:
        depth = max(16, 2 * self.max_in_flight)
        reliable = QoSProfile(depth=depth, reliability=ReliabilityPolicy.RELIABLE)
        latched = QoSProfile(
            depth=1,
            reliability=ReliabilityPolicy.RELIABLE,
            durability=DurabilityPolicy.TRANSIENT_LOCAL,
        )
        image = names.TOPIC_IMAGE
        # Asked of the resolved name, so that one remap of image_raw moves all three.
        resolved = self.resolve_topic_name(image)
        if self.compressed:
            topic, kind = names.compressed_topic(resolved), CompressedImage
        else:
            topic, kind = image, Image
        self.images = self.create_publisher(kind, topic, reliable)
        self.info = self.source.camera_info()
        self.infos = (
            self.create_publisher(CameraInfo, names.camera_info_topic(resolved), reliable)
            if self.info
            else None
        )
        self.clock = (
            self.create_publisher(Clock, names.TOPIC_CLOCK, 10) if self.publish_clock else None
        )
        many = QoSProfile(depth=1000, reliability=ReliabilityPolicy.RELIABLE)
        self.create_subscription(FrameLatency, names.TOPIC_LATENCY, self._on_latency, many)
        self.create_subscription(StreamStatus, names.TOPIC_STATUS, self._on_status, 10)
        self.create_subscription(Bool, TOPIC_RECORDER_READY, self._on_recorder, latched)
        self.create_subscription(UInt64, TOPIC_RECORDED, self._on_recorded, 10)
        self.create_subscription(
            EditInstruction, names.TOPIC_INSTRUCTION, self._on_instruction, latched
        )

    # What the others tell (executor thread)

    def _on_latency(self, _: FrameLatency) -> None:
        with self._progress:
            self._edited += 1
            self._progress.notify_all()

    def _on_status(self, status: StreamStatus) -> None:
        with self._progress:
            if self._status is not None and status.frames_in < self._status.frames_in:
                # Counted anew: another editor, or one activated anew. What was inside is lost.
                self._base, self._edited = StreamStatus(), self.published
            self._status = status
            self.editor_state = status.state
            self._progress.notify_all()

    def _on_recorder(self, message: Bool) -> None:
        with self._progress:
            self._recorder_ready = message.data
            self._progress.notify_all()

    def _on_recorded(self, message: UInt64) -> None:
        with self._progress:
            self._recorded = message.data
            self._progress.notify_all()

    def _on_instruction(self, _: EditInstruction) -> None:
        with self._progress:
            self._instructed = True
            self._progress.notify_all()

    # Playing (the caller's thread)

    def missing(self) -> list[str]:
        """Whom the replay still waits for, in words."""
        waiting = []
        if "editor" in self.wait_for and self.editor_state not in READY_STATES:
            waiting.append(f"an active editor (state: {self.editor_state or 'not heard of'})")
        if "recorder" in self.wait_for and not self._recorder_ready:
            waiting.append("a recorder that is matched on every topic")
        if "instruction" in self.wait_for and not self._instructed:
            waiting.append("an instruction")
        if self.images.get_subscription_count() < self._listeners:
            waiting.append(f"{self._listeners} subscribers of {self.images.topic_name}")
        return waiting

    @property
    def _listeners(self) -> int:
        """How many must take the pictures."""
        return sum(name in self.wait_for for name in ("editor", "recorder"))

    def _left_alone(self) -> bool:
        """Whether one of those has been gone for so long that nobody restarts it any more."""
        if self.images.get_subscription_count() >= self._listeners:
            self._alone_since = None
            return False
        self._alone_since = self._alone_since or time.monotonic()
        return time.monotonic() - self._alone_since > LEFT_ALONE_S

    def wait_until_ready(self, stop: threading.Event) -> None:
        """Return once all of ``wait_for`` are there; raises UserError when time is up."""
        deadline = time.monotonic() + self.wait_timeout
        while (missing := self.missing()) and not stop.is_set():
            if time.monotonic() > deadline:
                raise UserError(
                    f"waited {self.wait_timeout:g} s for {' and '.join(missing)}; start it, or "
                    "leave it out of wait_for"
                )
            stop.wait(0.02)
        stop.wait(SETTLE_S)
        self._base = self._status

    def in_flight(self) -> int:
        """Frames published that the editor has neither sent on nor dropped."""
        return self.published - self._edited - self._dropped()

    def _dropped(self) -> int:
        if self._status is None:
            return 0
        base = self._base or StreamStatus()
        return sum(
            max(0, getattr(self._status, field) - getattr(base, field))
            for field in ("dropped_transport", "dropped_policy", "dropped_error")
        )

    def _has_room(self) -> bool:
        if "editor" in self.wait_for and self.in_flight() >= self.max_in_flight:
            return False
        if "recorder" in self.wait_for:
            # The recorder has a longer queue than the editor, but a slow disk must not fill it.
            return self.published - self._recorded < 4 * self.max_in_flight
        return True

    def play(self, stop: threading.Event) -> None:
        """Publish all frames, flush the editor, wait for what is left, and report."""
        buffer = AheadBuffer(
            repeat(self.source, self.loop, self.frame_id, self.fps), convert=self._as_published
        )
        with open(self.events_file or os.devnull, "w", buffering=1, encoding="utf-8") as events:
            try:
                buffer.wait_filled(FRAMES_BEFORE_START, timeout=10.0)
                self.wait_until_ready(stop)
                self._publish_all(buffer, stop, events)
                if not stop.is_set() and self.published:
                    self._finish(stop, events)
            finally:
                buffer.stop()
                summary = {
                    "event": "end",
                    "published": self.published,
                    "unreadable": self.frames_failed,
                    "interrupted": stop.is_set(),
                    "mono_ns": time.monotonic_ns(),
                }
                events.write(json.dumps(summary) + "\n")
                print(f"replay: {self.published} frames published", flush=True)

    def _publish_all(self, buffer: AheadBuffer, stop: threading.Event, events) -> None:
        start: int | None = None
        last_due = 0
        for frame in buffer:
            due = round(frame.due_ns / self.rate)
            now = time.monotonic_ns()
            start = now if start is None else start
            if (ahead := start + due - now) > 0 and stop.wait(ahead / cdr.NANO):
                return
            if self.policy == "all":
                self._wait_for_room(stop)
            if stop.is_set():
                return
            now = time.monotonic_ns()
            if now - start - due > max(due - last_due, 1):
                # Too late by a whole frame: go on from here rather than send a burst.
                start = now - due
            last_due = due
            self._publish(frame)
            note = {"event": "frame", "stamp": frame.stamp_ns, "mono_ns": now}
            events.write(json.dumps(note) + "\n")

    def _wait_for_room(self, stop: threading.Event) -> None:
        """Return once a frame more may be sent; raises UserError when nobody is left to take it."""
        with self._progress:
            while not self._has_room() and not stop.is_set():
                self._progress.wait(0.1)
                if self._left_alone():
                    raise UserError(
                        f"{self.images.topic_name} has lost the editor or the recorder after "
                        f"{self.published} frames; see what they said last"
                    )

    def _publish(self, frame: SerializedFrame) -> None:
        if self.clock is not None:
            stamp = Time(sec=frame.stamp_ns // cdr.NANO, nanosec=frame.stamp_ns % cdr.NANO)
            self.clock.publish(Clock(clock=stamp))
        if self.infos is not None:
            self.infos.publish(cdr.with_stamp(self.info, frame.stamp_ns))
        self.published += 1
        self.images.publish(frame.data)

    def _as_published(self, frame: SerializedFrame) -> SerializedFrame | None:
        """Change between raw and JPEG where the input is not what is to be published."""
        wanted = cdr.COMPRESSED if self.compressed else cdr.IMAGE
        if frame.msgtype == wanted:
            return frame
        from egoedit_ros.stream.images import compressed_to_rgb, encode_jpeg, to_rgb

        try:
            message = self._parse(frame)
            if self.compressed:
                jpeg = bytes(encode_jpeg(to_rgb(message), self.jpeg_quality))
                data = cdr.compressed_cdr(jpeg, frame.stamp_ns, message.header.frame_id)
            else:
                rgb = compressed_to_rgb(message)
                data = cdr.image_cdr(rgb, frame.stamp_ns, message.header.frame_id)
        except UserError as error:
            self.frames_failed += 1
            self.get_logger().warning(f"frame {frame.stamp_ns} left out: {error}")
            return None
        return SerializedFrame(frame.stamp_ns, frame.due_ns, data, wanted)

    def _parse(self, frame: SerializedFrame) -> object:
        reader = getattr(self.source, "reader", None)
        if hasattr(reader, "deserialize"):
            return reader.deserialize(frame.data, frame.msgtype)
        return cdr.typestore().deserialize_cdr(frame.data, frame.msgtype)

    def _finish(self, stop: threading.Event, events) -> None:
        """Let the editor take what was sent, end the stream there, and wait for the rest."""
        if "editor" not in self.wait_for:
            return
        self._wait(stop, self._all_arrived, 3.0 if self.policy == "all" else 1.5)
        events.write(json.dumps({"event": "flush", "mono_ns": time.monotonic_ns()}) + "\n")
        self._call_flush(stop)
        # However slow the editor: as long as something still comes, wait for more.
        while not stop.is_set() and self.in_flight() > 0:
            before = (self._edited, self._dropped())
            if not self._wait(stop, lambda b=before: (self._edited, self._dropped()) != b, 3.0):
                break
        if "recorder" in self.wait_for:
            self._wait(stop, lambda: self._recorded >= self.published, 3.0)
        # The last status carries the final counters.
        last = self._status
        self._wait(stop, lambda: self._status is not last, 2.0)

    def _all_arrived(self) -> bool:
        if self._status is None:
            return False
        base = self._base.frames_in if self._base else 0
        return self._status.frames_in - base >= self.published or self.in_flight() <= 0

    def _wait(self, stop: threading.Event, condition, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        with self._progress:
            while not condition():
                if stop.is_set() or time.monotonic() > deadline:
                    return False
                self._progress.wait(0.05)
        return True

    def _call_flush(self, stop: threading.Event) -> None:
        kind = "std_srvs/srv/Trigger"
        found = [
            name
            for name, kinds in self.get_service_names_and_types()
            if name.endswith("/flush") and kind in kinds
        ]
        if len(found) != 1:
            self.get_logger().warning(f"editors to flush: {found or 'none'}; it does so by itself")
            return
        client = self.create_client(Trigger, found[0])
        if not client.wait_for_service(5.0):
            self.get_logger().warning(f"{found[0]} does not answer; the editor flushes by itself")
            return
        answer = client.call_async(Trigger.Request())
        while not answer.done() and not stop.wait(0.01):
            if self._left_alone():
                self.get_logger().warning("the editor is gone; what was inside is lost")
                return
        if answer.done() and not answer.result().success:
            self.get_logger().warning(f"flush: {answer.result().message}")


def _work(stop: threading.Event) -> int:
    node = ReplayNode()
    executor = SingleThreadedExecutor()
    executor.add_node(node)

    def spin() -> None:
        try:
            executor.spin()
        except ExternalShutdownException:
            pass

    thread = threading.Thread(target=spin, daemon=True)
    thread.start()
    try:
        node.play(stop)
    finally:
        executor.shutdown()
        thread.join(2.0)
        node.source.close()
        node.destroy_node()
    return 0


def main(args: list[str] | None = None) -> int:
    """Entry point. Exit code 2: wrong input or nobody to play to."""
    return run_process(Path(__file__).stem, _work, args)


if __name__ == "__main__":
    sys.exit(main())
