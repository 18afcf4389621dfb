# SPDX-License-Identifier: Apache-2.0
"""``egoedit data sim``: make paired clips."""

from __future__ import annotations

import argparse
from pathlib import Path

from egoedit_ros.data.sim.tasks import ALL_TASKS, parse_tasks
from egoedit_ros.data.sim.vocabulary import TASKS
from egoedit_ros.errors import UserError


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser("sim", help="render paired clips in the simulator")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the clips")
    parser.add_argument("--seed", type=int, default=0, help="first seed (evaluation: 1000000 up)")
    parser.add_argument("--clips", type=int, default=100)
    parser.add_argument("--frames", type=int, default=13, help="frames a clip, at 16 fps")
    parser.add_argument("--edits", type=int, default=3, help="edits a clip (targets a source)")
    parser.add_argument(
        "--tasks",
        default=",".join(TASKS),
        metavar="all|NAME,...",
        help=f"default: {','.join(TASKS)}; there are: {', '.join(ALL_TASKS)}",
    )
    parser.add_argument(
        "--crossed",
        action="store_true",
        help="seven states of one thing, and the edits between any two, in place of --edits",
    )
    parser.add_argument("--workers", type=int, default=None)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from egoedit_ros.data.sim.generate import generate

    tasks = parse_tasks(args.tasks)
    if args.edits < 1:
        raise UserError(f"--edits is {args.edits}; give 1 or more")
    if args.crossed and tasks != TASKS:
        raise UserError("--crossed makes its own tasks; leave out --tasks")
    with tqdm(total=args.clips, unit="clip") as bar:
        for made in generate(
            args.output,
            args.seed,
            args.clips,
            frames=args.frames,
            edits=0 if args.crossed else args.edits,
            workers=args.workers,
            tasks=tasks,
        ):
            bar.update(made - bar.n)
    return 0


if __name__ == "__main__":
    top = argparse.ArgumentParser()
    add_parser(top.add_subparsers(required=True))
    arguments = top.parse_args()
    raise SystemExit(arguments.run(arguments))
