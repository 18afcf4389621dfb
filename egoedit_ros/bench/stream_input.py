# SPDX-License-Identifier: Apache-2.0
"""The input of a stream benchmark, all of it in memory before anything is measured."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from egoedit_ros.data import cdr
from egoedit_ros.data.source import SerializedFrame, open_source, period_ns
from egoedit_ros.errors import UserError

MEBIBYTE = 1 << 20
MOST_BYTES = 512 * MEBIBYTE


@dataclass(frozen=True, slots=True)
class Frames:
    """Serialized messages of one type, played round after round.

    own_hz: rate of the input's own timing. notes: what there is to say of the input.
    """

    frames: list[SerializedFrame]
    msgtype: str
    own_hz: float
    notes: list[str] = field(default_factory=list)

    def due_ns(self, index: int) -> int:
        """When frame ``index`` (counted over all rounds) is due by the input's own timing."""
        rounds, position = divmod(index, len(self.frames))
        first, last = self.frames[0].due_ns, self.frames[-1].due_ns
        length = last - first + round(cdr.NANO / self.own_hz)
        return rounds * length + self.frames[position].due_ns - first

    def message(self, index: int, stamp: int) -> bytes:
        """Frame ``index`` (counted over all rounds) as CDR under another stamp."""
        return cdr.with_stamp(self.frames[index % len(self.frames)].data, stamp)


def load_frames(
    path: str | Path,
    topic: str | None = None,
    size: tuple[int, int] | None = None,
    most_bytes: int = MOST_BYTES,
) -> Frames:
    """Read a bag or a video, as far as it fits into ``most_bytes``.

    size: (width, height) to bring the pictures to, by area, as raw rgb8; None leaves the messages
    as they are. Raises UserError for an input without pictures, or with one that does not decode
    where it has to.
    """
    source = open_source(path, topic)
    frames: list[SerializedFrame] = []
    notes: list[str] = []
    taken = 0
    try:
        for frame in source.serialized():
            if size is not None:
                frame = _resized(source, frame, size)
            if frames and taken + len(frame.data) > most_bytes:
                count = getattr(source, "count", 0)
                notes.append(
                    f"the first {len(frames)} of {count} frames are played, round after round: "
                    f"{most_bytes // MEBIBYTE} MiB are kept in memory"
                )
                break
            frames.append(frame)
            taken += len(frame.data)
    finally:
        source.close()
    if not frames:
        raise UserError(f"{path} has no pictures; choose another input or --topic")
    if source.kind == "bag" and not any(frame.stamp_ns for frame in frames):
        notes.append(
            "all stamps of the input are zero: its own timing is that of the recording, and the "
            "frames are sent with stamps of their own"
        )
    own_hz = cdr.NANO / period_ns([frame.due_ns for frame in frames])
    return Frames(frames, frames[0].msgtype, own_hz, notes)


def _resized(source, frame: SerializedFrame, size: tuple[int, int]) -> SerializedFrame:
    from egoedit_ros.stream.images import area_resize, compressed_to_rgb, to_rgb

    reader = getattr(source, "reader", None)
    if hasattr(reader, "deserialize"):
        message = reader.deserialize(frame.data, frame.msgtype)
    else:
        message = cdr.typestore().deserialize_cdr(frame.data, frame.msgtype)
    read = compressed_to_rgb if frame.msgtype == cdr.COMPRESSED else to_rgb
    data = cdr.image_cdr(area_resize(read(message), size), frame.stamp_ns, message.header.frame_id)
    return replace(frame, data=data, msgtype=cdr.IMAGE)


def decoded(frames: Frames, most: int) -> list:
    """The first ``most`` pictures, uint8 ``[h, w, 3]`` rgb, for calls without a graph."""
    from egoedit_ros.stream.images import compressed_to_rgb, to_rgb

    read = compressed_to_rgb if frames.msgtype == cdr.COMPRESSED else to_rgb
    store = cdr.typestore()
    return [
        read(store.deserialize_cdr(frame.data, frames.msgtype)).copy()
        for frame in frames.frames[:most]
    ]
