# SPDX-License-Identifier: Apache-2.0
"""The editor node over DDS: what a camera and a user see of it."""

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray
from editor_support import PERIOD_NS, START_NS, InvertingSession, Rig, header, is_edited, stamp_ns
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.serialization import serialize_message
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import String
from std_srvs.srv import SetBool, Trigger

from egoedit_ros.msg import ActiveInstruction, EditInstruction, FrameLatency
from egoedit_ros.stream import names
from egoedit_ros.stream.images import compressed_to_rgb, fill_image, to_rgb

pytestmark = pytest.mark.ros


@pytest.fixture
def make(ros):
    rigs = []

    def start(*args, **kwargs) -> Rig:
        rigs.append(Rig(*args, **kwargs))
        return rigs[-1]

    yield start
    for rig in rigs:
        rig.close()


def test_every_frame_comes_back_edited_once_in_order_with_its_header(make):
    rig = make()
    rig.instruct("make it blue", id="blue", seed=5)
    rig.send(*range(9))
    rig.until_out(9)
    assert rig.stamps() == list(range(9))
    assert all(m.header.frame_id == "head_camera" for m in rig.edited)
    assert all(is_edited(m) for m in rig.edited)
    assert {(m.width, m.height, m.encoding) for m in rig.edited} == {(32, 24, "rgb8")}
    rig.until(lambda: rig.active)
    (active,) = rig.active
    assert (active.id, active.text, active.seed, active.chunk_index) == (
        "blue", "make it blue", 5, 0,
    )  # fmt: skip
    assert stamp_ns(active.header) == START_NS and active.switch_latency_ms > 0


def test_latency_has_one_message_a_frame_whose_stages_add_up(make):
    rig = make()
    rig.instruct("make it blue", id="blue")
    rig.send(*range(5))
    rig.until_out(5)
    assert [stamp_ns(m.header) for m in rig.latency] == [stamp_ns(m.header) for m in rig.edited]
    for index, message in enumerate(rig.latency):
        stages = [getattr(message, field) for field in names.STAGE_FIELDS]
        assert sum(stages) == pytest.approx(message.total_ms, abs=1.0)
        assert min(stages) >= 0 and message.total_ms > 0
        assert message.transport_ms > 0  # the same machine's clock
        assert message.outcome == FrameLatency.EDITED and message.instruction_id == "blue"
        assert message.frame_index == index and message.chunk_index == (index + 3) // 4


def test_the_messages_constants_are_the_ones_in_names():
    assert (FrameLatency.EDITED, FrameLatency.PASSTHROUGH) == (
        names.OUTCOME_EDITED,
        names.OUTCOME_PASSTHROUGH,
    )


def test_without_an_instruction_the_camera_passes_through(make):
    rig = make()
    rig.send(*range(5))
    rig.until_out(5)
    assert [to_rgb(m)[0, 0, 0] for m in rig.edited] == [0, 7, 14, 21, 28]
    assert not any(is_edited(m) for m in rig.edited)
    assert {m.outcome for m in rig.latency} == {FrameLatency.PASSTHROUGH}
    rig.until(lambda: rig.status and rig.status[-1].state == "passthrough")
    assert rig.active == []


def test_instructions_switch_when_their_stamp_says(make):
    rig = make()
    rig.instruct("one", id="a")
    rig.instruct("", stamp=5, id="b")
    rig.instruct("three", stamp=9, id="c")
    rig.send(*range(13))
    rig.until_out(13)
    assert [m.instruction_id for m in rig.latency] == ["a"] * 5 + ["b"] * 4 + ["c"] * 4
    assert [is_edited(m) for m in rig.edited] == [True] * 5 + [False] * 4 + [True] * 4
    rig.until(lambda: len(rig.active) == 3)
    assert [(m.id, (stamp_ns(m.header) - START_NS) // PERIOD_NS) for m in rig.active] == [
        ("a", 0), ("b", 5), ("c", 9),
    ]  # fmt: skip


def test_plain_text_works_too_and_late_comers_see_what_is_active(make):
    rig = make(seed=11)
    texts = rig.user.create_publisher(String, names.TOPIC_INSTRUCTION_TEXT, 10)
    rig.until(lambda: texts.get_subscription_count())
    texts.publish(String(data="make it blue"))
    rig.until(lambda: rig.node.editor.pending)
    rig.send(0)
    rig.until_out(1)
    assert is_edited(rig.edited[0])
    late = []
    profile = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    rig.user.create_subscription(ActiveInstruction, names.TOPIC_ACTIVE, late.append, profile)
    rig.until(lambda: late)
    assert (late[0].text, late[0].seed, bool(late[0].id)) == ("make it blue", 11, True)


def test_garbled_and_over_long_instructions_are_refused_and_the_old_one_stays(make):
    rig = make()
    rig.instruct("make it blue", id="good")
    rig.instructions.publish(EditInstruction(id="long", text="x" * 2001))
    garbled = bytearray(serialize_message(EditInstruction(id="bad", text="abcdef")))
    garbled[garbled.index(b"abcdef")] = 0xFF
    rig.instructions.publish(bytes(garbled))
    rig.instruct("make it red", id="after", stamp=100)
    rig.send(*range(5))
    rig.until_out(5)
    assert {m.instruction_id for m in rig.latency} == {"good"}


def test_flush_sends_what_is_left_before_it_answers(make):
    rig = make()
    rig.send(*range(7))
    rig.until(lambda: rig.node.editor.waiting == 2)
    answer = rig.call(Trigger, "editor/flush")
    assert answer.success and answer.message == "2 frames sent"
    rig.until_out(7)
    assert rig.stamps() == list(range(7))
    rig.send(7)  # a stream's first chunk is one frame
    rig.until_out(8)


def test_a_stream_that_falls_silent_is_flushed(make):
    rig = make(flush_timeout=0.2)
    rig.send(*range(7))
    rig.until_out(7)
    assert rig.stamps() == list(range(7))


def test_nothing_of_the_old_stream_comes_after_a_reset(make):
    rig = make()
    rig.instruct("make it blue")
    rig.session.running.clear()
    rig.session.go.clear()
    rig.send(*range(9))
    rig.until(lambda: rig.counters()[0] == 9 and rig.session.running.is_set())
    assert rig.call(Trigger, "editor/reset").success
    rig.session.go.set()
    rig.send(*range(20, 25))
    rig.until_out(5)
    assert rig.stamps() == list(range(20, 25))
    rig.until(lambda: rig.status and rig.status[-1].frames_out == 5)
    status = rig.status[-1]
    assert (status.frames_in, status.dropped_policy) == (14, 9)


@pytest.mark.parametrize("transport", ["raw", "compressed"])
def test_a_backward_stamp_begins_a_new_stream(make, transport):
    rig = make(input_transport=transport)
    for stamp in (100, 101, 102, 3, 4, 5, 6, 7):
        rig.send(stamp) if transport == "raw" else rig.send_jpeg(stamp)
    rig.until(lambda: rig.stamps()[-5:] == [3, 4, 5, 6, 7])
    frames_in, frames_out, dropped = rig.counters()
    assert frames_in == frames_out + sum(dropped.values()) == 8 and dropped["policy"] >= 2


def test_another_size_begins_a_new_stream(make):
    rig = make()
    rig.send(*range(3))
    rig.send(*range(3, 8), size=(50, 50))
    rig.until(lambda: rig.stamps()[-5:] == [3, 4, 5, 6, 7])
    frames_in, frames_out, dropped = rig.counters()
    assert frames_in == frames_out + sum(dropped.values()) == 8


def test_unreadable_images_are_counted_and_told_at_once(make):
    rig = make()
    rig.send(0, 1, 2)
    rig.send(3, encoding="klingon")
    rig.until(lambda: rig.status and rig.status[-1].dropped_error == 1)
    rig.send(4, 5)
    rig.until_out(5)
    assert rig.stamps() == [0, 1, 2, 4, 5]


def test_corrupt_jpegs_are_counted(make):
    rig = make(input_transport="compressed")
    for stamp in range(6):
        rig.send_jpeg(stamp, cut=100 if stamp == 2 else None)
    rig.until_out(5)
    assert rig.stamps() == [0, 1, 3, 4, 5]
    assert rig.counters()[2]["error"] == 1


def test_a_model_fault_never_stops_the_frames(make):
    rig = make()
    rig.instruct("make it blue", id="blue")
    reports = []
    rig.user.create_subscription(
        DiagnosticArray, names.TOPIC_DIAGNOSTICS, lambda m: reports.extend(m.status), 10
    )
    rig.session.broken = "no memory left"
    rig.send(*range(5))
    rig.until_out(5)
    assert {m.outcome for m in rig.latency} == {FrameLatency.PASSTHROUGH}
    rig.until(lambda: rig.status and rig.status[-1].state == "fault")
    rig.until(lambda: any("no memory left" in r.message and r.level == b"\x02" for r in reports))
    rig.session.broken = None
    rig.send(*range(5, 10))
    rig.until_out(10)
    assert rig.stamps() == list(range(10)) and is_edited(rig.edited[-1])
    rig.until(lambda: rig.status[-1].state == "active")
    assert [m.id for m in rig.active] == ["blue"]


def test_bypass_by_service_and_parameter(make):
    rig = make()
    rig.instruct("make it blue")
    assert rig.call(SetBool, "editor/set_bypass", data=True).success
    assert rig.node.get_parameter("bypass").value is True
    rig.send(*range(5))
    rig.until_out(5)
    rig.call(SetBool, "editor/set_bypass", data=False)
    rig.send(*range(5, 9))
    rig.until_out(9)
    assert [is_edited(m) for m in rig.edited] == [False] * 5 + [True] * 4


def test_latest_drops_frames_while_the_model_is_busy_and_counts_them(make):
    rig = make(policy="latest")
    rig.instruct("make it blue")
    rig.session.running.clear()
    rig.session.go.clear()
    rig.send(0)
    rig.until(rig.session.running.is_set)
    for stamp in range(1, 21):
        rig.send(stamp)
        rig.until(lambda n=stamp: rig.counters()[0] > n)
    rig.session.go.set()
    rig.until_out(5)
    assert rig.stamps() == [0, 17, 18, 19, 20]
    frames_in, frames_out, dropped = rig.counters()
    assert (frames_in, frames_out, dropped["policy"]) == (21, 5, 16)


def test_jpeg_and_mask_come_only_when_subscribed(make):
    rig = make()
    rig.instruct("make it blue")
    masks, jpegs = [], []
    assert rig.node.count_subscribers(names.TOPIC_MASK) == 0
    rig.send(0)
    rig.until_out(1)
    rig.listen(Image, names.TOPIC_MASK, masks)
    rig.listen(CompressedImage, names.compressed_topic(names.TOPIC_EDITED), jpegs)
    output = rig.node._output
    rig.until(
        lambda: (
            output._mask.get_subscription_count() and output._compressed.get_subscription_count()
        )
    )
    rig.spin(0.3)
    rig.send(*range(1, 5))
    rig.until(lambda: len(masks) == 4 and len(jpegs) == 4)
    assert [stamp_ns(m.header) for m in masks] == [stamp_ns(m.header) for m in rig.edited[1:]]
    assert masks[0].encoding == "mono8" and masks[0].step == 32
    mask = np.frombuffer(masks[0].data, np.uint8).reshape(24, 32)
    assert (mask[:, :16] == 255).all() and not mask[:, 16:].any()
    assert stamp_ns(jpegs[0].header) == stamp_ns(rig.edited[1].header)
    difference = compressed_to_rgb(jpegs[0]).astype(int) - to_rgb(rig.edited[1])
    assert np.abs(difference).mean() < 12


def camera_info() -> CameraInfo:
    info = CameraInfo(width=64, height=48, distortion_model="equidistant")
    info.d = [0.1, 0.2, 0.3, 0.4]
    info.k = [50.0, 0.0, 32.0, 0.0, 52.0, 24.0, 0.0, 0.0, 1.0]
    info.p = [50.0, 0.0, 32.0, 8.0, 0.0, 52.0, 24.0, 4.0, 0.0, 0.0, 1.0, 0.0]
    info.roi.x_offset, info.roi.y_offset, info.roi.width, info.roi.height = 8, 4, 40, 20
    return info


def test_camera_info_is_scaled_to_the_edited_size(make):
    rig = make()
    infos = []
    rig.listen(CameraInfo, "edited/camera_info", infos)
    rig.until(lambda: rig.node._output._info.get_subscription_count())
    rig.spin(0.3)
    info = camera_info()
    info.header = header(START_NS)
    rig.infos.publish(info)
    rig.until(lambda: rig.node._camera_info is not None)
    rig.send(*range(5))
    rig.until(lambda: len(infos) == 5)
    assert [stamp_ns(m.header) for m in infos] == [START_NS + i * PERIOD_NS for i in range(5)]
    got = infos[-1]
    assert (got.width, got.height, got.distortion_model) == (32, 24, "equidistant")
    assert list(got.d) == [0.1, 0.2, 0.3, 0.4]
    assert got.k.tolist() == [25.0, 0, 16.0, 0, 26.0, 12.0, 0, 0, 1.0]
    assert got.p.tolist() == [25.0, 0, 16.0, 4.0, 0, 26.0, 12.0, 2.0, 0, 0, 1.0, 0]
    assert (got.roi.x_offset, got.roi.y_offset, got.roi.width, got.roi.height) == (4, 2, 20, 10)


def test_camera_sized_output_of_an_edit_keeps_the_cameras_pixels(make):
    rig = make(output_size="camera")
    rig.instruct("make it blue")
    rig.send(3)
    rig.until_out(1)
    rgb = to_rgb(rig.edited[0])
    assert rgb.shape == (48, 64, 3)
    assert (rgb[:, 36:] == 21).all() and (rgb[:, :28] == 234).all()


def test_diagnostics_say_what_a_user_wants_to_know(make):
    rig = make()
    rig.instruct("make it blue")
    reports = []
    rig.user.create_subscription(
        DiagnosticArray, names.TOPIC_DIAGNOSTICS, lambda m: reports.extend(m.status), 10
    )
    rig.send(*range(5))
    rig.until_out(5)
    rig.until(lambda: reports and dict_of(reports[-1])["frames out"] == "5")
    values = dict_of(reports[-1])
    for key in ("input rate", "output rate", "stamp age", "latency p95", "latency budget",
                "dropped by policy", "host memory", "model state"):  # fmt: skip
        assert values[key]
    assert values["active instruction"] == "make it blue" and values["model"] == "inverting"


def dict_of(report) -> dict[str, str]:
    return {v.key: v.value for v in report.values}


def test_a_publisher_that_does_not_match_is_told_with_both_profiles(make, capfd):
    rig = make()  # policy all asks for reliable
    reports = []
    rig.user.create_subscription(
        DiagnosticArray, names.TOPIC_DIAGNOSTICS, lambda m: reports.extend(m.status), 10
    )
    profile = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
    rig.user.create_publisher(Image, names.TOPIC_IMAGE, profile)
    rig.until(lambda: reports and dict_of(reports[-1])["incompatible QoS events"] == "1")
    told = capfd.readouterr().err
    assert "incompatible QoS on /image_raw (RELIABILITY)" in told
    assert "this node has reliable, volatile" in told and "/user: best_effort, volatile" in told


def test_qos_can_be_overridden_by_parameters(make):
    name = "qos_overrides./image_raw.subscription.reliability"
    rig = make(InvertingSession(), True, **{name: "best_effort"})
    (info,) = rig.node.get_subscriptions_info_by_topic("/image_raw")
    assert info.qos_profile.reliability == ReliabilityPolicy.BEST_EFFORT


@pytest.mark.parametrize("policy, reliability", [("latest", "BEST_EFFORT"), ("all", "RELIABLE")])
def test_qos_by_policy(make, policy, reliability):
    rig = make(policy=policy)
    (info,) = rig.node.get_subscriptions_info_by_topic("/image_raw")
    assert info.qos_profile.reliability.name == reliability
    (edited,) = rig.node.get_publishers_info_by_topic("/edited/image_raw")
    assert edited.qos_profile.reliability.name == "RELIABLE"


def test_a_stamp_before_1970_is_a_stamp_like_any_other(make):
    rig = make()
    message = Image(header=header(-5 * 10**9))
    fill_image(message, np.zeros((48, 64, 3), np.uint8))
    rig.images.publish(message)
    rig.until(lambda: rig.edited)
    assert rig.edited[0].header == message.header
    seen = len(rig.status)
    rig.until(lambda: len(rig.status) > seen + 1)  # the report of it ended the node
    assert rig.status[-1].frames_out == 1
