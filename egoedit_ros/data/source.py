# SPDX-License-Identifier: Apache-2.0
"""One interface over what frames come from: an image topic of a bag, or a video file."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Protocol

import numpy as np

from egoedit_ros.data import cdr
from egoedit_ros.data.bags import BagReader, is_bag, storage_files
from egoedit_ros.data.video import VideoReader
from egoedit_ros.errors import UserError
from egoedit_ros.stream.names import camera_info_topic

NANO = 1_000_000_000
# A zero stamp means "not set" in ROS, so a video's first frame stands at one second.
VIDEO_START_NS = NANO
# A camera's stamps may lead the recorder's clock by this much before they are disbelieved.
SANE_STEP_NS = 10 * NANO
FRAMES_FOR_RATE = 64


@dataclass(frozen=True, slots=True)
class SerializedFrame:
    """A picture as it travels: stamp_ns of its header, due_ns (when to send it, a clock of its
    own that never goes back), CDR bytes and message type."""

    stamp_ns: int
    due_ns: int
    data: bytes
    msgtype: str


class FrameSource(Protocol):
    """Frames of one camera, in order, as often as wanted.

    ``kind``: bag or video; ``topic``: of a bag, '' for a video; ``msgtype``: of the serialized
    frames; ``count``: frames as the file tells, exact but for damaged videos; ``stamps``: of each
    in ns (reads the whole input once); ``first_stamp_ns``; ``fps``: by the median period.
    """

    path: Path
    kind: str
    topic: str
    msgtype: str
    count: int
    stamps: list[int]
    first_stamp_ns: int
    fps: float

    def frames(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (stamp_ns, uint8 ``[h, w, 3]`` rgb)."""

    def serialized(self, frame_id: str = "camera") -> Iterator[SerializedFrame]:
        """Yield ROS messages as bytes; frame_id is for frames that have none."""

    def camera_info(self) -> bytes | None:
        """The first serialized sensor_msgs/CameraInfo beside the pictures, if there is one."""

    def close(self) -> None:
        """Release files."""


class BagSource:
    """The pictures of one topic of a rosbag2."""

    kind = "bag"

    def __init__(self, path: str | Path, topic: str | None = None) -> None:
        self.path = Path(path)
        self.reader = BagReader(path)
        try:
            self.connection = self.reader.choose_image_topic(topic)
        except BaseException:
            self.reader.close()
            raise
        self.topic = self.connection.topic
        self.msgtype = self.connection.msgtype
        self.count = self.connection.msgcount

    @cached_property
    def stamps(self) -> list[int]:
        return [frame.stamp_ns for frame in self.serialized()]

    @cached_property
    def first_stamp_ns(self) -> int:
        return next(self.serialized()).stamp_ns

    @cached_property
    def fps(self) -> float:
        return NANO / period_ns([f.due_ns for f in islice(self.serialized(), FRAMES_FOR_RATE)])

    def frames(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (stamp_ns, rgb); raises UserError at a picture that cannot be decoded."""
        from egoedit_ros.stream.images import compressed_to_rgb, to_rgb

        convert = compressed_to_rgb if self.msgtype == cdr.COMPRESSED else to_rgb
        for frame in self.serialized():
            yield frame.stamp_ns, convert(self.reader.deserialize(frame.data, self.msgtype))

    def serialized(self, frame_id: str = "camera") -> Iterator[SerializedFrame]:
        due = 0
        last: tuple[int, int] | None = None
        for _, recorded, data in self.reader.messages([self.connection]):
            try:
                stamp = cdr.stamp_ns(data)
            except (struct.error, IndexError):
                raise UserError(
                    f"{self.path} has a picture of {len(data)} bytes, too short for its stamp; the "
                    f"bag is damaged, try 'egoedit doctor --recover {self.path}'"
                ) from None
            if last is not None:
                # The camera's clock is steadier than the recorder's, as long as it makes sense.
                by_stamp, by_record = stamp - last[0], max(0, recorded - last[1])
                due += by_stamp if 0 < by_stamp <= by_record + SANE_STEP_NS else by_record
            last = (stamp, recorded)
            yield SerializedFrame(stamp, due, bytes(data), self.msgtype)

    def camera_info(self) -> bytes | None:
        wanted = camera_info_topic(self.topic)
        found = [c for c in self.reader.connections if c.topic == wanted and c.msgcount]
        if not found or found[0].msgtype != cdr.CAMERA_INFO:
            return None
        return bytes(next(self.reader.messages(found[:1]))[2])

    def close(self) -> None:
        self.reader.close()


class VideoSource:
    """The frames of a video file. fps: 0 keeps the file's timing, else frames come evenly."""

    kind = "video"
    topic = ""
    msgtype = cdr.IMAGE
    first_stamp_ns = VIDEO_START_NS

    def __init__(self, path: str | Path, fps: float = 0.0) -> None:
        self.path = Path(path)
        self.reader = VideoReader(path)
        self._fps = fps

    def _stamp(self, index: int, file_stamp: int) -> int:
        own = round(index * NANO / self._fps) if self._fps else file_stamp
        return VIDEO_START_NS + own

    @cached_property
    def stamps(self) -> list[int]:
        return [self._stamp(i, stamp) for i, stamp in enumerate(self.reader.stamps())]

    @property
    def count(self) -> int:
        return len(self.stamps)

    @property
    def fps(self) -> float:
        return self._fps or NANO / period_ns(self.stamps)

    def frames(self) -> Iterator[tuple[int, np.ndarray]]:
        for index, (stamp, rgb) in enumerate(self.reader):
            yield self._stamp(index, stamp), rgb

    def serialized(self, frame_id: str = "camera") -> Iterator[SerializedFrame]:
        for stamp, rgb in self.frames():
            data = cdr.image_cdr(rgb, stamp, frame_id)
            yield SerializedFrame(stamp, stamp - VIDEO_START_NS, data, self.msgtype)

    def camera_info(self) -> bytes | None:
        return None

    def close(self) -> None:
        pass


def open_source(path: str | Path, topic: str | None = None, fps: float = 0.0) -> FrameSource:
    """Open a rosbag2 (folder, .mcap, .db3) or a video file.

    topic: image topic of a bag, None for its only one. Raises UserError for wrong input, among
    it a topic named for a video.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"no such file or folder: {path}; check the path")
    if is_bag(path) or path.suffix == ".bag":
        return BagSource(path, topic)
    if topic:
        raise UserError(f"{path} is a video and has no topics; leave --topic away")
    return VideoSource(path, fps)


def period_ns(stamps: list[int]) -> int:
    """Median time between frames in ns; 1/30 s where that cannot be told."""
    steps = [b - a for a, b in zip(stamps, stamps[1:], strict=False) if b > a]
    return round(median(steps)) if steps else NANO // 30


def sha256_of(path: str | Path) -> str:
    """Hex digest over a video file, or over a bag's storage files in order of name."""
    path = Path(path)
    digest = hashlib.sha256()
    for file in storage_files(path) if path.is_dir() else [path]:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
