# SPDX-License-Identifier: Apache-2.0
"""Source and edited picture next to each other, with the instruction in words."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from egoedit_ros.bench.recording import Recording, picture_pairs, picture_sizes
from egoedit_ros.data.source import period_ns
from egoedit_ros.data.video import NANO, VideoWriter

LEAST_HEIGHT = 384
MOST_HEIGHT = 720
GAP = 8
INK = (236, 239, 244)
FAINT = (148, 156, 170)
PAPER = (17, 20, 26)
LONGEST_PAUSE_NS = 2 * NANO


def write_video(
    recording: Recording, path: Path, progress: Callable[[int], None] = lambda done: None
) -> int:
    """Write ``side_by_side.mp4`` in the timing of the stamps. Returns the frames written."""
    sizes = picture_sizes(recording.folder)
    if sizes is None:
        return 0
    panel = panel_size(sizes[1])
    texts = recording.texts_by_stamp()
    period = period_ns([stamp for stamp, _ in recording.published])
    canvas = compose(*(np.zeros((panel[1], panel[0], 3), np.uint8),) * 2, "")
    when = 0
    last: int | None = None
    with VideoWriter(path, (canvas.shape[1], canvas.shape[0]), NANO / period) as writer:
        for stamp, source, edited in picture_pairs(recording.folder, panel):
            if last is not None:
                step = stamp - last
                # Stamps that jump must not freeze the picture.
                when += step if 0 < step <= LONGEST_PAUSE_NS else period
            last = stamp
            writer.write(when, compose(source, fit(edited, panel), texts.get(stamp, "")))
            progress(writer.count)
    return writer.count


def panel_size(edited: tuple[int, int]) -> tuple[int, int]:
    """(width, height), both even, at which both pictures are shown: the edit's shape."""
    width, height = edited
    scale = min(max(height, LEAST_HEIGHT), MOST_HEIGHT) / height
    return max(16, round(width * scale / 2) * 2), max(16, round(height * scale / 2) * 2)


def compose(source: np.ndarray, edited: np.ndarray, text: str) -> np.ndarray:
    """Two pictures of one size, uint8 ``[h, w, 3]``, above their caption."""
    height, width = source.shape[:2]
    bar = caption_bar(2 * width + GAP, max(40, round(height * 0.17) // 2 * 2), text)
    canvas = np.empty((height + bar.shape[0], 2 * width + GAP, 3), np.uint8)
    canvas[:] = PAPER
    canvas[:height, :width] = source
    canvas[:height, width + GAP :] = edited
    canvas[height:] = bar
    return canvas


@lru_cache(maxsize=64)
def caption_bar(width: int, height: int, text: str) -> np.ndarray:
    """uint8 ``[height, width, 3]``: which side is which, and the instruction, in up to 2 lines."""
    image = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(image)
    small = ImageFont.load_default(max(10, round(height * 0.2)))
    draw.text((8, height * 0.06), "camera", font=small, fill=FAINT)
    draw.text((width // 2 + GAP // 2 + 8, height * 0.06), "edited", font=small, fill=FAINT)
    shown = f"“{text}”" if text else "no instruction: the camera passes through"
    font, lines = _laid_out(draw, shown, width - 16, height)
    top = height * 0.36
    for line in lines:
        left = (width - draw.textlength(line, font=font)) / 2
        draw.text((left, top), line, font=font, fill=INK if text else FAINT)
        top += font.size * 1.2
    return np.asarray(image)


def _laid_out(draw: ImageDraw.ImageDraw, text: str, width: int, height: int):
    """The largest font at which the text takes at most two lines; longer text is cut."""
    for share in (0.36, 0.3, 0.24, 0.2):
        font = ImageFont.load_default(max(10, round(height * share)))
        lines = _wrapped(draw, text, font, width)
        if len(lines) == 1 or (len(lines) == 2 and share <= 0.24):
            return font, lines
    cut = lines[:2]
    while len(cut[1]) > 1 and draw.textlength(cut[1] + "…", font=font) > width:
        cut[1] = cut[1][:-1]
    return font, [cut[0], cut[1] + "…"]


def _wrapped(draw: ImageDraw.ImageDraw, text: str, font, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if draw.textlength(longer, font=font) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def fit(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The picture at ``size`` (width, height)."""
    if (picture.shape[1], picture.shape[0]) == size:
        return picture
    larger = size[0] > picture.shape[1]
    return cv2.resize(picture, size, interpolation=cv2.INTER_CUBIC if larger else cv2.INTER_AREA)
