# SPDX-License-Identifier: Apache-2.0
"""The training loop that all stages share: bf16, AdamW, EMA, clipping, checkpoints, a loss log."""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from egoedit_ros.errors import UserError
from egoedit_ros.model.precision import best_dtype
from egoedit_ros.train.muon import Muon

# Parts of a network under this name help to train it; a checkpoint has none of them.
TRAINING_ONLY = "training_head."
Step = Callable[[np.random.Generator, torch.Generator], tuple[Tensor, dict[str, Tensor]]]


@dataclass(frozen=True)
class TrainSettings:
    """What every stage is told. Times of a run are bounded by steps or by minutes."""

    output: Path
    stage: str
    model: str = "edge"
    steps: int = 1000
    minutes: float | None = None
    lr: float = 1e-3
    warmup: int = 100
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    clip: float = 1.0
    ema: float = 0.998
    seed: int = 0
    log_every: int = 20
    save_every: int = 200
    bf16: bool = True
    optimizer: str = "adamw"
    muon_times: float = 1.0  # Muon's rate over AdamW's


class Trainer:
    """Runs ``step`` until the end and leaves ``<stage>.safetensors`` (EMA weights) whole.

    ``<stage>.state.safetensors`` beside it resumes the run; ``<stage>.log.jsonl`` is the curve.
    """

    def __init__(
        self,
        model: nn.Module,
        settings: TrainSettings,
        step: Step,
        finish: Callable[[nn.Module], None] | None = None,
    ) -> None:
        self.model = model
        self.settings = settings
        self._step = step
        self._finish = finish
        self.averaged = copy.deepcopy(model).eval().requires_grad_(False)
        self.optimizers = _optimizers(model, settings)
        self.done = 0
        self.elapsed = 0.0
        settings.output.mkdir(parents=True, exist_ok=True)
        self.checkpoint = settings.output / f"{settings.stage}.safetensors"
        self.state = settings.output / f"{settings.stage}.state.safetensors"
        self.log = settings.output / f"{settings.stage}.log.jsonl"
        if self.state.exists():
            self._resume()

    def _progress(self) -> float:
        by_steps = self.done / self.settings.steps
        if self.settings.minutes is None:
            return by_steps
        return max(by_steps, self.elapsed / (60 * self.settings.minutes))

    def _rate(self) -> float:
        """Linear warm-up, then half a cosine down to a twentieth."""
        warm = min(1.0, (self.done + 1) / self.settings.warmup)
        fall = 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1.0, self._progress())))
        return self.settings.lr * warm * fall

    def run(self) -> Path:
        settings = self.settings
        bf16 = settings.bf16 and best_dtype() is torch.bfloat16
        while self._progress() < 1:
            start = time.monotonic()
            # Streams named by (seed, step): a resumed run sees what an unbroken one would.
            rng = np.random.default_rng([settings.seed, self.done])
            noise = torch.Generator().manual_seed(settings.seed * 1_000_003 + self.done)
            rate = self._rate()
            for optimizer in self.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = rate * group["times"]
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss, report = self._step(rng, noise)
            if not torch.isfinite(loss):
                self._save()
                raise UserError(
                    f"the loss is {loss.item()} at step {self.done}; the last good weights are in "
                    f"{self.checkpoint}; lower lr and start again"
                )
            for optimizer in self.optimizers:
                optimizer.zero_grad(set_to_none=True)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(self.model.parameters(), settings.clip)
            for optimizer in self.optimizers:
                optimizer.step()
            self._average()
            self.done += 1
            self.elapsed += time.monotonic() - start
            if self.done % settings.log_every == 0:
                self._write(loss, norm, rate, report)
            if self.done % settings.save_every == 0:
                self._save()
        self._save()
        return self.checkpoint

    def _average(self) -> None:
        # A young average follows quickly, an old one slowly.
        decay = min(self.settings.ema, (1 + self.done) / (10 + self.done))
        with torch.no_grad():
            for kept, new in zip(self.averaged.parameters(), self.model.parameters(), strict=True):
                kept.lerp_(new, 1 - decay)

    def _write(self, loss: Tensor, norm: Tensor, rate: float, report: dict[str, Tensor]) -> None:
        row = {"step": self.done, "seconds": round(self.elapsed, 1), "loss": loss.item()}
        row |= {"grad_norm": norm.item(), "lr": rate}
        row |= {k: v.item() for k, v in report.items()}
        with self.log.open("a") as file:
            file.write(json.dumps({k: round(v, 6) for k, v in row.items()}) + "\n")

    def _save(self) -> None:
        if self._finish is not None:
            self._finish(self.averaged)
        meta = {"stage": self.settings.stage, "model": self.settings.model, "step": str(self.done)}
        weights = {k: v.contiguous() for k, v in self.averaged.state_dict().items()}
        helping = {k: weights.pop(k) for k in list(weights) if k.startswith(TRAINING_ONLY)}
        _replace(self.checkpoint, weights, meta)
        state = {f"model.{k}": v.contiguous() for k, v in self.model.state_dict().items()}
        state |= {f"averaged.{k}": v for k, v in helping.items()}
        for which, optimizer in enumerate(self.optimizers):
            for number, slot in optimizer.state_dict()["state"].items():
                name = f"optimizer.{which}.{number}"
                state |= {f"{name}.{k}": v.contiguous() for k, v in slot.items()}
        _replace(self.state, state, meta | {"elapsed": str(self.elapsed)})

    def _resume(self) -> None:
        with safe_open(self.state, "pt") as file:
            meta = file.metadata()
            if meta.get("model") != self.settings.model:
                raise UserError(
                    f"{self.state} belongs to model {meta.get('model')}, not "
                    f"{self.settings.model}; choose another output folder"
                )
            self.done, self.elapsed = int(meta["step"]), float(meta["elapsed"])
        state = load_file(self.state)
        model = {k[6:]: v for k, v in state.items() if k.startswith("model.")}
        self.model.load_state_dict(model)
        helping = {k[9:]: v for k, v in state.items() if k.startswith("averaged.")}
        self.averaged.load_state_dict(load_file(self.checkpoint) | helping)
        for which, optimizer in enumerate(self.optimizers):
            slots: dict[int, dict[str, Tensor]] = {}
            for key, value in state.items():
                kind, *place = key.split(".")
                if kind == "optimizer" and int(place[0]) == which:
                    slots.setdefault(int(place[1]), {})[place[2]] = value
            optimizer.load_state_dict(optimizer.state_dict() | {"state": slots})
        if self.log.exists():  # what came after the checkpoint will be done again
            rows = [json.loads(line) for line in self.log.read_text().splitlines()]
            kept = [json.dumps(row) + "\n" for row in rows if row["step"] <= self.done]
            self.log.write_text("".join(kept))


def _optimizers(model: nn.Module, settings: TrainSettings) -> list[torch.optim.Optimizer]:
    """AdamW for all, or Muon for the blocks' matrices and AdamW for the rest."""
    trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    inner = {
        n for n, p in trained if settings.optimizer == "muon" and p.ndim == 2 and "blocks." in n
    }
    groups = [
        {"params": [p for n, p in trained if n not in inner and p.ndim > 1]},
        {"params": [p for n, p in trained if n not in inner and p.ndim <= 1], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(
        [g | {"times": 1.0} for g in groups],
        lr=settings.lr,
        betas=settings.betas,
        weight_decay=settings.weight_decay,
    )
    if not inner:
        return [adamw]
    muon = Muon(
        [{"params": [p for n, p in trained if n in inner], "times": settings.muon_times}],
        lr=settings.lr,
        weight_decay=settings.weight_decay,
        dtype=best_dtype(),
    )
    return [adamw, muon]


def _replace(path: Path, tensors: dict[str, Tensor], meta: dict[str, str]) -> None:
    """Write beside, then rename: a full disk leaves the last good file."""
    part = path.with_suffix(".part")
    save_file(tensors, part, metadata=meta)
    part.chmod(0o644)
    part.replace(path)
