# SPDX-License-Identifier: Apache-2.0
"""Training pairs from bags: a source topic, an edited topic and the instructions.

What ``egoedit replay`` leaves in ``edited/`` is such a bag; so is any recording in which the edited
frames carry the stamps of their source frames. Frames that were passed through, frames without an
instruction and frames whose other half is missing are left out, and no window spans a gap.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from egoedit_ros.data import cdr
from egoedit_ros.data.bags import BagReader
from egoedit_ros.data.clip import StoredClip
from egoedit_ros.data.footage import Cut, starts, thin
from egoedit_ros.errors import UserError
from egoedit_ros.stream import names
from egoedit_ros.stream.images import area_resize, compressed_to_rgb, to_rgb

TASK = "bag"
STRING = "std_msgs/msg/String"
# Frames further apart than this many periods have a gap between them.
GAP = 2.5


@dataclass(frozen=True)
class BagTopics:
    """Where the halves of a pair are; None finds them. text: an instruction for the whole bag."""

    source: str | None = None
    edited: str | None = None
    instruction: str | None = None
    text: str | None = None


@dataclass(frozen=True, slots=True)
class _Window:
    text: str
    stamps: tuple[int, ...]


class BagPairs:
    """The pairs of one bag. Raises UserError where a topic is missing, or there is a choice."""

    def __init__(self, path: Path, topics: BagTopics = BagTopics()) -> None:
        self.path = path
        self.reader = BagReader(path)
        try:
            self.edited = self._edited(topics.edited)
            self.source = self._source(topics.source)
            self.instruction = None if topics.text else self._instruction(topics.instruction)
        except BaseException:
            self.reader.close()
            raise
        self.text = topics.text

    def close(self) -> None:
        """Close the files."""
        self.reader.close()

    def __enter__(self) -> BagPairs:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _edited(self, topic: str | None):
        if topic:
            return self.reader.choose_image_topic(topic)
        mask = "/" + names.TOPIC_MASK
        found = [
            c
            for c in self.reader.image_topics()
            if "edited" in c.topic.split("/") and not c.topic.endswith(mask)
        ]
        return self._only(found, "edited", "--edited-topic")

    def _source(self, topic: str | None):
        if topic:
            return self.reader.choose_image_topic(topic)
        found = [c for c in self.reader.image_topics() if "edited" not in c.topic.split("/")]
        return self._only(found, "source", "--source-topic")

    def _only(self, found: list, half: str, option: str):
        raw = {c.topic for c in found}
        suffix = f"/{names.COMPRESSED_SUFFIX}"
        chosen = [c for c in found if c.topic.removesuffix(suffix) not in raw - {c.topic}]
        if len(chosen) == 1:
            return chosen[0]
        have = ", ".join(c.topic for c in chosen or self.reader.image_topics())
        several = f"{len(chosen)} topics could be" if chosen else "no topic is"
        raise UserError(
            f"{self.path}: {several} the {half} pictures; name one with {option}"
            + (f": {have}" if have else "; the bag has no image topic")
        )

    def _instruction(self, topic: str | None):
        """What was in force is known best by what the editor said of it."""
        kinds = (cdr.ACTIVE_INSTRUCTION, cdr.EDIT_INSTRUCTION, STRING)
        filled = [c for c in self.reader.connections if c.msgcount]
        if topic:
            wanted = {topic, "/" + topic.lstrip("/")}
            found = [c for c in filled if c.topic in wanted and c.msgtype in kinds]
        else:
            plain = names.TOPIC_INSTRUCTION_TEXT
            found = [c for kind in kinds[:2] for c in filled if c.msgtype == kind]
            found += [c for c in filled if c.msgtype == STRING and c.topic.endswith(plain)]
        if not found:
            said = f"topic {topic} carries no instruction" if topic else "no instruction topic"
            raise UserError(
                f"{self.path}: {said}; name one with --instruction-topic, or give the "
                "instruction of the whole bag with -i TEXT"
            )
        return found[0]

    def _passed_through(self) -> set[int]:
        """Stamps of frames that the editor sent on as they were."""
        found = [c for c in self.reader.connections if c.msgtype == cdr.FRAME_LATENCY]
        stamps = set()
        for _, _, data in self.reader.messages(found) if found else ():
            message = self.reader.deserialize(data, cdr.FRAME_LATENCY)
            if message.outcome == names.OUTCOME_PASSTHROUGH:
                stamps.add(cdr.stamp_ns(data))
        return stamps

    def _texts(self, recorded: dict[int, int]) -> list[tuple[int, str]]:
        """(first stamp, text), in order. recorded: time of record of each edited frame's stamp."""
        if self.instruction is None:
            return [(min(recorded, default=0), self.text)]
        frames = sorted((time, stamp) for stamp, time in recorded.items())
        times, found = [time for time, _ in frames], []
        for _, time, data in self.reader.messages([self.instruction]):
            message = self.reader.deserialize(data, self.instruction.msgtype)
            if self.instruction.msgtype == STRING:
                stamp, text = 0, message.data
            else:
                stamp, text = cdr.stamp_ns(data), message.text
            if not stamp:  # as soon as possible: the first frame that came out after it
                after = bisect_right(times, time)
                if after == len(frames):
                    continue
                stamp = frames[after][1]
            found.append((stamp, text.strip()))
        return sorted(found, key=lambda one: one[0])

    def plan(self, cut: Cut) -> list[_Window]:
        """The windows of the bag, without decoding a picture."""
        sources = {cdr.stamp_ns(d) for _, _, d in self.reader.messages([self.source])}
        recorded = {cdr.stamp_ns(d): t for _, t, d in self.reader.messages([self.edited])}
        if not recorded.keys() & sources:
            raise UserError(
                f"{self.path}: no frame of {self.edited.topic} has the stamp of one of "
                f"{self.source.topic}; name the topics that belong together"
            )
        usable = sorted((recorded.keys() & sources) - self._passed_through())
        texts = self._texts(recorded)
        begins = [stamp for stamp, _ in texts]
        runs: list[tuple[str, list[int]]] = []
        step = max(cdr.NANO / cut.fps, _period(usable))
        last = None
        for stamp in (usable[i] for i in thin(usable, cut.fps)):
            index = bisect_right(begins, stamp) - 1
            text = texts[index][1] if index >= 0 else ""
            if text:
                if last is None or runs[-1][0] != text or stamp - last > GAP * step:
                    runs.append((text, []))
                runs[-1][1].append(stamp)
            last = stamp if text else None
        windows = []
        for text, stamps in runs:
            length = cut.fitting(len(stamps))
            if length < min(cut.frames, 5):
                continue  # a lone frame between two gaps teaches nothing of motion
            for start in range(0, len(stamps) - length + 1, length):
                windows.append(_Window(text, tuple(stamps[start : start + length])))
        if len(windows) > cut.windows:
            spread = Cut(1, cut.fps, cut.size, cut.windows)
            windows = [windows[i] for i in starts(len(windows), spread)]
        return windows

    def clips(self, cut: Cut) -> Iterator[StoredClip]:
        """The bag's clips, in order. Raises UserError where it has none, or is damaged inside."""
        waiting = self.plan(cut)
        if not waiting:
            raise UserError(
                f"{self.path} has no run of {min(cut.frames, 5)} edited frames under one "
                "instruction; record a longer one"
            )
        needed = {stamp for window in waiting for stamp in window.stamps}
        halves: dict[str, dict[int, np.ndarray]] = {
            self.source.topic: {},
            self.edited.topic: {},
        }
        for connection, _, data in self.reader.messages([self.source, self.edited]):
            stamp = cdr.stamp_ns(data)
            if stamp not in needed or stamp in halves[connection.topic]:
                continue
            convert = compressed_to_rgb if connection.msgtype == cdr.COMPRESSED else to_rgb
            rgb = convert(self.reader.deserialize(data, connection.msgtype))
            halves[connection.topic][stamp] = np.array(area_resize(rgb, cut.size))
            while waiting and all(s in half for half in halves.values() for s in waiting[0].stamps):
                window = waiting.pop(0)
                source, edited = (
                    np.stack([half.pop(s) for s in window.stamps]) for half in halves.values()
                )
                needed -= set(window.stamps)
                origin = f"{self.path.name} {self.edited.topic} @{window.stamps[0]}"
                yield StoredClip(0, [TASK], [window.text], source, [edited], None, origin)


def _period(stamps: list[int]) -> float:
    steps = np.diff(stamps)
    return float(np.median(steps)) if len(steps) else 0.0
