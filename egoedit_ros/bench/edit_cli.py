# SPDX-License-Identifier: Apache-2.0
"""``egoedit bench edit --suite egoeditbench``: its options, and what it writes."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from pathlib import Path

from egoedit_ros.cli.common import Progress, positive_number, positive_whole, whole
from egoedit_ros.errors import UserError

DEFAULT_WORK = Path("out/egoeditbench")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Everything but what all of ``bench edit`` shares (model, ``--json``)."""
    group = parser.add_argument_group(
        "--suite egoeditbench",
        "edits the benchmark's videos, or scores the videos that another system made of them",
    )
    group.add_argument("--tables", type=Path, metavar="DIR", help="folder of the published tables")
    group.add_argument("--videos", type=Path, metavar="DIR", help="<source_data_id>.mp4 files")
    group.add_argument(
        "--outputs", type=Path, metavar="DIR", help="score these <data_id>.mp4 files; no --model"
    )
    group.add_argument("--name", help="of what is scored, in tables; default: model or folder")
    group.add_argument(
        "--work",
        type=Path,
        default=DEFAULT_WORK,
        metavar="DIR",
        help=f"edits, results by item, report.html; a stopped run goes on; default: {DEFAULT_WORK}",
    )
    group.add_argument("--workers", type=positive_whole, default=1, metavar="N", help="processes")
    group.add_argument("--limit", type=positive_whole, metavar="N", help="the first N items only")
    group.add_argument(
        "--tasks",
        metavar="TASK,...",
        help="items of these tasks only; with --suite sim its tasks, or 'all'",
    )
    group.add_argument("--seed", type=whole, default=0, metavar="N", help="of the noise")
    group.add_argument("--align", choices=("auto", "index", "time"), default="auto",
                       help="how frames of other rates are matched to the source's")  # fmt: skip
    group.add_argument(
        "--frames", type=positive_whole, default=1000, metavar="N", help="look at N a clip at most"
    )
    group.add_argument(
        "--chunk-frames",
        metavar="FIRST,OTHERS",
        help="frames of the editor's chunks; default: the model's own, 9,12 with --outputs",
    )
    group.add_argument("--clip", metavar="DIR|NAME", help="CLIP ViT-L/14, for consistency")
    group.add_argument("--pickscore", metavar="DIR|NAME", help="PickScore_v1")
    group.add_argument(
        "--download", action="store_true", help="fetch these from the hub if need be"
    )
    group.add_argument("--judge", metavar="URL", help="chat API of the judge, up to /v1")
    group.add_argument("--judge-model", default="gpt-4o-2024-11-20", metavar="NAME")
    group.add_argument(
        "--judge-key-env", default="OPENAI_API_KEY", metavar="VARIABLE",
        help="environment variable with the API key; '' for none; default: OPENAI_API_KEY",
    )  # fmt: skip
    group.add_argument("--judge-concurrency", type=positive_whole, default=4, metavar="N")
    group.add_argument(
        "--judge-budget", type=positive_whole, metavar="N", help="requests to send at most"
    )
    group.add_argument("--judge-timeout", type=positive_number, default=120.0, metavar="SECONDS")


def run(args: argparse.Namespace) -> tuple[dict, list]:
    """(content of the JSON file, rows to print)."""
    from egoedit_ros.bench import egoeditbench as suite
    from egoedit_ros.bench.edit_page import write_page
    from egoedit_ros.bench.judge_client import ChatClient
    from egoedit_ros.bench.provenance import provenance
    from egoedit_ros.data.source import sha256_of
    from egoedit_ros.data.tables import EDITS_TABLE, read_bench

    if not args.tables or not args.videos:
        raise UserError(
            "--suite egoeditbench needs --tables DIR (the published tables) and --videos DIR "
            "(the source videos)"
        )
    items = _chosen(args, read_bench(args.tables))
    settings = _settings(args)
    # Before hours of editing, not after.
    client = ChatClient(_judge(args), args.work / "judge") if args.judge else None
    jobs, missing = suite.plan_jobs(items, args.videos, args.outputs)
    if settings.model:
        _check_model(args)
    with ExitStack() as stack:
        scored, problems = suite.run_suite(settings, jobs, args.workers, client, _ticker(stack))
    problems = missing + problems
    if not scored:
        raise UserError(f"no item could be scored; the first: {problems[0]['problem']}")
    name = args.name or (args.outputs.resolve().name if args.outputs else args.model)
    content = suite.summarise(scored, problems)
    sha = sha256_of(args.tables / EDITS_TABLE)
    content |= provenance(_config(args, settings, name, client), sha)
    page = args.work / "report.html"
    write_page(content, scored, suite.badness(scored), args.work, page, name)
    return content, _rows(content, name, client, page)


def _chosen(args: argparse.Namespace, items: list) -> list:
    from egoedit_ros.bench.metrics.registry import task_name

    if args.tasks:
        wanted = {task_name(t) for t in args.tasks.split(",") if t.strip()}
        there = {task_name(i.edit_task) for i in items}
        if wanted - there:
            raise UserError(
                f"no task {', '.join(sorted(wanted - there))} in the tables; there are: "
                f"{', '.join(sorted(there))}"
            )
        items = [i for i in items if task_name(i.edit_task) in wanted]
    return items[: args.limit]


def _settings(args: argparse.Namespace):
    from egoedit_ros.bench.edit_jobs import ModelSettings, SuiteSettings
    from egoedit_ros.bench.metrics.clip import Weights
    from egoedit_ros.cli.common import model_size

    model = None
    if args.outputs is None:
        model = ModelSettings(
            args.model,
            args.device,
            model_size(args.size),
            args.chunk_latents,
            args.nfe,
            args.output_size or "model",
            args.seed,
            args.runtime,
        )
    return SuiteSettings(
        work=args.work,
        model=model,
        align=args.align,
        most_frames=args.frames,
        chunks=_chunk_frames(args.chunk_frames),
        clip=Weights(args.clip, args.download) if args.clip else None,
        pickscore=Weights(args.pickscore, args.download) if args.pickscore else None,
        device=args.device,
    )


def _chunk_frames(text: str | None) -> tuple[int, int] | None:
    if not text:
        return None
    words = text.split(",")
    if len(words) != 2 or not all(w.strip().isdigit() and int(w) > 0 for w in words):
        raise UserError(f"--chunk-frames {text!r} is not FIRST,OTHERS, such as 9,12")
    return int(words[0]), int(words[1])


def _judge(args: argparse.Namespace):
    from egoedit_ros.bench.judge_client import JudgeSettings

    return JudgeSettings(
        args.judge,
        args.judge_model,
        args.judge_key_env,
        args.judge_concurrency,
        args.judge_budget,
        args.judge_timeout,
    )


def _check_model(args: argparse.Namespace) -> None:
    """Fail now, with the command's own message, if the model cannot be opened."""
    from egoedit_ros.cli.common import model_size
    from egoedit_ros.stream.session import open_session

    open_session(
        args.model,
        args.device,
        model_size(args.size),
        args.chunk_latents,
        args.nfe,
        runtime=args.runtime,
    )


def _ticker(stack: ExitStack):
    bars: dict[str, Progress] = {}

    def tick(what: str, done: int, total: int, note: str) -> None:
        if what not in bars:
            stack.pop_all().close()  # one bar at a time
            bars[what] = stack.enter_context(Progress(what, total))
        bars[what].update(done, note)

    return tick


def _config(args: argparse.Namespace, settings, name: str, client) -> dict:
    editor = f"folder of outputs {name}" if args.outputs else f"model {args.model}"
    config = {
        "suite": "egoeditbench",
        "name": name,
        "editor": editor,
        "model": None if args.outputs else args.model,
        "device": args.device,
        "size": args.size,
        "chunk_latents": args.chunk_latents,
        "nfe": args.nfe,
        "output_size": args.output_size,
        "runtime": args.runtime,
        "seed": args.seed,
        "align": args.align,
        "frames": args.frames,
        "chunk_frames": args.chunk_frames,
        "limit": args.limit,
        "tasks": args.tasks,
        "clip": args.clip,
        "pickscore": args.pickscore,
    }
    if client is not None:
        config["judge"] = {
            "model": args.judge_model,
            "requests": client.sent,
            "from_cache": client.cached,
        }
    return config


def _rows(content: dict, name: str, client, page: Path) -> list[tuple[str, object]]:
    from egoedit_ros.bench.edit_page import shown
    from egoedit_ros.bench.metrics.registry import METRICS
    from egoedit_ros.bench.paper import PUBLISHED_METRICS

    short = [m.name for m in METRICS if content["mean"][m.name] is not None]
    width = {n: max(len(n), 6) for n in short}
    rows: list[tuple[str, object]] = [("", "  ".join(f"{n:>{width[n]}}" for n in short))]
    for task, values in {**content["tasks"], "mean over tasks": content["mean"]}.items():
        rows.append((task, "  ".join(f"{shown(n, values[n]):>{width[n]}}" for n in short)))
    rows.append(("", ""))
    heads = ("VLM", "Pick", "text", "consistency")
    rows.append(("published, all items", "  ".join(f"{h:>11}" for h in heads)))
    for row in [*content["published"], {"method": name, **content["mean"]}]:
        cells = (f"{shown(m, row[m]):>11}" for m in PUBLISHED_METRICS)
        rows.append((row["method"], "  ".join(cells)))
    rows.append(("", ""))
    rows += [(f"no {n}", why) for n, why in content["unavailable"].items()]
    if client is not None:
        rows.append(("judge", f"{client.sent} requests, {client.cached} answers from the cache"))
    rows += [(f"problem: {p['data_id']}", p["problem"]) for p in content["problems"][:10]]
    if len(content["problems"]) > 10:
        rows.append(("", f"and {len(content['problems']) - 10} more, in the JSON file"))
    rows.append(("page", page))
    return rows
