# SPDX-License-Identifier: Apache-2.0
"""Which floating-point type a device is fast at."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn


def best_dtype(device: torch.device | str = "cpu") -> torch.dtype:
    """bfloat16 where it is fast: on GPUs that compute in it (NVIDIA's from compute capability 8.0
    on), and on CPUs with AVX512_BF16 or AMX; else float32.

    What lacks it emulates it: measured on a CPU with AVX2, matrix products took ten times as long
    as in float32.
    """
    device = torch.device(device)
    if device.type == "cpu":
        fast = cpu_has_bfloat16()
    else:
        with torch.cuda.device(device):  # torch asks the current one
            fast = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if fast else torch.float32


def cpu_has_bfloat16() -> bool:
    """Whether this CPU multiplies in bfloat16. oneDNN says so of any with AVX-512, which is not
    enough. False also where this torch cannot tell."""
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, probe, bool)() for probe in probes)


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
