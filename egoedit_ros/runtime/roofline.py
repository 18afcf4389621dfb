# SPDX-License-Identifier: Apache-2.0
"""FLOPs and bytes of networks, counted on the meta device, and the time a device needs for them.

Every operation takes the longest of: its FLOPs at the device's rate for its kind, its bytes in and
out at the device's memory rate, and a kernel's launch. Attention is taken as one kernel, nothing
else as fused unless asked for.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

MATMUL, CONV, ATTENTION, OTHER = "matmul", "conv", "attention", "other"


@dataclass(frozen=True, slots=True)
class Operation:
    """One kind of work: FLOPs (two a multiply-add) and bytes read and written."""

    kind: str
    flops: int
    bytes: int


class Work(Counter):
    """Operations and how often each is done. Adds, and multiplies by a whole number."""

    def times(self, count: int) -> Work:
        return Work({op: n * count for op, n in self.items()})

    def __add__(self, other: Work) -> Work:
        return Work(Counter.__add__(self, other))

    def __sub__(self, other: Work) -> Work:
        return Work(Counter.__sub__(self, other))

    @property
    def flops(self) -> int:
        return sum(op.flops * n for op, n in self.items())

    @property
    def bytes(self) -> int:
        return sum(op.bytes * n for op, n in self.items())


@dataclass(frozen=True, slots=True)
class Device:
    """Peak rates (FLOP/s without sparsity, bytes/s) and the share of each that is reached."""

    name: str
    flops: float
    fp8_flops: float
    bandwidth: float
    memory: float
    matmul: float = 0.6
    conv: float = 0.3
    attention: float = 0.5
    streaming: float = 0.8
    launch_s: float = 4e-6

    def seconds(self, work: Work, fp8: bool = False, fused: float = 1.0) -> float:
        """Time of ``work``. fp8: its matrix products are done in 8 bits; fused: the share that a
        compiler leaves of what is neither product, convolution nor attention."""
        peak = {
            MATMUL: (self.fp8_flops if fp8 else self.flops) * self.matmul,
            CONV: self.flops * self.conv,
            ATTENTION: self.flops * self.attention,
            OTHER: self.flops * self.matmul,
        }
        rate = self.bandwidth * self.streaming
        total = 0.0
        for op, count in work.items():
            small = 0.5 if fp8 and op.kind == MATMUL else 1.0
            once = max(op.flops / peak[op.kind], small * op.bytes / rate, self.launch_s)
            total += count * once * (fused if op.kind == OTHER else 1.0)
        return total

    def fitted(self, kind: str, work: Work, seconds: float) -> Device:
        """This device with its share for ``kind`` such that ``work`` takes ``seconds``."""
        low, high = 1e-3, 1.0
        for _ in range(40):
            middle = math.sqrt(low * high)
            if replace(self, **{kind: middle}).seconds(work) > seconds:
                low = middle
            else:
                high = middle
        return replace(self, **{kind: math.sqrt(low * high)})


# Makers' data sheets: dense bf16 with float32 sums, dense fp8, memory.
GPUS = {
    "h100": Device("H100 SXM", 989e12, 1979e12, 3.35e12, 80e9),
    "h200": Device("H200 SXM", 989e12, 1979e12, 4.8e12, 141e9),
    "b200": Device("B200", 2250e12, 4500e12, 8.0e12, 180e9),
    "rtx5090": Device("RTX 5090", 209e12, 419e12, 1.79e12, 32e9),
}

_VIEWS = ("view", "reshape", "expand", "permute", "transpose", "slice", "select", "unsqueeze",
          "squeeze", "unbind", "split", "chunk", "t", "alias", "detach", "as_strided", "empty",
          "unflatten", "arange", "_unsafe_view", "lift_fresh", "new_empty", "empty_like",
          "empty_strided")  # fmt: skip
_KINDS = {"mm": MATMUL, "addmm": MATMUL, "bmm": MATMUL, "baddbmm": MATMUL, "convolution": CONV}


class _Counting(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.work = Work()
        self.quiet = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        packet = func._overloadpacket
        name = packet.__name__
        if self.quiet or name in _VIEWS:
            return out
        flops = 0
        if packet in flop_registry:
            flops = int(flop_registry[packet](*args, **(kwargs or {}), out_val=out))
        size = sum(t.numel() * t.element_size() for t in _tensors((args, out)))
        self.work[Operation(_KINDS.get(name, OTHER), flops, size)] += 1
        return out


class _Attention(TorchFunctionMode):
    """Takes attention as one kernel that reads queries, keys and values and writes the result."""

    def __init__(self, counting: _Counting) -> None:
        super().__init__()
        self._counting = counting

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        q, k, v = args[:3]
        self._counting.quiet = True
        out = q.new_empty((*q.shape[:-1], v.shape[-1]))
        self._counting.quiet = False
        flops = 2 * math.prod(q.shape[:-1]) * k.shape[-2] * (q.shape[-1] + v.shape[-1])
        size = sum(t.numel() * t.element_size() for t in (q, k, v, out))
        self._counting.work[Operation(ATTENTION, flops, size)] += 1
        return out


def _tensors(values: object) -> Iterable[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from _tensors(value)


@contextmanager
def counting():
    """Counts what is done inside; gives the :class:`Work`, which fills as it goes."""
    mode = _Counting()
    # Not inference mode: composite operations would come undivided.
    with torch.no_grad(), mode, _Attention(mode):
        yield mode.work


def count(function: Callable[[], object]) -> Work:
    """The work of one call."""
    with counting() as work:
        function()
    return work
