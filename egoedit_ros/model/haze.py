# SPDX-License-Identifier: Apache-2.0
"""Beside a body's outline: no haze of it.

What is decoded of a new thing, or of a hand that comes to be seen, is soft, and reaches beyond the
outline that is laid over it: a cap has a halo, between fingers there is skin. Beside the outline a
colour that is made is taken for what is behind, which is what is seen around, in the body's shadow
or not; as far as it is a mixture of that and of the body's, or something else altogether, what is
behind is shown instead.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from egoedit_ros.model.light import mean_around, most_around

NEAR = 8  # pixels beside an outline
MADE = 0.1  # what counts of colours that are not the camera's, for what is behind
# Pixels a side, at half the size, over which colours are carried on, and how much the wider count.
SPREAD = ((3, 1.0), (7, 0.1), (17, 0.01))
NONE = 1e-3  # of a pixel: too little to tell a colour by
SOME, ALL = 0.08, 0.3  # share of the body in a mixture from where on it is haze
OTHER = 0.3  # summed over the colours: what is so far from any mixture is something else
DARKEST, BRIGHTEST = 0.4, 1.05  # what is behind in shadow or in more light, times its colour
RATHER, QUITE = 0.05, 0.2  # summed: from where to where on a colour is none of these
ALIKE = 0.02  # squared, summed: a body is hardly told from what is behind it


@dataclass(frozen=True, slots=True)
class Laid:
    """within: a body's outline ``[N, 1, H, W]``, 0..1; answer: whose colours it has; heeded: how
    much its outline is to be, 0..1."""

    within: Tensor
    answer: int
    heeded: float | Tensor


def cleared(colors: Tensor, shares: Tensor, bodies: list[Laid]) -> tuple[Tensor, Tensor]:
    """Colours ``[N, K, 3, H, W]`` and shares ``[N, K, H, W]``, the camera's first, and those of one
    more answer: what is behind haze."""
    shown, camera = (shares[:, :, None] * colors).sum(1), shares[:, :1]
    within = torch.stack([body.within for body in bodies]).amax(0)
    free = (1 - within) * (camera + MADE * (1 - camera))
    behind, _ = _spread(shown, free)
    other, hazy = _other(shown, behind), torch.zeros_like(camera)
    for body in bodies:
        color, known = _spread(colors[:, body.answer], body.within)
        none = torch.maximum(known * _mixed(shown, behind, color), other)
        hazy = torch.maximum(hazy, body.heeded * most_around(body.within, NEAR) * none)
    hazy = hazy * (1 - camera) * (1 - within)
    behind, known = _spread(shown, free * (1 - hazy))
    hazy = hazy * known
    return torch.cat([colors, behind[:, None]], 1), torch.cat([shares * (1 - hazy), hazy], 1)


def _mixed(shown: Tensor, behind: Tensor, body: Tensor) -> Tensor:
    """How surely colours ``[N, 3, H, W]`` are behind's with some of the body's: 0..1."""
    towards, off = body - behind, shown - behind
    share = (off * towards).sum(1, keepdim=True)
    share = share / (towards.square().sum(1, keepdim=True) + ALIKE)
    rest = (off - share * towards).abs().sum(1, keepdim=True)
    return ((share - SOME) / (ALL - SOME)).clamp(0, 1) * torch.exp(-(rest / OTHER).square())


def _other(shown: Tensor, behind: Tensor) -> Tensor:
    """How far colours are not behind's, in shadow or not: 0..1."""
    times = (shown * behind).sum(1, keepdim=True) / (behind.square().sum(1, keepdim=True) + 1e-3)
    off = shown - times.clamp(DARKEST, BRIGHTEST) * behind
    return ((off.abs().sum(1, keepdim=True) - RATHER) / (QUITE - RATHER)).clamp(0, 1)


def _spread(color: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Colours of where ``weight`` ``[N, 1, H, W]`` is, carried to all around, and whether there is
    any near: 0 or 1."""
    half = F.avg_pool2d(torch.cat([weight * color, weight], 1), 2)
    total = sum(share * mean_around(half, size) for size, share in SPREAD)
    total = F.interpolate(total, scale_factor=2, mode="bilinear", align_corners=False)
    weight = total[:, 3:]
    return total[:, :3] / weight.clamp(min=1e-6), (weight > NONE * SPREAD[-1][1]).to(color)
