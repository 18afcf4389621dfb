# SPDX-License-Identifier: Apache-2.0
"""The training node on a bag: progress over DDS, and a checkpoint however it ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from safetensors.torch import load_file, save_file
from train_support import TINY, cache_clips, tiny_recipe

from egoedit_ros.data import cdr
from egoedit_ros.data.bag_writer import BagWriter
from egoedit_ros.errors import UserError
from egoedit_ros.model.autoencoder import EdgeAutoencoder
from egoedit_ros.msg import TrainingStatus
from egoedit_ros.nodes import qos
from egoedit_ros.nodes.train_node import TOPIC_STATUS, TrainNode
from egoedit_ros.train.states import read_meta

pytestmark = [pytest.mark.ros, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 240.0
START_NS = 1_700_000_000_000_000_000
PERIOD_NS = 62_500_000


def _bag(path, frames=14):
    """What a replay leaves, in small: source, edited and instruction topics."""
    types = cdr.typestore().types
    kind = cdr.ACTIVE_INSTRUCTION
    with BagWriter(path) as writer:
        for topic in ("/image_raw", "/edited/image_raw"):
            writer.add_topic(topic, cdr.IMAGE)
        writer.add_topic("/instruction/active", kind)
        said = types[kind](
            header=cdr.make_header(START_NS, "head"), id="a", text="make it red", seed=0,
            chunk_index=0, switch_latency_ms=1.0,
        )  # fmt: skip
        writer.write("/instruction/active", START_NS, cdr.serialize(said, kind))
        for i in range(frames):
            stamp = START_NS + i * PERIOD_NS
            picture = np.full((48, 64, 3), 40 + 5 * i, np.uint8)
            edited = picture.copy()
            edited[10:30, 20:40] = (200, 20, 20)
            for topic, rgb in (("/image_raw", picture), ("/edited/image_raw", edited)):
                writer.write(topic, stamp + 1, cdr.image_cdr(rgb, stamp, "head"))
    return path


def _recipe(tmp_path, steps=4, **more):
    torch.manual_seed(0)
    autoencoder = tmp_path / "autoencoder.safetensors"
    save_file(EdgeAutoencoder(TINY.autoencoder).state_dict(), autoencoder)
    flow = {"steps": steps, "batch": 2, "frames": 2, "crop": 0, "warmup": 1, "save_every": 1000}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(tiny_recipe(tmp_path, "output") | {"flow": flow | more}))
    return {"config": str(path), "autoencoder": str(autoencoder), "status_period": 0.1}


class Listener:
    """Somebody who listens to the status topic."""

    def __init__(self):
        self.node = Node("listener")
        self.got = []
        self.node.create_subscription(
            TrainingStatus, TOPIC_STATUS, self.got.append, qos.latched(100)
        )
        self.executor = SingleThreadedExecutor()
        self.executor.add_node(self.node)

    def until(self, condition):
        end = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < end
            self.executor.spin_once(timeout_sec=0.05)

    def close(self):
        self.executor.shutdown()
        self.node.destroy_node()


@pytest.fixture
def listener(ros):
    made = Listener()
    yield made
    made.close()


def _node(**values):
    return TrainNode(parameter_overrides=[Parameter(k, value=v) for k, v in values.items()])


def test_a_bag_becomes_a_checkpoint_and_progress_is_told(listener, tmp_path):
    node = _node(**_recipe(tmp_path), bags=[str(_bag(tmp_path / "bag"))])
    listener.executor.add_node(node)
    node.thread.start()
    listener.until(lambda: not node.thread.is_alive())
    assert node.finish() == 0, node.failure
    listener.until(lambda: listener.got and listener.got[-1].state == "done")
    node.destroy_node()
    last = listener.got[-1]
    assert (last.stage, last.step, last.total_steps) == ("flow", 4, 4)
    assert last.header.stamp.sec > 0 and last.steps_per_second > 0 and last.eta_s == 0
    assert last.checkpoint == str(tmp_path / "output" / "flow.safetensors")
    assert load_file(last.checkpoint)
    assert listener.got[0].state in ("starting", "running")
    # 14 frames: a window of 13, of which the latents were learnt from.
    assert len(list((tmp_path / "output" / "bag_latents").glob("*.safetensors"))) == 1


def test_a_failure_is_told_and_leaves_what_was_learnt(listener, tmp_path, monkeypatch):
    cache_clips(tmp_path / "latents")
    from egoedit_ros.train import flow

    whole, count = flow.flow_loss, []

    def breaks(*arguments):
        count.append(1)
        if len(count) == 3:
            raise RuntimeError("a worker died")
        return whole(*arguments)

    monkeypatch.setattr(flow, "flow_loss", breaks)
    node = _node(**_recipe(tmp_path))
    listener.executor.add_node(node)
    node.thread.start()
    listener.until(lambda: not node.thread.is_alive())
    assert node.finish() == 1
    listener.until(lambda: listener.got and listener.got[-1].state == "failed")
    node.destroy_node()
    assert listener.got[-1].step == 2
    assert load_file(listener.got[-1].checkpoint)


def test_a_wrong_recipe_ends_with_exit_code_2(listener, tmp_path, capsys):
    node = _node(**_recipe(tmp_path))  # there are no latents
    node.thread.start()
    node.thread.join(PATIENCE_S)
    assert node.finish() == 2
    assert "no latents in" in capsys.readouterr().err
    node.destroy_node()


def _stopped_after(listener, command, step, number):
    """Start the node, send it a signal once it is past a step; the step of its checkpoint."""
    listener.got.clear()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        listener.until(
            lambda: process.poll() is not None or any(m.step > step for m in listener.got)
        )
        process.send_signal(number)
        _, errors = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
    assert process.returncode == 0, errors[-2000:]
    return int(read_meta(Path(listener.got[-1].checkpoint or "none"))["step"])


@pytest.mark.slow
def test_a_signal_leaves_a_checkpoint_and_the_same_command_goes_on(listener, tmp_path):
    cache_clips(tmp_path / "latents")
    command = [sys.executable, str(ROOT / "scripts" / "train_node"), "--ros-args"]
    for name, value in _recipe(tmp_path, steps=100_000, save_every=3).items():
        command += ["-p", f"{name}:={value}"]
    first = _stopped_after(listener, command, 4, signal.SIGTERM)
    assert first > 4
    assert _stopped_after(listener, command, first + 2, signal.SIGINT) > first + 2


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({}, "config is empty"),
        ({"stage": "dream"}, "no stage called 'dream'"),
        ({"stage": "autoencoder", "bags": ["x"]}, "does not learn from bags"),
        ({"minutes": -1.0}, "minutes must lie in"),
    ],
)
def test_parameters_that_mean_nothing(ros, tmp_path, values, says):
    given = {"config": _recipe(tmp_path)["config"]} if values else {}
    with pytest.raises(UserError, match=says):
        _node(**(given | values))
