# SPDX-License-Identifier: Apache-2.0
"""The report's plots, as SVG text that stands in a page by itself."""

from __future__ import annotations

import io

import numpy as np

from egoedit_ros.bench.measure import frame_latencies, memory_series
from egoedit_ros.bench.recording import Recording, message_stamp
from egoedit_ros.stream import names

# Okabe and Ito's colours, which colour-blind readers tell apart.
STAGE_COLOURS = {
    "transport": "#999999",
    "buffer": "#56b4e9",
    "preprocess": "#009e73",
    "encode": "#f0e442",
    "denoise": "#d55e00",
    "decode": "#e69f00",
    "publish": "#cc79a7",
}
LINE = "#0072b2"
WARNING = "#d55e00"
MOST_POINTS = 1500


def latency_over_time(recording: Recording, deadline_ms: float | None) -> str | None:
    """Latency of each frame by the time it was published, with the switches of instruction."""
    found = frame_latencies(recording)
    if not found:
        return None
    figure, axes = _figure(3.0)
    start = found[0][1]
    seconds = np.array([(sent - start) / 1e9 for _, sent, _ in found])
    values = np.array([ms for _, _, ms in found])
    axes.plot(seconds, values, ".", color=LINE, markersize=3.5, label="frame")
    if deadline_ms:
        axes.axhline(deadline_ms, color=WARNING, linewidth=1, linestyle="--", label="deadline")
    _mark_switches(axes, recording, start)
    axes.set(xlabel="published at (s)", ylabel="latency (ms)")
    axes.set_ylim(0, max(values.max() * 1.12, (deadline_ms or 0) * 1.1))
    axes.set_xlim(seconds[0], max(seconds[-1], 0.1))
    _legend(axes)
    return _svg(figure)


def stages_over_time(recording: Recording) -> str | None:
    """What each frame's time was spent on, stacked, as the editor tells."""
    messages = recording.latencies
    if len(messages) < 2:
        return None
    figure, axes = _figure(3.0)
    stages = np.array([[getattr(m, f"{s}_ms") for s in names.STAGES] for m in messages]).T
    index = np.arange(stages.shape[1])
    # Bins of frames, so that an hour's page stays small; a chunk's frames differ only by waiting.
    width = max(1, len(index) // MOST_POINTS)
    count = len(index) // width
    stages = stages[:, : count * width].reshape(len(stages), count, width).mean(-1)
    axes.stackplot(
        index[: count * width : width],
        stages,
        labels=names.STAGES,
        colors=[STAGE_COLOURS[s] for s in names.STAGES],
        step="mid",
    )
    axes.set(xlabel="frame", ylabel="time (ms)", xlim=(0, max(1, index[-1])))
    axes.set_ylim(0, max(1.0, float(stages.sum(0).max()) * 1.12))
    _legend(axes, len(names.STAGES))
    return _svg(figure)


def distribution(recording: Recording) -> str | None:
    """Histogram of latency with its percentiles."""
    values = np.array([ms for _, _, ms in frame_latencies(recording)])
    if not len(values):
        return None
    figure, axes = _figure(2.6, 5.2)
    axes.hist(values, bins=min(60, max(8, len(values) // 4)), color=LINE, alpha=0.85)
    top = axes.get_ylim()[1]
    for rank, percentile in enumerate((50, 95, 99)):
        at = np.percentile(values, percentile)
        axes.axvline(at, color="#333333", linewidth=1, linestyle=":")
        axes.text(at, top * (0.97 - 0.11 * rank), f" p{percentile} {at:.0f}", fontsize=8, va="top")
    axes.set(xlabel="latency (ms)", ylabel="frames")
    axes.set_xlim(0, values.max() * 1.15 + 1)
    return _svg(figure)


def stage_bars(recording: Recording) -> str | None:
    """Median and 95th percentile of each stage."""
    if not recording.latencies:
        return None
    figure, axes = _figure(2.6, 5.2)
    values = {
        s: np.array([getattr(m, f"{s}_ms") for m in recording.latencies]) for s in names.STAGES
    }
    rows = np.arange(len(names.STAGES))
    p95 = [np.percentile(values[s], 95) for s in names.STAGES]
    p50 = [np.median(values[s]) for s in names.STAGES]
    colours = [STAGE_COLOURS[s] for s in names.STAGES]
    axes.barh(rows, p95, color=colours, alpha=0.35, height=0.7)
    axes.barh(rows, p50, color=colours, height=0.7)
    for row, middle, high in zip(rows, p50, p95, strict=True):
        axes.text(high, row, f" {middle:.1f} / {high:.1f}", va="center", fontsize=8)
    axes.set_yticks(rows, names.STAGES)
    axes.invert_yaxis()
    axes.set(xlabel="ms (dark: p50, light: p95)", xlim=(0, max(*p95, 0.1) * 1.3))
    return _svg(figure)


def memory_over_time(recording: Recording) -> str | None:
    """Resident memory of the editor."""
    series = memory_series(recording)
    if len(series) < 2:
        return None
    figure, axes = _figure(2.2, 5.2)
    seconds, sizes = np.array(series).T
    axes.plot(seconds, sizes / 2**20, color=LINE, linewidth=1.5)
    axes.set(xlabel="time (s)", ylabel="memory (MiB)", xlim=(seconds[0], seconds[-1]))
    axes.set_ylim(0, sizes.max() / 2**20 * 1.2)
    return _svg(figure)


def drops(dropped: dict[str, int], frames_out: int) -> str:
    """Where the frames that went in ended."""
    figure, axes = _figure(2.2, 5.2)
    labels = ["came out", *(f"lost: {cause}" for cause in dropped)]
    values = [frames_out, *dropped.values()]
    colours = [LINE, *[WARNING] * len(dropped)]
    axes.barh(range(len(values)), values, color=colours, height=0.6)
    for row, value in enumerate(values):
        axes.text(value, row, f" {value}", va="center", fontsize=9)
    axes.set_yticks(range(len(values)), labels)
    axes.invert_yaxis()
    axes.set(xlabel="frames", xlim=(0, max(*values, 1) * 1.15))
    return _svg(figure)


def _mark_switches(axes, recording: Recording, start: int) -> None:
    published = dict(reversed(recording.published))
    label = "new instruction"
    for switch in recording.switches:
        if (sent := published.get(message_stamp(switch))) is not None:
            axes.axvline((sent - start) / 1e9, color="#009e73", linewidth=1, label=label)
            label = None


def _figure(height: float, width: float = 10.6):
    # Not pyplot: it would keep figures alive and pick a backend for the whole process.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, color="#e6e8ec", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)
    return figure, axes


def _legend(axes, columns: int = 3) -> None:
    axes.legend(
        loc="lower right",
        bbox_to_anchor=(1.0, 1.0),
        ncols=columns,
        fontsize=8,
        frameon=False,
        borderaxespad=0.2,
        handlelength=1.2,
        columnspacing=1.2,
    )


def _svg(figure) -> str:
    from matplotlib import rc_context

    out = io.StringIO()
    # A fixed salt and no date: the same figures give the same page.
    with rc_context(
        {"svg.hashsalt": "egoedit", "svg.fonttype": "none", "font.family": "sans-serif"}
    ):
        figure.savefig(
            out, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
    text = out.getvalue()
    return text[text.index("<svg") :]
