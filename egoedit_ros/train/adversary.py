# SPDX-License-Identifier: Apache-2.0
"""A critic that tells made pictures from rendered ones, patch by patch, beside the source.

Where an edit leaves something open (how a book is turned that stands for a ball), or the network
is not sure, a loss on pixels asks for the mean of all that it could be: a smear. A critic takes no
smear for a picture, and asks for any one of them (the hinge loss of Lim and Ye, arXiv 1705.02894;
patches as of Isola et al., arXiv 1611.07004; matched features as of Wang et al., arXiv 1711.11585).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

MATCHED = 5.0  # weight of the features' difference, that of the verdict being 1
STRIDE = 8  # pixels of a patch's step


class Adversary(nn.Module):
    """Four frames and the source's to features, and at last one verdict for each 8x8 pixels."""

    def __init__(self, temporal: int = 4, width: int = 40) -> None:
        super().__init__()
        sizes = (6 * temporal, width, 2 * width, 3 * width)
        self.convs = nn.ModuleList(
            spectral_norm(nn.Conv2d(a, b, 4, stride=2, padding=1))
            for a, b in zip(sizes, sizes[1:], strict=False)
        )
        self.verdict = spectral_norm(nn.Conv2d(sizes[-1], 1, 3, padding=1))

    def forward(self, pictures: Tensor, source: Tensor) -> list[Tensor]:
        """pictures, source ``[N, T, 3, H, W]`` in -1..1; the last of what comes is the verdict
        ``[N, 1, H/8, W/8]``: above 0 for rendered."""
        x = torch.cat([pictures.flatten(1, 2), source.flatten(1, 2)], 1)
        made = []
        for conv in self.convs:
            x = F.leaky_relu(conv(x.contiguous(memory_format=torch.channels_last)), 0.2)
            made.append(x)
        return [*made, self.verdict(x)]


def near_edit(edited: Tensor) -> Tensor:
    """Edited pixels ``[N, T, H, W]`` to patches ``[N, 1, H/8, W/8]`` with some, or beside."""
    cells = F.max_pool2d(edited.amax(1, keepdim=True), STRIDE)
    return F.max_pool2d(cells, 3, stride=1, padding=1)


def _mean(values: Tensor, near: Tensor) -> Tensor:
    return (values * near).sum() / near.sum().clamp(min=1)


def critic_loss(
    critic: Adversary, made: Tensor, target: Tensor, source: Tensor, near: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """What the critic lacks: hinge loss of its verdicts on made and rendered pictures."""
    false, true = critic(made.detach(), source)[-1], critic(target, source)[-1]
    loss = _mean(F.relu(1 + false), near) + _mean(F.relu(1 - true), near)
    with torch.no_grad():
        right = 0.5 * _mean((false < 0).float() + (true > 0).float(), near)
    return loss, {"right": right}


def adversary_loss(
    critic: Adversary, made: Tensor, target: Tensor, source: Tensor, near: Tensor
) -> Tensor:
    """What made pictures lack in the critic's eyes: its verdict, and features like the target's."""
    seen = critic(made, source)
    with torch.no_grad():
        wanted = critic(target, source)
    loss = -_mean(seen[-1], near)
    for a, b in zip(seen[:-1], wanted[:-1], strict=True):
        size = F.adaptive_max_pool2d(near, a.shape[-2:])
        loss = loss + MATCHED / len(seen[:-1]) * _mean((a - b).abs().mean(1, keepdim=True), size)
    return loss
