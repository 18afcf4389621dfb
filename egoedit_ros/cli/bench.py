# SPDX-License-Identifier: Apache-2.0
"""``egoedit bench edit|engine|stream|compare``: how good, how fast, and how fast in the graph."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from egoedit_ros.bench import edit_cli, engine_cli
from egoedit_ros.cli import bench_stream
from egoedit_ros.cli.common import (
    EXIT_FAILED,
    EXIT_WRONG_INPUT,
    add_model_options,
    add_runtime_option,
    positive_whole,
    table,
)
from egoedit_ros.cli.graph import NodeDied
from egoedit_ros.errors import UserError


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser("bench", help="the benchmarks")
    kinds = parser.add_subparsers(dest="bench", required=True)

    edit = kinds.add_parser("edit", help="how good the edits are")
    edit.add_argument("--suite", choices=("sim", "egoeditbench"), default="sim")
    edit.add_argument("--clips", type=positive_whole, default=20, metavar="N")
    edit.add_argument("--sheet", type=Path, metavar="PNG", help="also draw a contact sheet")
    add_model_options(edit)
    add_runtime_option(edit)
    _output(edit)
    edit_cli.add_options(edit)

    engine = kinds.add_parser("engine", help="how fast the editor is by direct calls")
    engine_cli.add_options(engine)
    _output(engine)

    stream = kinds.add_parser(
        "stream",
        help="how fast the ROS graph is on a bag or video",
        description="Measures the editor's graph, or any node that copies the header's stamp.",
    )
    bench_stream.add_options(stream)
    _output(stream)

    compare = kinds.add_parser("compare", help="what changed between two results, beyond the noise")
    compare.add_argument("before", type=Path, metavar="A.json")
    compare.add_argument("after", type=Path, metavar="B.json")
    _output(compare)


def _output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE if it exists")


def run(args: argparse.Namespace) -> int:
    if args.json and args.json.exists() and not args.overwrite:
        raise UserError(f"{args.json} exists; choose another file or add --overwrite")
    kinds = {
        "edit": _edit,
        "engine": engine_cli.run,
        "stream": bench_stream.run,
        "compare": _compare,
    }
    try:
        content, rows = kinds[args.bench](args)
    except NodeDied as death:
        print(f"egoedit: error: {death}", file=sys.stderr, flush=True)
        return EXIT_WRONG_INPUT if death.code == EXIT_WRONG_INPUT else EXIT_FAILED
    if args.json:
        from egoedit_ros.bench.report import write_json

        write_json(content, args.json)
    print(table(rows))
    return 0


def _open(args: argparse.Namespace, nfe: int | None = None):
    from egoedit_ros.cli.common import model_size
    from egoedit_ros.stream.session import open_session

    return open_session(
        args.model,
        args.device,
        model_size(getattr(args, "size", None)),
        getattr(args, "chunk_latents", None),
        nfe or getattr(args, "nfe", None),
        runtime=args.runtime,
    )


def _config(session) -> dict:
    return {
        "model": session.name,
        "device": session.device,
        "runtime": getattr(session, "runtime", "torch"),
        "size": f"{session.size[0]}x{session.size[1]}",
        "chunk_latents": session.chunk_latents,
        "nfe": getattr(session, "nfe", 0),
    }


def _edit(args: argparse.Namespace) -> tuple[dict, list]:
    if args.suite == "egoeditbench":
        return edit_cli.run(args)
    from tqdm import tqdm

    from egoedit_ros.bench.metrics.registry import LOCAL_METRICS
    from egoedit_ros.bench.provenance import provenance
    from egoedit_ros.bench.simulator_metrics import METRICS
    from egoedit_ros.bench.simulator_suite import (
        contact_sheet,
        run_suite,
        summarise,
        summarise_unaided,
    )
    from egoedit_ros.data.sim.tasks import parse_tasks
    from egoedit_ros.data.sim.vocabulary import TASKS

    tasks = parse_tasks(args.tasks) if args.tasks else TASKS
    session = _open(args)
    run = run_suite(session, args.clips, tasks=tasks)
    clips = list(tqdm(run, total=args.clips, unit="clip"))
    if args.sheet:
        contact_sheet(clips, args.sheet)
    content = summarise([c.row for c in clips])
    content |= {"nfe": getattr(session, "nfe", 0), "streaming": True}
    content["unaided"] = summarise_unaided(clips)
    content |= provenance(
        _config(session) | {"suite": "sim", "clips": args.clips, "tasks": ",".join(tasks)}, None
    )
    rows = _task_rows(content, METRICS) + [("", "")]
    rows += _task_rows(content["unaided"], LOCAL_METRICS)
    rows += [(f"no {name}", why) for name, why in content["unaided"]["unavailable"].items()]
    return content, rows


def _task_rows(content: dict, names: tuple[str, ...]) -> list[tuple[str, str]]:
    """Figures by task, a line each."""
    width = max(10, *(len(name) for name in names))
    rows = [("", "  ".join(f"{name:>{width}}" for name in names))]
    for task, figures in {**content["tasks"], "mean over tasks": content["mean"]}.items():
        cells = ("-" if figures[n] is None else f"{figures[n]:.3f}" for n in names)
        rows.append((task, "  ".join(f"{cell:>{width}}" for cell in cells)))
    return rows


def _compare(args: argparse.Namespace) -> tuple[dict, list]:
    from egoedit_ros.bench.compare import compare, load_benchmark, rows

    content = compare(load_benchmark(args.before), load_benchmark(args.after))
    return content, rows(content)
