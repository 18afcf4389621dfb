# SPDX-License-Identifier: Apache-2.0
"""Windows of training length cut from any footage: videos, pictures and bags."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from egoedit_ros.data.video import VIDEO_SUFFIXES
from egoedit_ros.errors import UserError

NANO = 1_000_000_000
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})


@dataclass(frozen=True)
class Cut:
    """How footage is cut. frames: of a window, 1 + 4k, as the autoencoder's framing has it; fps:
    faster footage is thinned to it; size: (width, height); windows: most of them to an input."""

    frames: int = 13
    fps: float = 16.0
    size: tuple[int, int] = (256, 192)
    windows: int = 16

    def __post_init__(self) -> None:
        if self.frames < 1 or self.frames % 4 != 1:
            raise UserError(f"{self.frames} frames do not fit the latents; give 1, 5, 9, 13, ...")
        if any(side < 8 or side % 8 for side in self.size):
            raise UserError(f"size {self.size[0]}x{self.size[1]}: give multiples of 8")
        if self.windows < 1 or not self.fps > 0:
            raise UserError("--windows and --fps must be above 0")

    def options(self) -> dict:
        """As plain values, for a folder's manifest."""
        return asdict(self)

    def fitting(self, count: int) -> int:
        """The longest window of a framing that ``count`` frames have, at most :attr:`frames`."""
        return 1 + 4 * ((min(count, self.frames) - 1) // 4) if count else 0


def thin(stamps: Iterable[int], fps: float) -> list[int]:
    """Indices of the frames to keep for at most ``fps``; stamps in ns. Slower footage is whole."""
    step, due, kept = NANO / fps, None, []
    for index, stamp in enumerate(stamps):
        if due is None or stamp >= due - step / 4 or stamp < due - 4 * step:
            due = stamp + step if due is None or abs(stamp - due) > step else due + step
            kept.append(index)
    return kept


def starts(count: int, cut: Cut) -> list[int]:
    """First frames of the windows in ``count`` frames: side by side, or the most there may be,
    spread evenly over them."""
    length = cut.fitting(count)
    if not length:
        return []
    there = count // length
    if there <= cut.windows:
        return [i * length for i in range(there)]
    return [i * (count - length) // (cut.windows - 1 or 1) for i in range(cut.windows)]


def read_windows(path: Path, topic: str | None, cut: Cut) -> Iterator[np.ndarray]:
    """Windows uint8 ``[t, h, w, 3]`` of a video, a picture or a bag's topic, in order.

    A window that damage cuts short is left out. Raises UserError for what cannot be read.
    """
    from egoedit_ros.data.source import open_source
    from egoedit_ros.stream.images import area_resize

    source = open_source(path, topic)
    try:
        kept = thin(source.stamps, cut.fps)
        length = cut.fitting(len(kept))
        wanted = [kept[s : s + length] for s in starts(len(kept), cut)]
        frames: dict[int, np.ndarray] = {}
        needed = {index for window in wanted for index in window}
        for index, (_, rgb) in enumerate(source.frames()):
            if index in needed:
                frames[index] = area_resize(rgb, cut.size)
            while wanted and all(i in frames for i in wanted[0]):
                window = wanted.pop(0)
                yield np.stack([frames[i] for i in window])
                still = {i for rest in wanted for i in rest}
                frames = {i: f for i, f in frames.items() if i in still}
            if not wanted:
                return
    finally:
        source.close()


def find_footage(paths: Iterable[Path], bags_only: bool = False) -> list[Path]:
    """Bags and videos among ``paths``; a folder that is no bag gives all that lie in it.

    bags_only: without the videos. Raises UserError where there is nothing.
    """
    suffixes = frozenset() if bags_only else VIDEO_SUFFIXES
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise UserError(f"no such file or folder: {path}; check the path")
        if not path.is_dir() or _is_bag_folder(path):
            found.append(path)
            continue
        inside = [
            p
            for p in sorted(path.rglob("*"))
            if _is_bag_folder(p) or (p.suffix.lower() in suffixes and p.is_file())
        ]
        if not inside:
            what = "no bag" if bags_only else "neither bags nor videos"
            raise UserError(f"{path} holds {what}; name another folder")
        found += inside
    return found


def _is_bag_folder(path: Path) -> bool:
    return path.is_dir() and ((path / "metadata.yaml").exists() or any(path.glob("*.mcap")))
