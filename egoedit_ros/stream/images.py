# SPDX-License-Identifier: Apache-2.0
"""ROS image messages to numpy pictures and back, without a ROS dependency.

Functions look at message fields only, so rclpy's messages and those of rosbags both work. All
pictures are uint8 ``[H, W, 3]`` in rgb order. Meanings of encodings are those of
sensor_msgs/image_encodings.hpp.
"""

from __future__ import annotations

from array import array
from typing import Any

import cv2
import numpy as np

from egoedit_ros.errors import UserError


class ImageError(UserError):
    """A picture that cannot be read; the message says why in one line."""


# encoding -> channels of 8 bits, conversion (None: handled by name below)
_PACKED: dict[str, tuple[int, int | None]] = {
    "rgb8": (3, None),
    "bgr8": (3, cv2.COLOR_BGR2RGB),
    "rgba8": (4, cv2.COLOR_RGBA2RGB),
    "bgra8": (4, cv2.COLOR_BGRA2RGB),
    "mono8": (1, cv2.COLOR_GRAY2RGB),
}
_PACKED_16 = {
    "mono16": "mono8",
    "rgb16": "rgb8",
    "bgr16": "bgr8",
    "rgba16": "rgba8",
    "bgra16": "bgra8",
}
_YUV422 = {"yuv422": cv2.COLOR_YUV2RGB_UYVY, "yuv422_yuy2": cv2.COLOR_YUV2RGB_YUY2}
_YUV420 = {"nv21": cv2.COLOR_YUV2RGB_NV21, "nv12": cv2.COLOR_YUV2RGB_NV12}
# ROS names the pattern by its first two rows, OpenCV by the second row's second pixel.
_BAYER = {
    "bayer_rggb8": cv2.COLOR_BayerBG2RGB,
    "bayer_bggr8": cv2.COLOR_BayerRG2RGB,
    "bayer_gbrg8": cv2.COLOR_BayerGR2RGB,
    "bayer_grbg8": cv2.COLOR_BayerGB2RGB,
}
_ALIASES = {"8uc1": "mono8", "8uc3": "bgr8", "8uc4": "bgra8", "16uc1": "mono16"}
_ALIASES |= {"uyvy": "yuv422", "yuyv": "yuv422_yuy2"}

ENCODINGS = (*_PACKED, *_PACKED_16, *_YUV422, *_YUV420, *_BAYER)


def to_rgb(msg: Any) -> np.ndarray:
    """Read a sensor_msgs/Image as uint8 ``[H, W, 3]`` rgb.

    Any ``step`` from the row's own length up is fine, a last row without its padding too. rgb8
    is a view of the message, not a copy. Encodings not in :data:`ENCODINGS` go to cv_bridge where
    it is installed. Raises ImageError for anything that does not fit together.
    """
    encoding = _ALIASES.get(msg.encoding.strip().lower(), msg.encoding.strip().lower())
    width, height, step = int(msg.width), int(msg.height), int(msg.step)
    if width < 1 or height < 1:
        raise ImageError(f"image of {width}x{height} pixels has no picture in it")
    data = _as_bytes(msg.data)
    if encoding in _PACKED:
        return _packed(data, encoding, width, height, step)
    if encoding in _PACKED_16:
        eight = _PACKED_16[encoding]
        rows = _rows(data, encoding, width * _PACKED[eight][0] * 2, height, step)
        order = ">u2" if msg.is_bigendian else "<u2"
        high = (np.ascontiguousarray(rows).view(order) >> 8).astype(np.uint8)
        return _packed(high.reshape(-1), eight, width, height, high.shape[1])
    if encoding in _YUV422:
        return _yuv422(data, encoding, width, height, step)
    if encoding in _YUV420:
        return _yuv420(data, encoding, width, height, step)
    if encoding in _BAYER:
        return _bayer(_rows(data, encoding, width, height, step), encoding)
    return _by_cv_bridge(msg)


def compressed_to_rgb(msg: Any) -> np.ndarray:
    """Read a sensor_msgs/CompressedImage (JPEG, PNG, ...) as uint8 ``[H, W, 3]`` rgb.

    Turns no picture by its EXIF note, because camera_info describes the pixels as they are.
    Raises ImageError for a picture that is corrupt, truncated or of a kind OpenCV cannot read.
    """
    data = _as_bytes(msg.data)
    if "compresseddepth" in msg.format.lower():
        raise ImageError("compressedDepth is a depth picture, not one of a colour camera")
    if data.size == 0:
        raise ImageError("compressed image is empty")
    # OpenCV fills the missing part of a cut JPEG with grey and says so to stderr only.
    if data[:2].tobytes() == b"\xff\xd8" and b"\xff\xd9" not in data[-64:].tobytes():
        raise ImageError("JPEG is truncated: its end marker is missing")
    pattern = msg.format.split(";")[0].strip().lower()
    mosaic = pattern in _BAYER
    flags = cv2.IMREAD_GRAYSCALE if mosaic else cv2.IMREAD_COLOR
    try:
        picture = cv2.imdecode(data, flags | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        raise ImageError(f"compressed image cannot be decoded: {error.err}") from None
    if picture is None:
        raise ImageError(f"compressed image ({msg.format or 'no format'}) is corrupt")
    return _bayer(picture, pattern) if mosaic else cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)


def fill_image(msg: Any, picture: np.ndarray, encoding: str = "rgb8") -> None:
    """Put a uint8 picture, ``[H, W, 3]`` or ``[H, W]``, into a sensor_msgs/Image; header is kept.

    rclpy checks each byte of anything but an array.array, which takes 4000 times longer.
    """
    picture = np.ascontiguousarray(picture)
    msg.height, msg.width = picture.shape[:2]
    msg.encoding = encoding
    msg.is_bigendian = 0
    msg.step = picture.strides[0] if picture.shape[0] else 0
    fill_data(msg, picture)


def fill_data(msg: Any, data: np.ndarray) -> None:
    """Put bytes into ``msg.data`` the fast way for its kind of message."""
    data = np.ascontiguousarray(data)
    if isinstance(msg.data, array):
        del msg.data[:]
        msg.data.frombytes(memoryview(data).cast("B"))
    else:
        msg.data = data.reshape(-1)


def encode_jpeg(picture: np.ndarray, quality: int = 90) -> np.ndarray:
    """JPEG of a uint8 rgb ``[H, W, 3]`` (or grey ``[H, W]``) picture, as uint8 ``[n]``."""
    if picture.ndim == 3:
        picture = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    done, jpeg = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise ImageError(f"a picture of shape {picture.shape} cannot be put into a JPEG")
    return jpeg.reshape(-1)


def crop_box(
    camera: tuple[int, int], target: tuple[int, int], fit: str = "stretch"
) -> tuple[int, int, int, int]:
    """(x, y, width, height) of the part of the camera's picture that the model sees.

    All of it for ``stretch``; the largest centred part of the target's shape for ``crop``.
    camera, target: (width, height).
    """
    (camera_w, camera_h), (w, h) = camera, target
    if fit == "stretch":
        return 0, 0, camera_w, camera_h
    scale = min(camera_w / w, camera_h / h)
    crop_w = min(camera_w, max(1, round(w * scale)))
    crop_h = min(camera_h, max(1, round(h * scale)))
    return (camera_w - crop_w) // 2, (camera_h - crop_h) // 2, crop_w, crop_h


def area_resize(picture: np.ndarray, size: tuple[int, int], fit: str = "stretch") -> np.ndarray:
    """Resize by area to ``size`` (width, height); the same array where nothing is to be done."""
    camera = (picture.shape[1], picture.shape[0])
    if camera == tuple(size):
        return picture
    x, y, w, h = crop_box(camera, size, fit)
    part = picture[y : y + h, x : x + w]
    if (w, h) == tuple(size):
        return np.ascontiguousarray(part)
    return cv2.resize(part, tuple(size), interpolation=cv2.INTER_AREA)


def _as_bytes(data: Any) -> np.ndarray:
    """A message's data field as uint8 ``[n]``, without copying where it has a buffer."""
    try:
        return np.frombuffer(data, np.uint8)
    except (TypeError, ValueError, BufferError):
        return np.asarray(list(data), np.uint8)


def _rows(data: np.ndarray, encoding: str, row: int, height: int, step: int) -> np.ndarray:
    """View of the picture's rows, uint8 ``[height, row]``, after checking that they are there."""
    if step < row:
        raise ImageError(f"{encoding} image: step {step} is smaller than a row of {row} bytes")
    needed = step * (height - 1) + row
    if data.size < needed:
        raise ImageError(f"{encoding} image: {data.size} bytes of data where {needed} are needed")
    return np.lib.stride_tricks.as_strided(data, (height, row), (step, 1), writeable=False)


def _packed(data: np.ndarray, encoding: str, width: int, height: int, step: int) -> np.ndarray:
    channels, conversion = _PACKED[encoding]
    rows = _rows(data, encoding, width * channels, height, step)
    if step != rows.shape[1]:
        rows = np.ascontiguousarray(rows)
    pixels = rows.reshape(height, width, channels)
    return pixels if conversion is None else cv2.cvtColor(pixels, conversion)


def _yuv422(data: np.ndarray, encoding: str, width: int, height: int, step: int) -> np.ndarray:
    """Two pixels share their colour. An odd last pixel takes its missing half from its left."""
    rows = _rows(data, encoding, width * 2, height, step)
    pixels = np.ascontiguousarray(rows).reshape(height, width, 2)
    if width % 2:
        if width > 1:
            last = pixels[:, -2:-1].copy()
        else:
            last = np.full((height, 1, 2), 128, np.uint8)
        luma = 1 if encoding == "yuv422" else 0
        last[..., luma] = pixels[:, -1:, luma]
        pixels = np.ascontiguousarray(np.concatenate([pixels, last], axis=1))
    return np.ascontiguousarray(cv2.cvtColor(pixels, _YUV422[encoding])[:, :width])


def _yuv420(data: np.ndarray, encoding: str, width: int, height: int, step: int) -> np.ndarray:
    """A full plane of luma, then one of pairs of colours, half as high, with the same step."""
    even_w, even_h = width + width % 2, height + height % 2
    # Some drivers count the colours into the step: 1.5 bytes a pixel, rows packed.
    if step > width and step * 2 == width * 3 and data.size == step * height:
        step = width
    luma = _rows(data, encoding, width, height, step)
    colour_step = max(step, even_w)
    colour = _rows(data[step * height :], encoding, even_w, even_h // 2, colour_step)
    planes = np.empty((even_h * 3 // 2, even_w), np.uint8)
    planes[:height, :width] = luma
    planes[:height, width:] = luma[:, -1:]
    planes[height:even_h] = planes[height - 1]
    planes[even_h:] = colour
    rgb = cv2.cvtColor(planes, _YUV420[encoding])
    return np.ascontiguousarray(rgb[:height, :width])


def _bayer(mosaic: np.ndarray, encoding: str) -> np.ndarray:
    """OpenCV's demosaicing, which wants three rows and columns at least."""
    height, width = mosaic.shape
    if height < 2 or width < 2:  # not one whole cell of the pattern: no colour to be had
        return cv2.cvtColor(np.ascontiguousarray(mosaic), cv2.COLOR_GRAY2RGB)
    tiles = (3 if height == 2 else 1, 3 if width == 2 else 1)
    whole = np.ascontiguousarray(np.tile(mosaic, tiles))
    rgb = cv2.cvtColor(whole, _BAYER[encoding])
    y, x = (2 if tiles[0] == 3 else 0), (2 if tiles[1] == 3 else 0)
    return np.ascontiguousarray(rgb[y : y + height, x : x + width])


def _by_cv_bridge(msg: Any) -> np.ndarray:
    """The remaining encodings, where a ROS installation brings cv_bridge."""
    try:
        from cv_bridge import CvBridge
    except ImportError:
        known = ", ".join(ENCODINGS)
        raise ImageError(f"unknown image encoding {msg.encoding!r}; known: {known}") from None
    try:
        return np.ascontiguousarray(CvBridge().imgmsg_to_cv2(msg, "rgb8"))
    except Exception as error:  # cv_bridge raises several kinds, none of which may stop a stream
        raise ImageError(f"image encoding {msg.encoding!r}: {error}") from None
