# SPDX-License-Identifier: Apache-2.0
"""The editor alone, to compose with a camera or to include in a larger launch file.

    ros2 launch egoedit_ros editor.launch.py image_topic:=/camera/image_raw

No window, relative names: include it under any namespace. An argument that is left empty leaves
the value of params_file.
"""

import os

from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction, SetEnvironmentVariable
from launch_ros.actions import Node

SHARE = get_package_share_directory("egoedit_ros")
BOOLEANS = ["true", "false"]
# Jazzy's Fast DDS 2 reads the first, Lyrical's Fast DDS 3 the second.
PROFILE_VARIABLES = ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")

# Launch argument: (parameter of the editor, how its text becomes a value)
PARAMETERS = {
    "model": ("model", str),
    "device": ("device", str),
    "instruction": ("instruction", str),
    "seed": ("seed", int),
    "input_transport": ("input_transport", str),
    "policy": ("policy", str),
    "output_size": ("output_size", str),
    "autostart": ("autostart", lambda text: text == "true"),
}
# Launch argument: topic of the node that it remaps
REMAPS = {
    "image_topic": "image_raw",
    "edited_topic": "edited/image_raw",
    "instruction_topic": "instruction",
    "instruction_text_topic": "instruction_text",
}


def declare_arguments():
    """All arguments of this file."""
    return [
        DeclareLaunchArgument(
            "params_file",
            default_value=os.path.join(SHARE, "config", "editor.yaml"),
            description="YAML file with the editor's parameters",
        ),
        DeclareLaunchArgument("namespace", default_value="", description="namespace of the node"),
        DeclareLaunchArgument(
            "use_sim_time", default_value="false", choices=BOOLEANS, description="follow /clock"
        ),
        DeclareLaunchArgument(
            "log_level", default_value="info", description="debug, info, warn, error or fatal"
        ),
        DeclareLaunchArgument(
            "respawn",
            default_value="false",
            choices=BOOLEANS,
            description="start the editor again when it dies",
        ),
        DeclareLaunchArgument(
            "large_images",
            default_value="true",
            choices=BOOLEANS,
            description="Fast DDS with shared memory for large images (the camera needs it too), "
            "unless the environment names a profile",
        ),
        DeclareLaunchArgument(
            "image_topic",
            default_value="image_raw",
            description="camera's topic; its /compressed and camera_info siblings follow it",
        ),
        DeclareLaunchArgument(
            "edited_topic", default_value="edited/image_raw", description="the edited pictures"
        ),
        DeclareLaunchArgument(
            "instruction_topic", default_value="instruction", description="EditInstruction in"
        ),
        DeclareLaunchArgument(
            "instruction_text_topic", default_value="instruction_text", description="String in"
        ),
        DeclareLaunchArgument("model", default_value="", description="edge, null, or a path"),
        DeclareLaunchArgument("device", default_value="", description="auto, cpu or cuda"),
        DeclareLaunchArgument(
            "instruction", default_value="", description="what to change, in plain words"
        ),
        DeclareLaunchArgument("seed", default_value="", description="of the noise"),
        DeclareLaunchArgument("input_transport", default_value="", description="raw or compressed"),
        DeclareLaunchArgument("policy", default_value="", description="latest or all"),
        DeclareLaunchArgument("output_size", default_value="", description="model or camera"),
        DeclareLaunchArgument(
            "autostart", default_value="", description="true or false: activate at once"
        ),
    ]


def start(context):
    """The node, with what the arguments say."""
    given = context.launch_configurations
    overrides = {"use_sim_time": given["use_sim_time"] == "true"}
    for argument, (parameter, convert) in PARAMETERS.items():
        if given[argument]:
            overrides[parameter] = convert(given[argument])
    actions = []
    # A robot's own profile (a discovery server, say) stays: without it nobody would be found.
    own = [name for name in PROFILE_VARIABLES if context.environment.get(name)]
    if given["large_images"] == "true" and not own:
        profile = os.path.join(SHARE, "config", "fastdds_large_images.xml")
        actions += [SetEnvironmentVariable(name, profile) for name in PROFILE_VARIABLES]
    node = Node(
        package="egoedit_ros",
        executable="editor_node",
        name="editor",
        namespace=given["namespace"],
        output="screen",
        respawn=given["respawn"] == "true",
        respawn_delay=2.0,
        parameters=[given["params_file"], overrides],
        remappings=[
            (topic, given[argument]) for argument, topic in REMAPS.items() if given[argument]
        ],
        arguments=["--ros-args", "--log-level", given["log_level"]],
    )
    return [*actions, node]


def generate_launch_description():
    """What ``ros2 launch`` asks for."""
    return LaunchDescription([*declare_arguments(), OpaqueFunction(function=start)])
