# SPDX-License-Identifier: Apache-2.0
"""What a run shows while it goes on: a bar with the time left, TensorBoard, whoever watches."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from egoedit_ros.errors import UserError


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is. state: starting, running, saving, done or failed; loss: of the last step,
    the critic's where there is one; eta_s: seconds left at the present speed, negative where
    unknown; checkpoint: "" before the first."""

    stage: str
    state: str
    step: int
    total_steps: int
    loss: float
    steps_per_second: float
    eta_s: float
    checkpoint: str


class Watch(Protocol):
    """Somebody who follows a run, in the thread that trains."""

    def report(self, progress: Progress) -> None:
        """Called at every step and change of state."""

    def stopped(self) -> bool:
        """True: the run saves after the present step and ends."""


@contextmanager
def signals_at_step_ends() -> Iterator[threading.Event]:
    """SIGINT and SIGTERM set the event instead of breaking into a step; a second one does break.

    A step cut in two would leave weights and optimiser apart. Outside the main thread signals go
    elsewhere, and the event stays clear.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def handle(*_: object) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    before = {n: signal.signal(n, handle) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Bar:
    """A progress bar on stderr, by steps or by the minutes of training; few lines in a file."""

    def __init__(self, stage: str, steps: int, minutes: float | None, shown: bool) -> None:
        from tqdm import tqdm

        self._by_time = minutes is not None
        self._tqdm = tqdm(
            total=round(60 * minutes) if self._by_time else steps,
            desc=stage,
            unit="s" if self._by_time else "step",
            mininterval=0.5 if sys.stderr.isatty() else 30.0,
            disable=not shown,
            dynamic_ncols=True,
        )

    def update(self, step: int, seconds: float, loss: float) -> None:
        place = min(round(seconds), self._tqdm.total) if self._by_time else step
        self._tqdm.set_postfix_str(f"step {step}, loss {loss:.4f}", refresh=False)
        self._tqdm.update(place - self._tqdm.n)

    def start_at(self, step: int, seconds: float) -> None:
        """Where a resumed run goes on; what was done before does not count for the speed."""
        self._tqdm.initial = self._tqdm.n = round(seconds) if self._by_time else step

    def close(self) -> None:
        self._tqdm.close()


class Curves:
    """Numbers for TensorBoard under ``folder``, where it was asked for."""

    def __init__(self, folder: Path | None, step: int) -> None:
        self._writer = None
        if folder is None:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UserError(
                "tensorboard is not installed; pip install tensorboard, or leave it out of the "
                "recipe"
            ) from None
        # What came after the checkpoint will be done again.
        self._writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    def add(self, row: dict[str, float]) -> None:
        if self._writer is not None:
            for name, value in row.items():
                if name != "step":
                    self._writer.add_scalar(name, value, row["step"])

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
