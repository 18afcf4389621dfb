# SPDX-License-Identifier: Apache-2.0
"""One table of what the benchmarks' JSON files say; ``--docs`` puts it into docs/benchmarks.md.

Takes files of ``egoedit bench stream|engine|edit --suite sim --json``, of each kind one at most.
``make bench`` prints its figures with it.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from egoedit_ros.bench.metrics.registry import BY_NAME  # noqa: E402
from egoedit_ros.bench.stream_table import markdown, number, summary  # noqa: E402

DOCS = ROOT / "docs" / "benchmarks.md"
STREAM, ENGINE, SIM = "stream", "engine", "sim"
SIM_METRICS = ("edit_gain", "ssim_gain", "keep_psnr", "hand_psnr")


def kind_of(content: dict) -> str | None:
    """Which benchmark a file is of; None if of none that has a table here."""
    if "fixed" in content:
        return STREAM
    if "edge_fps" in content:
        return ENGINE
    return SIM if "clips" in content and "tasks" in content else None


def load(paths: list[Path]) -> dict[str, dict]:
    """Contents by kind. Leaves the program for what cannot be read."""
    found: dict[str, dict] = {}
    for path in paths:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise SystemExit(f"cannot read {path}: {error}") from None
        kind = kind_of(content) if isinstance(content, dict) else None
        if kind is None:
            raise SystemExit(f"{path} is of no benchmark that has a table here")
        if kind in found:
            raise SystemExit(f"{path} is the second file of bench {kind}; give one")
        found[kind] = content
    return found


def conditions(content: dict) -> str:
    """Where, when and how a file's figures were made."""
    host, config = content["host"], content["config"]
    what = ", ".join(
        f"{key} {config[key]}"
        for key in ("model", "size", "chunk_latents", "nfe", "runs", "seconds")
        if config.get(key) is not None
    )
    revision = (content["git_revision"] or "unknown")[:9]
    return (
        f"{host['cpu']}, {host['cores']} cores; {what}; revision {revision}; `{content['command']}`"
    )


def stream_table(content: dict) -> str:
    """The rates, then what stands beside them."""
    lines = ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in summary(content))]
    return markdown(content) + "\n" + "\n".join(lines) + "\n"


def sim_table(content: dict) -> str:
    """Figures by task: against the exact target, and those that need none."""
    unaided = content.get("unaided") or {"tasks": {}, "mean": {}}
    names = [n for n in BY_NAME if unaided["mean"].get(n) is not None]
    head = [*SIM_METRICS, *(f"`{name}`" for name in names)]
    lines = ["| | " + " | ".join(head) + " |", "|---" + "|---:" * len(head) + "|"]
    rows = {**content["tasks"], "mean over tasks": content["mean"]}
    for task, figures in rows.items():
        more = unaided["tasks"].get(task, unaided["mean"])
        cells = [number(figures[n], "", 3 if "gain" in n else 1) for n in SIM_METRICS]
        cells += [number(more.get(n), "", 2) for n in names]
        lines.append(f"| {task} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def one_table(found: dict[str, dict]) -> str:
    """The main figures of all files as one table."""
    lines = ["| benchmark | figure | value |", "|---|---|---|"]
    if engine := found.get(ENGINE):
        rows = [(f"frames/s at {nfe} NFE", number(v)) for nfe, v in engine["edge_fps"].items()]
        rows.append(("first frame", number(engine["edge_first_frame_ms"], " ms", 0)))
        rows.append(("memory", number(engine["edge_memory_bytes"] / 2**20, " MiB", 0)))
        if engine.get("speedup_vs_recompute"):
            rows.append(("against recomputing", f"{engine['speedup_vs_recompute']:.2f} times"))
        lines += [f"| engine | {name} | {value} |" for name, value in rows]
    if sim := found.get(SIM):
        lines += [f"| edits | {n} | {number(sim['mean'][n], '', 3)} |" for n in SIM_METRICS]
        for name, value in ((sim.get("unaided") or {}).get("mean") or {}).items():
            if value is not None:
                lines.append(f"| edits | {BY_NAME[name].title} | {value:.2f} |")
    if stream := found.get(STREAM):
        for rate, figures in stream["fixed"].items():
            latency = figures["latency_ms"]
            name = f"{stream['own_hz']:.1f} Hz (own)" if rate == "own" else f"{rate} Hz"
            lines.append(
                f"| graph | at {name} | {number(figures['fps_out'])} fps out, "
                f"{100 * figures['loss']:.1f} % lost, p50 {number(latency['p50'], '', 0)}, "
                f"p99 {number(latency['p99'], ' ms', 0)} |"
            )
        lines += [f"| graph | {name} | {value} |" for name, value in summary(stream)]
    return "\n".join(lines) + "\n"


def fill(text: str, found: dict[str, dict]) -> str:
    """``text`` with the tables of what was found put between their markers."""
    blocks = {}
    if stream := found.get(STREAM):
        blocks["stream-conditions"] = conditions(stream) + "\n"
        blocks["stream"] = stream_table(stream)
    if sim := found.get(SIM):
        blocks["sim-conditions"] = conditions(sim) + "\n"
        blocks["sim"] = sim_table(sim)
    for name, block in blocks.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        head, mark, rest = text.partition(begin)
        _, stop, tail = rest.partition(end)
        if not mark or not stop:
            raise SystemExit(f"{DOCS.name} lacks the markers of {name}")
        text = head + mark + block + stop + tail
    return text


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.json")
    parser.add_argument("--docs", action="store_true", help="write into docs/benchmarks.md")
    args = parser.parse_args(argv)
    found = load(args.files)
    if args.docs:
        DOCS.write_text(fill(DOCS.read_text(encoding="utf-8"), found), encoding="utf-8")
    print(one_table(found), end="")


if __name__ == "__main__":
    main()
