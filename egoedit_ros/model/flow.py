# SPDX-License-Identifier: Apache-2.0
"""Rectified flow in few steps (EgoEdit section 4; Self Forcing's sampler).

Latents on the way are x_sigma = (1 - sigma) x0 + sigma noise, sigma from 1 (noise) to 0 (data);
the velocity is noise - x0 and a timestep is 1000 sigma.

An *anchored* transformer predicts the change from the source latents instead of the velocity:
x0 = source + output. Where nothing is edited the answer is then zero whatever the noise, which
leaves no noise behind in untouched places, and a network that starts at zero starts at "change
nothing". What it cannot predict it leaves at zero, too, and where a thing is taken away that would
leave the thing's finest edges standing. So it may have *gates*, numbers for a few bands of channels
in each cell: x0 = (1 - gate) source + output. Wan-type weights predict the velocity.
"""

from __future__ import annotations

import torch
from torch import Tensor


def shift_sigma(sigma: Tensor, shift: float) -> Tensor:
    """Wan's shift: sigma' = s sigma / (1 + (s - 1) sigma)."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def step_sigmas(nfe: int, shift: float, strength: float = 1.0) -> list[float]:
    """The noise levels of ``nfe`` steps, from 1 down; 4 steps at shift 5: 1, .9375, .8333, .625.

    strength: where to begin, before the shift.
    """
    uniform = strength * (1 - torch.arange(nfe, dtype=torch.float64) / nfe)
    return shift_sigma(uniform, shift).tolist()


def to_clean(
    output: Tensor, noisy: Tensor, sigma: Tensor | float, source: Tensor, anchored: bool
) -> Tensor:
    """The clean latents ``[..., C, h, w]`` that a transformer's output stands for; behind its C
    channels an anchored one may have gates."""
    if not anchored:
        return noisy - sigma * output
    channels = source.shape[-3]
    change, gates = output[..., :channels, :, :], output[..., channels:, :, :]
    if not gates.shape[-3]:
        return source + change
    ends = [channels * (2**n - 1) // (2 ** gates.shape[-3] - 1) for n in range(gates.shape[-3] + 1)]
    kept = [
        source[..., a:b, :, :] * (1 - gates[..., n : n + 1, :, :])
        for n, (a, b) in enumerate(zip(ends, ends[1:], strict=False))
    ]
    return torch.cat(kept, dim=-3) + change


def add_noise(clean: Tensor, noise: Tensor, sigma: Tensor | float) -> Tensor:
    """x_sigma for clean latents and unit noise."""
    return (1 - sigma) * clean + sigma * noise
