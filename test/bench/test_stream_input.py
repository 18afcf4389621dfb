# SPDX-License-Identifier: Apache-2.0
"""The input of a stream benchmark in memory, from real bags and videos."""

from __future__ import annotations

import pytest
from replay_support import PERIOD_NS, START_NS, picture, write_bag, write_video

from egoedit_ros.bench.stream_input import decoded, load_frames
from egoedit_ros.data import cdr
from egoedit_ros.errors import UserError


def test_frames_go_round_and_round_under_stamps_of_their_own(tmp_path):
    stamps = [START_NS + i * PERIOD_NS for i in (0, 1, 2, 4)]
    write_bag(tmp_path / "bag", stamps=stamps, frames=4)
    frames = load_frames(tmp_path / "bag")
    assert frames.own_hz == pytest.approx(16) and not frames.notes
    due = [frames.due_ns(i) // PERIOD_NS for i in range(9)]
    assert due == [0, 1, 2, 4, 5, 6, 7, 9, 10]
    message = frames.message(5, 12_345_678_901)
    assert cdr.stamp_ns(message) == 12_345_678_901
    assert (decoded(frames, 2)[1] == picture(1)).all() and len(decoded(frames, 99)) == 4


def test_a_size_makes_raw_pictures_of_anything(tmp_path):
    write_bag(tmp_path / "bag", frames=2, compressed=True)
    assert load_frames(tmp_path / "bag").msgtype == cdr.COMPRESSED
    frames = load_frames(tmp_path / "bag", size=(32, 24))
    assert frames.msgtype == cdr.IMAGE
    assert [p.shape for p in decoded(frames, 9)] == [(24, 32, 3)] * 2
    video = load_frames(write_video(tmp_path / "v.mp4", 3), size=(16, 12))
    assert decoded(video, 1)[0].shape == (12, 16, 3) and len(video.frames) == 3


def test_what_does_not_fit_is_cut_and_said(tmp_path):
    write_bag(tmp_path / "bag", frames=9)
    frames = load_frames(tmp_path / "bag", most_bytes=3 * 64 * 48 * 3 + 500)
    assert len(frames.frames) == 3 and "first 3 of 9 frames" in frames.notes[0]


def test_stamps_that_are_all_zero_are_said_and_replaced(tmp_path):
    write_bag(tmp_path / "bag", stamps=[0] * 5, frames=5)
    frames = load_frames(tmp_path / "bag")
    assert "all stamps of the input are zero" in frames.notes[0]
    assert frames.own_hz == pytest.approx(16)
    assert [frames.due_ns(i) // PERIOD_NS for i in range(6)] == [0, 1, 2, 3, 4, 5]


def test_a_bag_without_images_is_one_line(tmp_path):
    from egoedit_ros.data.bag_writer import BagWriter

    with BagWriter(tmp_path / "bag") as writer:
        writer.add_topic("/note", "std_msgs/msg/String")
        note = cdr.typestore().types["std_msgs/msg/String"](data="x")
        writer.write("/note", START_NS, cdr.serialize(note, "std_msgs/msg/String"))
    with pytest.raises(UserError, match="image"):
        load_frames(tmp_path / "bag")
