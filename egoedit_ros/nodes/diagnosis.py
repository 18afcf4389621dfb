# SPDX-License-Identifier: Apache-2.0
"""Why nothing comes out of a graph: topic names, types, QoS, lifecycle states. In one line."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable

from lifecycle_msgs.msg import State
from lifecycle_msgs.srv import GetState
from rclpy.node import Node
from rclpy.qos import (
    DurabilityPolicy,
    QoSCompatibility,
    QoSProfile,
    ReliabilityPolicy,
    qos_check_compatible,
)

from egoedit_ros.errors import UserError
from egoedit_ros.nodes.qos import describe

ASK_S = 1.0
MOST_NAMED = 6
HEADER = "std_msgs/Header"


def message_class(msgtype: str) -> type:
    """The class of ``package/msg/Name``. Raises UserError where it is not installed, or where it
    has no header to match by."""
    package, _, name = msgtype.partition("/msg/")
    try:
        kind = getattr(importlib.import_module(f"{package}.msg"), name)
    except (ImportError, AttributeError):
        raise UserError(
            f"messages of type {msgtype} are not installed here; source the workspace that has them"
        ) from None
    if next(iter(kind.get_fields_and_field_types().items()), None) != ("header", HEADER):
        raise UserError(f"{msgtype} has no header, so frames cannot be matched by their stamp")
    return kind


def matching_profile(node: Node, topic: str, depth: int) -> QoSProfile:
    """A profile for subscribing that suits what the topic's publishers offer."""
    offered = [info.qos_profile for info in node.get_publishers_info_by_topic(topic)]
    reliable = all(o.reliability == ReliabilityPolicy.RELIABLE for o in offered)
    return QoSProfile(
        depth=depth,
        reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
        durability=DurabilityPolicy.VOLATILE,
    )


def why_not_taken(node: Node, topic: str, msgtype: str, profile: QoSProfile) -> str:
    """Why nobody takes what is published on ``topic`` with this type and profile."""
    others = node.get_subscriptions_info_by_topic(topic)
    if not others:
        listening = [
            name
            for name, kinds in node.get_topic_names_and_types()
            if msgtype in kinds and name != topic and node.count_subscribers(name)
        ]
        known = f"; {msgtype} is taken on {_some(listening)}" if listening else ""
        return f"nobody subscribes to {topic}{known}{_states(node)}"
    for other in others:
        who = f"{other.node_namespace.rstrip('/')}/{other.node_name}"
        if other.topic_type != msgtype:
            return f"{who} takes {other.topic_type} on {topic}, the input is {msgtype}"
        verdict, reason = qos_check_compatible(profile, other.qos_profile)
        if verdict == QoSCompatibility.ERROR:
            return (
                f"QoS of {topic} does not match: {who} asks for {describe(other.qos_profile)}, "
                f"the benchmark offers {describe(profile)} ({' '.join(reason.split())})"
            )
    return f"{topic} has subscribers that are not matched: not the same ROS_DOMAIN_ID or network?"


def why_not_sent(node: Node, topic: str, msgtype: str) -> str:
    """Why nothing is to be had from ``topic``, which has no publishers."""
    sending = [
        name
        for name, kinds in node.get_topic_names_and_types()
        if msgtype in kinds and name != topic and node.count_publishers(name)
    ]
    known = f"; {msgtype} is published on {_some(sending)}" if sending else ""
    return f"nobody publishes {topic}{known}{_states(node)}"


def why_silent(
    node: Node, sent_on: str, listened_on: str, sent: int, odd: int, odd_stamp: int | None
) -> str:
    """Why nothing that matches came, though both topics have their other side."""
    if odd:
        what = "zero" if not odd_stamp else f"{odd_stamp / 1e9:.9f}"
        return (
            f"{odd} messages came on {listened_on}, none with a stamp that was sent (the first: "
            f"{what}): the node has to copy the header's stamp"
        )
    states = _states(node) or "; look at the node's log and at its lifecycle state"
    return f"{sent} frames were sent on {sent_on}, nothing came on {listened_on}{states}"


def lifecycle_states(node: Node, wait: Callable[[float], None] = time.sleep) -> dict[str, str]:
    """State by node name of the lifecycle nodes that answer. Another thread must spin ``node``."""
    kind = "lifecycle_msgs/srv/GetState"
    names = [n for n, kinds in node.get_service_names_and_types() if kind in kinds]
    states = {}
    for name in names[:MOST_NAMED]:
        client = node.create_client(GetState, name)
        future = client.call_async(GetState.Request())
        end = time.monotonic() + ASK_S
        while not future.done() and time.monotonic() < end:
            wait(0.02)
        if future.done() and future.result() is not None:
            states[name.removesuffix("/get_state")] = future.result().current_state
    return {
        name: "active" if state.id == State.PRIMARY_STATE_ACTIVE else state.label
        for name, state in states.items()
    }


def _states(node: Node) -> str:
    idle = [f"{n} is {s}" for n, s in lifecycle_states(node).items() if s != "active"]
    return f"; lifecycle: {_some(idle)}, activate it" if idle else ""


def _some(words: list[str]) -> str:
    more = f" and {len(words) - MOST_NAMED} more" if len(words) > MOST_NAMED else ""
    return ", ".join(words[:MOST_NAMED]) + more
