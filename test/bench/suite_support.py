# SPDX-License-Identifier: Apache-2.0
"""A small EgoEditBench: tables, moving pictures as videos, and outputs of an editor."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from egoedit_ros.data.tables import DATA_COLUMNS, DATA_TABLE, EDITS_COLUMNS, EDITS_TABLE
from egoedit_ros.data.video import VideoWriter

ITEMS = (
    ("e1", "s1", "turn the ball blue", "change", "ordinary"),
    ("e2", "s1", "add a spoon", "add", "no_change"),
    ("e3", "s2", "Turn the video into a depth map.", "video to depth", "special_effects"),
)


def picture(seed: int, size: tuple[int, int]) -> np.ndarray:
    """A smooth random picture, uint8 ``[h, w, 3]``, with some 10 pixels to a blob."""
    import cv2

    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (size[1] // 10, size[0] // 10, 3), dtype=np.uint8)
    return cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC)


def moving(count: int = 24, seed: int = 0, size: tuple[int, int] = (160, 120)) -> np.ndarray:
    """A camera that pans by 2 pixels a frame: uint8 ``[count, h, w, 3]``."""
    wide = picture(seed, (size[0] + 2 * count, size[1]))
    return np.stack([wide[:, 2 * i : 2 * i + size[0]] for i in range(count)])


def write_video(path: Path, frames: np.ndarray, fps: float = 16) -> Path:
    """An H.264 file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with VideoWriter(path, frames.shape[2:0:-1], fps, crf=12, threads=1) as writer:
        for i, frame in enumerate(frames):
            writer.write(round(i * 1e9 / fps), frame)
    return path


def write_table(path: Path, columns: tuple[str, ...], rows: list[tuple]) -> None:
    """A CSV file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])


def make_bench(folder: Path) -> Path:
    """``tables/``, ``videos/`` and ``outputs/`` in ``folder``; the outputs are edited for show."""
    write_table(folder / "tables" / EDITS_TABLE, EDITS_COLUMNS, list(ITEMS))
    urls = [("s1", "https://example.org/a/s1.mp4"), ("s2", "https://example.org/a/kitchen.mp4")]
    write_table(folder / "tables" / DATA_TABLE, DATA_COLUMNS, urls)
    write_video(folder / "videos" / "s1.mp4", moving(seed=1))
    write_video(folder / "videos" / "kitchen.mp4", moving(seed=2))
    for number, (data_id, source, *_) in enumerate(ITEMS):
        frames = moving(seed=1 if source == "s1" else 2)
        frames[:, 20:60, 30:90] = (40 * number, 60, 200)
        write_video(folder / "outputs" / f"{data_id}.mp4", frames)
    return folder
