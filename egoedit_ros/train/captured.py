# SPDX-License-Identifier: Apache-2.0
"""Training steps as CUDA graphs: the launches of a step's thousands of kernels cost nothing.

A small network's step is a few thousand kernels of some microseconds each, and Python needs longer
to start one than the GPU to run it. So a step's forward and backward pass are recorded once for
each kind of step and replayed from then on. What a step draws is drawn outside and copied to where
the recording reads it; gradients are added to buffers that stay; clipping, the optimiser and the
average are as in any other step.

Seen from the loop it is a step whose loss needs no backward pass any more. A recording is compared
with a pass that is launched, on the same draw, and not used where they differ.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from egoedit_ros.errors import UserError

WARM = 3  # runs before a recording: the choice of algorithms, lazily made buffers
# How far a replay's loss and gradient may be, relatively, from those of a launched pass: sums in
# another order are, in bfloat16.
LOSS_OFF, GRADIENT_OFF = 0.01, 0.05

Learnt = tuple[Tensor, dict[str, Tensor]]


class Drawn(Protocol):
    """What a step is about, in tensors."""

    def tensors(self) -> list[Tensor]: ...


class TwoPart(Protocol):
    """A step that says what it drew. ``learn`` must neither draw nor look at the device, and the
    tensors of two draws of a kind must have the same shapes."""

    def draw(self, rng: np.random.Generator, noise: torch.Generator) -> tuple[Hashable, Drawn]: ...

    def learn(self, kind: Hashable, drawn: Drawn) -> Learnt: ...


class Captured:
    """``step`` as a :data:`~egoedit_ros.train.parts.Step` that leaves gradients in ``net``.

    Raises UserError where there is no CUDA device.
    """

    def __init__(self, step: TwoPart, net: nn.Module, device: torch.device) -> None:
        self.step, self.net = step, net
        self.parameters: list[nn.Parameter] = []
        self._kinds: dict[Hashable, tuple[list[Tensor], Callable[[], Learnt]]] = {}
        self._prepare(device)

    def _prepare(self, device: torch.device) -> None:
        if device.type != "cuda":
            raise UserError("captured steps are CUDA graphs; leave captured out without a GPU")
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()  # no two replays at once: all share it

    def __call__(self, rng: np.random.Generator, noise: torch.Generator) -> Learnt:
        kind, drawn = self.step.draw(rng, noise)
        new = drawn.tensors()
        if kind not in self._kinds:
            self._kinds[kind] = (new, self._recorded(kind, drawn))
        fixed, replay = self._kinds[kind]
        if fixed is not new:
            for to, value in zip(fixed, new, strict=True):
                to.copy_(value)
        return replay()

    def _pass(self, kind: Hashable, drawn: Drawn) -> Learnt:
        torch._foreach_zero_([p.grad for p in self.parameters])
        loss, report = self.step.learn(kind, drawn)
        with torch.autocast(loss.device.type, enabled=False):
            loss.backward()
        return loss.detach(), report

    def _recorded(self, kind: Hashable, drawn: Drawn) -> Callable[[], Learnt]:
        """What does the pass on the tensors of ``drawn`` again, by a recording if it is right."""
        # Not before: the trainer may have put others (LoRA) in the network's own place.
        self.parameters = [p for p in self.net.parameters() if p.requires_grad]
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)

        def launch() -> Learnt:
            return self._pass(kind, drawn)

        replay = self._record(launch)
        wanted, _ = launch()
        gradients = self._gradients()
        got, _ = replay()
        loss = float((got - wanted).abs() / wanted.abs().clamp(min=1e-6))
        off = float((self._gradients() - gradients).norm() / gradients.norm().clamp(min=1e-12))
        if loss <= LOSS_OFF and off <= GRADIENT_OFF:
            return replay
        said = f"a replay's loss is {loss:.1%} off, its gradient {off:.1%}"
        print(f"captured: {said}; such steps are launched one by one", file=sys.stderr, flush=True)
        return launch

    def _gradients(self) -> Tensor:
        return torch.cat([p.grad.flatten() for p in self.parameters])

    def _record(self, one_pass: Callable[[], Learnt]) -> Callable[[], Learnt]:
        here = torch.cuda.current_stream()
        self._stream.wait_stream(here)
        with torch.cuda.stream(self._stream):
            for _ in range(WARM):
                one_pass()
        self._stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        # Relaxed: other threads read clips meanwhile, and a cache asks for the memory there is.
        how = {"pool": self._pool, "stream": self._stream, "capture_error_mode": "relaxed"}
        with torch.cuda.graph(graph, **how):
            learnt = one_pass()
        here.wait_stream(self._stream)

        def replay() -> Learnt:
            graph.replay()
            return learnt

        return replay
