# SPDX-License-Identifier: Apache-2.0
"""The editor's topics with their types, as a table: the documentation is made from it."""

from __future__ import annotations

from dataclasses import dataclass

from egoedit_ros.stream import names


@dataclass(frozen=True, slots=True)
class Topic:
    """One topic of the editor node: direction, relative name, message type, what to know."""

    way: str
    name: str
    type: str
    note: str


TOPICS = (
    Topic(
        "in",
        names.TOPIC_IMAGE,
        "sensor_msgs/Image",
        "rgb8, bgr8, rgba8, bgra8, mono8, yuv422, yuv422_yuy2, nv21, nv12, bayer_*8; any size "
        "and step",
    ),
    Topic(
        "in",
        names.compressed_topic(names.TOPIC_IMAGE),
        "sensor_msgs/CompressedImage",
        "used instead of `image_raw` with `input_transport: compressed`",
    ),
    Topic("in", names.CAMERA_INFO_NAME, "sensor_msgs/CameraInfo", "optional, beside the image"),
    Topic(
        "in",
        names.TOPIC_INSTRUCTION,
        "egoedit_ros/EditInstruction",
        "reliable, transient local; empty text passes the camera through",
    ),
    Topic("in", names.TOPIC_INSTRUCTION_TEXT, "std_msgs/String", "an instruction as plain text"),
    Topic(
        "out",
        names.TOPIC_EDITED,
        "sensor_msgs/Image",
        "rgb8; header of the camera frame, unchanged",
    ),
    Topic(
        "out",
        names.compressed_topic(names.TOPIC_EDITED),
        "sensor_msgs/CompressedImage",
        "JPEG, only when subscribed",
    ),
    Topic(
        "out",
        names.TOPIC_MASK,
        "sensor_msgs/Image",
        "mono8, where the edit changed the picture; only when subscribed",
    ),
    Topic("out", names.TOPIC_EDITED_INFO, "sensor_msgs/CameraInfo", "scaled to the edited size"),
    Topic(
        "out",
        names.TOPIC_ACTIVE,
        "egoedit_ros/ActiveInstruction",
        "reliable, transient local; one per switch, with its latency",
    ),
    Topic("out", names.TOPIC_LATENCY, "egoedit_ros/FrameLatency", "one per frame, stage by stage"),
    Topic("out", names.TOPIC_STATUS, "egoedit_ros/StreamStatus", "1 Hz: state, drops, rates"),
    Topic("out", names.TOPIC_DIAGNOSTICS, "diagnostic_msgs/DiagnosticArray", "1 Hz"),
)


def markdown() -> str:
    """The table for the documentation."""
    lines = ["| | topic | type | |", "|---|---|---|---|"]
    lines += [f"| {t.way} | `{t.name}` | {t.type} | {t.note} |" for t in TOPICS]
    return "\n".join(lines) + "\n"
