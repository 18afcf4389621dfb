# SPDX-License-Identifier: Apache-2.0
"""Small bags and videos for tests, and commands run as a user runs them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from egoedit_ros.data import cdr
from egoedit_ros.data.bag_writer import BagWriter
from egoedit_ros.data.video import VideoWriter

ROOT = Path(__file__).resolve().parents[1]
SAMPLES = ROOT.parent / "shared" / "egoedit_samples" / "bench"
START_NS = 1_700_000_000_000_000_000
PERIOD_NS = 62_500_000
FRAME_ID = "head_camera"


def picture(index: int, size: tuple[int, int] = (64, 48)) -> np.ndarray:
    """A smooth picture that differs from frame to frame, uint8 rgb."""
    width, height = size
    y, x = np.mgrid[0:height, 0:width]
    red = 255 * x / max(1, width - 1)
    green = 255 * y / max(1, height - 1)
    blue = np.full_like(red, (index * 9) % 256)
    return np.stack([red, green, blue], -1).astype(np.uint8)


def write_bag(
    path: Path,
    frames: int = 9,
    size: tuple[int, int] = (64, 48),
    topic: str = "/camera/image_raw",
    stamps: list[int] | None = None,
    extra: bool = False,
    more_topics: tuple[str, ...] = (),
    compressed: bool = False,
) -> list[int]:
    """A bag of synthetic pictures; ``extra``: camera_info and text beside them. Returns stamps."""
    stamps = stamps or [START_NS + i * PERIOD_NS for i in range(frames)]
    types = cdr.typestore().types
    info_topic = topic.rsplit("/", 1)[0] + "/camera_info"
    with BagWriter(path) as writer:
        msgtype = cdr.COMPRESSED if compressed else cdr.IMAGE
        for name in (topic, *more_topics):
            writer.add_topic(name, msgtype)
        if extra:
            writer.add_topic(info_topic, cdr.CAMERA_INFO)
            writer.add_topic("/note", "std_msgs/msg/String")
        for i, stamp in enumerate(stamps):
            recorded = START_NS + i * PERIOD_NS
            for name in (topic, *more_topics):
                rgb = picture(i, size)
                if compressed:
                    from egoedit_ros.stream.images import encode_jpeg

                    data = cdr.compressed_cdr(bytes(encode_jpeg(rgb, 95)), stamp, FRAME_ID)
                else:
                    data = cdr.image_cdr(rgb, stamp, FRAME_ID)
                writer.write(name, recorded, data)
            if extra:
                note = types["std_msgs/msg/String"](data=f"note {i}")
                writer.write("/note", recorded, cdr.serialize(note, "std_msgs/msg/String"))
                writer.write(info_topic, recorded, camera_info(stamp, size))
    return stamps


def camera_info(stamp: int, size: tuple[int, int]) -> bytes:
    """A serialized CameraInfo of a pinhole camera."""
    types = cdr.typestore().types
    width, height = size
    k = np.array([50.0, 0, width / 2, 0, 50.0, height / 2, 0, 0, 1])
    message = types[cdr.CAMERA_INFO](
        header=cdr.make_header(stamp, FRAME_ID),
        height=height,
        width=width,
        distortion_model="plumb_bob",
        d=np.zeros(5),
        k=k,
        r=np.eye(3).reshape(-1),
        p=np.insert(k, [3, 6, 9], 0.0),
        binning_x=0,
        binning_y=0,
        roi=types["sensor_msgs/msg/RegionOfInterest"](
            x_offset=0, y_offset=0, height=0, width=0, do_rectify=False
        ),
    )
    return cdr.serialize(message, cdr.CAMERA_INFO)


def write_video(path: Path, frames: int = 9, size: tuple[int, int] = (64, 48), fps: int = 16):
    """A video of the same pictures."""
    with VideoWriter(path, size, fps) as writer:
        for i in range(frames):
            writer.write(round(i * 1e9 / fps), picture(i, size))
    return path


def command(*words: object) -> list[str]:
    """``egoedit`` with these words, in this Python."""
    return [sys.executable, "-m", "egoedit_ros.cli.main", *map(str, words)]


def environment() -> dict[str, str]:
    """For child processes: one thread each, this source tree."""
    env = dict(os.environ)
    env["OMP_NUM_THREADS"] = "1"
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), env.get("PYTHONPATH")]))
    return env


def egoedit(*words: object, timeout: float = 120) -> subprocess.CompletedProcess:
    """Run ``egoedit`` to its end."""
    return subprocess.run(
        command(*words), capture_output=True, text=True, timeout=timeout, env=environment()
    )


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    """Peak signal to noise ratio in dB of uint8 pictures, capped at 100."""
    error = np.mean((one.astype(np.float64) - other.astype(np.float64)) ** 2)
    return 100.0 if error == 0 else 10 * np.log10(255**2 / error)
