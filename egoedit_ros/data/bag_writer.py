# SPDX-License-Identifier: Apache-2.0
"""Writing rosbag2 (MCAP) so that a power cut or a kill -9 costs a second, not the recording."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from mcap.records import Channel, Message, Schema
from mcap.stream_reader import StreamReader
from rosbags.interfaces import (
    Connection,
    MessageDefinitionFormat,
    Qos,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)
from rosbags.rosbag2 import StoragePlugin, Writer

from egoedit_ros.data.cdr import typestore
from egoedit_ros.errors import UserError

_FOREVER = QosTime(0x7FFFFFFF, 0xFFFFFFFF)
_UNKNOWN_DEFINITION = "# The bag this came from has no definition of this type.\n"
_UNKNOWN_HASH = "RIHS01_" + "0" * 64


def qos(depth: int = 10, latched: bool = False) -> Qos:
    """Reliable, keep last; ``latched``: transient local, so that a replay repeats it to late
    subscribers."""
    return Qos(
        QosHistory.KEEP_LAST,
        depth,
        QosReliability.RELIABLE,
        QosDurability.TRANSIENT_LOCAL if latched else QosDurability.VOLATILE,
        _FOREVER,
        _FOREVER,
        QosLiveliness.AUTOMATIC,
        _FOREVER,
        False,
    )


class BagWriter:
    """A rosbag2 folder with one MCAP file.

    What was given to :meth:`write` is on its way to the disk after the next :meth:`flush` and
    can then be rescued even when the process is killed. Use as a context manager; an exception
    leaves an unfinished bag, as :meth:`abort` does. Raises UserError if the folder exists or
    cannot be made.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if self.path.exists():
            raise UserError(f"{self.path} exists already; choose another name or --overwrite")
        self._writer = Writer(self.path, version=9, storage_plugin=StoragePlugin.MCAP)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._writer.open()
        except OSError as error:
            raise UserError(
                f"cannot write {self.path} ({error.strerror}); choose a folder you may write to"
            ) from None
        self._connections: dict[str, Connection] = {}
        self.counts: dict[str, int] = {}

    def add_topic(self, topic: str, msgtype: str, profiles: tuple[Qos, ...] = ()) -> None:
        """Declare a topic of a type that :func:`egoedit_ros.data.cdr.typestore` knows."""
        self._connections[topic] = self._writer.add_connection(
            topic, msgtype, typestore=typestore(), offered_qos_profiles=profiles or (qos(),)
        )
        self.counts[topic] = 0

    def add_topic_like(self, connection: Connection, store: object) -> None:
        """Declare a topic as another bag has it, even if its type is not known here."""
        profiles = tuple(getattr(connection.ext, "offered_qos_profiles", ()))
        known = connection.msgtype in store.fielddefs
        definition = connection.msgdef
        if connection.digest and definition.format != MessageDefinitionFormat.NONE:
            details = {"msgdef": definition.data, "rihs01": connection.digest}
        elif known:
            details = {"typestore": store}
        else:
            details = {
                "msgdef": definition.data or _UNKNOWN_DEFINITION,
                "rihs01": connection.digest or _UNKNOWN_HASH,
            }
        self._connections[connection.topic] = self._writer.add_connection(
            connection.topic, connection.msgtype, offered_qos_profiles=profiles, **details
        )
        self.counts[connection.topic] = 0

    def write(self, topic: str, time_ns: int, data: bytes | memoryview) -> None:
        """Append a serialized message with its time of record."""
        self._writer.write(self._connections[topic], time_ns, data)
        self.counts[topic] += 1

    def flush(self) -> None:
        """Hand all that was written to the operating system, as a chunk that can be read."""
        storage = self._writer.storage
        if storage.chunk.msgs:
            storage.close_chunk()
        storage.bio.flush()

    def close(self) -> None:
        """Write index and metadata.yaml."""
        if not any(self.counts.values()):
            # rosbags takes the largest number for the start of nothing, which rosbag2 refuses.
            self._writer.min_timestamp = 0
        self._writer.close()

    def abort(self) -> None:
        """Stop without index: an unfinished bag, as after a crash."""
        self._writer.abort()

    def __enter__(self) -> BagWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()


def surviving_messages(file: Path) -> Iterator[tuple[Schema, Channel, Message]]:
    """Messages of an MCAP file up to where it was cut off, in the order of writing."""
    schemas: dict[int, Schema] = {}
    channels: dict[int, Channel] = {}
    with file.open("rb") as stream:
        try:
            for record in StreamReader(stream, validate_crcs=False).records:
                if isinstance(record, Schema):
                    schemas[record.id] = record
                elif isinstance(record, Channel):
                    channels[record.id] = record
                elif isinstance(record, Message) and record.channel_id in channels:
                    channel = channels[record.channel_id]
                    yield schemas[channel.schema_id], channel, record
        except Exception:
            return  # the cut: each decoder has its own way to say that half a record is left


def rescue_bag(folder: Path) -> int:
    """Make an unfinished bag whole in place: what was flushed, with index and metadata.yaml.

    folder: a rosbag2 folder with one MCAP file. The result takes the place of the old files only
    when it is complete. Returns the number of messages; raises UserError if there is none.
    """
    files = sorted(folder.glob("*.mcap"))
    if len(files) != 1:
        raise UserError(f"{folder} has {len(files)} MCAP files; recovery needs exactly one")
    shelter = folder.with_name(f".{folder.name}.{os.getpid()}.rescue")
    rescued = 0
    try:
        with BagWriter(shelter / folder.name) as writer:
            for schema, channel, message in surviving_messages(files[0]):
                if channel.topic not in writer.counts:
                    _add_from_schema(writer, schema, channel)
                writer.write(channel.topic, message.log_time, message.data)
                rescued += 1
        if not rescued:
            raise UserError(f"{folder} holds no message that survived; record it again")
        shutil.rmtree(folder)
        os.replace(shelter / folder.name, folder)
    finally:
        shutil.rmtree(shelter, ignore_errors=True)
    return rescued


def _add_from_schema(writer: BagWriter, schema: Schema, channel: Channel) -> None:
    if schema.name in typestore().fielddefs:
        writer.add_topic(channel.topic, schema.name)
        return
    writer._connections[channel.topic] = writer._writer.add_connection(
        channel.topic,
        schema.name,
        msgdef=schema.data.decode(errors="replace") or _UNKNOWN_DEFINITION,
        rihs01=_UNKNOWN_HASH,
    )
    writer.counts[channel.topic] = 0
