# SPDX-License-Identifier: Apache-2.0
"""Images read out of the bytes that ROS makes of them."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from rclpy.serialization import serialize_message
from sensor_msgs.msg import Image

from egoedit_ros.errors import UserError
from egoedit_ros.nodes.raw_image import read_image
from egoedit_ros.stream.images import fill_image, to_rgb


def image(frame_id: str, encoding: str, shape: tuple[int, ...] = (3, 5, 3)) -> Image:
    message = Image()
    fill_image(message, np.arange(np.prod(shape)).astype(np.uint8).reshape(shape), encoding)
    message.header.frame_id = frame_id
    message.header.stamp.sec, message.header.stamp.nanosec = -7, 999_999_999
    message.is_bigendian = 1
    return message


@pytest.mark.parametrize("frame_id", ["", "a", "ab", "abc", "abcd", "head_camera", "übersicht"])
@pytest.mark.parametrize("encoding", ["rgb8", "bgra8", "mono8", "yuv422_yuy2", ""])
def test_every_field_is_that_of_the_message(frame_id, encoding):
    message = image(frame_id, encoding)
    found = read_image(serialize_message(message))
    assert found.header == message.header
    for field in ("height", "width", "encoding", "is_bigendian", "step"):
        assert getattr(found, field) == getattr(message, field)
    assert bytes(found.data) == bytes(message.data)


def test_pixels_are_not_copied_and_pictures_are_the_same():
    message = image("camera", "bgr8")
    data = serialize_message(message)
    found = read_image(data)
    assert np.shares_memory(np.frombuffer(found.data, np.uint8), np.frombuffer(data, np.uint8))
    assert (to_rgb(found) == to_rgb(message)).all()


def test_the_other_byte_order():
    text = b"cam\0"
    data = b"\x00\x00\x00\x00" + struct.pack(">iI", 5, 6) + struct.pack(">I", 4) + text
    data += struct.pack(">II", 1, 2) + struct.pack(">I", 6) + b"mono8\0" + b"\0" + b"\0"
    data += struct.pack(">II", 2, 2) + b"\x07\x08"
    found = read_image(data)
    assert (found.header.stamp.sec, found.header.frame_id, found.step) == (5, "cam", 2)
    assert (found.height, found.width, found.encoding) == (1, 2, "mono8")
    assert bytes(found.data) == b"\x07\x08"


def test_an_image_without_pixels():
    assert read_image(serialize_message(Image())).data.nbytes == 0


@pytest.mark.parametrize("keep", [0, 3, 11, 20, 40, -1])
def test_bytes_that_are_cut_are_an_error_in_one_line(keep):
    data = serialize_message(image("camera", "rgb8"))
    with pytest.raises(UserError, match="no sensor_msgs/Image"):
        read_image(data[:keep])


def test_lengths_that_lie_are_an_error():
    data = bytearray(serialize_message(image("camera", "rgb8")))
    struct.pack_into("<I", data, 12, 2**31)
    with pytest.raises(UserError, match="no sensor_msgs/Image"):
        read_image(bytes(data))
