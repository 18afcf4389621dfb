# SPDX-License-Identifier: Apache-2.0
"""A network that is trained: its loss, its optimisers and what of them a checkpoint holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from egoedit_ros.model.precision import best_dtype
from egoedit_ros.train.muon import Muon
from egoedit_ros.train.settings import TrainSettings

# What one step learns from: (data's stream, noise's stream) to (loss, numbers to report).
Step = Callable[[np.random.Generator, torch.Generator], tuple[Tensor, dict[str, Tensor]]]


@dataclass(frozen=True)
class Critic:
    """A second network: it learns at every step, the first one at each ``every``-th."""

    net: nn.Module
    step: Step
    every: int
    lr: float


class Part:
    """prefix: of its names in a checkpoint."""

    def __init__(
        self, prefix: str, net: nn.Module, step: Step, lr: float, settings: TrainSettings
    ) -> None:
        self.prefix, self.net, self.step, self.lr = prefix, net, step, lr
        self.optimizers = _optimizers(net, settings, lr)

    def set_rate(self, rate: float) -> None:
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * group["times"]

    def zero_grad(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)

    def take_step(self) -> None:
        for optimizer in self.optimizers:
            optimizer.step()

    def state(self) -> dict[str, Tensor]:
        state = {f"{self.prefix}model.{k}": v for k, v in self.net.state_dict().items()}
        for which, optimizer in enumerate(self.optimizers):
            for number, slot in optimizer.state_dict()["state"].items():
                name = f"{self.prefix}optimizer.{which}.{number}"
                state |= {f"{name}.{k}": v for k, v in slot.items()}
        return state

    def make_slots(self) -> None:
        """Give the optimisers (AdamW) their state as it is after a step, to be loaded into."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    optimizer.state[parameter] = {
                        "step": torch.tensor(0.0),
                        "exp_avg": torch.zeros_like(parameter),
                        "exp_avg_sq": torch.zeros_like(parameter),
                    }

    def load(self, state: dict[str, Tensor]) -> None:
        start = f"{self.prefix}model."
        net = {k.removeprefix(start): v for k, v in state.items() if k.startswith(start)}
        self.net.load_state_dict(net)
        start = f"{self.prefix}optimizer."
        for which, optimizer in enumerate(self.optimizers):
            slots: dict[int, dict[str, Tensor]] = {}
            for key, value in state.items():
                if key.startswith(f"{start}{which}."):
                    number, name = key.removeprefix(f"{start}{which}.").split(".")
                    # AdamW counts its steps on the host: on a GPU it would wait for each count.
                    value = value.cpu() if name == "step" else value
                    slots.setdefault(int(number), {})[name] = value
            optimizer.load_state_dict(optimizer.state_dict() | {"state": slots})


def _optimizers(
    model: nn.Module, settings: TrainSettings, lr: float
) -> list[torch.optim.Optimizer]:
    """AdamW for all, or Muon for the blocks' matrices and convolutions and AdamW for the rest."""
    trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    inner = {
        n
        for n, p in trained
        if settings.optimizer == "muon" and p.ndim in (2, 4) and "blocks." in n
    }
    groups = [
        {"params": [p for n, p in trained if n not in inner and p.ndim > 1]},
        {"params": [p for n, p in trained if n not in inner and p.ndim <= 1], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(
        [g | {"times": 1.0} for g in groups],
        lr=lr,
        betas=settings.betas,
        weight_decay=settings.weight_decay,
    )
    if not inner:
        return [adamw]
    muon = Muon(
        [{"params": [p for n, p in trained if n in inner], "times": settings.muon_times}],
        lr=lr,
        weight_decay=settings.weight_decay,
        dtype=best_dtype(trained[0][1].device),
    )
    return [adamw, muon]
