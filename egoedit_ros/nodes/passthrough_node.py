# SPDX-License-Identifier: Apache-2.0
"""The least that a node written in Python can do: message to numpy array, and back.

The baseline of the stream benchmark. It converts as cv_bridge does, with cv_bridge itself where a
ROS installation brings it, and sends each frame's times on ``latency`` as the editor does.
"""

from __future__ import annotations

import sys
import time

import numpy as np
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image

from egoedit_ros.msg import FrameLatency
from egoedit_ros.nodes import qos
from egoedit_ros.nodes.running import run_node
from egoedit_ros.stream import names
from egoedit_ros.stream.latency import transport_ms

NODE_NAME = "passthrough"
CV_BRIDGE = "cv_bridge"
NUMPY = "numpy"
IMAGE_DEPTH = 10


def cv_bridge():
    """A CvBridge, or None where there is none that works (PyPI's is ROS 1's)."""
    try:
        from cv_bridge import CvBridge

        bridge = CvBridge()
        bridge.imgmsg_to_cv2(bridge.cv2_to_imgmsg(np.zeros((2, 2, 3), np.uint8), "rgb8"), "rgb8")
    except Exception:  # a broken installation fails in many ways
        return None
    return bridge


class PassthroughNode(Node):
    """``image_raw`` to ``edited/image_raw``, rgb8, in the callback.

    ``instruction_id`` of its latency messages says what converts: ``cv_bridge`` or ``numpy``.
    """

    def __init__(self) -> None:
        super().__init__(NODE_NAME)
        self._bridge = cv_bridge()
        self.converter = CV_BRIDGE if self._bridge else NUMPY
        self._out = self.create_publisher(Image, names.TOPIC_EDITED, qos.reliable(IMAGE_DEPTH))
        self._latency = self.create_publisher(
            FrameLatency, names.TOPIC_LATENCY, qos.reliable(qos.REPORT_DEPTH)
        )
        self._index = 0
        self.create_subscription(Image, names.TOPIC_IMAGE, self._on_image, qos_profile_sensor_data)

    def _on_image(self, message: Image, info: dict) -> None:
        arrival_ns, wall_ns = time.perf_counter_ns(), time.time_ns()
        if self._bridge is not None:
            picture = self._bridge.imgmsg_to_cv2(message, "rgb8")
            out = self._bridge.cv2_to_imgmsg(picture, "rgb8", message.header)
        else:
            out = image_message(as_array(message), message)
        converted_ns = time.perf_counter_ns()
        self._out.publish(out)
        end_ns = time.perf_counter_ns()
        transport = transport_ms(info.get("source_timestamp") or 0, wall_ns)
        self._latency.publish(
            FrameLatency(
                header=message.header,
                frame_index=self._index,
                chunk_index=self._index,
                instruction_id=self.converter,
                outcome=names.OUTCOME_PASSTHROUGH,
                transport_ms=transport,
                preprocess_ms=(converted_ns - arrival_ns) / 1e6,
                publish_ms=(end_ns - converted_ns) / 1e6,
                total_ms=transport + (end_ns - arrival_ns) / 1e6,
            )
        )
        self._index += 1


def as_array(message: Image) -> np.ndarray:
    """rgb8 message to ``[H, W, 3]``, as cv_bridge's imgmsg_to_cv2 does: a view."""
    shape, strides = (message.height, message.width, 3), (message.step, 3, 1)
    return np.ndarray(shape, np.uint8, message.data, strides=strides)


def image_message(picture: np.ndarray, like: Image) -> Image:
    """``[H, W, 3]`` to a message, as cv_bridge's cv2_to_imgmsg does."""
    message = Image(header=like.header, encoding="rgb8")
    message.height, message.width = picture.shape[:2]
    message.data.frombytes(picture.tobytes())
    message.step = len(message.data) // message.height
    return message


def main(args: list[str] | None = None) -> int:
    """Run until told to stop. Returns the exit code."""
    return run_node(NODE_NAME, PassthroughNode, args=args)


if __name__ == "__main__":
    sys.exit(main())
