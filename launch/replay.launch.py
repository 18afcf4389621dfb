# SPDX-License-Identifier: Apache-2.0
"""A bag or a video through the editor, nothing dropped, recorded.

    ros2 launch egoedit_ros replay.launch.py bag:=head.bag instruction:='make the mug blue'

Several instructions: ``instruction:="['0:make the mug blue', '4.5:remove the mug']"``, or a file
with timeline_file. Ends when the bag does; the recording is in ``<output>/edited``. For the report
and the video as well use ``egoedit replay``, which starts the same executables.
"""

import os

import yaml
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

from egoedit_ros.stream.instructions import load_timeline, parse_timed

SHARE = get_package_share_directory("egoedit_ros")
BOOLEANS = ["true", "false"]
# Handed on to editor.launch.py as they are.
FOR_EDITOR = (
    *("params_file", "namespace", "use_sim_time", "log_level", "respawn", "large_images"),
    *("model", "device", "seed", "policy", "output_size", "autostart"),
)


def declare_arguments():
    """All arguments of this file."""
    return [
        DeclareLaunchArgument("bag", description="rosbag2 folder, .mcap, .db3 or video file"),
        DeclareLaunchArgument("topic", default_value="", description="image topic of the bag"),
        DeclareLaunchArgument(
            "instruction", default_value="", description="TEXT, or a list of SECONDS:TEXT"
        ),
        DeclareLaunchArgument(
            "timeline_file", default_value="", description="YAML list of {at, text, seed, reset}"
        ),
        DeclareLaunchArgument(
            "output", default_value="egoedit_replay", description="folder to record into"
        ),
        DeclareLaunchArgument("rate", default_value="1.0", description="speed"),
        DeclareLaunchArgument("loop", default_value="1", description="how often; 0: no end"),
        DeclareLaunchArgument(
            "policy", default_value="all", choices=["all", "latest"], description="lose nothing?"
        ),
        DeclareLaunchArgument(
            "compressed", default_value="false", choices=BOOLEANS, description="play JPEG"
        ),
        DeclareLaunchArgument(
            "params_file",
            default_value=os.path.join(SHARE, "config", "replay.yaml"),
            description="YAML file with the nodes' parameters",
        ),
        DeclareLaunchArgument("namespace", default_value="", description="of all nodes"),
        DeclareLaunchArgument(
            "use_sim_time", default_value="false", choices=BOOLEANS, description="follow /clock"
        ),
        DeclareLaunchArgument("log_level", default_value="info", description="of all nodes"),
        DeclareLaunchArgument(
            "respawn", default_value="false", choices=BOOLEANS, description="of the editor"
        ),
        DeclareLaunchArgument(
            "large_images", default_value="true", choices=BOOLEANS, description="shared memory"
        ),
        DeclareLaunchArgument("model", default_value="", description="edge, null, or a path"),
        DeclareLaunchArgument("device", default_value="", description="auto, cpu or cuda"),
        DeclareLaunchArgument("seed", default_value="0", description="of the noise"),
        DeclareLaunchArgument("output_size", default_value="", description="model or camera"),
        DeclareLaunchArgument(
            "autostart",
            default_value="",
            description="false: the replay waits for a lifecycle manager to activate the editor",
        ),
    ]


def timeline_of(text):
    """The instruction argument as the instruction node's timeline: a list of SECONDS:TEXT."""
    if text.lstrip().startswith("["):
        return [str(line) for line in yaml.safe_load(text)]
    return [text]


def start(context):
    """The four nodes, with what the arguments say."""
    given = context.launch_configurations
    shared = {"use_sim_time": given["use_sim_time"] == "true"}
    transport = "compressed" if given["compressed"] == "true" else "raw"
    compressed = transport == "compressed"
    wait_for = ["editor", "recorder"]
    values = {
        "replay": {
            "input": given["bag"],
            "topic": given["topic"],
            "rate": float(given["rate"]),
            "loop": int(given["loop"]),
            "policy": given["policy"],
            "compressed": compressed,
            "wait_for": wait_for,
        },
        "recorder": {
            "output": os.path.join(given["output"], "edited"),
            "compressed": compressed,
        },
    }
    if given["instruction"] or given["timeline_file"]:
        values["instruction"] = {"seed": int(given["seed"] or 0), "input_transport": transport}
        if given["timeline_file"]:
            timeline = load_timeline(given["timeline_file"])
            values["instruction"]["timeline_file"] = given["timeline_file"]
        else:
            lines = timeline_of(given["instruction"])
            timeline = [parse_timed(line) for line in lines]
            values["instruction"]["timeline"] = lines
        if any(instruction.at <= 0 for instruction in timeline):
            # Then the first frame comes after it; later ones are sent when the stream is there.
            wait_for.append("instruction")
    nodes = {
        name: Node(
            package="egoedit_ros",
            executable=f"{name}_node",
            name=name,
            namespace=given["namespace"],
            output="screen",
            parameters=[given["params_file"], {**shared, **own}],
            arguments=["--ros-args", "--log-level", given["log_level"]],
        )
        for name, own in values.items()
    }
    editor = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(os.path.join(SHARE, "launch", "editor.launch.py")),
        launch_arguments={
            **{name: given[name] for name in FOR_EDITOR},
            "input_transport": transport,
            "instruction": "",
        }.items(),
    )
    end = OnProcessExit(
        target_action=nodes["replay"],
        on_exit=[EmitEvent(event=Shutdown(reason="the replay has ended"))],
    )
    return [editor, *nodes.values(), RegisterEventHandler(end)]


def generate_launch_description():
    """What ``ros2 launch`` asks for."""
    return LaunchDescription([*declare_arguments(), OpaqueFunction(function=start)])
