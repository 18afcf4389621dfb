# SPDX-License-Identifier: Apache-2.0
"""``egoedit edit``: video to video, or bag to bag with every other topic kept. No ROS graph."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from egoedit_ros.cli.common import (
    Progress,
    add_input_options,
    add_instruction_options,
    add_model_options,
    add_output_options,
    add_runtime_option,
    add_switch_options,
    check_output,
    model_size,
    put_in_place,
    shelter,
    timeline,
)
from egoedit_ros.errors import UserError

JPEG_QUALITY = 90


def add_parser(subparsers) -> None:
    """Register ``edit``."""
    parser = subparsers.add_parser("edit", help="edit file to file", description=__doc__)
    add_input_options(parser)
    add_instruction_options(parser)
    add_output_options(parser, "video file for a video, bag folder for a bag")
    add_model_options(parser)
    add_switch_options(parser)
    add_runtime_option(parser)
    parser.add_argument(
        "--replace",
        action="store_true",
        help="bags: put the edit in place of the topic instead of beside it as TOPIC/edited",
    )


def run(args: argparse.Namespace) -> int:
    """Edit; the output appears when all of it is there. Returns the exit code."""
    from egoedit_ros.data.source import open_source, sha256_of

    instructions = timeline(args.instructions)
    source = open_source(args.input, args.topic)
    try:
        kind = "bag" if source.kind == "bag" else "file"
        check_output(args.output, args.overwrite, args.input, kind)
        if args.replace and source.kind != "bag":
            raise UserError("--replace is for bags; a video's output is another file anyway")
        _check_suffix(args.output, source.kind)
        start = time.monotonic()
        edit = _edit_bag if source.kind == "bag" else _edit_video
        counts = edit(args, source, instructions)
        counts["seconds"] = round(time.monotonic() - start, 3)
    finally:
        source.close()
    if args.json:
        result = {"input": str(args.input), "input_sha256": sha256_of(args.input), **counts}
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    dropped = f", {counts['unreadable']} unreadable" if counts["unreadable"] else ""
    print(
        f"{args.output}: {counts['frames_out']} frames edited in {counts['seconds']:.1f} s{dropped}"
    )
    if counts["faults"]:
        print(f"the model failed on {counts['faults']} chunks, which were passed through")
    return 0


def _check_suffix(output: Path, kind: str) -> None:
    suffix = output.suffix.lower()
    if kind == "video" and suffix not in (".mp4", ".m4v", ".mov"):
        raise UserError(f"the output of a video is an .mp4 file, not {output.name}")
    if kind == "bag" and suffix in (".mp4", ".m4v", ".mov", ".mkv", ".mcap", ".db3"):
        raise UserError(f"the output of a bag is a folder, not {output.name}; leave {suffix} away")


class OfflineEditor:
    """A StreamEditor fed from a file: no frame is ever dropped, whatever the stamps do."""

    def __init__(self, args: argparse.Namespace, instructions: list, first_stamp_ns: int) -> None:
        from egoedit_ros.stream.editor import StreamEditor
        from egoedit_ros.stream.session import open_session
        from egoedit_ros.stream.types import Instruction, StreamSettings

        size = model_size(args.size)
        session = open_session(
            args.model,
            device=args.device,
            size=size,
            chunk_latents=args.chunk_latents,
            nfe=args.nfe,
            runtime=args.runtime,
            recache=args.recache,
            blend_chunks=args.blend_chunks,
        )
        # In place of the camera's picture the edit must fit its camera_info.
        output_size = args.output_size or ("camera" if args.replace else "model")
        self.editor = StreamEditor(session, StreamSettings(size=size, output_size=output_size))
        for number, one in enumerate(instructions):
            stamp = first_stamp_ns + round(one.at * 1e9) if one.at else 0
            self.editor.set_instruction(
                Instruction(f"i{number}", one.text, args.seed or one.seed, stamp, one.reset)
            )
        self._last: tuple[int, tuple] | None = None

    def push(self, stamp_ns: int, rgb, token: object = None) -> list:
        """Edit one frame; returns those that are done."""
        from egoedit_ros.stream.types import Frame

        done = []
        if self._last and (stamp_ns < self._last[0] or rgb.shape != self._last[1]):
            # The editor would drop what it holds at a break in the stream; live that is right.
            done += self.editor.flush()
        self._last = (stamp_ns, rgb.shape)
        return done + self.editor.push(Frame(stamp_ns, rgb, time.perf_counter_ns(), token=token))

    def flush(self) -> list:
        """The frames that are left."""
        return self.editor.flush()

    @property
    def faults(self) -> int:
        """Chunks that the model failed on."""
        return self.editor.fault_count


@contextmanager
def _counted(total: int) -> Iterator[tuple[Progress, dict[str, int]]]:
    counts = {"frames_in": 0, "frames_out": 0, "unreadable": 0, "faults": 0}
    with Progress("frames", total) as progress:
        yield progress, counts


def _edit_video(args: argparse.Namespace, source, instructions: list) -> dict:
    from egoedit_ros.data.source import VIDEO_START_NS
    from egoedit_ros.data.video import VideoWriter

    editor = OfflineEditor(args, instructions, source.first_stamp_ns)
    reader = source.reader
    with shelter(args.output) as folder, _counted(source.count) as (progress, counts):
        made = folder / args.output.name
        writer: VideoWriter | None = None
        try:

            def write(done: list) -> None:
                nonlocal writer
                for edited in done:
                    height, width = edited.image.shape[:2]
                    if writer is None:
                        writer = VideoWriter(made, (width, height), reader.fps, reader.time_base)
                    writer.write(edited.frame.stamp_ns - VIDEO_START_NS, edited.image)
                    counts["frames_out"] += 1
                progress.update(counts["frames_out"])

            for stamp, rgb in source.frames():
                counts["frames_in"] += 1
                write(editor.push(stamp, rgb))
            write(editor.flush())
            if writer is None:
                raise UserError(f"{args.input} holds no frame that decodes")
            writer.close()
        except BaseException:
            if writer is not None:
                writer.abort()
            raise
        put_in_place(made, args.output)
    counts["faults"] = editor.faults
    return counts


def _edit_bag(args: argparse.Namespace, source, instructions: list) -> dict:
    from egoedit_ros.data import cdr
    from egoedit_ros.data.bag_writer import BagWriter
    from egoedit_ros.stream.images import compressed_to_rgb, encode_jpeg, to_rgb

    reader = source.reader
    compressed = source.msgtype == cdr.COMPRESSED
    convert = compressed_to_rgb if compressed else to_rgb
    topic = source.topic if args.replace else f"{source.topic}/edited"
    if not args.replace and any(c.topic == topic for c in reader.connections):
        raise UserError(f"{args.input} has a topic {topic} already; use --replace or edit another")
    editor = OfflineEditor(args, instructions, source.first_stamp_ns)

    with shelter(args.output) as folder, _counted(source.count) as (progress, counts):
        made = folder / args.output.name
        with BagWriter(made) as writer:
            kept = {}
            for connection in reader.connections:
                # A topic stands once for each type and offer; the bag's first one is taken.
                if connection.topic not in kept:
                    writer.add_topic_like(connection, reader.typestore)
                    kept[connection.topic] = connection.msgtype
            if not args.replace:
                writer.add_topic(topic, source.msgtype)

            def write(done: list) -> None:
                for edited in done:
                    recorded, frame_id = edited.frame.token
                    stamp, picture = edited.frame.stamp_ns, edited.image
                    if compressed:
                        jpeg = bytes(encode_jpeg(picture, JPEG_QUALITY))
                        data = cdr.compressed_cdr(jpeg, stamp, frame_id)
                    else:
                        data = cdr.image_cdr(picture, stamp, frame_id)
                    writer.write(topic, recorded, data)
                    counts["frames_out"] += 1
                progress.update(counts["frames_out"])

            last_error: UserError | None = None
            for connection, recorded, data in reader.messages():
                if kept[connection.topic] != connection.msgtype:
                    continue
                ours = connection.topic == source.topic
                if not (ours and args.replace):
                    writer.write(connection.topic, recorded, data)
                if not ours:
                    continue
                counts["frames_in"] += 1
                try:
                    message = reader.deserialize(data, connection.msgtype)
                    rgb = convert(message)
                except UserError as error:
                    counts["unreadable"] += 1
                    last_error = error
                    continue
                write(editor.push(cdr.stamp_ns(data), rgb, (recorded, message.header.frame_id)))
            write(editor.flush())
            if not counts["frames_out"]:
                raise UserError(f"no picture of {source.topic} can be read: {last_error}")
        put_in_place(made, args.output)
    counts["faults"] = editor.faults
    return counts
