# SPDX-License-Identifier: Apache-2.0
"""An editor node in this process, and a camera and a user for it, over DDS."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from egoedit_ros.msg import ActiveInstruction, EditInstruction, FrameLatency, StreamStatus
from egoedit_ros.nodes import qos
from egoedit_ros.nodes.editor_node import EditorNode
from egoedit_ros.stream import names
from egoedit_ros.stream.images import encode_jpeg, fill_data, fill_image, to_rgb
from egoedit_ros.stream.session import ChunkResult, NullSession

PATIENCE_S = 30.0
START_NS = 1_700_000_000_000_000_000
PERIOD_NS = 62_500_000


class InvertingSession(NullSession):
    """Inverts the left half of the picture: an edit that a test can see."""

    name = "inverting"

    def __init__(self, size=None, chunk_latents=None, **_) -> None:
        super().__init__(size or (32, 24), chunk_latents or 1)
        self.go = threading.Event()
        self.go.set()
        self.running = threading.Event()
        self.broken: str | None = None

    def run(self, frames: np.ndarray) -> ChunkResult:
        self.running.set()
        assert self.go.wait(PATIENCE_S)
        if self.broken:
            raise RuntimeError(self.broken)
        self._first = False
        edited, mask = frames.copy(), np.zeros(frames.shape[:3], np.uint8)
        half = frames.shape[2] // 2
        edited[:, :, :half] = 255 - edited[:, :, :half]
        mask[:, :, :half] = 255
        return ChunkResult(edited, mask, 0.1, 0.2, 0.3)


def stamp_ns(header: Header) -> int:
    return header.stamp.sec * 10**9 + header.stamp.nanosec


def header(stamp: int, frame_id: str = "head_camera") -> Header:
    message = Header(frame_id=frame_id)
    message.stamp.sec, message.stamp.nanosec = divmod(stamp, 10**9)
    return message


def picture(index: int, size: tuple[int, int] = (64, 48)) -> np.ndarray:
    """Flat grey that tells the frame."""
    return np.full((size[1], size[0], 3), index * 7 % 200, np.uint8)


class Rig:
    """The editor in a thread; :attr:`user` publishes frames and keeps what comes back."""

    def __init__(self, session: NullSession | None = None, activate: bool = True, **parameters):
        self.session = session or InvertingSession()
        defaults = dict(policy="all", size="32x24", flush_timeout=60.0, autostart=False)
        self.node = EditorNode(
            open_model=lambda **kwargs: self.session,
            parameter_overrides=[Parameter(k, value=v) for k, v in (defaults | parameters).items()],
        )
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self.node)
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self.user = Node("user")
        self._user_executor = SingleThreadedExecutor()
        self._user_executor.add_node(self.user)
        if activate:
            assert self.node.autostart()
        self.edited: list[Image] = []
        self.latency: list[FrameLatency] = []
        self.active: list[ActiveInstruction] = []
        self.status: list[StreamStatus] = []
        self.listen(Image, names.TOPIC_EDITED, self.edited)
        self.listen(FrameLatency, names.TOPIC_LATENCY, self.latency)
        self.listen(ActiveInstruction, names.TOPIC_ACTIVE, self.active)
        self.listen(StreamStatus, names.TOPIC_STATUS, self.status)
        self.images = self.user.create_publisher(Image, names.TOPIC_IMAGE, 50)
        self.jpegs = self.user.create_publisher(
            CompressedImage, names.compressed_topic(names.TOPIC_IMAGE), 50
        )
        self.infos = self.user.create_publisher(CameraInfo, "camera_info", 50)
        self.instructions = self.user.create_publisher(
            EditInstruction, names.TOPIC_INSTRUCTION, qos.latched(10)
        )
        self._thread.start()
        if activate:
            self.meet()

    def meet(self) -> None:
        """Wait until editor and user know each other's topics."""
        compressed = self.node.get_parameter("input_transport").value == "compressed"
        camera = self.jpegs if compressed else self.images
        self.until(
            lambda: (
                camera.get_subscription_count()
                and self.infos.get_subscription_count()
                and self.instructions.get_subscription_count()
                and all(self.user.count_publishers(t) for t in (names.TOPIC_EDITED, "latency"))
            )
        )
        self.until(lambda: self.node.count_subscribers(names.TOPIC_EDITED))
        # Both sides are told one after the other; what is sent in between would be lost.
        self.spin(0.3)

    def listen(self, kind: type, topic: str, into: list):
        profile = QoSProfile(depth=200, reliability=ReliabilityPolicy.RELIABLE)
        return self.user.create_subscription(kind, topic, into.append, profile)

    def send(self, *stamps: int, size: tuple[int, int] = (64, 48), encoding: str = "rgb8") -> None:
        """Publish frames; stamps count in frame periods."""
        for stamp in stamps:
            message = Image(header=header(START_NS + stamp * PERIOD_NS))
            fill_image(message, picture(stamp, size))
            message.encoding = encoding
            self.images.publish(message)

    def send_jpeg(self, stamp: int, cut: int | None = None) -> None:
        message = CompressedImage(header=header(START_NS + stamp * PERIOD_NS), format="jpeg")
        fill_data(message, encode_jpeg(picture(stamp), 95)[:cut])
        self.jpegs.publish(message)

    def instruct(self, text: str, stamp: int | None = None, **fields) -> None:
        at = header(0 if stamp is None else START_NS + stamp * PERIOD_NS, "")
        sent = len(self._given())
        self.instructions.publish(EditInstruction(header=at, text=text, **fields))
        self.until(lambda: len(self._given()) > sent)

    def _given(self) -> list:
        return [None] * self.node.editor._given_count

    def call(self, kind: type, service: str, **fields):
        client = self.user.create_client(kind, service)
        assert client.wait_for_service(PATIENCE_S)
        future = client.call_async(kind.Request(**fields))
        self.until(future.done)
        return future.result()

    def stamps(self) -> list[int]:
        """What came out, in frame periods."""
        return [(stamp_ns(m.header) - START_NS) // PERIOD_NS for m in self.edited]

    def until(self, condition: Callable[[], object]) -> None:
        """Spin the user until the condition holds."""
        end = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < end, "waited in vain"
            self._user_executor.spin_once(timeout_sec=0.02)

    def spin(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._user_executor.spin_once(timeout_sec=0.02)

    def until_out(self, count: int) -> None:
        self.until(lambda: len(self.edited) >= count and len(self.latency) >= count)

    def counters(self) -> tuple[int, int, dict[str, int]]:
        return self.node.reports.figures.counters.snapshot()

    def close(self) -> None:
        if isinstance(self.session, InvertingSession):
            self.session.go.set()
        self._executor.shutdown()
        self._thread.join(PATIENCE_S)
        self.node.free()
        self.node.destroy_node()
        self._user_executor.shutdown()
        self.user.destroy_node()

    def _spin(self) -> None:
        try:
            self._executor.spin()
        except ExternalShutdownException:
            pass


def is_edited(message: Image) -> bool:
    """Whether the left half was inverted."""
    rgb = to_rgb(message)
    return bool(abs(int(rgb[0, 0, 0]) + int(rgb[0, -1, 0]) - 255) <= 1)


SUCCESS = TransitionCallbackReturn.SUCCESS
FAILURE = TransitionCallbackReturn.FAILURE
ERROR = TransitionCallbackReturn.ERROR
