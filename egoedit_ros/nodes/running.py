# SPDX-License-Identifier: Apache-2.0
"""A node's process: made, spun by one thread until it is told to stop, exit code at the end."""

from __future__ import annotations

import sys
from collections.abc import Callable

import rclpy
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node

from egoedit_ros.errors import UserError

EXIT_WRONG_INPUT = 2


def run_node(
    name: str,
    make: Callable[[], Node],
    start: Callable[[Node], None] | None = None,
    end: Callable[[Node], None] | None = None,
    args: list[str] | None = None,
) -> int:
    """Run a node until SIGINT, SIGTERM or the context's shutdown. Returns the exit code.

    start: called before spinning. A UserError that it or ``make`` raises becomes one line and
    exit code 2. end: called before the node is destroyed.
    """
    rclpy.init(args=args)
    node = None
    # Before the node's long start: an executor cannot be made once a signal has come.
    executor = SingleThreadedExecutor()
    try:
        node = make()
        if start is not None:
            start(node)
        executor.add_node(node)
        executor.spin()
    except UserError as error:
        print(f"{name}: error: {error}", file=sys.stderr, flush=True)
        return EXIT_WRONG_INPUT
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except Exception:
        # A signal shuts the context down at once; whatever was about to use it then fails.
        if rclpy.ok():
            raise
    finally:
        if node is not None:
            if end is not None:
                end(node)
            node.destroy_node()
        rclpy.try_shutdown()
    return 0
