# SPDX-License-Identifier: Apache-2.0
"""Reading rosbag2 (sqlite3 and MCAP): one way to open them, and errors that say what to do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from rosbags.interfaces import Connection, MessageDefinitionFormat
from rosbags.rosbag2 import Reader
from rosbags.typesys import Stores, get_types_from_idl, get_types_from_msg, get_typestore
from rosbags.typesys.base import TypesysError

from egoedit_ros.data import cdr
from egoedit_ros.errors import UserError

IMAGE_TYPES = (cdr.IMAGE, cdr.COMPRESSED)
STORAGE_SUFFIXES = (".mcap", ".db3")


def is_bag(path: str | Path) -> bool:
    """Whether ``path`` looks like a rosbag2: a folder, or one of its storage files."""
    path = Path(path)
    return path.is_dir() or path.suffix in STORAGE_SUFFIXES


class BagReader:
    """An open rosbag2. Raises UserError where there is nothing that can be read.

    Attributes: ``path``; ``connections`` (rosbags' own, one per topic and type); ``typestore``
    with the bag's types besides ROS 2 Jazzy's and this package's.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        target = _storage_of(self.path)
        try:
            self._reader = Reader(target)
            self._reader.open()
        except PermissionError:
            raise UserError(f"{self.path} may not be read; check its permissions") from None
        except Exception as error:  # each storage and compression has errors of its own
            raise UserError(self._damaged(error)) from None
        self.connections: list[Connection] = list(self._reader.connections)
        self.typestore = cdr.typestore()
        if unknown := [c for c in self.connections if c.msgtype not in self.typestore.fielddefs]:
            self._learn(unknown)
        if not self._reader.message_count:
            self.close()
            raise UserError(
                f"{self.path} is a bag without messages; record it again, or run "
                f"'egoedit doctor --recover {self.path}' if its recording broke off"
            )

    def _damaged(self, error: BaseException) -> str:
        reason = str(error).rstrip(".") or type(error).__name__
        return (
            f"{self.path} is damaged or cut off ({reason[:120]}); run "
            f"'egoedit doctor --recover {self.path}' to rescue what is in it"
        )

    def _learn(self, connections: list[Connection]) -> None:
        """Register the types that only this bag knows, in a store of its own."""
        store = get_typestore(Stores.EMPTY)
        store.register(dict(cdr.typestore().fielddefs))
        for connection in connections:
            definition = connection.msgdef
            try:
                if definition.format == MessageDefinitionFormat.MSG:
                    types = get_types_from_msg(definition.data, connection.msgtype)
                elif definition.format == MessageDefinitionFormat.IDL:
                    types = get_types_from_idl(definition.data)
                else:
                    continue
                fresh = {k: v for k, v in types.items() if k not in store.fielddefs}
                store.register(fresh)
            except (TypesysError, KeyError, ValueError):
                continue  # copied as bytes: only pictures have to be understood
        self.typestore = store

    @property
    def message_count(self) -> int:
        """Messages in the bag."""
        return self._reader.message_count

    def image_topics(self) -> list[Connection]:
        """Connections that carry pictures and have at least one message."""
        return [c for c in self.connections if c.msgtype in IMAGE_TYPES and c.msgcount]

    def choose_image_topic(self, topic: str | None = None) -> Connection:
        """The picture topic to work on: ``topic``, or the only one there is.

        A raw topic and its own ``/compressed`` count as one, the raw one. Raises UserError when
        there is no such topic, none at all, a choice to make, or it carries something else.
        """
        images = self.image_topics()
        names = ", ".join(c.topic for c in images)
        if topic:
            wanted = {topic, "/" + topic.lstrip("/")}
            if found := [c for c in images if c.topic in wanted]:
                return found[0]
            other = next((c for c in self.connections if c.topic in wanted), None)
            if other is None:
                have = f"its image topics are: {names}" if names else "it has no image topic"
                raise UserError(f"{self.path} has no topic {topic}; {have}")
            if other.msgtype in IMAGE_TYPES:
                raise UserError(f"topic {topic} of {self.path} has no messages; name another")
            raise UserError(
                f"topic {topic} of {self.path} carries {other.msgtype}, not images; "
                + (f"name one of: {names}" if names else "it has no image topic")
            )
        if not images:
            have = ", ".join(f"{c.topic} ({c.msgtype})" for c in self.connections[:8])
            raise UserError(f"{self.path} has no image topic; it has: {have or 'no topic at all'}")
        raw = {c.topic for c in images}
        chosen = [c for c in images if c.topic.removesuffix("/compressed") not in raw - {c.topic}]
        if len(chosen) > 1:
            raise UserError(
                f"{self.path} has {len(chosen)} image topics; name one with --topic: "
                + ", ".join(c.topic for c in chosen)
            )
        return chosen[0]

    def messages(
        self, connections: list[Connection] | None = None
    ) -> Iterator[tuple[Connection, int, bytes]]:
        """Yield (connection, time of record in ns, serialized message) in the order of record.

        Raises UserError where the bag turns out to be damaged inside.
        """
        try:
            yield from self._reader.messages(connections or ())
        except Exception as error:  # as above
            raise UserError(self._damaged(error)) from None

    def deserialize(self, data: bytes, msgtype: str) -> object:
        """Parse a serialized message; raises UserError if its bytes do not fit its type."""
        try:
            return self.typestore.deserialize_cdr(data, msgtype)
        except Exception as error:  # rosbags leaves struct and numpy errors as they are
            raise UserError(
                f"{self.path} has a {msgtype} that cannot be parsed ({error}); the bag is damaged, "
                f"try 'egoedit doctor --recover {self.path}'"
            ) from None

    def close(self) -> None:
        """Close the files."""
        if self._reader.is_open:
            self._reader.close()

    def __enter__(self) -> BagReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def storage_files(path: Path) -> list[Path]:
    """The files that hold a bag's messages, in order of name."""
    if path.is_file():
        return [path]
    kinds = (*STORAGE_SUFFIXES, ".zstd")
    return sorted(file for file in path.iterdir() if file.suffix in kinds)


def _storage_of(path: Path) -> Path:
    """What to open for ``path``: the folder, or its only file where metadata.yaml is missing."""
    if not path.exists():
        raise UserError(f"no such file or folder: {path}; check the path")
    if path.is_file():
        if path.suffix == ".bag":
            raise UserError(
                f"{path} is a ROS 1 bag; convert it first: rosbags-convert --src {path} --dst NEW"
            )
        if path.suffix not in STORAGE_SUFFIXES:
            raise UserError(f"{path} is neither a rosbag2 nor a video; give one of these")
        if path.stat().st_size == 0:
            raise UserError(f"{path} is empty (0 bytes); copy or record it again")
        return path
    try:
        files = storage_files(path)
    except PermissionError:
        raise UserError(f"{path} may not be read; check its permissions") from None
    if (path / "metadata.yaml").exists():
        return path
    if not files:
        raise UserError(f"{path} is not a rosbag2: it has neither metadata.yaml nor .mcap or .db3")
    if not any(file.stat().st_size for file in files):
        raise UserError(f"{path} is empty (0 bytes recorded); record it again")
    if len(files) == 1:
        return files[0]
    raise UserError(
        f"{path} has no metadata.yaml, so its recording broke off; "
        f"run 'egoedit doctor --recover {path}'"
    )
