# SPDX-License-Identifier: Apache-2.0
"""The benchmark's ends over real DDS, against nodes that behave and nodes that do not."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest
from editor_support import InvertingSession
from rclpy.context import Context
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.serialization import deserialize_message, serialize_message
from replay_support import write_bag
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header, String

from egoedit_ros.bench.stream_input import load_frames
from egoedit_ros.bench.stream_run import figures_of, recording_of
from egoedit_ros.bench.stream_usage import Usage
from egoedit_ros.errors import UserError
from egoedit_ros.nodes.bench_rig import BenchRig, Stopped
from egoedit_ros.nodes.diagnosis import message_class
from egoedit_ros.nodes.editor_node import EditorNode
from egoedit_ros.nodes.output import ImageSerializer
from egoedit_ros.nodes.passthrough_node import PassthroughNode, as_array, image_message
from egoedit_ros.stream.images import fill_image


@pytest.fixture
def frames(tmp_path):
    write_bag(tmp_path / "bag", frames=8)
    return load_frames(tmp_path / "bag")


@pytest.fixture
def spin(ros):
    """spin(node): have a thread spin it until the test is over."""
    executor = SingleThreadedExecutor()
    nodes = []

    def run() -> None:
        try:
            executor.spin()
        except ExternalShutdownException:
            pass

    def add(node):
        executor.add_node(node)
        nodes.append(node)
        return node

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    yield add
    executor.shutdown()
    thread.join(10.0)
    for node in nodes:
        if isinstance(node, EditorNode):
            node.free()
        node.destroy_node()


@pytest.fixture
def rig(spin, frames):
    def make(**options) -> BenchRig:
        options = {"wait": 20.0, "silence": 20.0, **options}
        node = spin(Node("bench"))
        return BenchRig(node, frames, Usage({}), threading.Event(), **options)

    return make


class Copier(Node):
    """Sends something of another type for each picture; ``stamped``: with its header."""

    def __init__(self, stamped: bool = True, every: int = 1, profile=10) -> None:
        super().__init__("copier")
        self.stamped, self.every, self.count = stamped, every, 0
        self.out = self.create_publisher(CompressedImage, "small", 10)
        self.create_subscription(Image, "image_raw", self.take, profile)

    def take(self, message: Image) -> None:
        self.count += 1
        if self.count % self.every == 0:
            self.out.publish(CompressedImage(header=message.header if self.stamped else Header()))


def test_any_node_that_copies_the_stamp(rig, spin):
    spin(Copier())
    bench = rig(output_topic="small")
    bench.meet()
    assert bench.output_topic == "/small" and bench.image_topic == "/image_raw"
    bench.play("warm_up", "20", 0.5)
    run = bench.play("fixed", "40", 0.5)
    assert len(run.published) == 20 and run.loss == 0 and run.odd == 0
    assert [stamp for stamp, _ in run.edited] == [stamp for stamp, _ in run.published]
    figures = figures_of(run)
    assert figures["latency_ms"]["max"] > 0 and figures["dropped"]["unknown"] == 0
    # Nobody tells stages or instructions.
    assert figures["stages_ms"]["decode"] is None and not run.instructions


def test_what_does_not_come_back_is_lost(rig, spin):
    spin(Copier(every=2))
    bench = rig(output_topic="small")
    bench.meet()
    run = bench.play("fixed", "40", 0.5)
    assert run.lost == 10 and figures_of(run)["dropped"]["unknown"] == 10


def test_a_node_that_does_not_copy_the_stamp(rig, spin):
    spin(Copier(stamped=False))
    bench = rig(output_topic="small")
    bench.meet()
    with pytest.raises(UserError, match=r"none with a stamp that was sent.*zero.*has to copy"):
        bench.play("warm_up", "20", 0.5)


def test_the_editor_tells_stages_drops_and_switches(rig, spin):
    editor = EditorNode(
        open_model=lambda **_: InvertingSession(),
        parameter_overrides=[Parameter("size", value="32x24"), Parameter("policy", value="all")],
    )
    assert editor.autostart()
    spin(editor)
    bench = rig(texts=["make it blue", "make it red"])
    bench.meet()
    bench.play("warm_up", "own", 1.0)
    run = bench.play("fixed", "40", 0.725)
    assert len(run.published) == 29 and run.loss == 0
    assert run.dropped == {"transport": 0, "policy": 0, "error": 0}
    assert [m["chunk_index"] for m in run.latencies][-4:] == [run.latencies[-1]["chunk_index"]] * 4
    assert {m["outcome"] for m in run.latencies} == {0}
    assert len(run.overhead_ms) == 2 and run.overhead_ms[0] > 0
    assert recording_of(run).latencies[0].header.stamp.sec > 0
    run = bench.play("switches", "40", 0.0, 3)
    assert [id for id, _ in run.instructions] == ["bench-1", "bench-2", "bench-3"]
    assert [s["text"] for s in run.switches] == ["make it red", "make it blue", "make it red"]


def test_the_rest_of_a_stream_is_fetched_and_left_out_of_the_latencies(rig, spin):
    editor = EditorNode(
        open_model=lambda **_: InvertingSession(),
        parameter_overrides=[
            *(Parameter("size", value="32x24"), Parameter("flush_timeout", value=60.0)),
            *(Parameter("policy", value="all"), Parameter("instruction", value="x")),
        ],
    )
    assert editor.autostart()
    spin(editor)
    bench = rig()
    bench.meet()
    run = bench.play("warm_up", "40", 0.175)
    # 1 and 4 frames fill chunks, 2 do not.
    assert len(run.edited) == len(run.published) == 7
    assert len(recording_of(run).edited) == 5


def test_silence_is_diagnosed(rig, spin):
    node = spin(Node("deaf"))
    node.create_publisher(Image, "edited/image_raw", 10)
    node.create_publisher(Image, "elsewhere", 10)
    with pytest.raises(UserError, match=r"nobody subscribes to /image_raw"):
        rig(wait=1.0).meet()
    with pytest.raises(UserError, match=r"nobody publishes /no/such.*Image is published on"):
        rig(wait=1.0, output_topic="/no/such").meet()
    node.create_subscription(Image, "image_raw", lambda m: None, 10)
    bench = rig(silence=0.5)
    bench.meet()
    with pytest.raises(UserError, match=r"frames were sent on /image_raw, nothing came on"):
        bench.play("warm_up", "20", 0.2)


def test_a_qos_that_does_not_match_is_named(rig, spin):
    latched = QoSProfile(
        depth=1,
        reliability=ReliabilityPolicy.RELIABLE,
        durability=DurabilityPolicy.TRANSIENT_LOCAL,
    )
    spin(Copier(profile=latched))
    with pytest.raises(UserError, match=r"QoS of /image_raw.*/copier asks for.*transient_local"):
        rig(wait=2.0, output_topic="small").meet()


def test_another_type_is_named(rig, spin):
    spin(Copier())
    # One participant cannot have two types on a topic: this is another one.
    context = Context()
    context.init(domain_id=int(os.environ["ROS_DOMAIN_ID"]))
    try:
        reader = Node("reader", context=context)
        reader.create_subscription(String, "other", lambda m: None, 10)
        with pytest.raises(UserError, match="/reader takes std_msgs/msg/String on /other"):
            rig(wait=3.0, output_topic="small", image_topic="other").meet()
        reader.destroy_node()
    finally:
        context.try_shutdown()


def test_an_editor_that_is_not_active_is_told_with_its_state(rig, spin):
    editor = EditorNode(
        open_model=lambda **_: InvertingSession(),
        parameter_overrides=[Parameter("size", value="32x24")],
    )
    editor.trigger_configure()
    spin(editor)
    with pytest.raises(UserError, match=r"/editor is inactive, activate it"):
        rig(wait=2.0).meet()


def test_types_without_a_header_and_types_that_are_not_there():
    assert message_class("sensor_msgs/msg/Image") is Image
    with pytest.raises(UserError, match="has no header"):
        message_class("std_msgs/msg/String")
    with pytest.raises(UserError, match="not installed"):
        message_class("no_such_msgs/msg/Thing")


def test_a_signal_ends_a_run(rig, spin):
    spin(Copier())
    bench = rig(output_topic="small")
    bench.meet()
    bench.stop.set()
    with pytest.raises(Stopped):
        bench.play("fixed", "40", 60.0)


def test_the_pass_through_node_gives_back_what_it_gets(rig, spin):
    node = PassthroughNode()
    spin(node)
    bench = rig()
    bench.meet()
    run = bench.play("warm_up", "20", 0.5)
    assert run.loss == 0 and len(run.latencies) == len(run.published)
    one = run.latencies[-1]
    assert one["instruction_id"] == node.converter
    inside = one["preprocess_ms"] + one["publish_ms"]
    assert one["total_ms"] - one["transport_ms"] == pytest.approx(inside, abs=1e-3)
    assert run.dropped is None
    picture = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    message = Image()
    fill_image(message, picture)
    assert (as_array(message) == picture).all()
    assert image_message(picture, message) == message


@pytest.mark.parametrize("frame_id", ["", "a", "head_camera", "übersicht"])
def test_pictures_are_serialized_as_ros_does_it(frame_id):
    serialize = ImageSerializer()
    for index, shape in enumerate([(4, 6, 3), (4, 6, 3), (3, 5, 3), (4, 6, 3)]):
        picture = np.random.default_rng(index).integers(0, 256, shape, dtype=np.uint8)
        expected = Image(header=Header(frame_id=frame_id))
        expected.header.stamp.sec, expected.header.stamp.nanosec = 1_700_000_000 + index, 7 * index
        fill_image(expected, picture)
        data = serialize(expected.header, picture)
        # Not byte by byte: what fills the gaps between fields is left to chance.
        assert len(data) == len(serialize_message(expected))
        assert deserialize_message(data, Image) == expected
