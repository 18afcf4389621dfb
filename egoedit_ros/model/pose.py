# SPDX-License-Identifier: Apache-2.0
"""Where the edited thing and the hand are in a picture: numbers, and what they say of each pixel.

What is drawn in a thing's place has its form whatever the picture shows of it; what is not known is
where it stands and how it is turned. A body's frame as a picture has it is :data:`FRAME` numbers:
where its origin is seen (x, y; pixels, 0 in the middle of the first pixel), how far :data:`UNIT`
along each of its axes leads from there (x for three axes, then y; pixels), and the line of sight to
the origin in the body's own axes (a unit vector). So near the origin it is known which line through
the body each pixel looks along.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

UNIT = 0.05  # m
FRAME = 11
POSE = 2 * FRAME + 1  # the thing's frame, the hand's, and how far its fingers are curled (0..1)


def sight(frame: Tensor, size: tuple[int, int], step: int) -> Tensor:
    """The points, in a body's axes and units, at which what cells of ``step`` pixels look along
    passes nearest to its origin.

    frame: ``[N, FRAME]``, float32; size: (rows, columns) of cells. ``[N, 3, rows * columns]``. As
    if all lines were parallel: a thing is small beside its distance.
    """
    along = [torch.arange(length, device=frame.device) * step + (step - 1) / 2 for length in size]
    y, x = torch.meshgrid(*along, indexing="ij")
    seen = torch.stack([x, y]).flatten(1).to(frame)
    slope = frame[:, 2:8].unflatten(1, (2, 3))
    square = slope @ slope.mT + 0.1 * torch.eye(2).to(frame)  # what a network says may be flat
    (a, b), (_, d) = (row.unbind(-1) for row in square.unbind(-2))
    inverse = torch.stack([d, -b, -b, a], -1).unflatten(-1, (2, 2))
    inverse = slope.mT @ inverse / (a * d - b * b)[:, None, None]
    return inverse @ (seen - frame[:, :2, None])


def moved(pose: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """The pose ``[..., POSE]`` in a picture that is changed by ``matrix`` ``[2, 3]`` (x, y, 1)."""
    out = pose.copy()
    for begin in (0, FRAME):
        at, along = slice(begin, begin + 2), slice(begin + 2, begin + 8)
        out[..., at] = pose[..., at] @ matrix[:, :2].T + matrix[:, 2]
        slope = pose[..., along].reshape(*pose.shape[:-1], 2, 3)
        out[..., along] = (matrix[:, :2] @ slope).reshape(*pose.shape[:-1], 6)
    return out


def shifted(poses: np.ndarray, row: int, column: int) -> np.ndarray:
    """Poses in the part of a picture that begins at that pixel."""
    return moved(poses, np.array([[1, 0, -column], [0, 1, -row]], np.float32))


def mirrored(pose: Tensor, width: int) -> Tensor:
    """The pose ``[N, POSE]`` in the picture mirrored left to right.

    A thing is taken for one that is the same on both sides of its y axis; the hand is the other
    hand, its axes mirrored as it is.
    """
    out = pose.clone()
    for begin in (0, FRAME):
        out[:, begin] = width - 1 - pose[:, begin]
        out[:, begin + 2 : begin + 5] *= -1
    for y in (3, 6, 9):
        out[:, y] *= -1
    return out
