# SPDX-License-Identifier: Apache-2.0
"""Messages as the bytes that travel and lie in bags (CDR), without rclpy.

Everything that begins with a std_msgs/Header has its stamp in the same eight bytes, right after
the encapsulation. Reading or changing it there spares the copy and the parse of the picture.
"""

from __future__ import annotations

import os
import struct
import sys
from functools import cache
from pathlib import Path

import numpy as np
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

import egoedit_ros

NANO = 1_000_000_000
PACKAGE = "egoedit_ros"
IMAGE = "sensor_msgs/msg/Image"
COMPRESSED = "sensor_msgs/msg/CompressedImage"
CAMERA_INFO = "sensor_msgs/msg/CameraInfo"
EDIT_INSTRUCTION = f"{PACKAGE}/msg/EditInstruction"
ACTIVE_INSTRUCTION = f"{PACKAGE}/msg/ActiveInstruction"
FRAME_LATENCY = f"{PACKAGE}/msg/FrameLatency"
STREAM_STATUS = f"{PACKAGE}/msg/StreamStatus"

_STAMP_AT = 4  # after the encapsulation: representation (2 bytes), options (2 bytes)


def stamp_ns(data: bytes | memoryview) -> int:
    """Header stamp in ns of a serialized message that begins with a std_msgs/Header."""
    seconds, nanoseconds = struct.unpack_from(_order(data) + "iI", data, _STAMP_AT)
    return seconds * NANO + nanoseconds


def with_stamp(data: bytes | memoryview, stamp: int) -> bytes:
    """The same serialized message with another header stamp (ns)."""
    changed = bytearray(data)
    struct.pack_into(_order(data) + "iI", changed, _STAMP_AT, stamp // NANO, stamp % NANO)
    return bytes(changed)


def _order(data: bytes | memoryview) -> str:
    # The lowest bit of the representation is set for little endian.
    return "<" if data[1] & 1 else ">"


@cache
def typestore() -> Typestore:
    """ROS 2 Jazzy's message types and this package's own. A shared object: do not change it."""
    store = get_typestore(Stores.ROS2_JAZZY)
    own = {}
    for path in sorted(message_files()):
        own |= get_types_from_msg(path.read_text(), f"{PACKAGE}/msg/{path.stem}")
    # A message file that is of this package but stands already in the store would be refused.
    store.register({name: fields for name, fields in own.items() if name not in store.fielddefs})
    return store


def message_files() -> list[Path]:
    """This package's .msg files: in the source tree or where the package is installed."""
    source = Path(egoedit_ros.__file__).parents[1] / "msg"
    prefixes = [*os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep), sys.prefix]
    shares = [Path(prefix) / "share" / PACKAGE / "msg" for prefix in prefixes if prefix]
    for folder in (source, *shares):
        if files := list(folder.glob("*.msg")):
            return files
    return []


def serialize(message: object, msgtype: str) -> bytes:
    """A message object of :func:`typestore` as CDR, little endian."""
    return bytes(typestore().serialize_cdr(message, msgtype))


def make_header(stamp: int, frame_id: str) -> object:
    """std_msgs/Header; stamp in ns."""
    types = typestore().types
    time = types["builtin_interfaces/msg/Time"](sec=stamp // NANO, nanosec=stamp % NANO)
    return types["std_msgs/msg/Header"](stamp=time, frame_id=frame_id)


def image_cdr(rgb: np.ndarray, stamp: int, frame_id: str) -> bytes:
    """uint8 ``[h, w, 3]`` rgb as a serialized sensor_msgs/Image (rgb8)."""
    height, width = rgb.shape[:2]
    message = typestore().types[IMAGE](
        header=make_header(stamp, frame_id),
        height=height,
        width=width,
        encoding="rgb8",
        is_bigendian=0,
        step=3 * width,
        data=np.ascontiguousarray(rgb).reshape(-1),
    )
    return serialize(message, IMAGE)


def compressed_cdr(jpeg: bytes, stamp: int, frame_id: str) -> bytes:
    """A JPEG file's bytes as a serialized sensor_msgs/CompressedImage."""
    message = typestore().types[COMPRESSED](
        header=make_header(stamp, frame_id),
        format="rgb8; jpeg compressed bgr8",
        data=np.frombuffer(jpeg, np.uint8),
    )
    return serialize(message, COMPRESSED)
