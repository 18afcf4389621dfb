# SPDX-License-Identifier: Apache-2.0
"""Offline training on bags, with its progress as a topic.

    ros2 launch egoedit_ros train.launch.py stage:=causal config:=my_recipe.yaml \
        bags:="['/data/one', '/data/two']"

Ends with the stage. An argument that is left empty leaves the node's default.
"""

import os

import yaml
from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    OpaqueFunction,
    RegisterEventHandler,
)
from launch.event_handlers import OnProcessExit
from launch.events import Shutdown
from launch_ros.actions import Node

SHARE = get_package_share_directory("egoedit_ros")


def bags_of(text):
    """The bags argument as a list: one path, or a list of them."""
    if text.lstrip().startswith("["):
        return [str(path) for path in yaml.safe_load(text)]
    return [text]


# Launch argument: how its text becomes the node's parameter of the same name. Empty: its default.
PARAMETERS = {
    "stage": str,
    "config": str,
    "bags": bags_of,
    "output": str,
    "source_topic": str,
    "edited_topic": str,
    "instruction_topic": str,
    "instruction": str,
    "autoencoder": str,
    "minutes": float,
    "status_period": float,
}


def declare_arguments():
    """All arguments of this file."""
    return [
        DeclareLaunchArgument("stage", default_value="", description="of egoedit train"),
        DeclareLaunchArgument(
            "config",
            default_value=os.path.join(SHARE, "config", "train", "edge_full.yaml"),
            description="YAML file of the recipe",
        ),
        DeclareLaunchArgument("bags", default_value="", description="a bag, or a list of bags"),
        DeclareLaunchArgument("output", default_value="", description="folder to train in"),
        DeclareLaunchArgument("source_topic", default_value="", description="camera's pictures"),
        DeclareLaunchArgument("edited_topic", default_value="", description="edited pictures"),
        DeclareLaunchArgument("instruction_topic", default_value="", description="what was asked"),
        DeclareLaunchArgument("instruction", default_value="", description="for bags without one"),
        DeclareLaunchArgument(
            "autoencoder", default_value="", description="weights to encode the bags with"
        ),
        DeclareLaunchArgument("minutes", default_value="", description="stop after so long"),
        DeclareLaunchArgument(
            "status_period", default_value="", description="seconds between statuses"
        ),
        DeclareLaunchArgument("namespace", default_value="", description="of the node"),
        DeclareLaunchArgument("log_level", default_value="info", description="of the node"),
    ]


def start(context):
    """The node, with what the arguments say."""
    given = context.launch_configurations
    values = {k: convert(given[k]) for k, convert in PARAMETERS.items() if given[k]}
    node = Node(
        package="egoedit_ros",
        executable="train_node",
        name="train",
        namespace=given["namespace"],
        output="screen",
        parameters=[values],
        arguments=["--ros-args", "--log-level", given["log_level"]],
        # A step and a checkpoint may take longer than the five seconds launch would wait.
        sigterm_timeout="120",
        sigkill_timeout="120",
    )
    end = OnProcessExit(
        target_action=node, on_exit=[EmitEvent(event=Shutdown(reason="the training has ended"))]
    )
    return [node, RegisterEventHandler(end)]


def generate_launch_description():
    """What ``ros2 launch`` asks for."""
    return LaunchDescription([*declare_arguments(), OpaqueFunction(function=start)])
