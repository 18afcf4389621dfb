# SPDX-License-Identifier: Apache-2.0
"""How OpenMP's threads wait; imported by ``cli`` and ``nodes`` before anything loads torch.

By default they spin, and on cores that other processes want too (a camera, a recorder) they then
wait for one another: docs/runtime.md has what was measured. The variable is read when torch is
loaded, and child processes inherit it.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
