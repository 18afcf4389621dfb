# SPDX-License-Identifier: Apache-2.0
"""``report.html`` of the stream benchmark: figures, and plots of the median run at each rate."""

from __future__ import annotations

from html import escape
from pathlib import Path

from egoedit_ros.bench import plots
from egoedit_ros.bench.page import box, details, document, write_whole
from egoedit_ros.bench.stream_plan import rate_name
from egoedit_ros.bench.stream_run import Run, recording_of
from egoedit_ros.bench.stream_table import markdown, number, run_rows

_NESTED = ("fixed", "search", "baseline", "idle", "limit", "direct", "switches")


def write_page(content: dict, runs: list[Run], path: Path) -> None:
    """Write the page of a benchmark's JSON ``content``; runs: those that it quotes."""
    config = content.get("config") or {}
    name = Path(str(config.get("input", "a camera"))).name
    parts = [f"<h1>Stream benchmark on {escape(name)}</h1>"]
    parts.append(f'<p class="sub">{escape(str(content.get("command") or ""))}</p>')
    parts += [f'<p class="note">{escape(note)}</p>' for note in content.get("notes", [])]
    parts += [_cards(content), "<h2>Rates</h2>", _html(markdown(content))]
    for rate, figures in content["fixed"].items():
        parts.append(f"<h2>{escape(rate_name(rate))}</h2>")
        parts += _rate(rate, figures, runs)
    parts += ["<h2>Processes</h2>", _usage(content)]
    if probes := (content.get("search") or {}).get("probes"):
        parts += ["<h2>Search of the highest rate</h2>", _probes(content["search"], probes)]
    plain = {key: value for key, value in content.items() if key not in _NESTED}
    parts += ["<h2>Details</h2>", details(plain)]
    write_whole(path, document("egoedit bench stream", parts))


def _cards(content: dict) -> str:
    switch = content["instruction_switch_ms"]
    overhead, passthrough = content.get("ros_overhead_ms"), content.get("passthrough_ms")
    rows = [
        (number(content.get("peak_fps")), "highest rate (fps)"),
        (number(switch["p50"], " ms"), "instruction switch, p50"),
        (number((overhead or {}).get("p50"), " ms", 2), "what ROS costs (null model), p50"),
        (number((passthrough or {}).get("p50"), " ms", 2), "plain pass-through node, p50"),
    ]
    cards = "".join(
        f'<div class="card"><b>{escape(v)}</b><span>{escape(n)}</span></div>' for v, n in rows
    )
    return f'<div class="cards">{cards}</div>'


def _rate(rate: str, figures: dict, runs: list[Run]) -> list[str]:
    mine = [run for run in runs if run.kind == "fixed" and run.rate == rate]
    parts = [_html(run_rows(figures["runs"]))]
    if not mine:
        return parts
    chosen = _middle(figures["runs"])
    run, one = mine[chosen], figures["runs"][chosen]
    recording = recording_of(run)
    over_time = plots.latency_over_time(recording, one["deadline_ms"])
    parts += [
        f"<p>Plots of run {chosen + 1}, the one in the middle by its median latency.</p>",
        box("Latency of each frame", over_time),
        '<div class="two">',
        box("Distribution", plots.distribution(recording)),
        box("By stage, as the editor tells", plots.stage_bars(recording)),
        box("Where the frames went", plots.drops(one["dropped"], one["frames_out"])),
        "</div>",
    ]
    return parts


def _middle(runs: list[dict]) -> int:
    order = sorted(range(len(runs)), key=lambda i: runs[i]["latency_ms"]["p50"] or 0.0)
    return order[len(order) // 2]


def _usage(content: dict) -> str:
    rows = [("idle", content.get("idle") or {})]
    rows += [(rate_name(rate), f["usage"] or {}) for rate, f in content["fixed"].items()]
    lines = ["| | process | processor | memory |", "|---|---|---:|---:|"]
    for name, usage in rows:
        for process, used in usage.items():
            load = used.get("cpu_percent", used.get("gpu_percent"))
            memory = number((used.get("memory_bytes") or 0) / 2**20, " MiB", 0)
            lines.append(f"| {name} | {process} | {number(load, ' %', 0)} | {memory} |")
    return _html("\n".join(lines)) if len(lines) > 2 else "<p>No process was watched.</p>"


def _probes(search: dict, probes: list[dict]) -> str:
    lines = ["| asked | sent | came | lost | |", "|---|---:|---:|---:|---|"]
    for probe in probes:
        verdict = "held" if probe["held"] else f"too much for the {probe['limited_by']}"
        lines.append(
            f"| {number(probe['rate'])} Hz | {number(probe['fps_in'])} |"
            f" {number(probe['fps_out'])} | {100 * probe['loss']:.1f} % | {verdict} |"
        )
    return _html("\n".join(lines))


def _html(table: str) -> str:
    """A Markdown table as HTML."""
    rows = [
        [cell.strip().strip("`") for cell in line.strip().strip("|").split("|")]
        for line in table.strip().splitlines()
    ]
    body = ["<tr>" + "".join(f"<th>{escape(c)}</th>" for c in rows[0]) + "</tr>"]
    body += ["<tr>" + "".join(f"<td>{escape(c)}</td>" for c in row) + "</tr>" for row in rows[2:]]
    return f'<div class="box"><table>{"".join(body)}</table></div>'
