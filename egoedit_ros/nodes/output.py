# SPDX-License-Identifier: Apache-2.0
"""What the editor sends for a frame: picture, JPEG, mask and camera_info, as far as wanted."""

from __future__ import annotations

import struct
from copy import deepcopy

import numpy as np
from rclpy.event_handler import PublisherEventCallbacks
from rclpy.lifecycle import LifecycleNode
from rclpy.serialization import serialize_message
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from egoedit_ros.nodes import qos
from egoedit_ros.stream import names
from egoedit_ros.stream.images import encode_jpeg, fill_data, fill_image
from egoedit_ros.stream.picture import Geometry
from egoedit_ros.stream.types import EditedFrame


class EditedPublisher:
    """The ``edited/*`` topics. One thread at a time may call :meth:`publish`."""

    def __init__(self, node: LifecycleNode, depth: int, jpeg_quality: int) -> None:
        self.jpeg_quality = jpeg_quality
        self._node = node
        self._depth = depth
        edited = node.resolve_topic_name(names.TOPIC_EDITED)
        self._image = self._publisher(Image, names.TOPIC_EDITED)
        self._compressed = self._publisher(CompressedImage, names.compressed_topic(edited))
        self._mask = self._publisher(Image, names.TOPIC_MASK)
        self._info = self._publisher(CameraInfo, names.camera_info_topic(edited))
        self._scaled: tuple[CameraInfo, Geometry, CameraInfo] | None = None
        self._serialize = ImageSerializer()
        self._wants_jpeg = self._wants_mask = False

    def publish(
        self, edited: EditedFrame, geometry: Geometry, camera_info: CameraInfo | None
    ) -> None:
        """Send a frame under its own header; returns when all publish calls have.

        Whether somebody listens to JPEG and mask is looked up once a chunk: asking costs a tenth
        of a publication.
        """
        header = edited.frame.token
        self._image.publish(self._serialize(header, edited.image))
        if edited.position == 0:
            self._wants_jpeg = bool(self._compressed.get_subscription_count())
            self._wants_mask = bool(self._mask.get_subscription_count())
        if camera_info is not None:
            info = self._scaled_info(camera_info, geometry)
            info.header = header
            self._info.publish(info)
        if self._wants_jpeg:
            jpeg = CompressedImage(header=header, format="rgb8; jpeg compressed bgr8")
            fill_data(jpeg, encode_jpeg(edited.image, self.jpeg_quality))
            self._compressed.publish(jpeg)
        if self._wants_mask:
            mask = Image(header=header)
            fill_image(mask, edited.mask, "mono8")
            self._mask.publish(mask)

    def destroy(self) -> None:
        """Take the topics off the graph."""
        for publisher in (self._image, self._compressed, self._mask, self._info):
            self._node.destroy_lifecycle_publisher(publisher)

    def _publisher(self, kind: type, topic: str):
        profile = qos.reliable(self._depth)
        resolved = self._node.resolve_topic_name(topic)
        warn = qos.on_incompatible(
            self._node, resolved, profile, "subscriptions", self._node.get_logger().warning
        )
        return self._node.create_lifecycle_publisher(
            kind,
            topic,
            profile,
            event_callbacks=PublisherEventCallbacks(incompatible_qos=warn),
            qos_overriding_options=qos.overridable(),
        )

    def _scaled_info(self, camera_info: CameraInfo, geometry: Geometry) -> CameraInfo:
        scaled = self._scaled
        if scaled is None or scaled[0] is not camera_info or scaled[1] != geometry:
            # Most cameras send the same figures with every frame: scaling them anew is cheap.
            scaled = (camera_info, geometry, scale_camera_info(camera_info, geometry))
            self._scaled = scaled
        return scaled[2]


class ImageSerializer:
    """rgb8 pictures as the bytes that sensor_msgs/Image travels in.

    A message object would be copied twice more on its way (into C, then into these bytes). What
    stands before the pixels is rclpy's own serialization of an image without any; only the stamp
    changes from frame to frame.
    """

    # After the encapsulation: its second byte tells the byte order.
    _STAMP_AT = 4
    _LENGTH = 4

    def __init__(self) -> None:
        self._key: tuple | None = None
        self._head = bytearray()
        self._stamp = struct.Struct("<iI")

    def __call__(self, header: Header, picture: np.ndarray) -> bytes:
        """picture: uint8 ``[H, W, 3]``."""
        key = (header.frame_id, picture.shape)
        if key != self._key:
            self._make_head(header, picture)
            self._key = key
        stamp = header.stamp
        self._stamp.pack_into(self._head, self._STAMP_AT, stamp.sec, stamp.nanosec)
        return b"".join((self._head, memoryview(np.ascontiguousarray(picture)).cast("B")))

    def _make_head(self, header: Header, picture: np.ndarray) -> None:
        height, width = picture.shape[:2]
        empty = Image(header=header, height=height, width=width, encoding="rgb8", step=3 * width)
        self._head = bytearray(serialize_message(empty))
        order = "<" if self._head[1] & 1 else ">"
        self._stamp = struct.Struct(f"{order}iI")
        # The last field is the length of the data, which were none.
        struct.pack_into(f"{order}I", self._head, len(self._head) - self._LENGTH, picture.nbytes)


def scale_camera_info(info: CameraInfo, geometry: Geometry) -> CameraInfo:
    """camera_info of the picture that is sent.

    K, P and the region of interest are scaled to its size (and moved by the crop); distortion
    belongs to the lens and stays, whatever its model. Pixel coordinates scale as image_proc's
    resize does it: without a half-pixel shift.
    """
    sx, sy, x0, y0 = geometry.scale
    # camera_info speaks of the unbinned picture.
    x0, y0 = x0 * max(1, info.binning_x), y0 * max(1, info.binning_y)
    scaled = deepcopy(info)
    scaled.width, scaled.height = _scaled_size(info, geometry)
    for matrix, columns in ((scaled.k, 3), (scaled.p, 4)):
        if not any(matrix):
            continue  # not calibrated
        for column in range(columns):
            shift = 1.0 if column == 2 else 0.0
            matrix[column] = (matrix[column] - shift * x0 * matrix[2 * columns + 2]) * sx
            at = columns + column
            matrix[at] = (matrix[at] - shift * y0 * matrix[2 * columns + 2]) * sy
    roi = scaled.roi
    if roi.width or roi.height:
        right, bottom = roi.x_offset + roi.width - x0, roi.y_offset + roi.height - y0
        left, top = max(0.0, roi.x_offset - x0), max(0.0, roi.y_offset - y0)
        roi.x_offset = min(scaled.width, round(left * sx))
        roi.y_offset = min(scaled.height, round(top * sy))
        roi.width = max(0, min(scaled.width, round(right * sx)) - roi.x_offset)
        roi.height = max(0, min(scaled.height, round(bottom * sy)) - roi.y_offset)
    return scaled


def _scaled_size(info: CameraInfo, geometry: Geometry) -> tuple[int, int]:
    """(width, height) for the scaled camera_info: the output's, if the camera's was the image's."""
    if geometry.fit == "crop" or (info.width, info.height) in (geometry.camera, (0, 0)):
        return geometry.output
    sx, sy, _, _ = geometry.scale
    return round(info.width * sx), round(info.height * sy)
