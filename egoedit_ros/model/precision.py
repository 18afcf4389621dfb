# SPDX-License-Identifier: Apache-2.0
"""Which floating-point type a device is fast at."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn


def best_dtype(device: torch.device | str = "cpu") -> torch.dtype:
    """bfloat16 where it is fast: on GPUs, and on CPUs with AVX512_BF16 or AMX; else float32.

    A CPU without those instructions emulates bfloat16: measured on one with AVX2, matrix products
    took ten times as long as in float32.
    """
    on_cpu = torch.device(device).type == "cpu"
    fast = not on_cpu or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if fast else torch.float32


@contextmanager
def weights_as(modules: Iterable[nn.Module], dtype: torch.dtype) -> Iterator[None]:
    """Inside, ``modules`` compute with their own weights (not their children's) cast to ``dtype``
    once; gradients go to the weights themselves. Not for a backward pass that computes anew.

    Mixed precision by autocast casts weights in every pass, and what lies between the products it
    computes in float32: for a small network that is most of the time.
    """
    kept = [(m, n, p) for m in modules for n, p in m.named_parameters(recurse=False)]
    cast = {id(p): p.to(dtype) for _, _, p in kept}
    try:
        for module, name, parameter in kept:
            module._parameters[name] = cast[id(parameter)]
        yield
    finally:
        for module, name, parameter in kept:
            module._parameters[name] = parameter
