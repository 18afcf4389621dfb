# SPDX-License-Identifier: Apache-2.0
"""What every training stage is told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from egoedit_ros.errors import UserError
from egoedit_ros.model.config import EditorConfig, get_config
from egoedit_ros.train.watch import Watch


@dataclass(frozen=True)
class TrainSettings:
    """What every stage is told. Times of a run are bounded by steps or by minutes.

    config: the editor's sizes, where they are not those of the configuration called ``model``.
    lora: rank of the additions that are trained in the weights' place, 0: the weights themselves.
    recompute: gradient checkpointing. compile: fuse the blocks' small operations. critic_lr,
    critic_steps: of the stages with a second network; None: as the first one. watch: see
    :class:`~egoedit_ros.train.watch.Watch`.
    """

    output: Path
    stage: str
    model: str = "edge"
    steps: int = 1000
    minutes: float | None = None
    lr: float = 1e-3
    warmup: int = 100
    schedule: str = "cosine"
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    clip: float = 1.0
    ema: float = 0.998
    seed: int = 0
    log_every: int = 20
    save_every: int = 200
    sample_every: int = 0
    bf16: bool = True
    optimizer: str = "adamw"
    muon_times: float = 1.0  # Muon's rate over AdamW's
    critic_lr: float | None = None
    critic_steps: int = 5
    recompute: bool = False
    compile: bool = False
    lora: int = 0
    lora_alpha: float = 16.0
    tensorboard: bool = False
    device: str = "auto"
    config: EditorConfig | None = None
    watch: Watch | None = None

    @property
    def editor(self) -> EditorConfig:
        return self.config or get_config(self.model)

    def check(self) -> None:
        """Raise UserError for what cannot be trained with."""
        for name, least in (("steps", 1), ("warmup", 1), ("log_every", 1), ("save_every", 1),
                            ("critic_steps", 1), ("lora", 0), ("sample_every", 0)):  # fmt: skip
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise UserError(f"{name} is {value!r}; it must be a whole number from {least} up")
        for name in ("lr", "critic_lr", "weight_decay", "clip", "ema", "minutes", "muon_times"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, (int, float)) and value >= 0):
                # YAML takes 1e-5 for text and 1.0e-5 for a number.
                raise UserError(f"{name} is {value!r}; it must be a number, such as 0.00001")
        for name, known in (("optimizer", ("adamw", "muon")), ("schedule", ("cosine", "constant"))):
            if getattr(self, name) not in known:
                raise UserError(
                    f"{name} is {getattr(self, name)!r}; use one of: {', '.join(known)}"
                )

    def check_many(self) -> None:
        """Raise UserError for what only one process can do."""
        if self.lora or self.optimizer == "muon":
            raise UserError(
                "several processes train whole weights with adamw; leave out lora and muon"
            )
        if self.sample_every:
            raise UserError(
                "several processes make no samples; leave out sample_every and run "
                "'egoedit train sample' on their checkpoint beside them"
            )
