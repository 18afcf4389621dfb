# SPDX-License-Identifier: Apache-2.0
"""Which floating-point type a device is fast at."""

from __future__ import annotations

import torch


def best_dtype(device: torch.device | str = "cpu") -> torch.dtype:
    """bfloat16 where it is fast: on GPUs, and on CPUs with AVX512_BF16 or AMX; else float32.

    A CPU without those instructions emulates bfloat16: measured on one with AVX2, matrix products
    took ten times as long as in float32.
    """
    on_cpu = torch.device(device).type == "cpu"
    fast = not on_cpu or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if fast else torch.float32
