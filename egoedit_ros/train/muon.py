# SPDX-License-Identifier: Apache-2.0
"""Muon for the blocks' matrices: momentum, orthogonalised by Newton-Schulz (Jordan et al. 2024).

``torch.optim.Muon`` does the iteration in bfloat16, one matrix at a time. On a CPU without bf16
instructions that took 31 s a step of the ``edge`` model, against 4 s for its forward and backward
pass; here equal shapes go together, in the precision that the machine is fast at.
"""

from __future__ import annotations

import torch
from torch import Tensor

# The quintic iteration's coefficients: a steep start, singular values end near 1.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """About the nearest (semi-)orthogonal matrix of each of ``[N, rows, columns]``."""
    a, b, c = COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + torch.baddbmm(gram, gram, gram, beta=b, alpha=c) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised; steps as large as AdamW's (0.2 RMS), so rates carry over.

    dtype: of the iteration.
    """

    def __init__(
        self,
        params,
        lr: float,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure=None) -> None:
        if closure is not None:
            raise ValueError("Muon takes no closure: call backward() before step()")
        for group in self.param_groups:
            learning = [p for p in group["params"] if p.grad is not None]
            if not learning:
                continue
            for parameter in learning:
                if "momentum_buffer" not in self.state[parameter]:
                    self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
            gradients = [p.grad for p in learning]
            kept = [self.state[p]["momentum_buffer"] for p in learning]
            torch._foreach_lerp_(kept, gradients, 1 - group["momentum"])
            ahead = torch._foreach_lerp(gradients, kept, group["momentum"])
            by_shape: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}
            for parameter, update in zip(learning, ahead, strict=True):
                by_shape.setdefault(parameter.shape, []).append((parameter, update))
            for shape, rows in by_shape.items():
                # A convolution's weights are a matrix from all that a place sees to what it gives.
                stacked = torch.stack([u.flatten(1) for _, u in rows]).to(self.dtype)
                made = orthogonalise(stacked).unflatten(2, shape[1:])
                size = 0.2 * group["lr"] * max(stacked.shape[1:]) ** 0.5
                parameters = [parameter for parameter, _ in rows]
                torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
                made = made.to(parameters[0].dtype).unbind(0)
                torch._foreach_add_(parameters, made, alpha=-size)
