# SPDX-License-Identifier: Apache-2.0
"""``report.html``: the report as one file that needs nothing beside it."""

from __future__ import annotations

import base64
import os
from html import escape
from pathlib import Path

from egoedit_ros.bench import plots
from egoedit_ros.bench.recording import Recording, message_stamp, picture_pairs, picture_sizes
from egoedit_ros.bench.side_by_side import fit, panel_size

MOST_SAMPLES = 8

STYLE = """
:root { color-scheme: light; --ink: #1c2430; --faint: #647084; --line: #e2e6ec; --paper: #f5f6f8; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 26px; margin: 0 0 2px; } h2 { font-size: 18px; margin: 34px 0 10px; }
p.sub { color: var(--faint); margin: 0 0 18px; overflow-wrap: anywhere; }
.cards { display: grid; grid-template-columns: repeat(4, 1fr); gap: 10px; }
@media (max-width: 700px) { .cards { grid-template-columns: repeat(2, 1fr); } }
.card, .box { background: #fff; border: 1px solid var(--line); border-radius: 8px; }
.card { padding: 10px 14px; } .card b { display: block; font-size: 22px; line-height: 1.25; }
.card span { color: var(--faint); font-size: 13px; }
.box { padding: 12px 14px; margin-bottom: 12px; overflow-x: auto; }
.box h3 { font-size: 14px; margin: 0 0 6px; }
.box svg { width: 100%; height: auto; display: block; }
.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(420px, 1fr)); gap: 12px; }
.two .box { margin: 0; }
.note { border-left: 4px solid #d55e00; background: #fff; padding: 10px 14px; margin: 0 0 16px; }
.samples { display: grid; grid-template-columns: repeat(auto-fit, minmax(500px, 1fr)); gap: 14px; }
figure { margin: 0; } figure div { display: grid; grid-template-columns: 1fr 1fr; gap: 4px; }
figure img { width: 100%; display: block; border-radius: 4px; }
figcaption { font-size: 13px; color: var(--faint); padding-top: 4px; }
figcaption q { color: var(--ink); }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
td, th { text-align: left; padding: 4px 10px 4px 0; border-bottom: 1px solid var(--line);
  vertical-align: top; overflow-wrap: anywhere; }
td:first-child { color: var(--faint); width: 28%; }
"""


def write_page(report: dict, recording: Recording, path: Path) -> None:
    """Write the page for ``report`` (the contents of report.json)."""
    parts = [
        f"<h1>Replay of {escape(Path(str(report.get('input', ''))).name or 'a camera')}</h1>",
        f'<p class="sub">{escape(_subtitle(report))}</p>',
    ]
    if report.get("error"):
        parts.append(f'<p class="note">{escape(report["error"])}</p>')
    elif report.get("interrupted"):
        parts.append('<p class="note">Interrupted: the figures are those up to there.</p>')
    parts += [_cards(report), "<h2>Frames: camera and edited</h2>", _samples(recording)]
    parts += ["<h2>Latency</h2>", *_latency_plots(report, recording)]
    parts += ["<h2>Frames and memory</h2>", '<div class="two">']
    parts.append(box("Where the frames went", plots.drops(report["dropped"], report["frames_out"])))
    parts.append(box("Memory of the editor", plots.memory_over_time(recording)))
    parts += ["</div>", "<h2>Instructions</h2>", _instructions(report, recording)]
    parts += ["<h2>Details</h2>", details(report)]
    write_whole(path, document("egoedit replay", parts))


def write_whole(path: Path, text: str) -> None:
    """Write a page at once or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def document(title: str, parts: list[str], style: str = STYLE) -> str:
    """A whole page of these parts of HTML."""
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{style}</style></head>\n"
        f"<body><main>\n{body}\n</main></body></html>\n"
    )


def _subtitle(report: dict) -> str:
    words = [
        f"model {report['model']}",
        str(report["device"]),
        str(report["size"] or "size unknown"),
        f"chunks of {report['chunk_latents']} latent frames",
        f"policy {report['policy']}",
    ]
    return " · ".join(words)


def _cards(report: dict) -> str:
    latency = report["latency_ms"]
    lost = sum(report["dropped"].values())
    switches = report["instruction_switch_ms"]
    switch = f"{max(switches):.0f} ms" if switches else "–"
    rows = [
        (f"{report['frames_out']} / {report['frames_in']}", "frames out / in"),
        (str(lost), "frames lost"),
        (f"{_number(report['fps_out'])} / {_number(report['fps_in'])}", "fps out / in"),
        (_ms(report["first_frame_ms"]), "first frame"),
        (_ms(latency["p50"]), "latency, median"),
        (_ms(latency["p95"]), "latency, p95"),
        (switch, "slowest switch"),
        (_mebibytes(report["editor_memory_bytes"]), "editor memory"),
    ]
    cards = "".join(
        f'<div class="card"><b>{escape(v)}</b><span>{escape(n)}</span></div>' for v, n in rows
    )
    return f'<div class="cards">{cards}</div>'


def _latency_plots(report: dict, recording: Recording) -> list[str]:
    over_time = plots.latency_over_time(recording, report.get("deadline_ms"))
    return [
        box("From camera to edited frame, frame by frame", over_time),
        box("Where the time goes, frame by frame", plots.stages_over_time(recording)),
        '<div class="two">',
        box("Distribution", plots.distribution(recording)),
        box("By stage", plots.stage_bars(recording)),
        "</div>",
    ]


def box(title: str, svg: str | None) -> str:
    """A titled box around a plot; None says that there is nothing to plot."""
    content = svg or "<p>Not enough was recorded for this plot.</p>"
    return f'<div class="box"><h3>{escape(title)}</h3>{content}</div>'


def _samples(recording: Recording) -> str:
    sizes = picture_sizes(recording.folder)
    if sizes is None:
        return "<p>No frame came out.</p>"
    texts = recording.texts_by_stamp()
    chosen = set(sample_stamps([a.stamp for a in recording.edited], texts))
    first = recording.published[0][0] if recording.published else 0
    panel = panel_size(sizes[1])
    figures = []
    for stamp, source, edited in picture_pairs(recording.folder, panel, chosen):
        text = texts.get(stamp, "")
        caption = f"<q>{escape(text)}</q>" if text else "camera passed through"
        figures.append(
            f"<figure><div>{_picture(source, 'camera')}{_picture(fit(edited, panel), 'edited')}"
            f"</div><figcaption>{(stamp - first) / 1e9:.2f} s · {caption}</figcaption></figure>"
        )
    return f'<div class="samples">{"".join(figures)}</div>'


def sample_stamps(stamps: list[int], texts: dict[int, str]) -> list[int]:
    """Up to eight frames that tell the story: the middle and the end of each instruction's time."""
    runs: list[list[int]] = []
    before: str | None = None
    for stamp in stamps:
        text = texts.get(stamp, "")
        if not runs or text != before:
            runs.append([])
        before = text
        runs[-1].append(stamp)
    if len(runs) > MOST_SAMPLES:
        runs = [runs[round(i * (len(runs) - 1) / (MOST_SAMPLES - 1))] for i in range(MOST_SAMPLES)]
    each = max(1, min(4, MOST_SAMPLES // max(1, len(runs))))
    return [run[(2 * k + 1) * len(run) // (2 * each)] for run in runs for k in range(each)]


def _picture(rgb, alt: str) -> str:
    from egoedit_ros.stream.images import encode_jpeg

    data = base64.b64encode(bytes(encode_jpeg(rgb, 88))).decode()
    return f'<img alt="{alt}" src="data:image/jpeg;base64,{data}">'


def _instructions(report: dict, recording: Recording) -> str:
    first = recording.published[0][0] if recording.published else 0
    rows = []
    for switch in recording.switches:
        seconds = (message_stamp(switch) - first) / 1e9
        text = escape(switch.text) if switch.text else "<i>none: camera passed through</i>"
        rows.append(
            f"<tr><td>{seconds:.2f} s</td><td>{text}</td>"
            f"<td>{switch.switch_latency_ms:.0f} ms in the editor</td></tr>"
        )
    if not rows:
        return "<p>No instruction took effect.</p>"
    return f'<div class="box"><table>{"".join(rows)}</table></div>'


def details(report: dict) -> str:
    """A report's values as a table."""
    hidden = {"editor_memory_series", "error"}
    rows = []
    for key, value in report.items():
        if key in hidden:
            continue
        if isinstance(value, dict):
            shown = ", ".join(f"{k}: {v}" for k, v in value.items())
        elif isinstance(value, list):
            shown = ", ".join(str(v) for v in value) or "none"
        else:
            shown = str(value)
        rows.append(f"<tr><td>{escape(key)}</td><td>{escape(shown)}</td></tr>")
    return f'<div class="box"><table>{"".join(rows)}</table></div>'


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def _ms(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f} ms"


def _mebibytes(value: int | None) -> str:
    return "–" if not value else f"{value / 2**20:.0f} MiB"
