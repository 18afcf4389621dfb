# SPDX-License-Identifier: Apache-2.0
"""Real footage through the whole program: are frames, stamps and untouched pictures kept?

Takes a folder of evaluation samples (``bench.csv`` and ``bench/<sample_id>/source.mp4``). Every
clip goes, with its own instruction and with an empty one, through ``egoedit edit``, and as a bag of
512x384 through ``egoedit replay``, which passes the camera through at first, then edits. Writes one
row a clip into ``--work``, so that a stopped run goes on; prints the table. Nothing of the samples
is kept.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from egoedit_ros.cli.main import main as egoedit  # noqa: E402
from egoedit_ros.data.source import open_source  # noqa: E402
from egoedit_ros.data.video import VideoReader  # noqa: E402

SIZE = (256, 192)
SWITCH = 2.5  # seconds into the replay


def area(frames: list[np.ndarray]) -> list[np.ndarray]:
    return [cv2.resize(f, SIZE, interpolation=cv2.INTER_AREA) for f in frames]


def psnr(a: list[np.ndarray], b: list[np.ndarray]) -> float:
    """Over all frames, in dB, capped at 100 where nothing differs."""
    error = np.mean([np.square(x.astype(np.float64) - y).mean() for x, y in zip(a, b, strict=True)])
    return float(min(100.0, 10 * np.log10(255**2 / max(error, 1e-9))))


def call(*words: object) -> None:
    if egoedit([str(w) for w in words]):
        raise SystemExit(f"failed: egoedit {' '.join(map(str, words))}")


def pictures(path: Path) -> list[np.ndarray]:
    return [frame for _, frame in VideoReader(path)]


def check(video: Path, text: str, work: Path) -> dict:
    """The row of one clip."""
    source = pictures(video)
    call("edit", video, "-i", text, "-o", work / "edited.mp4", "--overwrite")
    call("edit", video, "-i", "", "-o", work / "same.mp4", "--overwrite")
    call("data", "bag", video, "-o", work / "bag", "--size", "512x384", "--overwrite")
    instructions = ("-i", "", "-i", f"{SWITCH}:{text}")
    call("replay", work / "bag", *instructions, "-o", work / "replay", "--overwrite")
    before = list(open_source(work / "bag").frames())
    after = list(open_source(work / "replay" / "edited", "/edited/image_raw").frames())
    quiet = [i for i, (stamp, _) in enumerate(after) if stamp - after[0][0] < (SWITCH - 0.01) * 1e9]
    return {
        "frames": len(source),
        "edit": len(pictures(work / "edited.mp4")),
        "replay": len(after),
        "stamps": [s for s, _ in before] == [s for s, _ in after],
        "mp4_db": round(psnr(pictures(work / "same.mp4"), area(source)), 1),
        "bag_db": round(psnr([after[i][1] for i in quiet], area([before[i][1] for i in quiet])), 1),
        "edited_db": round(psnr(pictures(work / "edited.mp4"), area(source)), 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("samples", type=Path)
    parser.add_argument("--work", type=Path, default=ROOT / "out" / "footage")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    rows = []
    with (args.samples / "bench.csv").open(newline="", encoding="utf-8") as file:
        items = list(csv.DictReader(file))
    for item in items:
        name = item["sample_id"]
        kept = args.work / f"{name}.json"
        if not kept.exists():
            with tempfile.TemporaryDirectory(prefix="egoedit_footage_") as folder:
                video = args.samples / "bench" / name / "source.mp4"
                row = check(video, item["instruction"], Path(folder))
            kept.write_text(json.dumps(row))
        rows.append({"clip": name} | json.loads(kept.read_text()))
        print(rows[-1], flush=True)
    good = [
        r["frames"] == r["edit"] == r["replay"] and r["stamps"] and r["mp4_db"] >= 30
        and r["bag_db"] >= 45
        for r in rows
    ]  # fmt: skip
    print(f"{sum(good)} of {len(rows)} clips: all frames, same stamps, >= 30 dB mp4, >= 45 dB bag")
    return 0 if all(good) else 1


if __name__ == "__main__":
    raise SystemExit(main())
