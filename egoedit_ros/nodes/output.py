# SPDX-License-Identifier: Apache-2.0
"""What the editor sends for a frame: picture, JPEG, mask and camera_info, as far as wanted."""

from __future__ import annotations

from copy import deepcopy

from rclpy.event_handler import PublisherEventCallbacks
from rclpy.lifecycle import LifecycleNode
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

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

    def publish(
        self, edited: EditedFrame, geometry: Geometry, camera_info: CameraInfo | None
    ) -> None:
        """Send a frame under its own header; returns when all publish calls have."""
        header = edited.frame.token
        image = Image(header=header)
        fill_image(image, edited.image, "rgb8")
        self._image.publish(image)
        if camera_info is not None:
            info = self._scaled_info(camera_info, geometry)
            info.header = header
            self._info.publish(info)
        if self._compressed.get_subscription_count():
            jpeg = CompressedImage(header=header, format="rgb8; jpeg compressed bgr8")
            fill_data(jpeg, encode_jpeg(edited.image, self.jpeg_quality))
            self._compressed.publish(jpeg)
        if self._mask.get_subscription_count():
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
