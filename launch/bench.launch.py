# SPDX-License-Identifier: Apache-2.0
"""The stream benchmark: the editor, and a camera that measures what comes out of it.

    ros2 launch egoedit_ros bench.launch.py input:=head.bag output:=bench

Any other node that copies the header's stamp, which runs already:

    ros2 launch egoedit_ros bench.launch.py input:=head.bag editor:=false \
        image_topic:=/camera/image_raw output_topic:=/my_node/image

Ends when it has measured; ``<output>/bench.json`` and ``<output>/report.html`` say what. The
baselines (null model, pass-through, direct call) are measured by ``egoedit bench stream`` only.
"""

import os

from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    IncludeLaunchDescription,
    OpaqueFunction,
    RegisterEventHandler,
)
from launch.event_handlers import OnProcessExit
from launch.events import Shutdown
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch_ros.actions import Node

SHARE = get_package_share_directory("egoedit_ros")
BOOLEANS = ["true", "false"]
# Handed on to editor.launch.py as they are.
FOR_EDITOR = (
    *("namespace", "use_sim_time", "log_level", "large_images"),
    *("model", "device", "input_transport", "output_size"),
)
# Launch argument: how its text becomes the node's parameter of the same name. Empty: its default.
PARAMETERS = {
    "topic": str,
    "size": str,
    "rates": lambda text: [rate.strip() for rate in text.split(",")],
    "runs": int,
    "seconds": float,
    "search": lambda text: text == "true",
    "switches": int,
    "deadline_ms": float,
    "image_topic": str,
    "output_topic": str,
    "wait_timeout": float,
}


def declare_arguments():
    """All arguments of this file."""
    return [
        DeclareLaunchArgument("input", description="rosbag2 folder, .mcap, .db3 or video file"),
        DeclareLaunchArgument("topic", default_value="", description="image topic of the bag"),
        DeclareLaunchArgument("size", default_value="", description="WIDTHxHEIGHT to send"),
        DeclareLaunchArgument(
            "output", default_value="egoedit_bench", description="folder for the figures"
        ),
        DeclareLaunchArgument(
            "rates", default_value="", description="frames a second, such as 10,16,30,own"
        ),
        DeclareLaunchArgument("runs", default_value="", description="runs at each rate"),
        DeclareLaunchArgument("seconds", default_value="", description="length of a run"),
        DeclareLaunchArgument(
            "search", default_value="", description="true or false: look for the highest rate"
        ),
        DeclareLaunchArgument("switches", default_value="", description="of instruction"),
        DeclareLaunchArgument("deadline_ms", default_value="", description="latency budget"),
        DeclareLaunchArgument(
            "image_topic", default_value="", description="topic to send on; empty: the editor's"
        ),
        DeclareLaunchArgument(
            "output_topic", default_value="", description="topic to listen to; empty: the editor's"
        ),
        DeclareLaunchArgument(
            "wait_timeout", default_value="600.0", description="seconds to wait for the graph"
        ),
        DeclareLaunchArgument(
            "editor", default_value="true", choices=BOOLEANS, description="start the editor too"
        ),
        DeclareLaunchArgument("namespace", default_value="", description="of both nodes"),
        DeclareLaunchArgument(
            "use_sim_time", default_value="false", choices=BOOLEANS, description="follow /clock"
        ),
        DeclareLaunchArgument("log_level", default_value="info", description="of both nodes"),
        DeclareLaunchArgument(
            "large_images", default_value="true", choices=BOOLEANS, description="shared memory"
        ),
        DeclareLaunchArgument("model", default_value="", description="edge, null, or a path"),
        DeclareLaunchArgument("device", default_value="", description="auto, cpu or cuda"),
        DeclareLaunchArgument("input_transport", default_value="", description="raw or compressed"),
        DeclareLaunchArgument("output_size", default_value="", description="model or camera"),
    ]


def start(context):
    """The node, and the editor unless it runs already."""
    given = context.launch_configurations
    values = {
        "use_sim_time": given["use_sim_time"] == "true",
        "input": given["input"],
        "output": given["output"],
    }
    for name, convert in PARAMETERS.items():
        if given[name]:
            values[name] = convert(given[name])
    bench = Node(
        package="egoedit_ros",
        executable="bench_node",
        name="bench",
        namespace=given["namespace"],
        output="screen",
        parameters=[values],
        arguments=["--ros-args", "--log-level", given["log_level"]],
    )
    end = OnProcessExit(
        target_action=bench,
        on_exit=[EmitEvent(event=Shutdown(reason="the benchmark has ended"))],
    )
    actions = [bench, RegisterEventHandler(end)]
    if given["editor"] == "true":
        editor = IncludeLaunchDescription(
            PythonLaunchDescriptionSource(os.path.join(SHARE, "launch", "editor.launch.py")),
            launch_arguments={
                **{name: given[name] for name in FOR_EDITOR},
                "policy": "latest",
                "autostart": "true",
            }.items(),
        )
        # First: it sets what both processes need for large images.
        actions.insert(0, editor)
    return actions


def generate_launch_description():
    """What ``ros2 launch`` asks for."""
    return LaunchDescription([*declare_arguments(), OpaqueFunction(function=start)])
