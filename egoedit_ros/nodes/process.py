# SPDX-License-Identifier: Apache-2.0
"""What the recorder's and the replay's processes share: signals, parameters, exit codes."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable

import rclpy
from rcl_interfaces.msg import (
    FloatingPointRange,
    IntegerRange,
    ParameterDescriptor,
)
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions

from egoedit_ros.errors import UserError

EXIT_WRONG_INPUT = 2
# Between recorder and replay, beside the contract's topics: whether the recorder is matched on
# every topic it needs, and how many camera frames it has written.
TOPIC_RECORDER_READY = "recorder/ready"
TOPIC_RECORDED = "recorder/frames"


def declare(
    node: Node,
    name: str,
    default: object,
    description: str,
    least: float | None = None,
    most: float | None = None,
) -> object:
    """Declare a read-only parameter and return its value; a range only for numbers."""
    descriptor = ParameterDescriptor(description=description, read_only=True)
    if least is not None and most is not None:
        if isinstance(default, float):
            descriptor.floating_point_range = [FloatingPointRange(from_value=least, to_value=most)]
        else:
            descriptor.integer_range = [IntegerRange(from_value=int(least), to_value=int(most))]
    try:
        return node.declare_parameter(name, default, descriptor).value
    except InvalidParameterTypeException:
        kind = type(default).__name__
        raise UserError(f"parameter {name} must be of type {kind}, as {default!r} is") from None
    except InvalidParameterValueException as error:
        raise UserError(f"parameter {name} must lie in {least}..{most}: {error}") from None


def run_process(name: str, work: Callable[[threading.Event], int], args: list[str] | None) -> int:
    """Run ``work(stop)`` with ROS up; SIGINT and SIGTERM set ``stop``. Returns the exit code.

    A UserError becomes one line and exit code 2.
    """
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    # rclpy's own handlers would shut the context down before the bag is closed.
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    try:
        return work(stop)
    except UserError as error:
        print(f"{name}: error: {error}", file=sys.stderr, flush=True)
        return EXIT_WRONG_INPUT
    finally:
        rclpy.try_shutdown()
