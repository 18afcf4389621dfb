# SPDX-License-Identifier: Apache-2.0
"""Live editing of what a head-mounted camera sees, by instructions."""

import os

# OpenMP's threads spin while they wait, and on cores that other processes want too (a camera, a
# recorder) they then wait for one another: docs/runtime.md has what was measured. It is read when
# torch is loaded, so it has to stand before; child processes inherit it.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
