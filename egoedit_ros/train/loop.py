# SPDX-License-Identifier: Apache-2.0
"""The training loop that all stages share: AdamW or Muon, EMA, clipping, checkpoints, curves.

A run that is stopped and started again gives the same weights as one that was not: what a step
draws follows from the seed and the step's number, and a checkpoint holds all the rest.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from egoedit_ros.errors import UserError
from egoedit_ros.model.precision import best_dtype
from egoedit_ros.train import states
from egoedit_ros.train.lora import add_lora, merged
from egoedit_ros.train.parallel import Group, compile_blocks, recompute_blocks
from egoedit_ros.train.parts import Critic, Part, Step
from egoedit_ros.train.settings import TrainSettings
from egoedit_ros.train.watch import Bar, Curves, Progress, signals_at_step_ends

__all__ = ["Critic", "Step", "TrainSettings", "Trainer"]


# Parts of a network under this name help to train it; a checkpoint has none of them.
TRAINING_ONLY = "training_head."


class Trainer:
    """Runs ``step`` until the end and leaves ``<stage>.safetensors`` (EMA weights) whole.

    Beside it: ``<stage>.state.safetensors`` to resume (many processes: the folder
    ``<stage>.state``), ``<stage>.log.jsonl``, ``<stage>.samples.jsonl`` where samples are made.

    finish: called with the averaged network before each checkpoint. critic: a second network that
    learns between the steps of the first. data: the stage's other settings, a resumed run must
    have the same. batch: what the last step was about, saved when the loss is no number. sampler:
    makes samples of (averaged network, step) and gives figures; every process calls it.
    rolls_out: a step computes with and without gradient.
    """

    def __init__(
        self,
        model: nn.Module,
        settings: TrainSettings,
        step: Step,
        finish: Callable[[nn.Module], None] | None = None,
        *,
        critic: Critic | None = None,
        data: dict | None = None,
        group: Group | None = None,
        batch: Callable[[], dict[str, Tensor]] | None = None,
        sampler: Callable[[nn.Module, int], dict[str, float]] | None = None,
        rolls_out: bool = False,
    ) -> None:
        settings.check()
        self.model = model
        self.settings = settings
        self.group = group or Group()
        self._step = step
        self._finish = finish
        self._batch = batch
        self._sampler = sampler
        self._rolls_out = rolls_out
        self._facts = dataclasses.asdict(dataclasses.replace(settings, watch=None)) | (data or {})
        if settings.config is not None:
            self._facts["config"] = settings.config.to_dict()
        if self.group.count > 1:
            settings.check_many()
        if settings.lora:
            for net in (model, *([critic.net] if critic else ())):
                add_lora(net, settings.lora, settings.lora_alpha)
        if critic is not None:
            # Before the average is made: of many processes, each has its networks on the host until
            # they are sharded.
            if settings.recompute:
                recompute_blocks(critic.net)
            self.group.shard(critic.net)
        self.averaged = copy.deepcopy(model).eval().requires_grad_(False)
        if settings.compile:
            compile_blocks(model)
        if settings.recompute:
            recompute_blocks(model)
        self.group.shard(model)
        self.group.shard(self.averaged)
        # Through self, so that a step can be put in another's place.
        self.parts = [Part("", model, lambda *a: self._step(*a), settings.lr, settings)]
        self._every = 1
        if critic is not None:
            self._every = critic.every
            self.parts.append(Part("critic.", critic.net, critic.step, critic.lr, settings))
        self.optimizers = self.parts[0].optimizers
        self.done = 0
        self.elapsed = 0.0
        self._speed = 0.0
        self._saved = ""
        self._midway = False  # in a step that the critic has taken and the model has not
        settings.output.mkdir(parents=True, exist_ok=True)
        self.checkpoint = settings.output / f"{settings.stage}.safetensors"
        many = self.group.count > 1
        self.state = settings.output / f"{settings.stage}.state{'' if many else '.safetensors'}"
        self.log = settings.output / f"{settings.stage}.log.jsonl"
        self.samples = settings.output / f"{settings.stage}.samples.jsonl"
        self._refuse_another_count()
        if not many:
            states.finish_renaming(self.checkpoint, self.state)
        elif self.group.rank == 0:
            states.finish_renaming_shards(self.state)
        self.group.wait()  # all are to find the same
        if self.state.exists():
            self._resume()

    def _refuse_another_count(self) -> None:
        many = self.group.count > 1
        other = self.log.with_name(f"{self.settings.stage}.state{'.safetensors' if many else ''}")
        if other.exists():
            who = "one process" if many else "several processes (torchrun)"
            raise UserError(
                f"{other} was written by {who}; go on with as many, or choose another output folder"
            )

    def _progress(self) -> float:
        by_steps = self.done / self.settings.steps
        if self.settings.minutes is None:
            return by_steps
        return max(by_steps, self.elapsed / (60 * self.settings.minutes))

    def _rate(self, lr: float) -> float:
        """Linear warm-up, then half a cosine down to a twentieth, or constant."""
        warm = min(1.0, (self.done + 1) / self.settings.warmup)
        if self.settings.schedule == "constant":
            return lr * warm
        fall = 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1.0, self._progress())))
        return lr * warm * fall

    def run(self) -> Path:
        """Train to the end. SIGINT, SIGTERM and the watch's stop save first; raises
        KeyboardInterrupt after a signal."""
        settings = self.settings
        main = self.group.rank == 0
        bar = Bar(settings.stage, settings.steps, settings.minutes, main)
        bar.start_at(self.done, self.elapsed)
        folder = settings.output / "tb" / settings.stage
        curves = Curves(folder if settings.tensorboard and main else None, self.done)
        try:
            with signals_at_step_ends() as signalled:
                self._report("running")
                self._loop(bar, curves, signalled)
                stopped = self.group.any(signalled.is_set())
            if stopped:
                raise KeyboardInterrupt
            self._report("done")
            return self.checkpoint
        except Exception:
            self._report("failed")
            raise
        finally:
            bar.close()
            curves.close()

    def _loop(self, bar: Bar, curves: Curves, signalled) -> None:
        settings, watch = self.settings, self.settings.watch
        while self._progress() < 1:
            stop = signalled.is_set() or (watch is not None and watch.stopped())
            if self.group.any(stop):
                break
            start = time.monotonic()
            row: dict[str, float] = {}
            for index, part in reversed(list(enumerate(self.parts))):
                if index or (self.done + 1) % self._every == 0:
                    row |= self._update(index, part)
            self.done += 1
            self._midway = False
            took = time.monotonic() - start
            # By the first process's clock, so that all end at the same step.
            took = self.group.mean({"s": took})["s"]
            self.elapsed += took
            self._speed = 0.9 * self._speed + 0.1 / took if self._speed else 1 / took
            # The same one at every step: a critic's, where there is one.
            loss = row["critic_loss" if len(self.parts) > 1 else "loss"]
            bar.update(self.done, self.elapsed, loss)
            self._report("running", loss)
            if self.done % settings.log_every == 0:
                head = {"step": self.done, "seconds": round(self.elapsed, 1)}
                self._write(self.log, head | row)
                curves.add(head | row)
            if self.done % settings.save_every == 0:
                self._save()
            if settings.sample_every and self.done % settings.sample_every == 0:
                with self._saving_on_failure():
                    self._sample(curves)
        if self._saved != str(self.done):
            self._save()

    def _update(self, index: int, part: Part) -> dict[str, float]:
        """One step of one network; what is known of it afterwards."""
        settings, device = self.settings, self.group.device
        # Streams named by (seed, step): a resumed run sees what an unbroken one would.
        names = [settings.seed, self.done, *([index] if index else ())]
        rng = np.random.default_rng(names)
        noise = torch.Generator(device)
        noise.manual_seed(settings.seed * 1_000_003 + self.done + index * 2**40)
        rate = self._rate(part.lr)
        part.set_rate(rate)
        dtype = best_dtype(device)
        mixed = settings.bf16 and dtype is torch.bfloat16
        # No kept casts where one step computes with and without gradient: a cast made without
        # would be used with, and the gradient lost.
        keep = len(self.parts) == 1 and not self._rolls_out
        with (
            self._saving_on_failure(),
            torch.autocast(device.type, torch.bfloat16, enabled=mixed, cache_enabled=keep),
        ):
            loss, report = part.step(rng, noise)
        if loss.requires_grad:  # a captured step has done its backward pass
            part.zero_grad()
            with self._saving_on_failure():
                loss.backward()
        norm = nn.utils.clip_grad_norm_(part.net.parameters(), settings.clip)
        # Read all at once, after everything is under way: each look waits for the device.
        numbers = self.group.mean({"loss": loss, "norm": norm} | report)
        norm = numbers.pop("norm")
        if not math.isfinite(numbers["loss"]):
            raise self._no_number(f"the loss is {numbers['loss']}")
        if not math.isfinite(norm):
            raise self._no_number(f"the gradient's norm is {norm}")
        part.take_step()
        if index == 0:
            self._average()
        else:
            self._midway = True
        row = {"loss": numbers.pop("loss"), "grad_norm": norm, "lr": rate} | numbers
        return {f"critic_{k}" if index else k: v for k, v in row.items()}

    @contextmanager
    def _saving_on_failure(self) -> Iterator[None]:
        """Inside, no weight is changed: what was learnt so far is worth keeping."""
        try:
            yield
        except Exception:
            # The other processes wait elsewhere, and could not take part.
            if self.done and self.group.count == 1:
                self._save_between_steps()
            raise

    def _save_between_steps(self) -> None:
        """Save what is new, but not midway: a resumed run would take the critic's step once more.
        The checkpoint before is left then."""
        if not self._midway and self._saved != str(self.done):
            self._save()

    def _no_number(self, what: str) -> UserError:
        """Saves weights, if they can be, and batch; the error to raise."""
        self._save_between_steps()
        kept, mend = "no weights were saved before", "lower lr and begin anew"
        if self.checkpoint.exists():
            kept = f"the last good weights are in {self.checkpoint}"
            mend = "lower lr and start from them (start:)"
        note = ""
        if self._batch is not None and (batch := self._batch()):
            name = f"{self.settings.stage}.bad_step{self.done:06d}.{self.group.rank}.safetensors"
            path = self.settings.output / name
            tensors = {k: v.detach().to("cpu").contiguous() for k, v in batch.items()}
            states.write_together([(path, tensors, {"step": str(self.done)})])
            note = f" and the batch in {path}"
        return UserError(
            f"{what} at step {self.done}; {kept}{note}; {mend} in another output folder"
        )

    def _average(self) -> None:
        # A young average follows quickly, an old one slowly.
        count = self.done // self._every
        decay = min(self.settings.ema, (1 + count) / (10 + count))
        with torch.no_grad():
            kept, new = (list(net.parameters()) for net in (self.averaged, self.model))
            torch._foreach_lerp_(kept, new, 1 - decay)

    def _sample(self, curves: Curves) -> None:
        if self._sampler is None:
            return
        dtype, device = best_dtype(self.group.device), self.group.device
        mixed = self.settings.bf16 and dtype is torch.bfloat16
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=mixed):
            figures = self._sampler(self.averaged, self.done)
        row = {"step": self.done} | {f"sample_{k}": v for k, v in figures.items()}
        self._write(self.samples, row)
        curves.add(row)

    def _write(self, path: Path, row: dict[str, float]) -> None:
        if self.group.rank == 0:
            with path.open("a") as file:
                file.write(json.dumps({k: round(v, 6) for k, v in row.items()}) + "\n")

    def _report(self, state: str, loss: float = math.nan) -> None:
        watch = self.settings.watch
        if watch is None or self.group.rank:
            return
        share = self._progress()
        left = self.elapsed * (1 - share) / share if share > 0 and self.elapsed else -1.0
        total = self.settings.steps
        if self.settings.minutes is not None and share > 0:
            total = min(total, round(self.done / share))
        path = str(self.checkpoint) if self.checkpoint.exists() else ""
        stage = self.settings.stage
        watch.report(
            Progress(stage, state, self.done, total, loss, self._speed, max(-1.0, left), path)
        )

    # --- checkpoints ---------------------------------------------------------

    def _meta(self) -> dict[str, str]:
        return {
            "stage": self.settings.stage,
            "model": self.settings.model,
            "step": str(self.done),
        }

    def _save(self) -> None:
        self._report("saving")
        if self._finish is not None:
            self._finish(self.averaged)
        meta = self._meta()
        full = meta | {"elapsed": str(self.elapsed)}
        full |= {"settings": json.dumps(self._facts, default=str)}
        if self.group.count == 1:
            weights = merged(self.averaged)
            helping = [k for k in weights if k.startswith(TRAINING_ONLY)]
            state = self._state(averaged=bool(self.settings.lora or helping))
            weights = {k: v for k, v in weights.items() if k not in helping}
            states.write_together([(self.checkpoint, weights, meta), (self.state, state, full)])
        else:
            states.save_shards(self.state, self._state(True), full, self.group.rank)
            weights = states.whole_on_first(self.averaged.state_dict(), self.group.rank)
            if self.group.rank == 0:
                states.write_together([(self.checkpoint, weights, meta)])
            self.group.wait()
        self._saved = str(self.done)

    def _state(self, averaged: bool) -> dict[str, Tensor]:
        """Everything a resumed run needs; the averaged weights where their file is not enough."""
        state: dict[str, Tensor] = {}
        for part in self.parts:
            state |= part.state()
        if averaged:
            state |= {f"averaged.{k}": v for k, v in self.averaged.state_dict().items()}
        return state

    def _resume(self) -> None:
        many = self.group.count > 1
        meta = states.read_shards_meta(self.state) if many else states.read_meta(self.state)
        if meta.get("model") != self.settings.model:
            raise UserError(
                f"{self.state} belongs to model {meta.get('model')}, not "
                f"{self.settings.model}; choose another output folder"
            )
        changed = states.differences(meta.get("settings"), self._facts)
        if changed:
            raise UserError(
                f"{self.state} was made with other settings ({'; '.join(changed)}); put them back "
                "to go on, or choose another output folder"
            )
        self.done, self.elapsed = int(meta["step"]), float(meta["elapsed"])
        self._saved = meta["step"]
        if many:
            for index, part in enumerate(self.parts):
                # What has not learnt yet has left no optimiser's state to be loaded.
                if self.done >= (1 if index else self._every):
                    part.make_slots()
            state = self._state(True)
            states.load_shards(self.state, state)
        else:
            state = load_file(self.state, device=str(self.group.device))
        for part in self.parts:
            part.load(state)
        averaged = {k[9:]: v for k, v in state.items() if k.startswith("averaged.")}
        self.averaged.load_state_dict(averaged or load_file(self.checkpoint))
        self._forget_after()

    def _forget_after(self) -> None:
        """Take out of the logs what came after the checkpoint: it will be done again."""
        for path in (self.log, self.samples):
            if path.exists() and self.group.rank == 0:
                rows = [json.loads(line) for line in path.read_text().splitlines()]
                kept = [json.dumps(row) + "\n" for row in rows if row["step"] <= self.done]
                path.write_text("".join(kept))
