# SPDX-License-Identifier: Apache-2.0
"""The stream benchmark's figures as Markdown tables, for terminal, page and documentation."""

from __future__ import annotations

from egoedit_ros.bench.stream_plan import rate_name


def number(value: float | None, unit: str = "", digits: int = 1) -> str:
    """A figure, or a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}f}{unit}"


def markdown(content: dict) -> str:
    """One row to each fixed rate: the medians over its runs."""
    lines = [
        "| camera | fps in | fps out | lost | first frame | p50 | p90 | p95 | p99 | max | jitter |"
        " late | processor |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for rate, figures in content["fixed"].items():
        name = rate_name(rate)
        if rate == "own":
            name += f" ({content['own_hz']:.1f} Hz)"
        lines.append(_row(name, figures))
    return "\n".join(lines) + "\n"


def run_rows(runs: list[dict]) -> str:
    """The same of each run by itself, with its drops by cause."""
    head, rule = markdown({"fixed": {}}).splitlines()
    lines = [head + " dropped |", rule + "---|"]
    for index, figures in enumerate(runs):
        dropped = ", ".join(f"{cause} {n}" for cause, n in figures["dropped"].items() if n)
        lines.append(_row(f"run {index + 1}", figures) + f" {dropped or '-'} |")
    return "\n".join(lines) + "\n"


def _row(name: str, figures: dict) -> str:
    latency = figures["latency_ms"]
    usage = figures.get("usage") or {}
    loads = [f"{n} {u['cpu_percent']:.0f} %" for n, u in usage.items() if "cpu_percent" in u]
    cells = [
        name,
        number(figures["fps_in"]),
        number(figures["fps_out"]),
        number(100 * figures["loss"], " %"),
        number(figures["first_frame_ms"], "", 0),
        *(number(latency[p]) for p in ("p50", "p90", "p95", "p99", "max")),
        number(figures["jitter_ms"]),
        str(figures["deadline_misses"]),
        ", ".join(loads) or "-",
    ]
    return "| " + " | ".join(cells) + " |"


def summary(content: dict) -> list[tuple[str, str]]:
    """(name, value) of the figures that stand beside the rates."""
    search, limit = content.get("search") or {}, content.get("limit")
    switch = content["instruction_switch_ms"]
    ends = {"player": "the benchmark could not send faster", "most": "not tried any higher"}
    rows = []
    if search:
        end = ends.get(search["limited_by"], "")
        rows.append(
            ("highest rate", number(content["peak_fps"], " fps") + (f" ({end})" if end else ""))
        )
    for key, name in (("ros_overhead_ms", "ROS overhead, null model"), ("passthrough_ms", "plain "
                      "pass-through node")):  # fmt: skip
        if found := content.get(key):
            rows.append((name, f"p50 {number(found['p50'], '', 2)}, p95 "
                         f"{number(found['p95'], ' ms', 2)}"))  # fmt: skip
    if content.get("graph_minus_direct_ms") is not None:
        rate = rate_name((content.get("direct") or {}).get("rate", ""))
        rows.append(("graph minus direct call",
                     f"{number(content['graph_minus_direct_ms'], ' ms')} ({rate})"))  # fmt: skip
    if switch["p50"] is not None:
        count = len((content.get("switches") or {}).get("ms", []))
        rows.append(("instruction switch", f"p50 {number(switch['p50'])}, p95 "
                     f"{number(switch['p95'], ' ms')} ({count} switches)"))  # fmt: skip
    if limit:
        verdict = "held" if limit["held"] else f"not held: the {limit['limited_by']} is too slow"
        rows.append(
            (f"null model at {limit['rate']:g} Hz",
             f"{limit['fps_in']:.1f} sent, {limit['fps_out']:.1f} came, "
             f"{100 * limit['loss']:.1f} % lost: {verdict}")
        )  # fmt: skip
    return rows
