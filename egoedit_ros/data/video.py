# SPDX-License-Identifier: Apache-2.0
"""Video files in and out: frames with their own timing, colours that survive, no half files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace

from egoedit_ros.errors import UserError

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts"}
)
NANO = 1_000_000_000
DEFAULT_TIME_BASE = Fraction(1, 90_000)
# H.273 code of BT.709, what every player assumes of a picture it is told nothing about.
BT709 = 1


class VideoReader:
    """The first video stream of a file.

    Attributes: ``path``; ``size`` (width, height) as shown, that is after the file's rotation;
    ``fps`` (0.0 if the file does not say); ``frames`` by the container (0 if it does not say);
    ``time_base`` of the file's stamps in seconds. Raises UserError for what is no video.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.exists():
            raise UserError(f"no such file: {self.path}; check the path")
        if not self.path.is_file():
            raise UserError(f"{self.path} is not a file; give a video file or a rosbag2")
        if self.path.stat().st_size == 0:
            raise UserError(f"{self.path} is empty (0 bytes); copy or record it again")
        try:
            with av.open(str(self.path)) as container:
                if not container.streams.video:
                    raise UserError(f"{self.path} has no video stream; give a video or a rosbag2")
                stream = container.streams.video[0]
                self.size = (stream.codec_context.width, stream.codec_context.height)
                self.fps = float(stream.average_rate or stream.base_rate or 0)
                self.frames = int(stream.frames)
                self.time_base = Fraction(stream.time_base or DEFAULT_TIME_BASE)
                first = next(container.decode(stream), None)
        except av.error.FFmpegError as error:
            raise UserError(
                f"{self.path} cannot be read as a video ({_reason(error)}); "
                "give a video file (mp4, mkv, ...) or a rosbag2 folder"
            ) from None
        except PermissionError:
            raise UserError(f"{self.path} may not be read; check its permissions") from None
        if first is None:
            raise UserError(f"{self.path} holds no frame that decodes; copy or record it again")
        if _quarter_turns(first) % 2:
            self.size = self.size[::-1]

    def stamps(self) -> list[int]:
        """Stamps in ns of all frames, from 0 for the first, without decoding their pictures.

        Frames that will not decode may be among them: :meth:`__iter__` has the last word.
        """
        stamps: list[int] = []
        try:
            with av.open(str(self.path)) as container:
                stream = container.streams.video[0]
                for packet in container.demux(stream):
                    if packet.pts is not None and packet.size:
                        stamps.append(packet.pts)
        except av.error.FFmpegError:
            pass  # a truncated end: what was read so far counts
        stamps.sort()
        return [_to_ns(pts - stamps[0], self.time_base) for pts in stamps]

    def __iter__(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (stamp in ns from the first frame on, uint8 ``[h, w, 3]`` rgb).

        A damaged file gives the frames before the damage; frames without a stamp follow the one
        before them by one period.
        """
        period = Fraction(1, 1) / Fraction(self.fps).limit_denominator(100_000) if self.fps else 0
        first: Fraction | None = None
        last: Fraction | None = None
        try:
            with av.open(str(self.path)) as container:
                stream = container.streams.video[0]
                stream.thread_type = "AUTO"
                for frame in container.decode(stream):
                    if frame.pts is not None:
                        seconds = frame.pts * Fraction(frame.time_base or self.time_base)
                    else:
                        seconds = (
                            Fraction(0) if last is None else last + (period or Fraction(1, 30))
                        )
                    first = seconds if first is None else first
                    last = seconds
                    rgb = frame.to_ndarray(format="rgb24")
                    turns = _quarter_turns(frame)
                    yield round((seconds - first) * NANO), np.rot90(rgb, turns) if turns else rgb
        except av.error.FFmpegError as error:
            if last is None:
                raise UserError(f"{self.path} does not decode ({_reason(error)})") from None


class VideoWriter:
    """H.264 (crf 18, yuv420p) into ``path``, which appears only when all of it is written.

    Use as a context manager: an exception inside leaves no file. size: (width, height); an odd
    side gets one repeated row or column, as 4:2:0 colour needs even ones. time_base: unit of the
    file's stamps in seconds, the source's own keeps its timing exactly.
    """

    def __init__(
        self,
        path: str | Path,
        size: tuple[int, int],
        fps: float = 0.0,
        time_base: Fraction | None = None,
        crf: int = 18,
        threads: int = 0,
    ) -> None:
        self.path = Path(path)
        self.size = size
        self.count = 0
        self._temporary = self.path.with_name(f".{self.path.stem}.{os.getpid()}.part.mp4")
        self._time_base = time_base or DEFAULT_TIME_BASE
        self._last_pts = -1
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Without faststart players have to fetch the whole file before the first frame.
            self._container = av.open(
                str(self._temporary), "w", format="mp4", options={"movflags": "+faststart"}
            )
        except OSError as error:
            raise UserError(
                f"cannot write {self.path} ({error.strerror}); choose a folder you may write to"
            ) from None
        rate = Fraction(fps or 30).limit_denominator(100_000)
        self._stream = self._container.add_stream("libx264", rate=rate)
        self._stream.width, self._stream.height = (side + side % 2 for side in size)
        self._stream.pix_fmt = "yuv420p"
        self._stream.options = {"crf": str(crf), "preset": "veryfast"}
        context = self._stream.codec_context
        context.thread_count = threads
        context.time_base = self._time_base
        context.colorspace = context.color_primaries = context.color_trc = BT709
        context.color_range = int(ColorRange.MPEG)

    def write(self, stamp_ns: int, rgb: np.ndarray) -> None:
        """Append uint8 ``[h, w, 3]``; stamps that do not go on are moved to the next possible."""
        height, width = rgb.shape[:2]
        if (width, height) != self.size:
            raise ValueError(f"frame of {width}x{height} in a video of {self.size}")
        if width % 2 or height % 2:
            rgb = np.pad(rgb, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24").reformat(
            format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
        )
        pts = round(Fraction(stamp_ns, NANO) / self._time_base)
        self._last_pts = frame.pts = max(pts, self._last_pts + 1)
        frame.time_base = self._time_base
        self._container.mux(self._stream.encode(frame))
        self.count += 1

    def close(self) -> None:
        """Finish the file and move it to its place."""
        self._container.mux(self._stream.encode())
        self._container.close()
        os.replace(self._temporary, self.path)

    def abort(self) -> None:
        """Drop what was written."""
        try:
            self._container.close()
        finally:
            self._temporary.unlink(missing_ok=True)

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None and self.count:
            self.close()
        else:
            self.abort()


def _quarter_turns(frame: av.VideoFrame) -> int:
    """Counterclockwise quarter turns that set the picture upright (phones store it lying)."""
    return round((frame.rotation or 0) / 90) % 4


def _to_ns(ticks: int, time_base: Fraction) -> int:
    return round(ticks * time_base * NANO)


def _reason(error: av.error.FFmpegError) -> str:
    return (error.strerror or str(error)).lower()
