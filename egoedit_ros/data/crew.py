# SPDX-License-Identifier: Apache-2.0
"""Work shared out over processes: what one of them says, and what happens when one dies."""

from __future__ import annotations

import multiprocessing as mp
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from queue import Empty
from typing import Any

from egoedit_ros.errors import UserError

Work = Callable[[Any, list, Callable[[Any], None]], None]


@dataclass(frozen=True, slots=True)
class _Failure:
    """What made a process stop, as one line."""

    line: str


def _run(work: Work, setting: Any, jobs: list, queue: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends us
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        work(setting, jobs, queue.put)
    except UserError as error:
        queue.put(_Failure(str(error)))
    except OSError as error:  # a full disk, most of all
        queue.put(_Failure(f"{error.strerror or error}; free space or mend it, then run it again"))
    except Exception as error:
        queue.put(_Failure(f"{type(error).__name__}: {error}"))


def _end_with_parent() -> None:
    """A parent that is killed cannot end us: nobody would wait for what we make."""
    mp.parent_process().join()
    os._exit(1)


def run_crew(
    work: Work, setting: Any, jobs: Sequence, workers: int | None = None, name: str = "worker"
) -> Iterator[Any]:
    """Run ``work(setting, jobs of one process, put)`` in processes; yields what they ``put``.

    Every job must put exactly one thing. work: a function of a module (processes are spawned, since
    neither an EGL context nor torch's threads survive a fork). Job i goes to process i modulo their
    number. Raises UserError, as one line, when a process fails or is killed; what was written up to
    then is the caller's to keep. Leaving the iterator early ends the processes.
    """
    jobs = list(jobs)
    count = max(1, min(workers or os.cpu_count() or 1, len(jobs)))
    context = mp.get_context("spawn")
    queue = context.Queue()
    crew = [
        context.Process(target=_run, args=(work, setting, jobs[i::count], queue), daemon=True)
        for i in range(count)
        if jobs[i::count]
    ]
    for process in crew:
        process.start()
    left = len(jobs)
    try:
        while left:
            try:
                item = queue.get(timeout=1.0)
            except Empty:
                _look_for_dead(crew, queue, name)
                continue
            if isinstance(item, _Failure):
                raise UserError(item.line)
            left -= 1
            yield item
    finally:
        for process in crew:
            if left:
                process.terminate()
            process.join()


def _look_for_dead(crew: list, queue: Any, name: str) -> None:
    """Raise UserError if nothing will come from a process any more."""
    ended = [p for p in crew if p.exitcode not in (None, 0)]
    finished = all(p.exitcode is not None for p in crew)
    if (ended or finished) and queue.empty():
        code = ended[0].exitcode if ended else 0
        raise UserError(
            f"a {name} process ended with code {code}; what it wrote is kept: run the same "
            "command again to go on"
        )
