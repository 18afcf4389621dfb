# SPDX-License-Identifier: Apache-2.0
"""``egoedit data``: make bags from videos; further makers of data register here."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
from pathlib import Path

from egoedit_ros.cli.common import (
    Progress,
    check_output,
    model_size,
    positive_number,
    put_in_place,
    shelter,
)
from egoedit_ros.errors import UserError

# Modules with an add_parser(subparsers) of their own, which sets ``run``.
MORE = ("egoedit_ros.data.sim.cli", "egoedit_ros.data.sim.demo", "egoedit_ros.data.cli")
DEFAULT_TOPIC = "/image_raw"


def add_parser(subparsers) -> None:
    """Register ``data`` and what it can make."""
    parser = subparsers.add_parser("data", help="make data", description=__doc__)
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
    bag = kinds.add_parser("bag", help="make a bag from a video")
    bag.add_argument("input", metavar="VIDEO", type=Path)
    bag.add_argument("-o", "--output", metavar="BAG", type=Path, required=True)
    bag.add_argument("--topic", default=DEFAULT_TOPIC, help=f"default: {DEFAULT_TOPIC}")
    bag.add_argument(
        "--fps", type=positive_number, default=0.0, help="even stamps; default: the video's own"
    )
    bag.add_argument("--size", metavar="WxH", help="shrink by area; default: the video's own")
    bag.add_argument(
        "--compressed", action="store_true", help="JPEG on TOPIC/compressed instead of raw"
    )
    bag.add_argument("--frame-id", default="camera")
    bag.add_argument("--overwrite", action="store_true")
    bag.set_defaults(run=make_bag)
    for module in MORE:
        if _there(module):
            importlib.import_module(module).add_parser(kinds)


def _there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def run(args: argparse.Namespace) -> int:
    """Make what was asked for."""
    return int(args.run(args) or 0)


def make_bag(args: argparse.Namespace) -> int:
    """A rosbag2 (MCAP) whose image topic has the video's frames, times of record = stamps."""
    from egoedit_ros.data import cdr
    from egoedit_ros.data.bag_writer import BagWriter
    from egoedit_ros.data.source import VideoSource
    from egoedit_ros.stream.images import area_resize, encode_jpeg
    from egoedit_ros.stream.names import compressed_topic

    check_output(args.output, args.overwrite, args.input, "bag")
    topic = check_topic(args.topic)
    size = model_size(args.size)
    source = VideoSource(args.input, args.fps)
    with shelter(args.output) as folder:
        made = folder / args.output.name
        with BagWriter(made) as writer, Progress("frames", source.count) as progress:
            if args.compressed:
                topic = compressed_topic(topic)
            writer.add_topic(topic, cdr.COMPRESSED if args.compressed else cdr.IMAGE)
            for stamp, rgb in source.frames():
                rgb = area_resize(rgb, size) if size else rgb
                if args.compressed:
                    data = cdr.compressed_cdr(bytes(encode_jpeg(rgb, 95)), stamp, args.frame_id)
                else:
                    data = cdr.image_cdr(rgb, stamp, args.frame_id)
                writer.write(topic, stamp, data)
                progress.update(writer.counts[topic])
        put_in_place(made, args.output)
    print(f"{args.output}: {writer.counts[topic]} frames on {topic}")
    return 0


def check_topic(name: str) -> str:
    """An absolute ROS topic name, or UserError."""
    words = name.strip("/").split("/")
    if not all(w and w.replace("_", "a").isalnum() and w.isascii() for w in words):
        raise UserError(f"{name!r} is no topic name; use letters, digits, _ and /")
    if any(w[0].isdigit() for w in words):
        raise UserError(f"{name!r} is no topic name; no part of it may begin with a digit")
    return "/" + "/".join(words)
