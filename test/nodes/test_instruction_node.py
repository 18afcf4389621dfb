# SPDX-License-Identifier: Apache-2.0
"""The instruction node: a timeline in seconds of the stream becomes stamped instructions."""

import threading
import time

import pytest
from editor_support import PATIENCE_S, START_NS, header, stamp_ns
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from sensor_msgs.msg import Image

from egoedit_ros.errors import UserError
from egoedit_ros.msg import EditInstruction
from egoedit_ros.nodes import qos
from egoedit_ros.nodes.instruction_node import InstructionNode
from egoedit_ros.stream import names

pytestmark = pytest.mark.ros


class Listener:
    """An instruction node in a thread, and an editor's ear."""

    def __init__(self, **parameters) -> None:
        self.node = InstructionNode(
            parameter_overrides=[Parameter(k, value=v) for k, v in parameters.items()]
        )
        self.executor = SingleThreadedExecutor()
        self.executor.add_node(self.node)
        self.user = Node("user")
        self.executor.add_node(self.user)
        self.got: list[EditInstruction] = []
        self.thread = threading.Thread(target=self.executor.spin, daemon=True)
        self.thread.start()

    def listen(self) -> None:
        self.user.create_subscription(
            EditInstruction, names.TOPIC_INSTRUCTION, self.got.append, qos.latched(10)
        )

    def until(self, condition) -> None:
        end = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < end
            time.sleep(0.01)

    def said(self) -> list[tuple[str, float | None]]:
        """(text, second of the stream; None without a stamp)."""
        return [
            (m.text, (stamp_ns(m.header) - START_NS) / 1e9 if stamp_ns(m.header) else None)
            for m in self.got
        ]

    def close(self) -> None:
        self.executor.shutdown()
        self.thread.join(PATIENCE_S)
        self.node.destroy_node()
        self.user.destroy_node()


@pytest.fixture
def make(ros):
    listeners = []

    def start(**parameters) -> Listener:
        listeners.append(Listener(**parameters))
        return listeners[-1]

    yield start
    for listener in listeners:
        listener.close()


def test_second_0_comes_before_the_first_image_and_the_rest_with_it(make):
    listener = make(timeline=["1.5:make it red", "0:make it blue", "2:"], seed=9)
    listener.listen()
    listener.until(lambda: listener.got)
    assert listener.said() == [("make it blue", None)]
    camera = listener.user.create_publisher(Image, names.TOPIC_IMAGE, 10)
    listener.until(camera.get_subscription_count)
    while len(listener.got) < 3:  # as a camera does: again and again
        camera.publish(Image(header=header(START_NS)))
        time.sleep(0.02)
    assert listener.said() == [("make it blue", None), ("make it red", 1.5), ("", 2.0)]
    assert {m.seed for m in listener.got} == {9}
    assert len({m.id for m in listener.got}) == 3


def test_a_first_stamp_that_is_known_needs_no_image(make):
    listener = make(timeline=["a", "2:b"], start_stamp_ns=START_NS)
    listener.listen()
    listener.until(lambda: len(listener.got) == 2)
    assert listener.said() == [("a", None), ("b", 2.0)]


def test_an_editor_that_comes_late_gets_the_whole_timeline(make):
    listener = make(timeline=["a", "1:b", "2:c"], start_stamp_ns=START_NS, wait_timeout=0.0)
    listener.until(lambda: listener.node._sent == 3)
    listener.listen()
    listener.until(lambda: len(listener.got) == 3)
    assert [text for text, _ in listener.said()] == ["a", "b", "c"]


def test_timeline_file(make, tmp_path):
    path = tmp_path / "t.yaml"
    path.write_text("- {at: 0, text: a, seed: 4, reset: true}\n")
    listener = make(timeline_file=str(path))
    listener.listen()
    listener.until(lambda: listener.got)
    assert (listener.got[0].seed, listener.got[0].reset) == (4, True)


@pytest.mark.parametrize(
    "parameters, says",
    [
        ({}, "timeline is empty"),
        ({"timeline": ["a"], "timeline_file": "b.yaml"}, "not both"),
        ({"timeline_file": "/nowhere.yaml"}, "cannot read"),
        ({"timeline": ["x" * 2001]}, "2001 characters"),
        ({"timeline": ["a"], "wait_timeout": float("nan")}, "wait_timeout"),
    ],
)
def test_wrong_timelines_are_told(ros, parameters, says):
    overrides = [Parameter(k, value=v) for k, v in parameters.items()]
    with pytest.raises(UserError, match=says):
        InstructionNode(parameter_overrides=overrides)
