# SPDX-License-Identifier: Apache-2.0
"""How OpenMP's threads wait; imported by ``cli`` and ``nodes`` before anything loads torch.

Between two operations a thread spins for a while and then sleeps. Always asleep at once, waking it
takes a third of a small model's time; spinning for long, on cores that other processes want too (a
camera, a recorder), threads wait for one another in vain. So: shortly. docs/runtime.md has what was
measured. The variables are read when torch is loaded, and child processes inherit them.
"""

import os

if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
