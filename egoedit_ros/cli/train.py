# SPDX-License-Identifier: Apache-2.0
"""``egoedit train STAGE --config FILE``: the training stages."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from egoedit_ros.cli.common import positive_number
from egoedit_ros.train.stages import STAGES


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser("train", help="the training stages")
    parser.add_argument(
        "stage", choices=STAGES, help="; ".join(f"{k}: {v}" for k, v in STAGES.items())
    )
    parser.add_argument("--config", type=Path, required=True, help="YAML file of the recipe")
    parser.add_argument(
        "--minutes", type=positive_number, help="stop after so long, in place of the recipe's"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from egoedit_ros.train.parallel import end, leave
    from egoedit_ros.train.stages import read_recipe, run_stage

    recipe = read_recipe(args.config)
    try:
        made = run_stage(args.stage, recipe, str(args.config), args.minutes)
    except BaseException:
        leave()
        raise
    if os.environ.get("RANK", "0") == "0":  # of torchrun's processes the first
        print(made)
    if os.environ.get("WORLD_SIZE", "1") != "1":
        end()
    return 0
