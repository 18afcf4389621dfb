# SPDX-License-Identifier: Apache-2.0
"""``egoedit replay``: a bag or video through the ROS graph, recorded and measured."""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import egoedit_ros
from egoedit_ros.cli.common import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_OK,
    Progress,
    add_input_options,
    add_instruction_options,
    add_model_options,
    add_output_options,
    add_switch_options,
    check_output,
    model_size,
    positive_number,
    table,
    timeline,
    whole,
)
from egoedit_ros.cli.graph import EXIT_WRONG_INPUT, HIGHEST_DOMAIN, Graph, NodeDied
from egoedit_ros.errors import UserError

EDGE_SIZE = "256x192"
DEFAULT_LATENTS = 3  # the paper's
MOST_LATENTS = 64
FRAMES_PER_LATENT = 4
WAIT_FOR_MODEL_S = 600.0
POLL_S = 0.05


def add_parser(subparsers) -> None:
    """Register ``replay``."""
    parser = subparsers.add_parser("replay", help="through the ROS graph", description=__doc__)
    add_input_options(parser)
    add_instruction_options(parser)
    add_output_options(parser, "folder for the bag, the video and the report")
    add_model_options(parser)
    add_switch_options(parser)
    parser.add_argument("--rate", type=positive_number, default=1.0, metavar="R", help="speed")
    parser.add_argument("--fps", type=positive_number, default=0.0, help="default: the input's own")
    parser.add_argument("--loop", type=whole, default=1, metavar="N", help="how often; 0: no end")
    parser.add_argument(
        "--policy",
        choices=("all", "latest"),
        default="all",
        help="all: lose nothing, however slow the editor; latest: real time, dropping frames",
    )
    parser.add_argument(
        "--domain-id",
        type=domain_id,
        metavar="N",
        help="ROS domain to run in, to look in with other tools; default: one of its own",
    )
    parser.add_argument(
        "--deadline-ms", type=positive_number, metavar="MS", help="default: chunk period + 100"
    )


def run(args: argparse.Namespace) -> int:
    """Replay, record, report. Returns 0, 1 (a node died), 2 or 130 (interrupted)."""
    from egoedit_ros.bench.report import LEFT_BEHIND, write_json
    from egoedit_ros.data import cdr
    from egoedit_ros.data.source import open_source, sha256_of

    instructions = timeline(args.instructions)
    size = model_size(args.size)
    check_output(args.output, args.overwrite, args.input, "folder")
    source = open_source(args.input, args.topic)
    try:
        fps, count, topic = args.fps or source.fps, source.count, source.topic
        first_stamp_ns, compressed = source.first_stamp_ns, source.msgtype == cdr.COMPRESSED
    finally:
        source.close()
    latents = args.chunk_latents or latents_of(args.model)
    deadline = args.deadline_ms or 1e3 * FRAMES_PER_LATENT * latents / (fps * args.rate) + 100
    settings = {
        "input": str(args.input),
        "input_sha256": sha256_of(args.input),
        "model": args.model,
        "device": args.device,
        "size": f"{size[0]}x{size[1]}" if size else None,
        "chunk_latents": args.chunk_latents,
        "deadline_ms": round(deadline, 3),
        "policy": args.policy,
        "rate": args.rate,
        "seed": args.seed,
        "instructions": [{"at": one.at, "text": one.text} for one in instructions],
        "command": shlex.join(["egoedit", *sys.argv[1:]]),
    }
    logs = _make_folder(args.output, LEFT_BEHIND)
    parameters = {
        "recorder": {
            "output": str(args.output / "edited"),
            "arrivals": str(logs / "arrivals.jsonl"),
            "compressed": compressed,
        },
        "editor": {
            "model": args.model,
            "device": args.device,
            "size": settings["size"] or ("" if args.model != "null" else EDGE_SIZE),
            "chunk_latents": args.chunk_latents or 0,
            "nfe": args.nfe or 0,
            "recache": args.recache,
            "blend_chunks": args.blend_chunks,
            "seed": args.seed,
            "policy": args.policy,
            "input_transport": "compressed" if compressed else "raw",
            "output_size": args.output_size or "model",
            "deadline_ms": float(deadline),
            "camera_fps": float(fps * args.rate),
            "autostart": True,
        },
        "instruction": {
            "timeline_file": str(_write_timeline(logs, instructions, args.seed)),
            "start_stamp_ns": first_stamp_ns,
            "input_transport": "compressed" if compressed else "raw",
            "wait_timeout": WAIT_FOR_MODEL_S,
        },
        "replay": {
            "input": str(args.input),
            "topic": topic,
            "rate": float(args.rate),
            "fps": float(args.fps),
            "loop": args.loop,
            "policy": args.policy,
            "max_in_flight": 2 * FRAMES_PER_LATENT * latents,
            "compressed": compressed,
            "wait_for": ["editor", "recorder", "instruction"],
            "wait_timeout": WAIT_FOR_MODEL_S,
            "events": str(logs / "replay.jsonl"),
        },
    }
    outcome = _Outcome()
    with _Interruption() as interruption, Graph(logs, args.domain_id) as graph:
        try:
            for node, values in parameters.items():
                graph.start(node, values)
            _watch(graph, interruption, outcome, logs / "replay.jsonl", count * args.loop)
        except NodeDied as death:
            outcome.death = death
        outcome.interrupted = interruption.event.is_set()
        graph.stop_all()
    report = _report(args.output, settings, outcome, count * args.loop)
    if args.json and report:
        write_json(report, args.json)
    return _tell(args.output, report, outcome)


class _Outcome:
    """How the graph ended."""

    def __init__(self) -> None:
        self.death: NodeDied | None = None
        self.interrupted = False
        self.published = 0


class _Interruption:
    """The first Ctrl-C or SIGTERM asks for an end, a second one is the usual exception."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self._before: dict = {}

    def __enter__(self) -> _Interruption:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._take)
        return self

    def _take(self, number: int, frame: object) -> None:
        if self.event.is_set():
            raise KeyboardInterrupt
        self.event.set()
        print("\nstopping; the recording is being closed", file=sys.stderr, flush=True)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def domain_id(text: str) -> int:
    """For argparse: a ROS domain whose ports nobody else takes."""
    number = int(text) if text.isdecimal() else -1
    if not 0 <= number <= HIGHEST_DOMAIN:
        raise argparse.ArgumentTypeError(f"{text!r} is no ROS domain; use 0 to {HIGHEST_DOMAIN}")
    return number


def latents_of(model: str) -> int:
    """Latents in a chunk of ``model``, as far as its name or its files tell; else three.

    What they tell is the editor's to check; here it only has to be a length.
    """
    folders = (Path(egoedit_ros.__file__).parent / "weights" / model, Path(model))
    for file in [folder / name for folder in folders for name in ("config.json", "editor.json")]:
        try:
            told = int(json.loads(file.read_text(encoding="utf-8"))["chunk_latents"])
            return min(max(1, told), MOST_LATENTS)
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return 1 if model == "null" else DEFAULT_LATENTS


def _make_folder(output: Path, left_behind: tuple[str, ...]) -> Path:
    """The output folder without what an earlier replay left in it. Returns the logs' folder.

    Raises UserError where what is there was not left by a replay.
    """
    for name, marks in (("edited", ("*.mcap",)), ("logs", ("replay.yaml", "timeline.yaml"))):
        old = output / name
        if old.is_dir() and any(old.iterdir()) and not any(any(old.glob(m)) for m in marks):
            raise UserError(f"{old} is not of a replay, so it is not replaced; choose another -o")
    for name in left_behind:
        old = output / name
        if old.is_dir() and not old.is_symlink():
            shutil.rmtree(old)
        else:
            old.unlink(missing_ok=True)
    logs = output / "logs"
    try:
        logs.mkdir(parents=True)
    except OSError as error:
        raise UserError(
            f"cannot write to {output} ({error.strerror}); choose a folder you may write to"
        ) from None
    return logs


def _write_timeline(logs: Path, instructions: list, seed: int) -> Path:
    import yaml

    entries = [
        {"at": one.at, "text": one.text, "seed": seed or one.seed, "reset": one.reset}
        for one in instructions
    ]
    if not entries or entries[0]["at"] > 0:
        # The stream begins unedited, and the replay has something to wait for.
        entries.insert(0, {"at": 0.0, "text": "", "seed": seed, "reset": False})
    path = logs / "timeline.yaml"
    path.write_text(yaml.safe_dump(entries, allow_unicode=True), encoding="utf-8")
    return path


def _watch(
    graph: Graph, interruption: _Interruption, outcome: _Outcome, notes: Path, total: int
) -> None:
    """Show progress until the replay is over or asked to end. Raises NodeDied."""
    position = 0
    with Progress("frames", total) as progress:
        while not interruption.event.is_set():
            graph.check(may_end="replay")
            over = graph.ended("replay")
            if notes.exists():
                with notes.open("rb") as file:
                    file.seek(position)
                    new = file.read()
                    position += len(new)
                    outcome.published += new.count(b'"frame"')
            progress.update(outcome.published, "" if outcome.published else "waiting for the model")
            if over:
                return
            time.sleep(POLL_S)


def _report(folder: Path, settings: dict, outcome: _Outcome, total: int) -> dict | None:
    """Write the reports; what can be rescued of a broken bag is. None if nothing was recorded."""
    from egoedit_ros.bench.report import write_reports
    from egoedit_ros.data.bag_writer import rescue_bag

    death = outcome.death
    if (death is not None or outcome.interrupted) and not outcome.published:
        return None
    try:
        if not (folder / "edited" / "metadata.yaml").exists():
            rescue_bag(folder / "edited")
        with Progress("report", total) as progress:
            return write_reports(
                folder,
                settings,
                interrupted=outcome.interrupted or death is not None,
                error=str(death) if death else "",
                progress=progress.update,
            )
    except UserError as error:
        if death is None and not outcome.interrupted:
            raise
        print(f"no report: {error}", file=sys.stderr)
        return None


def _tell(folder: Path, report: dict | None, outcome: _Outcome) -> int:
    """Print the results and what went wrong; returns the exit code."""
    if report:
        print(results_table(report))
        print(f"written to {folder}: {', '.join(sorted(p.name for p in folder.iterdir()))}")
    if outcome.death is not None:
        kept = f"; what was recorded is in {folder}" if report else ""
        print(f"egoedit: error: {outcome.death}{kept}", file=sys.stderr, flush=True)
        return EXIT_WRONG_INPUT if outcome.death.code == EXIT_WRONG_INPUT else EXIT_FAILED
    if report and not report["frames_out"] and not outcome.interrupted:
        log = folder / "logs" / "editor.log"
        print(
            f"egoedit: error: no frame came out of the editor; see {log}",
            file=sys.stderr,
            flush=True,
        )
        return EXIT_FAILED
    return EXIT_INTERRUPTED if outcome.interrupted else EXIT_OK


def results_table(report: dict) -> str:
    """The main figures as text."""

    def number(value: float | None, unit: str = "") -> str:
        return "-" if value is None else f"{value:.1f}{unit}"

    latency, dropped = report["latency_ms"], report["dropped"]
    memory = report["editor_memory_bytes"]
    switches = report["instruction_switch_ms"]
    rows = [
        ("model", f"{report['model']} on {report['device']}, {report['size']}"),
        ("frames in / out", f"{report['frames_in']} / {report['frames_out']}"),
        ("dropped", ", ".join(f"{cause} {count}" for cause, count in dropped.items())),
        ("fps in / out", f"{number(report['fps_in'])} / {number(report['fps_out'])}"),
        ("first frame", number(report["first_frame_ms"], " ms")),
        (
            "latency",
            ", ".join(f"{name} {number(value)}" for name, value in latency.items()) + " ms",
        ),
        ("deadline misses", f"{report['deadline_misses']} of {report['deadline_ms']:.0f} ms"),
        (
            "instruction switch",
            ", ".join(number(ms) for ms in switches) + " ms" if switches else "-",
        ),
        ("editor memory", number(memory / 2**20, " MiB") if memory else "-"),
    ]
    if report["interrupted"]:
        rows.append(("interrupted", "yes"))
    return table(rows)


def load_report(folder: Path) -> dict:
    """report.json of a replay's folder."""
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))
