# SPDX-License-Identifier: Apache-2.0
"""Gives instructions by a timeline: seconds of the stream, counted from its first stamp."""

from __future__ import annotations

import sys
import time

from builtin_interfaces.msg import Time
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import CompressedImage, Image

from egoedit_ros.errors import UserError
from egoedit_ros.msg import EditInstruction
from egoedit_ros.nodes import parameters, qos
from egoedit_ros.nodes.parameters import INSTRUCTION_PARAMETERS
from egoedit_ros.nodes.running import run_node
from egoedit_ros.stream import names
from egoedit_ros.stream.instructions import TimedInstruction, load_timeline, parse_timed

NODE_NAME = "instruction"
LOOK_EVERY_S = 0.02


class InstructionNode(Node):
    """Sends the timeline's instructions.

    What is due at second 0 goes out as soon as an editor listens, without a stamp, so that it is
    there before the first frame. The others go out all at once as soon as the stream's first
    stamp is known (from the ``start_stamp_ns`` parameter or the first image), each with the stamp
    it applies from: the editor keeps them until then, and no delay on the way can shift them.
    """

    def __init__(self, **kwargs) -> None:
        super().__init__(NODE_NAME, **kwargs)
        self.add_on_set_parameters_callback(self._check_parameters)
        parameters.declare(self, INSTRUCTION_PARAMETERS)
        values = parameters.values(self, INSTRUCTION_PARAMETERS)
        timeline = _timeline(values)
        self._at_start = [t for t in timeline if t.at <= 0.0]
        self._later = [t for t in timeline if t.at > 0.0]
        self._sent = 0
        self._publisher = self.create_publisher(
            EditInstruction,
            names.TOPIC_INSTRUCTION,
            # As deep as the timeline: an editor that comes late gets all of it.
            qos.latched(max(1, len(timeline))),
            qos_overriding_options=qos.overridable(),
        )
        self._start_ns: int | None = values["start_stamp_ns"]
        self._image_subscription = None
        if self._start_ns < 0:
            self._start_ns = None
            self._watch_images(values["input_transport"] == "compressed")
        self._give_up_at = time.monotonic() + values["wait_timeout"]
        self._timer = self.create_timer(
            LOOK_EVERY_S, self._look, clock=Clock(clock_type=ClockType.STEADY_TIME)
        )

    def _watch_images(self, compressed: bool) -> None:
        image = self.resolve_topic_name(names.TOPIC_IMAGE)
        self._image_subscription = self.create_subscription(
            CompressedImage if compressed else Image,
            names.compressed_topic(image) if compressed else image,
            self._on_image,
            qos_profile_sensor_data,
            qos_overriding_options=qos.overridable(),
        )

    def _on_image(self, message: Image | CompressedImage) -> None:
        stamp = message.header.stamp
        if self._start_ns is None:
            self._start_ns = stamp.sec * 1_000_000_000 + stamp.nanosec
            self._send_all()

    def _look(self) -> None:
        listened_to = self._publisher.get_subscription_count() > 0
        if not listened_to and time.monotonic() < self._give_up_at:
            return
        if not listened_to:
            self.get_logger().warning("no editor listens; instructions are kept for it")
        self._send_all()

    def _send_all(self) -> None:
        """Send what can be sent now; done with looking once that is everything."""
        for timed in self._at_start:
            self._send(timed, 0)
        self._at_start = []
        if self._start_ns is not None:
            for timed in self._later:
                self._send(timed, self._start_ns + round(timed.at * 1e9))
            self._later = []
            if self._image_subscription is not None:
                self.destroy_subscription(self._image_subscription)
                self._image_subscription = None
        self._timer.cancel()

    def _send(self, timed: TimedInstruction, stamp_ns: int) -> None:
        self._sent += 1
        message = EditInstruction(
            id=f"timeline-{self._sent}", text=timed.text, seed=timed.seed, reset=timed.reset
        )
        message.header.stamp = Time(sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9)
        self._publisher.publish(message)
        self.get_logger().info(f"{timed.at:.3f} s: {timed.text or '(pass the camera through)'}")

    def _check_parameters(self, changes: list[Parameter]) -> SetParametersResult:
        try:
            parameters.check(INSTRUCTION_PARAMETERS, {p.name: p.value for p in changes})
        except UserError as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)


def _timeline(values: dict) -> list[TimedInstruction]:
    """The timeline from the parameters, by time. Raises UserError if there is none or two."""
    lines = [line for line in values["timeline"] if line.strip()]
    if values["timeline_file"] and lines:
        raise UserError("give timeline or timeline_file, not both")
    if values["timeline_file"]:
        return load_timeline(values["timeline_file"])
    if not lines:
        raise UserError("parameter timeline is empty; give a list such as ['0.0:make it blue']")
    timed = [parse_timed(line) for line in lines]
    seeded = [TimedInstruction(t.at, t.text, values["seed"]) for t in timed]
    return sorted(seeded, key=lambda t: t.at)


def main(args: list[str] | None = None) -> int:
    """Run the node until it is told to stop. Returns the exit code."""
    return run_node(NODE_NAME, InstructionNode, args=args)


if __name__ == "__main__":
    sys.exit(main())
