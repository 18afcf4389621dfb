# SPDX-License-Identifier: Apache-2.0
"""``egoedit data import``, ``pairs`` and ``algorithmic``: clips from what is there already."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from egoedit_ros.cli.common import model_size, positive_number, positive_whole, whole
from egoedit_ros.errors import UserError


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    table = subparsers.add_parser("import", help="clips from EgoEditData's tables and videos")
    table.add_argument("tables", metavar="TABLES", type=Path, help="folder of the CSV tables")
    table.add_argument("--videos", type=Path, help="folder of the videos; default: TABLES")
    table.add_argument("-o", "--output", type=Path, help="folder for the clips")
    table.add_argument("--check", action="store_true", help="only report, write no clips")
    table.add_argument("--json", type=Path, metavar="FILE", help="the report as JSON")
    _add_cut(table)
    table.set_defaults(run=run_import)

    bags = subparsers.add_parser("pairs", help="clips from bags with source and edited frames")
    bags.add_argument("inputs", metavar="BAG", type=Path, nargs="+", help="bag, or folder of bags")
    bags.add_argument("-o", "--output", type=Path, required=True, help="folder for the clips")
    bags.add_argument("--source-topic", metavar="NAME")
    bags.add_argument("--edited-topic", metavar="NAME")
    bags.add_argument("--instruction-topic", metavar="NAME")
    bags.add_argument("-i", "--instruction", metavar="TEXT", help="where no topic has it")
    _add_cut(bags)
    bags.set_defaults(run=run_pairs)

    edits = subparsers.add_parser("algorithmic", help="clips from any footage, edited by algorithm")
    edits.add_argument(
        "inputs", metavar="INPUT", type=Path, nargs="+", help="bag or video, or folder of them"
    )
    edits.add_argument("-o", "--output", type=Path, required=True, help="folder for the clips")
    edits.add_argument("--topic", metavar="NAME", help="image topic of the bags")
    edits.add_argument("--edits", type=positive_whole, default=3, help="edits a clip; default: 3")
    edits.add_argument("--seed", type=whole, default=0)
    edits.add_argument("--tasks", metavar="NAME,...", help="default: all")
    _add_cut(edits)
    edits.set_defaults(run=run_algorithmic)


def _add_cut(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--frames", type=positive_whole, default=13, help="of a clip: 1, 5, 9, ...; default: 13"
    )
    parser.add_argument("--fps", type=positive_number, default=16.0, help="default: 16")
    parser.add_argument("--size", metavar="WxH", default="256x192", help="default: 256x192")
    parser.add_argument(
        "--windows", type=positive_whole, default=16, help="most clips of an input; default: 16"
    )
    parser.add_argument("--workers", type=positive_whole, help="processes; default: all cores")


def _cut(args: argparse.Namespace):
    from egoedit_ros.data.footage import Cut

    return Cut(args.frames, args.fps, model_size(args.size), args.windows)


def run_import(args: argparse.Namespace) -> int:
    """Check the pairs, say what is wrong with which, and write the clips of the others."""
    from tqdm import tqdm

    from egoedit_ros.data.importing import ImportReport, import_pairs

    if (args.output is None) != args.check:
        raise UserError("give -o FOLDER for the clips, or --check to write none")
    report = ImportReport()
    work = import_pairs(
        args.tables, args.videos or args.tables, args.output, _cut(args), args.workers, report
    )
    try:
        with tqdm(unit="source") as bar:
            for done, total in work:
                bar.total = total
                bar.update(done - bar.n)
    finally:
        if args.json is not None and report.rows:
            _write_json(args.json, report)
    print("\n".join(report.lines()))
    return 0


def _write_json(path: Path, report) -> None:
    content = {
        "pairs": report.rows,
        "used": report.used,
        "clips": report.clips,
        "problems": report.counts(),
        "list": [asdict(p) for p in sorted(report.problems, key=lambda p: p.line)],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    part.replace(path)


def run_pairs(args: argparse.Namespace) -> int:
    """The windows of the bags as clips."""
    from egoedit_ros.data.footage import find_footage
    from egoedit_ros.data.making import make_pairs
    from egoedit_ros.data.pairs import BagTopics

    text = args.instruction
    if text is not None and not text.strip():
        raise UserError("the instruction is empty; say what was changed")
    topics = BagTopics(args.source_topic, args.edited_topic, args.instruction_topic, text)
    inputs = find_footage(args.inputs, bags_only=True)
    return _show(make_pairs(inputs, args.output, _cut(args), topics, args.workers), args.output)


def run_algorithmic(args: argparse.Namespace) -> int:
    """Clips of the footage, each with edits that an algorithm made."""
    from egoedit_ros.data.algorithmic import TASKS
    from egoedit_ros.data.footage import find_footage
    from egoedit_ros.data.making import make_edits

    tasks = TASKS
    if args.tasks:
        tasks = tuple(dict.fromkeys(n.strip() for n in args.tasks.split(",") if n.strip()))
    work = make_edits(
        find_footage(args.inputs),
        args.output,
        _cut(args),
        args.topic,
        args.edits,
        args.seed,
        tasks,
        args.workers,
    )
    return _show(work, args.output)


def _show(work, output: Path) -> int:
    """Run to the end with a bar; inputs that cannot be used are named and left out."""
    from tqdm import tqdm

    problems = []
    with tqdm(unit="input") as bar:
        for done, total, problem in work:
            bar.total = total
            bar.update(done - bar.n)
            if problem:
                problems.append(problem)
    for problem in problems:
        print(f"left out: {problem}", file=sys.stderr)
    print(f"{output}: {sum(1 for _ in output.glob('*.safetensors'))} clips")
    return 0
