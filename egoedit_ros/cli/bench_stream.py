# SPDX-License-Identifier: Apache-2.0
"""``egoedit bench stream``: starts the graph, the benchmark's node and the baselines in turn."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from pathlib import Path

from egoedit_ros.bench.stream_plan import DEFAULT, TEXTS, Plan, hertz
from egoedit_ros.bench.stream_run import Run
from egoedit_ros.cli.common import (
    add_model_options,
    add_switch_options,
    model_size,
    positive_number,
    positive_whole,
    whole,
)
from egoedit_ros.cli.graph import EXIT_WRONG_INPUT, Graph, NodeDied
from egoedit_ros.errors import UserError

# What the contract measures ROS itself at.
BASE_SIZE, BASE_RATE = "512x384", "30"
LIMIT_HZ = 120.0
WAIT_FOR_MODEL_S = 600.0
POLL_S = 0.1
START_S = 6.0
PROBES = 9


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of ``bench stream`` beside ``--json``."""
    parser.add_argument("input", type=Path, metavar="INPUT", help="rosbag2 or video file")
    parser.add_argument("--topic", metavar="NAME", help="image topic of the bag, if it has several")
    add_model_options(parser)
    add_switch_options(parser)
    parser.add_argument(
        "-i",
        "--instruction",
        dest="instructions",
        action="append",
        metavar="TEXT",
        help="what is asked for; repeatable: the switches take turns",
    )
    parser.add_argument(
        "--rates",
        default=",".join(DEFAULT.rates),
        metavar="LIST",
        help="frames a second to measure at; own: the input's timing; default: %(default)s",
    )
    parser.add_argument("--runs", type=positive_whole, default=DEFAULT.runs, metavar="N")
    parser.add_argument(
        "--seconds", type=positive_number, default=DEFAULT.seconds, metavar="S", help="of each run"
    )
    parser.add_argument("--no-search", action="store_true", help="not the highest rate")
    parser.add_argument(
        "--most", type=positive_number, default=DEFAULT.most, metavar="HZ", help="end of the search"
    )
    parser.add_argument("--switches", type=whole, default=DEFAULT.switches, metavar="N")
    parser.add_argument(
        "--limit",
        type=float,
        default=LIMIT_HZ,
        metavar="HZ",
        help="rate that the benchmark itself is tried at, with the null model; 0: not",
    )
    parser.add_argument(
        "--no-baselines", action="store_true", help="no null model, pass-through, direct call"
    )
    parser.add_argument("--deadline-ms", type=positive_number, default=0.0, metavar="MS")
    parser.add_argument(
        "--image-topic", metavar="NAME", help="measure a node that runs already: send there"
    )
    parser.add_argument("--output-topic", metavar="NAME", help="and listen there")
    parser.add_argument(
        "--wait", type=positive_number, default=30.0, metavar="S", help="for a node that runs"
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with plots")


def run(args: argparse.Namespace) -> tuple[dict, list]:
    """Measure. Returns the JSON's content and the rows to print. Raises UserError, NodeDied."""
    from egoedit_ros.data import cdr
    from egoedit_ros.data.source import open_source

    plan = _plan(args)
    foreign = bool(args.image_topic or args.output_topic)
    if foreign and not (args.image_topic and args.output_topic):
        raise UserError("give both --image-topic and --output-topic, or neither")
    if args.html and args.html.exists() and not args.overwrite:
        raise UserError(f"{args.html} exists; choose another file or add --overwrite")
    model_size(args.size)
    source = open_source(args.input, args.topic)
    compressed = source.msgtype == cdr.COMPRESSED
    source.close()

    folder = Path(tempfile.mkdtemp(prefix="egoedit_bench_"))
    try:
        content = _measure_all(args, plan, folder, compressed, foreign)
    except NodeDied as death:
        # What a node said of wrong input is all there is to say; else its log is wanted.
        if death.code == EXIT_WRONG_INPUT:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)
    return content, _rows(content)


def _measure_all(
    args: argparse.Namespace, plan: Plan, folder: Path, compressed: bool, foreign: bool
) -> dict:
    """The graph, then the baselines; writes the page. Returns the JSON's content."""
    bench = _Benchmark(args, folder, foreign)
    texts = list(args.instructions or TEXTS)
    common = {"input": str(args.input.resolve()), "topic": args.topic or "", "instructions": texts}
    main = {**common, **_parameters(plan)}
    with bench.bar:
        if foreign:
            topics = {"image_topic": args.image_topic, "output_topic": args.output_topic}
            content = bench.measure("graph", None, main | topics)
        else:
            editor = _editor(args, compressed, texts[0])
            content = bench.measure("graph", ("editor", editor), main)
        content |= dict.fromkeys(("ros_overhead_ms", "passthrough_ms", "graph_minus_direct_ms"))
        if not args.no_baselines:
            _baselines(bench, content, common, plan, foreign)
            if not foreign:
                _direct(bench, content, args, texts[0])
    _add_conditions(content, args, plan, texts, foreign)
    if args.html:
        from egoedit_ros.bench.stream_page import write_page

        write_page(content, bench.runs("graph"), args.html)
    return content


def _add_conditions(
    content: dict, args: argparse.Namespace, plan: Plan, texts: list[str], foreign: bool
) -> None:
    """Put in what every benchmark's file has, and what a report.json has beside its figures."""
    from egoedit_ros.bench.provenance import provenance
    from egoedit_ros.data.source import sha256_of

    model = content.pop("model")
    config = {
        "input": str(args.input),
        "model": None if foreign else model or args.model,
        "device": content.pop("device"),
        "size": content.pop("output_size"),
        "output_size": args.output_size or "model",
        "chunk_latents": next((f["chunk_latents"] for f in content["fixed"].values()), None),
        "nfe": args.nfe,
        "recache": args.recache,
        "blend_chunks": args.blend_chunks,
        "policy": "latest",
        "rates": list(plan.rates),
        "runs": plan.runs,
        "seconds": plan.seconds,
        "instructions": texts,
        "image_topic": args.image_topic,
        "output_topic": args.output_topic,
    }
    content |= provenance(config, sha256_of(args.input))
    for figures in content["fixed"].values():
        figures |= {key: config[key] for key in ("model", "device", "size")}
        figures |= {key: content[key] for key in ("host", "versions", "input_sha256")}


def _plan(args: argparse.Namespace) -> Plan:
    rates = tuple(rate.strip() for rate in args.rates.split(",") if rate.strip())
    if not rates:
        raise UserError("--rates is empty; give a list such as 10,16,30,own")
    if args.limit:
        hertz(f"{args.limit:g}", 1.0)
    short = args.seconds
    return Plan(
        rates=rates,
        runs=args.runs,
        seconds=args.seconds,
        warm_up=min(DEFAULT.warm_up, short),
        idle=min(DEFAULT.idle, short),
        search=not args.no_search,
        most=args.most,
        probe=min(DEFAULT.probe, short),
        switches=args.switches,
        deadline_ms=args.deadline_ms,
    )


def _parameters(plan: Plan) -> dict[str, object]:
    values = {name: getattr(plan, name) for name in Plan.__dataclass_fields__}
    return values | {"rates": list(plan.rates)}


def _editor(args: argparse.Namespace, compressed: bool, text: str) -> dict[str, object]:
    size = model_size(args.size)
    return {
        "model": args.model,
        "device": args.device,
        "size": f"{size[0]}x{size[1]}" if size else "" if args.model != "null" else "256x192",
        "chunk_latents": args.chunk_latents or 0,
        "nfe": args.nfe or 0,
        "recache": args.recache,
        "blend_chunks": args.blend_chunks,
        "policy": "latest",
        "input_transport": "compressed" if compressed else "raw",
        "output_size": args.output_size or "model",
        "instruction": text,
        "autostart": True,
    }


def _baselines(bench: _Benchmark, content: dict, common: dict, plan: Plan, foreign: bool) -> None:
    """The null model's graph and the plain pass-through node, at the size and rate fixed for it."""
    base = common | _parameters(plan)
    base |= {"size": BASE_SIZE, "rates": [BASE_RATE], "search": False, "switches": 0}
    limit = {} if foreign else {"limit": bench.limit}
    content["baseline"] = {}
    if not foreign:
        editor = {"model": "null", "size": BASE_SIZE, "policy": "latest", "autostart": True}
        null = bench.measure("null", ("editor", editor | {"instruction": "x"}), base | limit)
        figures = null["fixed"][BASE_RATE]
        p50, p95 = figures["ros_overhead_ms"] or (None, None)
        content["ros_overhead_ms"] = {"p50": p50, "p95": p95}
        content["limit"] = null.get("limit")
        content["baseline"]["null"] = figures
    through = bench.measure("passthrough", ("passthrough", {}), base)
    figures = through["fixed"][BASE_RATE]
    content["baseline"]["passthrough"] = figures
    content["passthrough_ms"] = figures["node_ms"]
    content["baseline"]["converter"] = bench.runs("passthrough")[0].latencies[0]["instruction_id"]


def _direct(bench: _Benchmark, content: dict, args: argparse.Namespace, text: str) -> None:
    """The same frames by direct calls, at a rate that the graph held."""
    from egoedit_ros.bench.stream_direct import (
        chunk_latencies,
        comparable_rate,
        direct_latencies,
        graph_minus_direct,
    )
    from egoedit_ros.bench.stream_input import decoded, load_frames
    from egoedit_ros.bench.stream_run import percentiles
    from egoedit_ros.stream.session import open_session

    rate = comparable_rate(content["fixed"])
    content["direct"] = None
    if rate is None:
        return
    bench.tell("direct call")
    hz = hertz(rate, content["own_hz"])
    session = open_session(
        args.model,
        args.device,
        model_size(args.size),
        args.chunk_latents,
        args.nfe,
        recache=args.recache,
        blend_chunks=args.blend_chunks,
    )
    pictures = decoded(load_frames(args.input, args.topic), 300)
    found = direct_latencies(session, pictures, hz, args.seconds, text, args.output_size or "model")
    direct = percentiles([ms for _, ms in found], 50, 90, 95, 99)
    content["direct"] = {"rate": rate, "latency_ms": direct}
    differences = [
        graph_minus_direct(chunk_latencies(run), found)
        for run in bench.runs("graph")
        if run.kind == "fixed" and run.rate == rate
    ]
    content["graph_minus_direct_ms"] = percentiles(
        [one for one in differences if one is not None], 50
    )["p50"]


def _rows(content: dict) -> list[tuple[str, object]]:
    from egoedit_ros.bench.stream_table import markdown, summary

    rows: list[tuple[str, object]] = [("note", note) for note in content["notes"]]
    rows += summary(content)
    rows += [("", line) for line in markdown(content).splitlines()]
    return rows


class _Benchmark:
    """Graphs one after the other, each with a benchmark node, under one progress bar."""

    def __init__(self, args: argparse.Namespace, folder: Path, foreign: bool) -> None:
        from tqdm import tqdm

        self.folder = folder
        self.limit = float(args.limit)
        self.foreign = foreign
        self._wait = args.wait
        self.bar = tqdm(total=round(_expected(args)), unit="s", bar_format=_BAR)
        self._began = time.monotonic()

    def tell(self, step: str) -> None:
        if step != self.bar.desc:
            self.bar.set_description_str(step)

    def measure(self, name: str, node: tuple[str, dict] | None, bench: dict) -> dict:
        """Start ``node`` (its name and parameters; None: it runs already) and measure it."""
        folder = self.folder / name
        folder.mkdir()
        with Graph(folder) as graph:
            if self.foreign and node is None:
                _join_theirs(graph.environment)
            watch = []
            if node is not None:
                graph.start(*node)
                watch = [f"{node[0]}:{graph.pids()[node[0]]}"]
            bench = bench | {
                "output": str(folder),
                "report": False,
                "wait_timeout": WAIT_FOR_MODEL_S if node else self._wait,
            }
            graph.start("bench", bench | {"watch": watch or [""]})
            self._follow(graph, name, folder / "events.jsonl")
            graph.stop_all()
        return json.loads((folder / "bench.json").read_text(encoding="utf-8"))

    def runs(self, name: str) -> list[Run]:
        """The runs that are quoted of a graph measured before."""
        files = sorted((self.folder / name / "runs").glob("*.json"))
        return [Run(**json.loads(file.read_text(encoding="utf-8"))) for file in files]

    def _follow(self, graph: Graph, name: str, events: Path) -> None:
        while not graph.ended("bench"):
            graph.check(may_end="bench")
            if events.exists() and (lines := events.read_text(encoding="utf-8").splitlines()):
                try:
                    self.tell(f"{name}: {json.loads(lines[-1])['step']}")
                except ValueError:
                    pass  # half a line; the next look finds it whole
            elapsed = min(time.monotonic() - self._began, self.bar.total - 1)
            self.bar.update(max(0, round(elapsed) - self.bar.n))
            time.sleep(POLL_S)
        graph.check(may_end="bench")


def _join_theirs(environment: dict[str, str]) -> None:
    """Put a graph, which else has a domain of its own, among the user's nodes."""
    environment["ROS_DOMAIN_ID"] = os.environ.get("ROS_DOMAIN_ID", "0")
    if "ROS_AUTOMATIC_DISCOVERY_RANGE" not in os.environ:
        del environment["ROS_AUTOMATIC_DISCOVERY_RANGE"]


_BAR = "{l_bar}{bar}| {elapsed} of about {total} s"


def _expected(args: argparse.Namespace) -> float:
    """Seconds that it takes, about: for the bar."""
    plan = _plan(args)
    run = plan.seconds + 2.5
    rates = len(plan.rates) * plan.runs * run
    lead = START_S + plan.idle + plan.warm_up + 2.5
    total = lead + rates + plan.switches * 1.0
    total += PROBES * (plan.probe + 1.5) if plan.search else 0
    if not args.no_baselines:
        total += 2 * (lead + plan.runs * run) + plan.seconds + START_S
    return total
