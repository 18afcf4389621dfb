# SPDX-License-Identifier: Apache-2.0
"""What a replay left behind, read back: the recorded bag and the notes of replay and recorder."""

from __future__ import annotations

import json
from collections import defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from egoedit_ros.data import cdr
from egoedit_ros.data.bags import BagReader
from egoedit_ros.errors import UserError
from egoedit_ros.stream import names

BAG = "edited"
LOGS = "logs"
REPLAY_NOTES = "replay.jsonl"
RECORDER_NOTES = "arrivals.jsonl"


@dataclass(frozen=True, slots=True)
class Arrival:
    """One message that the recorder took: header stamp, and monotonic times in ns."""

    stamp: int
    mono_ns: int
    sent_ns: int


@dataclass(slots=True)
class Recording:
    """A replay's folder, read. Times are ns of this machine's monotonic clock.

    published: (stamp, time) of each frame the replay sent; edited, camera: as received;
    latencies, statuses, instructions, switches: the messages, in order; instruction_sent: when
    each of ``instructions`` was sent, status_times: when each status came.
    """

    folder: Path
    published: list[tuple[int, int]] = field(default_factory=list)
    edited: list[Arrival] = field(default_factory=list)
    camera: list[Arrival] = field(default_factory=list)
    latencies: list = field(default_factory=list)
    statuses: list = field(default_factory=list)
    status_times: list[int] = field(default_factory=list)
    instructions: list = field(default_factory=list)
    instruction_sent: list[int] = field(default_factory=list)
    switches: list = field(default_factory=list)
    unreadable: int = 0

    def instruction_texts(self) -> dict[str, str]:
        """Text by instruction id."""
        return {one.id: one.text for one in (*self.instructions, *self.switches)}

    def texts_by_stamp(self) -> dict[int, str]:
        """The instruction in force for each frame, by its stamp."""
        texts = self.instruction_texts()
        return {message_stamp(m): texts.get(m.instruction_id, "") for m in self.latencies}


def message_stamp(message: object) -> int:
    """Header stamp in ns of a parsed message."""
    stamp = message.header.stamp
    return stamp.sec * cdr.NANO + stamp.nanosec


def load(folder: Path) -> Recording:
    """Read a replay's folder. Missing notes are made up for from the bag as far as they can be.

    Raises UserError if the bag cannot be read.
    """
    recording = Recording(folder)
    notes = _notes(folder / LOGS / REPLAY_NOTES)
    recording.published = [(n["stamp"], n["mono_ns"]) for n in notes if n["event"] == "frame"]
    recording.unreadable = sum(n.get("unreadable", 0) for n in notes if n["event"] == "end")
    arrivals: dict[str, list[Arrival]] = defaultdict(list)
    for note in _notes(folder / LOGS / RECORDER_NOTES):
        arrival = Arrival(note["stamp"], note["mono_ns"], note["sent_ns"])
        arrivals[note["topic"]].append(arrival)

    with BagReader(folder / BAG) as reader:
        parsed = {
            names.TOPIC_LATENCY: recording.latencies,
            names.TOPIC_STATUS: recording.statuses,
            names.TOPIC_INSTRUCTION: recording.instructions,
            names.TOPIC_ACTIVE: recording.switches,
        }
        topics = {
            connection.topic: _relative(connection.topic) for connection in reader.connections
        }
        wanted = [c for c in reader.connections if topics[c.topic] in parsed and c.msgcount]
        for connection, _, data in reader.messages(wanted) if wanted else ():
            message = reader.deserialize(data, connection.msgtype)
            parsed[topics[connection.topic]].append(message)
    for topic, arrived in arrivals.items():
        relative = _relative(topic)
        if relative == names.TOPIC_EDITED:
            recording.edited = arrived
        elif relative == names.TOPIC_STATUS:
            recording.status_times = [a.mono_ns for a in arrived]
        elif relative == names.TOPIC_INSTRUCTION:
            recording.instruction_sent = [a.sent_ns for a in arrived]
        elif relative in (names.TOPIC_IMAGE, names.compressed_topic(names.TOPIC_IMAGE)):
            recording.camera = arrived
    if not recording.published:
        recording.published = [(a.stamp, a.sent_ns) for a in recording.camera]
    return recording


def picture_pairs(
    folder: Path, size: tuple[int, int], only: set[int] | None = None
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yield (stamp, source, edited) for each edited frame that has its source, in order.

    Sources are resized to ``size`` (width, height) by area, to hold many; edited frames are as
    they are. uint8 rgb. Frames that cannot be read are left out.
    """
    from egoedit_ros.stream.images import area_resize, compressed_to_rgb, to_rgb

    sources: dict[int, deque[np.ndarray]] = defaultdict(deque)
    with BagReader(folder / BAG) as reader:
        images = reader.image_topics()
        for connection, _, data in reader.messages(images) if images else ():
            stamp = cdr.stamp_ns(data)
            is_edit = _relative(connection.topic) == names.TOPIC_EDITED
            if (only is not None and stamp not in only) or (is_edit and not sources[stamp]):
                continue
            try:
                message = reader.deserialize(data, connection.msgtype)
                compressed = connection.msgtype == cdr.COMPRESSED
                picture = compressed_to_rgb(message) if compressed else to_rgb(message)
            except UserError:
                continue
            if not is_edit:
                sources[stamp].append(area_resize(picture, size))
                continue
            yield stamp, sources[stamp].popleft(), picture
            # Frames come out in order, so what lies before this one was dropped.
            for old in [s for s, waiting in sources.items() if s < stamp or not waiting]:
                del sources[old]


def picture_sizes(folder: Path) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """(width, height) of the first source and the first edited frame; None without both."""
    sizes: dict[bool, tuple[int, int]] = {}
    with BagReader(folder / BAG) as reader:
        for connection in reader.image_topics():
            is_edit = _relative(connection.topic) == names.TOPIC_EDITED
            _, _, data = next(reader.messages([connection]))
            message = reader.deserialize(data, connection.msgtype)
            if connection.msgtype == cdr.COMPRESSED:
                from egoedit_ros.stream.images import compressed_to_rgb

                height, width = compressed_to_rgb(message).shape[:2]
            else:
                width, height = message.width, message.height
            sizes[is_edit] = (width, height)
    return (sizes[False], sizes[True]) if len(sizes) == 2 else None


def _relative(topic: str) -> str:
    """The contract's name of a topic that a namespace may have moved."""
    known = (
        *(names.compressed_topic(names.TOPIC_IMAGE), names.TOPIC_EDITED, names.TOPIC_EDITED_INFO),
        *(names.TOPIC_IMAGE, names.TOPIC_ACTIVE, names.TOPIC_INSTRUCTION),
        *(names.TOPIC_LATENCY, names.TOPIC_STATUS),
    )
    return next((k for k in known if topic == k or topic.endswith("/" + k)), topic)


def _notes(path: Path) -> list[dict]:
    """A file of JSON lines; a last line cut off by a kill is left out."""
    notes = []
    try:
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                try:
                    notes.append(json.loads(line))
                except ValueError:
                    break
    except FileNotFoundError:
        pass
    return notes
