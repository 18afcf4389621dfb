# SPDX-License-Identifier: Apache-2.0
"""Work for processes of a crew: a spawned process can only import it from a module like this."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

from egoedit_ros.data.clip import StoredClip, write_stored
from egoedit_ros.data.crew import run_crew
from egoedit_ros.errors import UserError


def half_then_die(folder, jobs, put):
    """Write clips, and be killed at number 2."""
    for number in jobs:
        if number == 2:
            # What was put is on its way by another thread; a kill would be too quick for it.
            put.__self__.close()
            put.__self__.join_thread()
            os.kill(os.getpid(), signal.SIGKILL)
        frames = np.full((1, 8, 8, 3), number, np.uint8)
        write_stored(folder, StoredClip(number, ["x"], ["y"], frames, [frames], None))
        put(number)


def refuse(line, jobs, put):
    """End with a UserError."""
    raise UserError(line)


def tell_and_wait(folder, jobs, put):
    """Leave the process's number in a file, and work for ever."""
    part = folder / "part"
    part.write_text(str(os.getpid()))
    part.rename(folder / "pid")
    while True:
        time.sleep(0.1)


if __name__ == "__main__":  # a parent that a test can kill
    list(run_crew(tell_and_wait, Path(sys.argv[1]), [0], 1))
