# SPDX-License-Identifier: Apache-2.0
"""The launch files, run against stand-ins: launch_ros is not there without a ROS installation.

Where it is there, ``test_with_the_real_launch`` loads them with it.
"""

import importlib.util
import os
import sys
import types
from pathlib import Path

import pytest

from egoedit_ros.nodes.parameters import EDITOR_PARAMETERS, INSTRUCTION_PARAMETERS

ROOT = Path(__file__).resolve().parents[1]
FILES = ("editor", "replay", "bench", "train")


class Recorded:
    """Remembers what it was made of."""

    def __init__(self, *args, **kwargs):
        self.args = args
        self.kwargs = kwargs
        self.kind = type(self).__name__


def stand_ins(share):
    """The modules a launch file imports, as small classes that remember."""

    def module(name, *classes, **members):
        made = types.ModuleType(name)
        for one in classes:
            setattr(made, one, type(one, (Recorded,), {}))
        for key, value in members.items():
            setattr(made, key, value)
        return made

    return {
        m.__name__: m
        for m in (
            module("launch", "LaunchDescription"),
            module(
                "launch.actions",
                *("DeclareLaunchArgument", "EmitEvent", "IncludeLaunchDescription"),
                *("OpaqueFunction", "RegisterEventHandler", "SetEnvironmentVariable"),
            ),
            module("launch.event_handlers", "OnProcessExit"),
            module("launch.events", "Shutdown"),
            module("launch.launch_description_sources", "PythonLaunchDescriptionSource"),
            module("launch_ros"),
            module("launch_ros.actions", "Node"),
            module("ament_index_python"),
            module(
                "ament_index_python.packages", get_package_share_directory=lambda name: str(share)
            ),
        )
    }


@pytest.fixture
def load(monkeypatch):
    """load(file, **arguments) -> (declared arguments by name, actions)."""

    def run(name, environment=None, **given):
        for key, value in stand_ins(ROOT).items():
            monkeypatch.setitem(sys.modules, key, value)
        path = ROOT / "launch" / f"{name}.launch.py"
        spec = importlib.util.spec_from_file_location(f"{name}_launch", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        (entries,) = module.generate_launch_description().args
        declared = {e.args[0]: e.kwargs for e in entries if e.kind == "DeclareLaunchArgument"}
        configurations = {
            n: k["default_value"] for n, k in declared.items() if "default_value" in k
        }
        unknown = set(given) - set(declared)
        assert not unknown, f"{name}.launch.py has no argument {unknown}"
        configurations.update(given)
        context = types.SimpleNamespace(
            launch_configurations=configurations, environment=environment or {}
        )
        (opaque,) = [e for e in entries if e.kind == "OpaqueFunction"]
        return declared, opaque.kwargs["function"](context)

    return run


def of_kind(actions, kind):
    return [action for action in actions if action.kind == kind]


def nodes_of(actions):
    return {n.kwargs["name"]: n.kwargs for n in of_kind(actions, "Node")}


def types_of(table):
    return {p.name: type(p.default) for p in table}


def test_the_editor_takes_its_file_and_what_is_given(load):
    _, actions = load(
        "editor", model="null", instruction="make it blue", namespace="head", autostart="false"
    )
    (node,) = nodes_of(actions).values()
    assert (node["package"], node["executable"]) == ("egoedit_ros", "editor_node")
    assert node["namespace"] == "head" and node["respawn"] is False
    file, values = node["parameters"]
    assert Path(file) == ROOT / "config" / "editor.yaml" and Path(file).is_file()
    assert values == {
        "use_sim_time": False,
        "model": "null",
        "instruction": "make it blue",
        "autostart": False,
    }


def test_what_is_not_given_stays_with_the_file(load):
    _, actions = load("editor")
    (node,) = nodes_of(actions).values()
    assert node["parameters"][1] == {"use_sim_time": False}


def test_every_override_is_a_parameter_of_the_editor_with_its_type(load):
    given = {
        "model": "edge",
        "device": "cpu",
        "instruction": "x",
        "seed": "7",
        "input_transport": "compressed",
        "policy": "all",
        "output_size": "camera",
        "autostart": "true",
        "use_sim_time": "true",
    }
    _, actions = load("editor", **given)
    (node,) = nodes_of(actions).values()
    values = dict(node["parameters"][1])
    assert values.pop("use_sim_time") is True
    known = types_of(EDITOR_PARAMETERS)
    assert {name: type(value) for name, value in values.items()} == {n: known[n] for n in values}


def test_remaps_and_respawn_and_log_level(load):
    _, actions = load("editor", image_topic="/camera/image_raw", respawn="true", log_level="debug")
    (node,) = nodes_of(actions).values()
    assert ("image_raw", "/camera/image_raw") in node["remappings"]
    assert node["respawn"] is True
    assert node["arguments"] == ["--ros-args", "--log-level", "debug"]


@pytest.mark.parametrize("wanted", ["true", "false"])
def test_the_profile_for_large_images(load, wanted):
    _, actions = load("editor", large_images=wanted)
    settings = of_kind(actions, "SetEnvironmentVariable")
    assert len(settings) == (2 if wanted == "true" else 0)
    assert all(os.path.isfile(setting.args[1]) for setting in settings)


@pytest.mark.parametrize(
    "variable", ["FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE"]
)
def test_a_profile_of_the_robots_own_stays(load, variable):
    _, actions = load("editor", environment={variable: "/robot/dds.xml"})
    assert not of_kind(actions, "SetEnvironmentVariable")


def test_a_replay_starts_all_four_and_ends_with_the_bag(load):
    _, actions = load("replay", bag="/data/head", instruction="make it blue", output="/tmp/x")
    nodes = nodes_of(actions)
    assert set(nodes) == {"replay", "recorder", "instruction"}
    (include,) = of_kind(actions, "IncludeLaunchDescription")
    assert include.args[0].args[0] == str(ROOT / "launch" / "editor.launch.py")
    assert nodes["replay"]["parameters"][1]["input"] == "/data/head"
    assert nodes["replay"]["parameters"][1]["wait_for"] == ["editor", "recorder", "instruction"]
    assert nodes["recorder"]["parameters"][1]["output"] == "/tmp/x/edited"
    assert nodes["instruction"]["parameters"][1]["timeline"] == ["make it blue"]
    (handler,) = of_kind(actions, "RegisterEventHandler")
    assert handler.args[0].kwargs["target_action"].kwargs["name"] == "replay"


def test_what_a_replay_hands_on_is_an_argument_of_the_editor(load):
    declared, _ = load("editor")
    _, actions = load("replay", bag="b")
    (include,) = of_kind(actions, "IncludeLaunchDescription")
    handed = dict(include.kwargs["launch_arguments"])
    assert set(handed) <= set(declared)
    assert handed["policy"] == "all" and handed["params_file"].endswith("replay.yaml")


def test_a_replay_without_instruction_waits_for_none(load):
    _, actions = load("replay", bag="b")
    assert "instruction" not in nodes_of(actions)
    assert nodes_of(actions)["replay"]["parameters"][1]["wait_for"] == ["editor", "recorder"]


def test_a_first_instruction_later_on_is_not_waited_for(load):
    _, actions = load("replay", bag="b", instruction="['2.5:make it blue', '4:remove it']")
    nodes = nodes_of(actions)
    assert nodes["instruction"]["parameters"][1]["timeline"] == ["2.5:make it blue", "4:remove it"]
    assert nodes["replay"]["parameters"][1]["wait_for"] == ["editor", "recorder"]


def test_a_timeline_file(load, tmp_path):
    path = tmp_path / "timeline.yaml"
    path.write_text("- {at: 0, text: make it blue}\n")
    _, actions = load("replay", bag="b", timeline_file=str(path))
    values = nodes_of(actions)["instruction"]["parameters"][1]
    assert values["timeline_file"] == str(path) and "timeline" not in values


def test_parameters_of_a_replay_exist(load):
    from test_package import declared_by

    _, actions = load("replay", bag="b", instruction="x", compressed="true")
    known = {name: set(declared_by(name)) for name in ("replay", "recorder")}
    known["instruction"] = set(types_of(INSTRUCTION_PARAMETERS))
    for name, node in nodes_of(actions).items():
        assert set(node["parameters"][1]) - {"use_sim_time"} <= known[name], name


def test_the_benchmark_starts_the_editor_and_its_node(load):
    given = {"rates": "10, own", "runs": "2", "seconds": "5", "search": "false", "model": "null"}
    declared, actions = load("bench", input="head.bag", output="out", **given)
    (include,) = of_kind(actions, "IncludeLaunchDescription")
    handed = dict(include.kwargs["launch_arguments"])
    assert handed["model"] == "null" and handed["policy"] == "latest"
    editor_declared, _ = load("editor")
    assert set(handed) <= set(editor_declared)
    bench = nodes_of(actions)["bench"]
    assert bench["executable"] == "bench_node"
    values = bench["parameters"][0]
    assert values["rates"] == ["10", "own"] and values["search"] is False
    assert (values["runs"], values["seconds"]) == (2, 5.0)
    (end,) = of_kind(actions, "RegisterEventHandler")
    assert end.args[0].kwargs["target_action"].kwargs["name"] == "bench"


def test_every_argument_of_the_benchmark_is_a_parameter_of_its_node(load):
    from test_package import declared_by

    every = {
        **{"topic": "/c", "size": "8x8", "rates": "10", "runs": "1", "seconds": "1"},
        **{"search": "true", "switches": "3", "deadline_ms": "5", "wait_timeout": "1"},
        **{"image_topic": "/a", "output_topic": "/b"},
    }
    _, actions = load("bench", input="b", editor="false", **every)
    assert not of_kind(actions, "IncludeLaunchDescription")
    values = nodes_of(actions)["bench"]["parameters"][0]
    assert set(every) <= set(values)
    assert set(values) - {"use_sim_time"} <= set(declared_by("bench"))


@pytest.mark.parametrize("name", FILES)
def test_arguments_have_a_description(load, name):
    needed = {"replay": {"bag": "b"}, "bench": {"input": "b"}}
    declared, _ = load(name, **needed.get(name, {}))
    for argument, details in declared.items():
        assert details.get("description"), argument


@pytest.mark.parametrize("name", FILES)
def test_with_the_real_launch(name):
    launch_ros = pytest.importorskip("launch_ros", reason="needs a ROS installation")
    pytest.importorskip("launch.actions", reason="needs a ROS installation")
    assert launch_ros
    from launch.launch_description_sources import PythonLaunchDescriptionSource

    path = str(ROOT / "launch" / f"{name}.launch.py")
    assert PythonLaunchDescriptionSource(path).try_get_launch_description_without_context()


def test_training_takes_bags_and_leaves_the_rest_to_the_node(load):
    from test_package import declared_by

    _, actions = load("train", stage="causal", bags="['/data/a', '/data/b']", minutes="30")
    (node,) = nodes_of(actions).values()
    assert node["executable"] == "train_node"
    (values,) = node["parameters"]
    assert values["bags"] == ["/data/a", "/data/b"] and values["minutes"] == 30.0
    assert Path(values["config"]) == ROOT / "config" / "train" / "edge_full.yaml"
    assert Path(values["config"]).is_file()
    known = set(declared_by("train")) | {f"{n}_topic" for n in ("source", "edited", "instruction")}
    assert set(values) <= known
    (handler,) = of_kind(actions, "RegisterEventHandler")
    assert handler.args[0].kwargs["target_action"].kwargs["name"] == "train"


def test_one_bag_needs_no_list(load):
    _, actions = load("train", bags="/data/a")
    (node,) = nodes_of(actions).values()
    assert node["parameters"][0]["bags"] == ["/data/a"]
