# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from replay_support import FRAME_ID, PERIOD_NS, START_NS, picture, psnr, write_bag, write_video

from egoedit_ros.data import cdr
from egoedit_ros.data.ahead import AheadBuffer, repeat
from egoedit_ros.data.source import VIDEO_START_NS, open_source, sha256_of
from egoedit_ros.errors import UserError


def test_bag_and_video_look_alike(tmp_path):
    stamps = write_bag(tmp_path / "a", 5, extra=True)
    video = write_video(tmp_path / "a.mp4", 5)
    for source, expected in (
        (open_source(tmp_path / "a"), stamps),
        (open_source(video), [VIDEO_START_NS + i * PERIOD_NS for i in range(5)]),
    ):
        assert source.count == 5
        assert source.stamps == expected
        assert source.first_stamp_ns == expected[0]
        assert source.fps == pytest.approx(16)
        assert [frame.stamp_ns for frame in source.serialized()] == expected
        for i, (stamp, rgb) in enumerate(source.frames()):
            assert stamp == expected[i]
            assert psnr(rgb, picture(i)) > 30


def test_camera_info_is_found_beside_the_images(tmp_path):
    write_bag(tmp_path / "a", 2, extra=True)
    write_bag(tmp_path / "b", 2)
    assert cdr.stamp_ns(open_source(tmp_path / "a").camera_info()) == START_NS
    assert open_source(tmp_path / "b").camera_info() is None


def test_compressed_images_decode(tmp_path):
    write_bag(tmp_path / "a", 3, topic="/c/image_raw/compressed", compressed=True)
    source = open_source(tmp_path / "a")
    assert source.msgtype == cdr.COMPRESSED
    assert [psnr(rgb, picture(i)) > 30 for i, (_, rgb) in enumerate(source.frames())] == [True] * 3


def test_stamps_that_repeat_or_go_back_are_kept_and_paced_by_the_recorder(tmp_path):
    stamps = [START_NS, START_NS, START_NS - 10**9, START_NS + 10**12]
    write_bag(tmp_path / "a", stamps=stamps)
    frames = list(open_source(tmp_path / "a").serialized())
    assert [frame.stamp_ns for frame in frames] == stamps
    assert [frame.due_ns for frame in frames] == [0, PERIOD_NS, 2 * PERIOD_NS, 3 * PERIOD_NS]


def test_a_video_has_no_topics(tmp_path):
    with pytest.raises(UserError, match="no topics"):
        open_source(write_video(tmp_path / "a.mp4"), "/image")


def test_loops_go_on_in_time(tmp_path):
    stamps = write_bag(tmp_path / "a", 3)
    frames = list(repeat(open_source(tmp_path / "a"), 3))
    assert [f.stamp_ns for f in frames] == [stamps[0] + i * PERIOD_NS for i in range(9)]
    assert [f.due_ns for f in frames] == [i * PERIOD_NS for i in range(9)]
    assert [cdr.stamp_ns(f.data) for f in frames] == [f.stamp_ns for f in frames]


def test_fps_makes_the_frames_even(tmp_path):
    write_bag(tmp_path / "a", stamps=[START_NS, START_NS + 1, START_NS + 10**9])
    frames = list(repeat(open_source(tmp_path / "a"), fps=10))
    assert [f.stamp_ns - START_NS for f in frames] == [0, 10**8, 2 * 10**8]


def test_buffer_keeps_order_within_its_memory(tmp_path):
    write_bag(tmp_path / "a", 12)
    source = open_source(tmp_path / "a")
    size = len(next(source.serialized()).data)
    buffer = AheadBuffer(source.serialized(), max_bytes=2 * size)
    buffer.wait_filled(100, timeout=10)
    assert buffer._bytes <= 2 * size
    assert [f.stamp_ns for f in buffer] == source.stamps


def test_buffer_hands_on_errors_after_the_frames():
    def frames():
        yield from ()
        raise UserError("broken")

    with pytest.raises(UserError, match="broken"):
        next(AheadBuffer(frames()))


def test_hash_depends_on_content_only(tmp_path):
    write_bag(tmp_path / "a", 3)
    first = sha256_of(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "b")
    assert sha256_of(tmp_path / "b") == first
    write_bag(tmp_path / "c", 4)
    assert sha256_of(tmp_path / "c") != first


def test_frame_id_is_the_bags_own(tmp_path):
    write_bag(tmp_path / "a", 1)
    frame = next(open_source(tmp_path / "a").serialized("other"))
    message = cdr.typestore().deserialize_cdr(frame.data, cdr.IMAGE)
    assert message.header.frame_id == FRAME_ID
    np.testing.assert_array_equal(message.data.reshape(48, 64, 3), picture(0))
