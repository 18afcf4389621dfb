# SPDX-License-Identifier: Apache-2.0
"""The recorder and the replay by themselves, as processes over DDS."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time

import pytest
import yaml
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from replay_support import environment, write_bag
from sensor_msgs.msg import Image
from std_msgs.msg import Bool

from egoedit_ros.data import cdr
from egoedit_ros.data.bag_writer import rescue_bag
from egoedit_ros.data.bags import BagReader
from egoedit_ros.errors import UserError
from egoedit_ros.msg import ActiveInstruction, FrameLatency, StreamStatus
from egoedit_ros.nodes import replay_node
from egoedit_ros.stream import names


def start(folder, node: str, domain: int, **parameters) -> subprocess.Popen:
    file = folder / f"{node}-{len(list(folder.iterdir()))}.yaml"
    file.write_text(yaml.safe_dump({"/**": {"ros__parameters": parameters}}))
    env = environment()
    env |= {"ROS_DOMAIN_ID": str(domain), "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}
    words = [sys.executable, "-m", f"egoedit_ros.nodes.{node}_node"]
    return subprocess.Popen(
        [*words, "--ros-args", "--params-file", str(file)],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def domain() -> int:
    return random.SystemRandom().randint(1, 101)


def wait_for_text(path, text: str, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 30
    while not (path.exists() and text in path.read_text()):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)


def record(folder, domain: int, **more) -> subprocess.Popen:
    return start(
        folder,
        "recorder",
        domain,
        output=str(folder / "rec"),
        arrivals=str(folder / "arrivals.jsonl"),
        **more,
    )


def test_recorder_writes_what_the_replay_sends_and_closes_on_sigterm(tmp_path, domain):
    stamps = write_bag(tmp_path / "a", 12, extra=True)
    recorder = record(tmp_path, domain)
    # Without an editor the recorder is never matched on every topic; a subscriber is enough here.
    wait_for_text(tmp_path / "arrivals.jsonl", "", recorder)
    replay = start(
        tmp_path,
        "replay",
        domain,
        input=str(tmp_path / "a"),
        wait_for=["editor"],
        wait_timeout=1.0,
        rate=10.0,
    )
    _, errors = replay.communicate(timeout=60)
    assert replay.returncode == 2 and "an active editor" in errors
    time.sleep(1.0)
    events = tmp_path / "events.jsonl"
    replay = start(
        tmp_path,
        "replay",
        domain,
        input=str(tmp_path / "a"),
        wait_for=[""],
        loop=500,
        rate=10.0,
        events=str(events),
    )
    wait_for_text(tmp_path / "arrivals.jsonl", "/image_raw", recorder)
    replay.send_signal(signal.SIGINT)
    out, errors = replay.communicate(timeout=60)
    assert replay.returncode == 0, errors
    notes = [json.loads(line) for line in events.read_text().splitlines()]
    published = [note["stamp"] for note in notes if note["event"] == "frame"]
    assert notes[-1]["event"] == "end" and notes[-1]["interrupted"]
    assert published[:12] == stamps[: len(published)]
    assert published == sorted(set(published))
    recorder.send_signal(signal.SIGTERM)
    out, errors = recorder.communicate(timeout=60)
    assert recorder.returncode == 0, errors
    with BagReader(tmp_path / "rec") as reader:
        found = {c.topic: c.msgcount for c in reader.connections if c.msgcount}
        assert found["/image_raw"] > 0 and found["/camera_info"] > 0
        recorded = [cdr.stamp_ns(d) for c, _, d in reader.messages() if c.topic == "/image_raw"]
    assert set(recorded) <= set(published)


def test_what_the_recorder_flushed_survives_a_kill(tmp_path, domain):
    write_bag(tmp_path / "a", 12)
    recorder = record(tmp_path, domain)
    replay = start(
        tmp_path,
        "replay",
        domain,
        input=str(tmp_path / "a"),
        wait_for=[""],
        loop=1000,
        rate=5.0,
    )
    wait_for_text(tmp_path / "arrivals.jsonl", "/image_raw", recorder)
    recorder.kill()
    replay.send_signal(signal.SIGTERM)
    recorder.communicate(timeout=30)
    replay.communicate(timeout=30)
    with pytest.raises(UserError, match="doctor --recover"):
        BagReader(tmp_path / "rec")
    assert rescue_bag(tmp_path / "rec") > 0
    with BagReader(tmp_path / "rec") as reader:
        assert reader.choose_image_topic("/image_raw").msgcount > 0


@pytest.mark.parametrize(
    ("node", "parameters", "message"),
    [
        ("replay", {}, "parameter input is empty"),
        ("replay", {"input": "/no/such/bag"}, "no such file"),
        ("replay", {"input": "x", "policy": "some"}, "use all or latest"),
        ("replay", {"input": "x", "wait_for": ["godot"]}, "godot"),
        ("replay", {"input": "x", "rate": float("nan")}, "rate"),
        ("replay", {"input": "x", "loop": -1}, "loop"),
        ("replay", {"input": "x", "rate": 2}, "parameter rate must be of type float"),
        ("recorder", {"output": 5}, "parameter output must be of type str"),
        ("recorder", {}, "parameter output is empty"),
        ("recorder", {"output": "/proc/no"}, "cannot write"),
    ],
)
def test_wrong_parameters_are_one_line_and_code_2(tmp_path, domain, node, parameters, message):
    process = start(tmp_path, node, domain, **parameters)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2, errors
    assert message in errors.strip().splitlines()[-1]
    assert "Traceback" not in errors


def test_the_recorder_is_ready_though_ros_time_stands_still(tmp_path, ros):
    """The replay publishes /clock only once the recorder is ready."""
    recorder = record(tmp_path, int(os.environ["ROS_DOMAIN_ID"]), use_sim_time=True)
    node, heard = Node("others"), []
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    for kind, topic in (
        (Image, names.TOPIC_IMAGE), (Image, names.TOPIC_EDITED),
        (FrameLatency, names.TOPIC_LATENCY), (StreamStatus, names.TOPIC_STATUS),
    ):  # fmt: skip
        node.create_publisher(kind, topic, 10)
    node.create_publisher(ActiveInstruction, names.TOPIC_ACTIVE, latched)
    node.create_subscription(Bool, "recorder/ready", lambda m: heard.append(m.data), latched)
    deadline = time.monotonic() + 30
    while True not in heard and time.monotonic() < deadline:
        ros.spin_once(node, timeout_sec=0.1)
    recorder.send_signal(signal.SIGTERM)
    recorder.communicate(timeout=60)
    assert True in heard


@pytest.fixture
def replay(tmp_path, ros):
    """A replay node in this process that has published 24 frames."""
    write_bag(tmp_path / "a", 4)
    ros.shutdown()
    ros.init(args=["--ros-args", "-p", f"input:={tmp_path / 'a'}", "-p", "wait_for:=['editor']"])
    node = replay_node.ReplayNode()
    node.published = 24
    yield node
    node.source.close()
    node.destroy_node()


def test_frames_inside_an_editor_that_was_started_again_are_not_waited_for(replay):
    replay._on_status(StreamStatus(frames_in=24, frames_out=10))
    for _ in range(10):
        replay._on_latency(FrameLatency())
    assert replay.in_flight() == 14
    replay._on_status(StreamStatus(frames_in=0))
    assert replay.in_flight() == 0
    replay.published += 5
    replay._on_status(StreamStatus(frames_in=5, dropped_error=1))
    assert replay.in_flight() == 4


def test_a_replay_that_nobody_listens_to_any_more_ends(replay, monkeypatch):
    monkeypatch.setattr(replay_node, "LEFT_ALONE_S", 0.2)
    with pytest.raises(UserError, match="lost the editor or the recorder after 24 frames"):
        replay._wait_for_room(threading.Event())
