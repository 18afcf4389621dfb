# SPDX-License-Identifier: Apache-2.0
"""Two results of the stream benchmark side by side: what changed, and is it more than noise."""

from __future__ import annotations

import json
from pathlib import Path

from egoedit_ros.bench.stream_plan import rate_name
from egoedit_ros.errors import UserError

LOWER, HIGHER = "lower", "higher"
# Without runs to take a spread from, a change of less than this share says nothing.
BLIND_SHARE = 0.1
# Below these, clocks and schedulers decide: fps, milliseconds, counts, percent.
SMALLEST = {"fps": 0.2, "ms": 0.2, "frames": 1.0, "share": 0.005, "percent": 3.0}

# Figure at each rate: way through the JSON, unit, which way is better.
AT_RATES = (
    (("fps_out",), "fps", HIGHER),
    (("loss",), "share", LOWER),
    (("first_frame_ms",), "ms", LOWER),
    *((("latency_ms", p), "ms", LOWER) for p in ("p50", "p90", "p95", "p99", "max")),
    (("jitter_ms",), "ms", LOWER),
    (("deadline_misses",), "frames", LOWER),
    (("usage", "editor", "cpu_percent"), "percent", LOWER),
)
# Figures that stand beside the rates, and where their runs are, if anywhere.
BESIDE = (
    (("peak_fps",), "fps", HIGHER, None),
    (("ros_overhead_ms", "p50"), "ms", LOWER, ("baseline", "null", "runs", "ros_overhead_ms", 0)),
    (("ros_overhead_ms", "p95"), "ms", LOWER, ("baseline", "null", "runs", "ros_overhead_ms", 1)),
    (
        ("passthrough_ms", "p50"),
        "ms",
        LOWER,
        ("baseline", "passthrough", "runs", "node_ms", "p50"),
    ),
    (("graph_minus_direct_ms",), "ms", LOWER, None),
    (("instruction_switch_ms", "p50"), "ms", LOWER, None),
    (("instruction_switch_ms", "p95"), "ms", LOWER, None),
)
# What has to be the same for a difference to mean the program.
CONDITIONS = (
    (("input_sha256",), "input"),
    (("host", "cpu"), "processor"),
    (("host", "cores"), "cores"),
    *((("config", key), key) for key in ("model", "size", "chunk_latents", "nfe", "seconds")),
)


def load_benchmark(path: Path) -> dict:
    """A file of ``bench stream --json``. Raises UserError for anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror})") from None
    except ValueError:
        raise UserError(f"{path} is no JSON; give files of bench stream --json") from None
    if not isinstance(content, dict) or not isinstance(content.get("fixed"), dict):
        raise UserError(f"{path} is no result of bench stream; give files of its --json")
    return content


def compare(before: dict, after: dict) -> dict:
    """``changes`` [{figure, before, after, change, noise, verdict}] and ``conditions`` that differ.

    noise: the larger of the two spreads over runs (largest less smallest), at least what clocks
    allow; without runs, a tenth of the figure. verdict: ``same`` within it, else ``better`` or
    ``worse``.
    """
    changes = []
    for rate, old in before["fixed"].items():
        new = after["fixed"].get(rate)
        if new is None:
            continue
        for way, unit, better in AT_RATES:
            spreads = [_spread([_at(run, way) for run in f.get("runs", [])]) for f in (old, new)]
            figure = f"{rate_name(rate)}: {' '.join(way)}"
            changes.append(_change(figure, _at(old, way), _at(new, way), unit, better, spreads))
    for way, unit, better, where in BESIDE:
        spreads = [_spread(_runs(side, where)) for side in (before, after)]
        changes.append(
            _change(" ".join(way), _at(before, way), _at(after, way), unit, better, spreads)
        )
    only = [rate_name(r) for r in before["fixed"].keys() ^ after["fixed"].keys()]
    conditions = [
        {"condition": name, "before": _at(before, way), "after": _at(after, way)}
        for way, name in CONDITIONS
        if _at(before, way) != _at(after, way)
    ]
    return {
        "changes": [change for change in changes if change],
        "conditions": conditions,
        "only_in_one": sorted(only),
        "before": _at(before, ("git_revision",)),
        "after": _at(after, ("git_revision",)),
    }


def rows(content: dict) -> list[tuple[str, str]]:
    """What to print: what differs in the conditions, then each figure."""
    lines = [("revisions", f"{content['before']} -> {content['after']}")]
    for one in content["conditions"]:
        lines.append(
            ("not the same", f"{one['condition']}: {one['before']} -> {one['after']}; differences "
             "may come from that")
        )  # fmt: skip
    if content["only_in_one"]:
        lines.append(("in one only", ", ".join(content["only_in_one"])))
    for change in content["changes"]:
        verdict = {"same": "within the noise"}.get(change["verdict"], change["verdict"].upper())
        lines.append(
            (change["figure"], f"{change['before']:10.3f} -> {change['after']:10.3f}  "
             f"{change['change']:+9.3f}  noise {change['noise']:.3f}  {verdict}")
        )  # fmt: skip
    verdicts = [change["verdict"] for change in content["changes"]]
    lines.append(
        ("in all", ", ".join(f"{verdicts.count(v)} {v}" for v in ("better", "worse", "same")))
    )
    return lines


def _change(
    figure: str, old: object, new: object, unit: str, better: str, spreads: list[float | None]
) -> dict | None:
    if not _number(old) or not _number(new):
        return None
    known = [spread for spread in spreads if spread is not None]
    blind = BLIND_SHARE * max(abs(old), abs(new))
    noise = max([SMALLEST[unit], *(known or [blind])])
    change = new - old
    good = change > 0 if better == HIGHER else change < 0
    verdict = "same" if abs(change) <= noise else "better" if good else "worse"
    return {
        "figure": figure,
        "unit": unit,
        "before": old,
        "after": new,
        "change": round(change, 4),
        "noise": round(noise, 4),
        "runs": bool(known),
        "verdict": verdict,
    }


def _runs(side: dict, where: tuple | None) -> list:
    """The values of a figure beside the rates, run by run."""
    if where is None:
        return []
    cut = where.index("runs") + 1
    return [_at(run, where[cut:]) for run in _at(side, where[:cut]) or []]


def _spread(values: list) -> float | None:
    """Largest less smallest; None of fewer than two."""
    known = [value for value in values if _number(value)]
    return max(known) - min(known) if len(known) > 1 else None


def _at(content: object, way: tuple) -> object:
    for key in way:
        try:
            content = content[key]
        except (KeyError, IndexError, TypeError):
            return None
    return content


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
