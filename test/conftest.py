# SPDX-License-Identifier: Apache-2.0
"""What all tests share: a graph of their own, no network, and what the machine can do."""

from __future__ import annotations

import os
import random
import signal
import tempfile

import pytest

# Before rclpy or a node is started, so that child processes inherit it. Domains above 101 share
# their ports with outgoing connections.
os.environ["ROS_DOMAIN_ID"] = str(random.SystemRandom().randint(1, 101))
os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
os.environ.pop("ROS_LOCALHOST_ONLY", None)
os.environ["ROS_LOG_DIR"] = tempfile.mkdtemp(prefix="egoedit_test_log_")
# All weights that tests use are on this machine.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("MUJOCO_GL", "egl")
# A shell's background jobs ignore SIGINT, and so would the processes that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Outside CI, tests that render are skipped where EGL is missing; in CI they must run."""
    rendering = [item for item in items if item.get_closest_marker("egl")]
    if not rendering or os.environ.get("CI"):
        return
    from egoedit_ros.cli.checks import check_rendering

    result = check_rendering()
    if not result.ok:
        skip = pytest.mark.skip(reason=f"{result.found}; {result.mend}")
        for item in rendering:
            item.add_marker(skip)


@pytest.fixture
def ros():
    """rclpy's context for one test, shut down afterwards."""
    import rclpy

    rclpy.init()
    yield rclpy
    rclpy.try_shutdown()
