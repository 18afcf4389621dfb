# SPDX-License-Identifier: Apache-2.0
"""Does the instrument measure? Scores published systems' clips, and clips spoilt on purpose.

Takes a folder of evaluation samples: ``bench.csv`` with ``bench/<sample_id>/<system>.mp4`` beside
``source.mp4``, and ``wild.csv`` with ``wild/<sample_id>.mp4`` (source above, edit below). Writes
figures only, one JSON file for each clip into ``--work`` so that a stopped run goes on, and tables
into docs/benchmarks.md with ``--docs``. Nothing of the samples themselves is written.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from egoedit_ros.bench.grid import Clip, load_clip, pair_up  # noqa: E402
from egoedit_ros.bench.metrics import registry  # noqa: E402
from egoedit_ros.bench.metrics.score import SourceKnown, score_pair  # noqa: E402
from egoedit_ros.data.video import VideoReader, VideoWriter  # noqa: E402

DOCS = ROOT / "docs" / "benchmarks.md"
RT = "egoedit_rt"
SYSTEMS = {
    "egoedit": "EgoEdit",
    RT: "EgoEdit-RT",
    "lucy_edit": "Lucy Edit",
    "insv2v": "InsV2V",
    "streamdiffusion": "StreamDiffusion",
    "streamdiffusion_v2": "StreamDiffusionV2",
}
# Only EgoEdit-RT is known to make 9, then 12 frames at a time; the others are its control.
NOISE = 10.0
PUMP = 0.1
WILD = "wild"


def like(source: Clip, made: np.ndarray) -> Clip:
    """A clip of the source's kind with other pictures."""
    return Clip(np.clip(np.round(made), 0, 255).astype(np.uint8), source.fps, source.size)


def noisy(source: Clip) -> Clip:
    rng = np.random.default_rng(0)
    noise = rng.standard_normal(source.frames.shape, np.float32)
    return like(source, source.frames + NOISE * noise)


def shuffled(source: Clip) -> Clip:
    order = np.random.default_rng(0).permutation(len(source.frames))
    return like(source, source.frames[order])


def pumped(source: Clip) -> Clip:
    gain = 1 + PUMP * (-1.0) ** np.arange(len(source.frames), dtype=np.float32)
    return like(source, source.frames * gain[:, None, None, None])


def frozen(source: Clip) -> Clip:
    return like(source, np.repeat(source.frames[:1], len(source.frames), 0))


def encoded(source: Clip) -> Clip:
    """Through H.264 at crf 23: what a codec alone does."""
    frames = source.frames
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        with VideoWriter(path, frames.shape[2:0:-1], 16, crf=23, threads=1) as writer:
            for i, frame in enumerate(frames):
                writer.write(round(i * 1e9 / 16), frame)
        return like(source, load_clip(path).frames)


def jumping(source: Clip) -> Clip:
    """Brighter by 8 grey levels in every other chunk of 9, then 12 frames."""
    chunk = np.maximum(0, np.arange(len(source.frames)) - 9 + 12) // 12
    return like(source, source.frames + 8.0 * (chunk % 2)[:, None, None, None])


# Clips made of the source whose figures are known beforehand.
CONTROLS: dict[str, Callable[[Clip], Clip]] = {
    "unchanged": lambda source: source,
    "unchanged, encoded": encoded,
    "noise in each frame": noisy,
    "frames shuffled": shuffled,
    "brightness +-10%": pumped,
    "frozen first frame": frozen,
    "jump at each chunk": jumping,
}


def wild_pair(path: Path, most: int | None) -> tuple[Clip, Clip]:
    """Source (upper half) and edit (lower half) of a wild clip."""
    reader = VideoReader(path)
    upper, lower = [], []
    for _, frame in reader:
        half = frame.shape[0] // 2
        upper.append(frame[:half])
        lower.append(frame[half:])
        if len(upper) == most:
            break
    size = reader.size[0], reader.size[1] // 2
    return tuple(Clip(np.stack(f), reader.fps, size) for f in (upper, lower))


@lru_cache(maxsize=1)
def source_of(folder: Path, most: int | None) -> tuple[Clip, SourceKnown]:
    """The source of an item, loaded once for all that is compared to it."""
    return load_clip(folder / "source.mp4", most), SourceKnown()


def jobs(
    samples: Path, most: int | None, spoilt: int | None
) -> Iterator[tuple[str, str, str | None, Callable]]:
    """(name of the result, system, task, function giving source, edit, what is known)."""
    with open(samples / "bench.csv", newline="", encoding="utf-8") as file:
        items = [
            (samples / "bench" / row["sample_id"], registry.task_name(row["edit_task"]))
            for row in csv.DictReader(file)
        ]
    with open(samples / "wild.csv", newline="", encoding="utf-8") as file:
        wild = [samples / "wild" / f"{row['sample_id']}.mp4" for row in csv.DictReader(file)]

    def of_system(folder: Path, system: str) -> tuple[Clip, Clip, SourceKnown]:
        source, known = source_of(folder, most)
        # Some frames more, as those of other rates do not all have a partner.
        return source, load_clip(folder / f"{system}.mp4", most and most + 8), known

    def of_control(folder: Path, name: str) -> tuple[Clip, Clip, SourceKnown]:
        source, known = source_of(folder, most)
        return source, CONTROLS[name](source), known

    for folder, task in items:
        for system in SYSTEMS:
            if (folder / f"{system}.mp4").exists():
                yield f"{folder.name}.{system}", system, task, partial(of_system, folder, system)
    for path in wild:
        yield path.stem, WILD, None, lambda p=path: (*wild_pair(p, most), SourceKnown())
    for folder, task in items[:spoilt]:
        for name in CONTROLS:
            key = "_".join(re.findall(r"\w+", name))
            yield f"{folder.name}.{key}", name, task, partial(of_control, folder, name)


def measure(samples: Path, work: Path, most: int | None, spoilt: int | None) -> list[dict]:
    """Results of all clips; those that are in ``work`` already are taken from there."""
    work.mkdir(parents=True, exist_ok=True)
    results = []
    for name, system, task, clips in jobs(samples, most, spoilt):
        kept = work / f"{name}.json"
        if kept.exists():
            results.append(json.loads(kept.read_text()))
            continue
        source, edited, known = clips()
        pair = pair_up(source, edited)
        values, why = score_pair(pair, task, known=known)
        result = {"name": name, "system": system, "task": task, "notes": pair.notes}
        result |= {"values": values, "why": why}
        kept.write_text(json.dumps(result))
        results.append(result)
        print(f"{len(results):4d} {name}", file=sys.stderr, flush=True)
    return results


def table(results: list[dict], systems: dict[str, str]) -> str:
    """Means over clips as a markdown table; n: clips that a figure applies to, at most."""
    names = registry.LOCAL_METRICS
    rows = ["| | clips | " + " | ".join(f"`{n}`" for n in names) + " |"]
    rows.append("|---|" + "---:|" * (len(names) + 1))
    for system, title in systems.items():
        mine = [r["values"] for r in results if r["system"] == system]
        if not mine:
            continue
        cells = []
        for name in names:
            values = [v[name] for v in mine if v[name] is not None]
            cells.append(f"{np.mean(values):.{_digits(name)}f}" if values else "–")
        rows.append(f"| {title} | {len(mine)} | " + " | ".join(cells) + " |")
    return "\n".join(rows) + "\n"


def _digits(name: str) -> int:
    return {"background_ssim": 3, "hands_kept": 0, "changed_area": 0, "background_psnr": 1}.get(
        name, 2
    )


def claims(results: list[dict]) -> str:
    """How often one system is better than another on the same clip, for the claims that matter."""

    def by_clip(system: str, metric: str) -> dict[str, float]:
        return {
            r["name"].split(".")[0]: r["values"][metric]
            for r in results
            if r["system"] == system and r["values"][metric] is not None
        }

    rows = ["| claim | clips where it holds |", "|---|---:|"]

    def add(text: str, better: str, worse: str, metric: str) -> None:
        sign = -1 if registry.BY_NAME[metric].better == registry.LOWER else 1
        one, two = by_clip(better, metric), by_clip(worse, metric)
        both = one.keys() & two.keys()
        holds = sum(sign * one[k] > sign * two[k] for k in both)
        rows.append(f"| {text} | {holds} of {len(both)} |")

    for other in ("egoedit", RT, "lucy_edit", "insv2v", "streamdiffusion_v2"):
        text = f"temporal error: StreamDiffusion worse than {SYSTEMS[other]}"
        add(text, other, "streamdiffusion", "temporal_error")
    for metric in ("background_psnr", "background_ssim", "hands_kept"):
        for ours in ("egoedit", RT):
            for other in ("streamdiffusion", "streamdiffusion_v2"):
                title = registry.BY_NAME[metric].title
                add(f"{title}: {SYSTEMS[ours]} better than {SYSTEMS[other]}", ours, other, metric)
    for spoilt in ("noise in each frame", "frames shuffled", "brightness +-10%"):
        add(f"temporal error: unchanged better than {spoilt}", "unchanged", spoilt,
            "temporal_error")  # fmt: skip
    return "\n".join(rows) + "\n"


def conditions(results: list[dict], most: int | None) -> str:
    """What the tables are of."""
    items = {r["name"].split(".")[0] for r in results if r["system"] in SYSTEMS}
    wild = sum(r["system"] == WILD for r in results)
    spoilt = {r["name"].split(".")[0] for r in results if r["system"] in CONTROLS}
    frames = f"the first {most} frames of each" if most else "whole clips"
    return (
        f"Measured: {len(items)} items, {wild} live clips, clips made of {len(spoilt)} of the "
        f"sources; {frames}.\n"
    )


def put(text: str, marker: str, content: str) -> str:
    """``text`` with what stands between the marker's comments replaced."""
    begin, end = f"<!-- {marker} -->\n", f"<!-- /{marker} -->"
    head, mark, rest = text.partition(begin)
    _, stop, tail = rest.partition(end)
    if not mark or not stop:
        raise SystemExit(f"{DOCS.name} lacks the markers of {marker}")
    return head + mark + content + stop + tail


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("samples", type=Path, nargs="?")
    parser.add_argument("--work", type=Path, default=Path("out/instrument"))
    parser.add_argument("--frames", type=int, metavar="N", help="only the first N of each clip")
    parser.add_argument(
        "--spoilt", type=int, metavar="N", help="make spoilt clips of the first N items only"
    )
    parser.add_argument("--docs", action="store_true", help="write the tables into the docs")
    args = parser.parse_args()
    tables = {"metrics": registry.markdown()}
    if args.samples:
        results = measure(args.samples, args.work, args.frames, args.spoilt)
        tables["instrument-conditions"] = conditions(results, args.frames)
        tables["instrument-systems"] = table(results, SYSTEMS | {WILD: "EgoEdit-RT, wild clips"})
        tables["instrument-controls"] = table(results, {name: name for name in CONTROLS})
        tables["instrument-claims"] = claims(results)
    for name, content in tables.items():
        print(f"\n{name}\n{content}")
    if args.docs:
        text = DOCS.read_text(encoding="utf-8")
        for name, content in tables.items():
            text = put(text, name, content)
        DOCS.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
