# SPDX-License-Identifier: Apache-2.0
"""Is there memory for it? Asked before anything large is loaded."""

from __future__ import annotations

import torch

from egoedit_ros.errors import UserError


def free_memory(device: torch.device | str) -> int:
    """Bytes that can still be had on ``device``, what torch keeps for itself there included."""
    device = torch.device(device)
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    import psutil

    return psutil.virtual_memory().available


def require_memory(what: str, needed: int, device: torch.device | str) -> None:
    """Raise UserError unless ``needed`` bytes are free on ``device``."""
    free = free_memory(device)
    if needed > free:
        raise UserError(
            f"{what} needs {needed / 1e9:.1f} GB on {torch.device(device)} and {free / 1e9:.1f} GB "
            "are free; use a smaller model or a machine with more memory"
        )
