# SPDX-License-Identifier: Apache-2.0
"""Writes what went in and came out to a bag, with the monotonic time at which it came.

Messages are taken and written as the bytes they travelled in: no picture is ever parsed here, so
that recording costs the graph next to nothing.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import time
from pathlib import Path

from rclpy.clock import Clock, ClockType
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Bool, UInt64

from egoedit_ros.data import cdr
from egoedit_ros.data.bag_writer import BagWriter, qos
from egoedit_ros.errors import UserError
from egoedit_ros.msg import ActiveInstruction, EditInstruction, FrameLatency, StreamStatus
from egoedit_ros.nodes.process import (
    TOPIC_RECORDED,
    TOPIC_RECORDER_READY,
    declare,
    run_process,
)
from egoedit_ros.stream import names

FLUSH_EVERY_S = 0.5
IMAGE_DEPTH = 64
NOTE_DEPTH = 1000
# After the signal to stop, what is still on its way is taken for as long as it keeps coming.
QUIET_S = 0.3
LONGEST_GOODBYE_S = 3.0


class RecorderNode(Node):
    """Subscribes to everything the report needs; a thread of its own writes."""

    def __init__(self) -> None:
        super().__init__("recorder")
        output = declare(self, "output", "", "folder of the bag to write; must not exist")
        compressed = declare(self, "compressed", False, "the camera sends JPEG, record that")
        arrivals = declare(
            self, "arrivals", "", "file to note arrivals in, one JSON object a line; empty: none"
        )
        if not output:
            raise UserError("parameter output is empty; give a folder to write the bag to")
        self._writer = BagWriter(output)
        self._arrivals = open(arrivals or os.devnull, "w", encoding="utf-8")
        self._queue: queue.SimpleQueue[tuple | None] = queue.SimpleQueue()
        self.failure: OSError | None = None
        self.last_arrival = time.monotonic()
        self._frames = 0
        self._required = []
        self._ready = False

        resolved = self.resolve_topic_name(names.TOPIC_IMAGE)
        if compressed:
            camera, camera_type = names.compressed_topic(resolved), CompressedImage
        else:
            camera, camera_type = resolved, Image
        self._camera = camera
        reliable = QoSProfile(depth=IMAGE_DEPTH, reliability=ReliabilityPolicy.RELIABLE)
        notes = QoSProfile(depth=NOTE_DEPTH, reliability=ReliabilityPolicy.RELIABLE)
        latched = QoSProfile(
            depth=NOTE_DEPTH,
            reliability=ReliabilityPolicy.RELIABLE,
            durability=DurabilityPolicy.TRANSIENT_LOCAL,
        )
        for topic, kind, profile, required in (
            (camera, camera_type, reliable, True),
            (names.TOPIC_EDITED, Image, reliable, True),
            (names.TOPIC_LATENCY, FrameLatency, notes, True),
            (names.TOPIC_STATUS, StreamStatus, notes, True),
            (names.TOPIC_ACTIVE, ActiveInstruction, latched, True),
            (names.TOPIC_INSTRUCTION, EditInstruction, latched, False),
            (names.camera_info_topic(resolved), CameraInfo, notes, False),
            (names.TOPIC_EDITED_INFO, CameraInfo, notes, False),
        ):
            self._subscribe(topic, kind, profile, required)

        self._ready_out = self.create_publisher(
            Bool,
            TOPIC_RECORDER_READY,
            QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL),
        )
        self._recorded_out = self.create_publisher(UInt64, TOPIC_RECORDED, 10)
        # Not by ROS time: with use_sim_time that stands still until the replay, which waits for
        # this recorder, publishes /clock.
        self.create_timer(0.05, self._tell_ready, clock=Clock(clock_type=ClockType.STEADY_TIME))
        self._thread = threading.Thread(target=self._write, name="bag-writer", daemon=True)
        self._thread.start()

    def _subscribe(self, topic: str, kind: type, profile: QoSProfile, required: bool) -> None:
        name = self.resolve_topic_name(topic)
        msgtype = f"{kind.__module__.split('.')[0]}/msg/{kind.__name__}"
        durable = profile.durability == DurabilityPolicy.TRANSIENT_LOCAL
        self._writer.add_topic(name, msgtype, (qos(1 if durable else 10, durable),))

        def take(data: bytes, info: dict) -> None:
            mono, wall = time.monotonic_ns(), time.time_ns()
            self.last_arrival = mono / cdr.NANO
            # Sending time on this machine's monotonic clock, by way of the wall clock of now.
            self._queue.put((name, wall, mono, mono - (wall - info["source_timestamp"]), data))

        subscription = self.create_subscription(kind, topic, take, profile, raw=True)
        if required:
            self._required.append(subscription)

    def _tell_ready(self) -> None:
        ready = all(subscription.get_publisher_count() for subscription in self._required)
        if ready != self._ready:
            self._ready = ready
            self._ready_out.publish(Bool(data=ready))

    def _write(self) -> None:
        flushed = time.monotonic()
        try:
            while True:
                try:
                    item = self._queue.get(timeout=FLUSH_EVERY_S)
                except queue.Empty:
                    item = ()
                if item is None:
                    return
                if item:
                    self._write_one(*item)
                if time.monotonic() - flushed > FLUSH_EVERY_S:
                    self._writer.flush()
                    self._arrivals.flush()
                    flushed = time.monotonic()
        except OSError as error:  # a full disk, most of all
            self.failure = error

    def _write_one(self, topic: str, wall: int, mono: int, sent: int, data: bytes) -> None:
        self._writer.write(topic, wall, data)
        note = {"topic": topic, "stamp": cdr.stamp_ns(data), "mono_ns": mono, "sent_ns": sent}
        self._arrivals.write(json.dumps(note) + "\n")
        if topic == self._camera:
            self._frames += 1
            self._recorded_out.publish(UInt64(data=self._frames))

    def close(self) -> None:
        """Write what is queued, then index and metadata; leaves the bag unfinished on failure."""
        self._queue.put(None)
        self._thread.join()
        if self.failure is None:
            try:
                self._writer.close()
            except OSError as error:
                self.failure = error
        else:
            self._writer.abort()
        self._arrivals.close()
        counts = {topic: n for topic, n in self._writer.counts.items() if n}
        print(f"recorder: {json.dumps(counts)}", flush=True)


def _work(stop: threading.Event) -> int:
    node = RecorderNode()
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    goodbye: float | None = None
    try:
        while node.failure is None:
            executor.spin_once(timeout_sec=0.1)
            now = time.monotonic()
            if stop.is_set():
                goodbye = goodbye or now
                quiet = now - max(node.last_arrival, goodbye) > QUIET_S
                if quiet or now - goodbye > LONGEST_GOODBYE_S:
                    break
    except ExternalShutdownException:
        pass
    finally:
        node.close()
        executor.shutdown()
        node.destroy_node()
    if node.failure is not None:
        print(
            f"recorder_node: error: cannot write the bag ({node.failure.strerror}); make room or "
            "choose another output folder",
            file=sys.stderr,
            flush=True,
        )
        return 1
    return 0


def main(args: list[str] | None = None) -> int:
    """Entry point. Exit code 2: wrong input; 1: the bag could not be written to its end."""
    return run_process(Path(__file__).stem, _work, args)


if __name__ == "__main__":
    sys.exit(main())
