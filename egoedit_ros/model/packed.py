# SPDX-License-Identifier: Apache-2.0
"""Large weights in a byte each, in files alone: what is bundled has to be small.

Of each of a layer's outputs the weights are whole numbers of steps of one size, which is the
largest of them over ``MOST``: off by about 1 % of the weights' spread.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from egoedit_ros.errors import UserError

MOST = 127
LARGE = 24_000  # weights of a matrix; smaller ones stay as they are
STEPS = ".steps"  # after a weight's name: the sizes of its steps


def pack(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of convolutions ``[O, I, h, w]``, and of large matrices ``[O, I]``, as int8, and
    float32 ``[O]`` of their steps; the other tensors as they are."""
    out = {}
    for name, tensor in tensors.items():
        if tensor.dim() != 4 and not (tensor.dim() == 2 and tensor.numel() > LARGE):
            out[name] = tensor
            continue
        weights = tensor.float()
        steps = weights.flatten(1).abs().amax(1) / MOST
        sizes = steps.clamp(min=torch.finfo(torch.float32).tiny)
        whole = weights / sizes.view(-1, *[1] * (weights.dim() - 1))
        out[name] = whole.round().to(torch.int8).contiguous()
        out[name + STEPS] = steps
    return out


def unpack(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """What :func:`pack` was given, as far as bytes tell it. path: of the file, for messages.

    Raises UserError for steps that do not fit their weights."""
    out = {name: tensor for name, tensor in tensors.items() if not name.endswith(STEPS)}
    for name in tensors.keys() - out.keys():
        of, steps = name.removesuffix(STEPS), tensors[name]
        weights = out.get(of)
        if weights is None or weights.dtype != torch.int8 or steps.shape != weights.shape[:1]:
            raise UserError(f"{path} is damaged: {name} does not fit {of}; copy it again")
        out[of] = weights.float() * steps.float().view(-1, *[1] * (weights.dim() - 1))
    return out
