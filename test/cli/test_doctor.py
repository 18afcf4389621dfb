# SPDX-License-Identifier: Apache-2.0
import argparse
import json
import subprocess
import sys

import numpy as np
import pytest

from egoedit_ros.cli import checks, checks_ros, doctor
from egoedit_ros.cli import main as cli
from egoedit_ros.data import cdr
from egoedit_ros.data.bag_writer import BagWriter
from egoedit_ros.data.bags import BagReader
from egoedit_ros.errors import UserError

IMAGE = "sensor_msgs/msg/Image"
PICTURE = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)


def write_bag(folder, frames=20, finish=True, flush_every=5):
    writer = BagWriter(folder)
    writer.add_topic("/image_raw", IMAGE)
    for index in range(frames):
        stamp = 1_000_000_000 + index * 62_500_000
        writer.write("/image_raw", stamp, cdr.image_cdr(PICTURE, stamp, "camera"))
        if (index + 1) % flush_every == 0:
            writer.flush()
    if finish:
        writer.close()
    else:
        writer.abort()
    return next(folder.glob("*.mcap"))


def stamps_of(bag):
    with BagReader(bag) as reader:
        connections = [c for c in reader.connections if c.topic == "/image_raw"]
        return [cdr.stamp_ns(data) for _, _, data in reader.messages(connections)]


@pytest.fixture
def broken(tmp_path):
    """A bag cut off in the middle of a record, without metadata.yaml: (folder, file)."""
    folder = tmp_path / "run"
    file = write_bag(folder)
    (folder / "metadata.yaml").unlink()
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * 0.8)])
    return folder, file


def test_what_was_flushed_is_rescued_into_a_new_bag(broken):
    folder, file = broken
    before = file.read_bytes()
    target, count = doctor.recover(folder)
    assert target == folder.with_name("run_recovered")
    assert 5 <= count < 20 and count % 5 == 0
    assert stamps_of(target) == [1_000_000_000 + i * 62_500_000 for i in range(count)]
    assert file.read_bytes() == before and not (folder / "metadata.yaml").exists()
    assert sorted(p.name for p in target.iterdir()) == ["metadata.yaml", "run_recovered.mcap"]
    assert not any(p.is_symlink() for p in target.iterdir())


def test_a_file_alone_is_rescued_too(broken, tmp_path):
    _, file = broken
    lone = tmp_path / "lone.mcap"
    lone.write_bytes(file.read_bytes())
    target, count = doctor.recover(lone)
    assert target == tmp_path / "lone_recovered" and count >= 5


def test_a_killed_writer_loses_no_more_than_what_was_not_flushed(tmp_path):
    code = (
        "import os, sys, signal; sys.path.insert(0, {tests!r});"
        "from pathlib import Path; import test_doctor as t;"
        "w = t.BagWriter(Path({folder!r})); w.add_topic('/image_raw', t.IMAGE);"
        "[w.write('/image_raw', i, t.cdr.image_cdr(t.PICTURE, i, 'c')) for i in range(7)];"
        "w.flush();"
        "[w.write('/image_raw', i, t.cdr.image_cdr(t.PICTURE, i, 'c')) for i in range(7, 9)];"
        "os.kill(os.getpid(), signal.SIGKILL)"
    ).format(tests=str(__import__("pathlib").Path(__file__).parent), folder=str(tmp_path / "k"))
    subprocess.run([sys.executable, "-c", code], check=False)
    target, count = doctor.recover(tmp_path / "k")
    assert count == 7
    assert stamps_of(target) == list(range(7))


def test_the_target_is_never_overwritten(broken, capsys):
    folder, _ = broken
    folder.with_name("run_recovered").mkdir()
    assert cli.main(["doctor", "--recover", str(folder)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert not any(folder.with_name("run_recovered").iterdir())


def test_a_whole_bag_is_left_alone(tmp_path):
    write_bag(tmp_path / "whole")
    with pytest.raises(UserError, match="whole"):
        doctor.recover(tmp_path / "whole")


def test_nothing_left_says_so_and_leaves_nothing(tmp_path):
    file = write_bag(tmp_path / "gone", frames=1, finish=False)
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(UserError, match="nothing can be rescued"):
        doctor.recover(tmp_path / "gone")
    assert [p.name for p in tmp_path.iterdir()] == ["gone"]


@pytest.mark.parametrize("content", [b"", b"SQLite format 3\0" * 4])
def test_another_kind_of_file_is_refused(tmp_path, content):
    (tmp_path / "x.mcap").write_bytes(content)
    with pytest.raises(UserError, match="not an MCAP file"):
        doctor.recover(tmp_path / "x.mcap")


def test_a_missing_an_empty_and_a_split_bag_are_refused(tmp_path):
    with pytest.raises(UserError, match="no bag"):
        doctor.recover(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="only MCAP"):
        doctor.recover(tmp_path / "empty")
    for name in "ab":
        (tmp_path / "empty" / f"{name}.mcap").write_bytes(doctor.MCAP_MAGIC)
    with pytest.raises(UserError, match="name the one"):
        doctor.recover(tmp_path / "empty")


@pytest.fixture
def fixed_checks(monkeypatch):
    results = [
        checks.Check("one", True, "fine"),
        checks.Check("two", None, "not there", "get it"),
        checks.Check("three", False, "broken", "mend it"),
    ]
    monkeypatch.setattr(doctor, "MACHINE_CHECKS", tuple(lambda r=r: r for r in results))
    monkeypatch.setattr(doctor, "ROS_CHECKS", ())


def test_the_report_names_what_fails_and_how_to_mend_it(fixed_checks, tmp_path, capsys):
    path = tmp_path / "doctor.json"
    assert cli.main(["doctor", "--json", str(path)]) == 1
    out = capsys.readouterr().out
    assert "FAIL  three" in out and "mend it" in out and "to mend: three" in out
    report = json.loads(path.read_text())
    assert report["ok"] is False
    assert [c["ok"] for c in report["checks"]] == [True, None, False]


def test_what_is_only_missing_is_no_failure(fixed_checks, monkeypatch):
    monkeypatch.setattr(doctor, "MACHINE_CHECKS", doctor.MACHINE_CHECKS[:2])
    assert doctor.run(argparse.Namespace(recover=None, json=None, gpu=False)) == 0


def test_an_unwritable_json_file_is_wrong_input(fixed_checks, tmp_path, capsys):
    assert cli.main(["doctor", "--json", str(tmp_path / "no" / "where.json")]) == 2
    assert "choose another file" in capsys.readouterr().err


def test_this_machine_has_what_the_tests_need():
    for check in (checks.check_torch, checks.check_arrays, checks.check_text_encoder):
        assert check().ok, check()
    for check in (checks.check_video, checks.check_bags, checks.check_disk, checks.check_python):
        assert check().ok, check()
    assert checks_ros.check_ros().ok and checks_ros.check_messages().ok


def test_two_processes_hear_each_other():
    result = checks_ros.check_loopback()
    assert result.ok, result


def test_no_graph_without_discovery(monkeypatch):
    monkeypatch.setattr(checks_ros, "_LOOPBACK", "print(0, -1)")
    result = checks_ros.check_loopback()
    assert result.ok is False and "ROS_AUTOMATIC_DISCOVERY_RANGE" in result.mend


@pytest.mark.egl
def test_rendering_works_where_egl_is():
    result = checks.check_rendering()
    assert result.ok, result


def test_rendering_that_fails_is_explained(monkeypatch):
    monkeypatch.setattr(checks, "_RENDER", "raise ImportError('Cannot initialize EGL')")
    result = checks.check_rendering()
    assert result.ok is None
    assert "Cannot initialize EGL" in result.found and "libegl1" in result.mend


@pytest.mark.parametrize(
    ("environment", "word"),
    [
        ({"ROS_DOMAIN_ID": "-1"}, "ROS_DOMAIN_ID"),
        ({"ROS_DOMAIN_ID": "abc"}, "ROS_DOMAIN_ID"),
        ({"ROS_DOMAIN_ID": "150"}, "ROS_DOMAIN_ID"),
        ({"ROS_AUTOMATIC_DISCOVERY_RANGE": "OFF"}, "OFF"),
        ({"ROS_AUTOMATIC_DISCOVERY_RANGE": "HOME"}, "HOME"),
        ({"ROS_LOCALHOST_ONLY": "1"}, "ROS_LOCALHOST_ONLY"),
        ({"_ROS_WHEELS_BOOTSTRAP_COMPLETE": "1"}, "_ROS_WHEELS_BOOTSTRAP_COMPLETE"),
        ({"PYTHONPATH": "/opt/ros/humble/lib/python3.8/site-packages"}, "python3.8"),
    ],
)
def test_a_variable_that_breaks_the_graph_is_named(environment, word):
    result = checks_ros.check_environment(environment)
    assert result.ok is False
    assert word in result.found + result.mend and result.mend


def test_a_clean_environment_is_fine():
    assert checks_ros.check_environment({}).ok
    assert checks_ros.check_environment({"ROS_DOMAIN_ID": "42"}).ok


def test_shared_memory_advice_follows_the_profile(tmp_path):
    profile = checks_ros.profile_path()
    assert profile is not None and profile.is_file()
    without = checks_ros.check_shared_memory({})
    assert without.ok and str(profile) in without.mend
    variable = checks_ros.PROFILE_VARIABLES[0]
    assert checks_ros.check_shared_memory({variable: str(profile)}).mend == ""
    assert checks_ros.check_shared_memory({variable: str(tmp_path / "none.xml")}).ok is False
    assert checks_ros.check_shared_memory({"RMW_IMPLEMENTATION": "rmw_zenoh_cpp"}).ok is None


def test_two_opencvs_are_a_clash(monkeypatch):
    monkeypatch.setattr(checks, "version_of", lambda name: "1" if "opencv" in name else "")
    result = checks.check_arrays()
    assert result.ok is False and "uninstall" in result.mend


def test_a_full_disk_is_told(monkeypatch):
    usage = type("usage", (), {"free": 10**6})
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda _: usage)
    assert checks.check_disk().ok is False


@pytest.mark.parametrize(
    ("built", "says"), [(None, "CPU build"), ("12.8", "build for CUDA 12.8 but finds no GPU")]
)
def test_why_torch_cannot_use_a_gpu_is_told(monkeypatch, built, says):
    import torch

    from egoedit_ros.stream.edit_session import pick_device

    monkeypatch.setattr(torch.version, "cuda", built)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(checks.shutil, "which", lambda name: f"/usr/bin/{name}")
    result = checks.check_gpu()
    assert result.ok is None and "there is one" in result.found and says in result.mend
    assert ("CPU build" in result.mend) == (built is None)
    with pytest.raises(UserError, match=f"no CUDA device here: .*{says}.*--device cpu"):
        pick_device("cuda")


def test_hints_install_from_the_folder_as_the_package_is_in_no_index(monkeypatch):
    monkeypatch.setattr(checks.importlib.util, "find_spec", lambda name: None)
    assert checks.check_rendering().mend.endswith("pip install -e '.[sim]'")
