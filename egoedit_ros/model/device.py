# SPDX-License-Identifier: Apache-2.0
"""Why torch finds no GPU, for messages."""

from __future__ import annotations

import torch


def no_cuda_because() -> str:
    """Why ``torch.cuda.is_available()`` is False and what to do about it: a clause for messages."""
    if torch.version.cuda is None and torch.version.hip is None:
        return "this torch is a CPU build; install the CUDA build of the same version to use a GPU"
    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {torch.version.hip}"
    return (
        f"this torch is a build for {built} but finds no GPU; update the driver (nvidia-smi tells "
        "the newest CUDA that it can), pass the GPU into the container (docker run --gpus all), or "
        "unset CUDA_VISIBLE_DEVICES"
    )
