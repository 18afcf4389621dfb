# SPDX-License-Identifier: Apache-2.0
"""Plays a camera to a running graph and measures what comes out: the stream benchmark's node.

The graph is not changed and need not be ours: any node that copies the header's stamp can be
measured. What an editor tells beside the pictures (stages, drops by cause, the instruction in
force) is used where it is there.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path

from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node

from egoedit_ros.bench.stream_input import load_frames
from egoedit_ros.bench.stream_plan import DEFAULT, SCHEMA, TEXTS, Plan, run_plan
from egoedit_ros.bench.stream_run import Run
from egoedit_ros.bench.stream_usage import Usage, parse_watch
from egoedit_ros.errors import UserError
from egoedit_ros.nodes.bench_rig import BenchRig, Stopped
from egoedit_ros.nodes.process import declare, run_process
from egoedit_ros.stream.types import parse_size

RESULT = "bench.json"
EVENTS = "events.jsonl"
RUNS = "runs"


class BenchNode(Node):
    """The parameters of a benchmark; :attr:`rig` plays and listens, :attr:`plan` says what."""

    def __init__(self, stop: threading.Event | None = None) -> None:
        super().__init__("bench")
        self.input = declare(self, "input", "", "bag (folder, .mcap, .db3) or video file")
        topic = declare(self, "topic", "", "image topic of the bag; empty: its only one")
        size = declare(self, "size", "", "WIDTHxHEIGHT to send, as rgb8; empty: as the input is")
        self.plan = self._declare_plan()
        texts = declare(
            self,
            "instructions",
            list(TEXTS),
            "what is asked for; all but the first only when switches are measured",
        )
        image_topic = declare(
            self, "image_topic", "", "topic to send on; empty: image_raw or image_raw/compressed"
        )
        output_topic = declare(
            self, "output_topic", "", "topic to listen to; empty: edited/image_raw"
        )
        wait = declare(self, "wait_timeout", 60.0, "seconds to wait for the graph", 0.0, 86_400.0)
        silence = declare(
            self, "silence_timeout", 10.0, "seconds to wait for a first frame", 0.1, 86_400.0
        )
        output = declare(self, "output", "egoedit_bench", "folder for the figures and the runs")
        watched = declare(self, "watch", [""], "processes to measure, as NAME:PID")
        self.report = declare(self, "report", True, "also write report.html")
        if not self.input:
            raise UserError("parameter input is empty; give a bag or a video file")
        processes = parse_watch([word for word in watched if word])
        self.output = Path(output)
        self.frames = load_frames(self.input, topic or None, parse_size(size))
        self.rig = BenchRig(
            self,
            self.frames,
            Usage(processes | {"bench": os.getpid()}),
            stop or threading.Event(),
            image_topic,
            output_topic,
            texts,
            wait,
            silence,
        )

    def _declare_plan(self) -> Plan:
        seconds = 86_400.0
        return Plan(
            rates=tuple(
                rate
                for rate in declare(
                    self, "rates", list(DEFAULT.rates), "frames a second to measure at, or own"
                )
                if rate
            ),
            runs=declare(self, "runs", DEFAULT.runs, "runs at each rate", 1, 1000),
            seconds=declare(self, "seconds", DEFAULT.seconds, "length of a run", 0.1, seconds),
            warm_up=declare(self, "warm_up", DEFAULT.warm_up, "seconds before it", 0.1, seconds),
            idle=declare(self, "idle", DEFAULT.idle, "seconds of idle baseline", 0.0, seconds),
            search=declare(self, "search", DEFAULT.search, "look for the highest rate"),
            most=declare(self, "most", DEFAULT.most, "highest rate to try", 1.0, 1000.0),
            probe=declare(self, "probe", DEFAULT.probe, "seconds to try a rate", 0.1, seconds),
            loss=declare(self, "loss", DEFAULT.loss, "share that may be lost at a rate", 0.0, 1.0),
            switches=declare(self, "switches", DEFAULT.switches, "of instruction", 0, 100_000),
            deadline_ms=declare(
                self, "deadline_ms", DEFAULT.deadline_ms, "0: a chunk period and 100 ms", 0.0, 1e7
            ),
            limit=declare(
                self, "limit", DEFAULT.limit, "one more rate to try; 0: none", 0.0, 1000.0
            ),
        )


def _work(stop: threading.Event) -> int:
    node = BenchNode(stop)
    executor = SingleThreadedExecutor()
    executor.add_node(node)

    def spin() -> None:
        try:
            executor.spin()
        except ExternalShutdownException:
            pass

    thread = threading.Thread(target=spin, daemon=True)
    thread.start()
    try:
        _measure(node)
    except Stopped:
        print("bench: stopped before the end; nothing is written", flush=True)
    finally:
        executor.shutdown()
        thread.join(2.0)
        node.destroy_node()
    return 0


def _measure(node: BenchNode) -> None:
    from egoedit_ros.bench.report import write_json

    (node.output / RUNS).mkdir(parents=True, exist_ok=True)
    kept: list[Run] = []
    with (node.output / EVENTS).open("w", buffering=1, encoding="utf-8") as events:

        def tell(line: str) -> None:
            node.get_logger().info(line)
            events.write(json.dumps({"step": line, "mono_ns": time.monotonic_ns()}) + "\n")

        def keep(run: Run) -> None:
            kept.append(run)
            write_json(run.as_json(), node.output / RUNS / f"{len(kept):03d}.json")

        for note in node.frames.notes:
            node.get_logger().warning(note)
        tell("waiting for the graph")
        node.rig.meet()
        content = run_plan(node.rig, node.plan, keep, tell)
    status = node.rig.status
    content |= {
        "schema": SCHEMA,
        "notes": node.frames.notes,
        "image_topic": node.rig.image_topic,
        "output_topic": node.rig.output_topic,
        "model": status.model if status else None,
        "device": status.device if status else None,
        "output_size": node.rig.output_size,
    }
    if node.report:
        from egoedit_ros.bench.provenance import provenance
        from egoedit_ros.bench.stream_page import write_page
        from egoedit_ros.data.source import sha256_of

        content |= provenance({"input": str(node.input)}, sha256_of(node.input))
        write_page(content, kept, node.output / "report.html")
    write_json(content, node.output / RESULT)
    print(f"bench: written to {node.output}", flush=True)


def main(args: list[str] | None = None) -> int:
    """Entry point. Exit code 2: wrong input, or a graph that does not answer."""
    return run_process(Path(__file__).stem, _work, args)


if __name__ == "__main__":
    sys.exit(main())
