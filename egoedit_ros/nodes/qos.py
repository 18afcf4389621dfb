# SPDX-License-Identifier: Apache-2.0
"""QoS of the nodes' topics, overridable by parameters, and what to say when two do not match."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rclpy.node import Node
from rclpy.qos import (
    DurabilityPolicy,
    HistoryPolicy,
    QoSProfile,
    ReliabilityPolicy,
    qos_policy_name_from_kind,
)
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.topic_endpoint_info import TopicEndpointInfo

SENSOR_DEPTH = 5
REPORT_DEPTH = 100
INSTRUCTION_DEPTH = 100


def image_subscription(policy: str, chunk_latents: int) -> QoSProfile:
    """Sensor data for policy ``latest``; reliable and two chunks deep for ``all``."""
    if policy == "latest":
        return QoSProfile(
            depth=SENSOR_DEPTH,
            history=HistoryPolicy.KEEP_LAST,
            reliability=ReliabilityPolicy.BEST_EFFORT,
            durability=DurabilityPolicy.VOLATILE,
        )
    return reliable(max(32, 2 * 4 * chunk_latents))


def reliable(depth: int) -> QoSProfile:
    """Reliable, volatile, the last ``depth`` kept: for images sent, latency and status."""
    return QoSProfile(
        depth=depth,
        history=HistoryPolicy.KEEP_LAST,
        reliability=ReliabilityPolicy.RELIABLE,
        durability=DurabilityPolicy.VOLATILE,
    )


def latched(depth: int) -> QoSProfile:
    """Reliable and transient local: for instructions, which late comers must see too."""
    return QoSProfile(
        depth=depth,
        history=HistoryPolicy.KEEP_LAST,
        reliability=ReliabilityPolicy.RELIABLE,
        durability=DurabilityPolicy.TRANSIENT_LOCAL,
    )


def overridable() -> QoSOverridingOptions:
    """History, depth and reliability as ``qos_overrides.<topic>.*`` parameters."""
    return QoSOverridingOptions.with_default_policies()


def describe(profile: QoSProfile) -> str:
    """A profile in one line, with what decides whether two of them match."""
    return (
        f"{profile.reliability.name.lower()}, {profile.durability.name.lower()},"
        f" {profile.history.name.lower()} {profile.depth}"
    )


def on_incompatible(
    node: Node, topic: str, mine: QoSProfile, remote: str, log: Callable[[str], None]
) -> Callable[[Any], None]:
    """A callback for an incompatible-QoS event that logs both sides' profiles.

    remote: ``publishers`` or ``subscriptions``, whichever the topic's other side is. The event
    itself names the policy only; the graph knows the rest.
    """

    def callback(event: Any) -> None:
        policy = qos_policy_name_from_kind(event.last_policy_kind)
        find = getattr(node, f"get_{remote}_info_by_topic")
        try:
            others = [o for o in find(topic) if not _is_mine(node, o)]
        except Exception:  # the graph may already have forgotten the other side
            others = []
        theirs = "; ".join(f"{_full_name(o)}: {describe(o.qos_profile)}" for o in others)
        log(
            f"incompatible QoS on {topic} ({policy}): this node has {describe(mine)};"
            f" {remote}: {theirs or 'gone'}"
        )

    return callback


def _is_mine(node: Node, other: TopicEndpointInfo) -> bool:
    return (other.node_name, other.node_namespace) == (node.get_name(), node.get_namespace())


def _full_name(other: TopicEndpointInfo) -> str:
    return f"{other.node_namespace.rstrip('/')}/{other.node_name}"
