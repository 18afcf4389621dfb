# SPDX-License-Identifier: Apache-2.0
"""``egoedit data demo``: a head-camera bag from the simulator, as a camera would have left it."""

from __future__ import annotations

import argparse
from pathlib import Path

from egoedit_ros.cli.common import check_output, positive_whole, put_in_place, shelter, whole

DEMO_SEED = 1_000_105
TOPIC = "/image_raw"


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser("demo", help="render a head-camera bag in the simulator")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the bag")
    parser.add_argument("--seed", type=whole, default=DEMO_SEED, help="an evaluation seed")
    parser.add_argument("--frames", type=positive_whole, default=192, help="at 16 fps")
    parser.add_argument("--overwrite", action="store_true")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Render the scene of the seed at 512x384 and write it as JPEG with its camera_info."""
    from tqdm import tqdm

    from egoedit_ros.data import cdr
    from egoedit_ros.data.bag_writer import BagWriter
    from egoedit_ros.data.sim.render import FPS, Simulator
    from egoedit_ros.data.sim.scene import draw_scene
    from egoedit_ros.stream.images import encode_jpeg
    from egoedit_ros.stream.names import compressed_topic

    check_output(args.output, args.overwrite)
    simulator = Simulator(512, 384, samples=4)
    scene = draw_scene(args.seed, args.frames / FPS)
    with shelter(args.output) as folder:
        made = folder / args.output.name
        topic = compressed_topic(TOPIC)
        with BagWriter(made) as writer:
            writer.add_topic(topic, cdr.COMPRESSED)
            for index in tqdm(range(args.frames), unit="frame"):
                picture = simulator.render_frame(scene, scene.start + index / FPS)
                stamp = 1_000_000_000 + index * 1_000_000_000 // FPS
                jpeg = bytes(encode_jpeg(picture, 92))
                writer.write(topic, stamp, cdr.compressed_cdr(jpeg, stamp, "head_camera"))
        put_in_place(made, args.output)
    simulator.close()
    return 0
