# SPDX-License-Identifier: Apache-2.0
import json
import signal
import subprocess
import time

import numpy as np
import pytest
from replay_support import (
    FRAME_ID,
    SAMPLES,
    START_NS,
    command,
    environment,
    psnr,
    write_bag,
    write_video,
)
from rosbags.rosbag2 import StoragePlugin, Writer

from egoedit_ros.cli import main as cli
from egoedit_ros.data import cdr
from egoedit_ros.data.bags import BagReader
from egoedit_ros.data.source import open_source
from egoedit_ros.data.video import VideoReader
from egoedit_ros.stream.images import area_resize

NULL = ("--model", "null", "--size", "32x24")


def run(*words) -> int:
    """``egoedit`` in this process."""
    return cli.main([str(word) for word in words])


def test_video_to_video_keeps_every_frame_and_its_time(tmp_path):
    video = write_video(tmp_path / "a.mp4", 11)
    report = tmp_path / "r.json"
    code = run(
        "edit", video, "-i", "make it blue", "-o", tmp_path / "b.mp4", *NULL, "--json", report
    )
    assert code == 0
    before, after = VideoReader(video), VideoReader(tmp_path / "b.mp4")
    assert after.size == (32, 24)
    assert [stamp for stamp, _ in after] == [stamp for stamp, _ in before]
    result = json.loads(report.read_text())
    assert (result["frames_in"], result["frames_out"]) == (11, 11)
    assert len(result["input_sha256"]) == 64


def test_empty_instruction_gives_the_cameras_picture(tmp_path):
    video = write_video(tmp_path / "a.mp4", 6)
    assert run("edit", video, "-i", "", "-o", tmp_path / "b.mp4", *NULL) == 0
    pairs = zip(VideoReader(video), VideoReader(tmp_path / "b.mp4"), strict=True)
    for (_, source), (_, edited) in pairs:
        assert psnr(area_resize(source, (32, 24)), edited) > 30


def test_bag_to_bag_keeps_every_topic_and_adds_the_edit(tmp_path):
    stamps = write_bag(tmp_path / "a", 9, extra=True)
    assert run("edit", tmp_path / "a", "-i", "", "-o", tmp_path / "b", *NULL) == 0
    with BagReader(tmp_path / "a") as before, BagReader(tmp_path / "b") as after:
        old = [(c.topic, t, bytes(d)) for c, t, d in before.messages()]
        new = [(c.topic, t, bytes(d)) for c, t, d in after.messages()]
        edited = [(t, d) for topic, t, d in new if topic == "/camera/image_raw/edited"]
        assert sorted(old) == sorted(m for m in new if m[0] != "/camera/image_raw/edited")
        assert [cdr.stamp_ns(d) for _, d in edited] == stamps
        assert [t for t, _ in edited] == [t for topic, t, _ in old if topic == "/camera/image_raw"]
        message = after.deserialize(edited[3][1], cdr.IMAGE)
        assert (message.width, message.height, message.encoding) == (32, 24, "rgb8")
        assert message.header.frame_id == FRAME_ID
        source = before.deserialize([d for topic, _, d in old if "image" in topic][3], cdr.IMAGE)
        small = area_resize(source.data.reshape(48, 64, 3), (32, 24))
        assert psnr(message.data.reshape(24, 32, 3), small) >= 45


def test_replace_puts_the_edit_in_place_at_the_cameras_size(tmp_path):
    stamps = write_bag(tmp_path / "a", 6, extra=True)
    assert run("edit", tmp_path / "a", "-i", "x", "-o", tmp_path / "b", *NULL, "--replace") == 0
    with BagReader(tmp_path / "b") as reader:
        assert {c.topic for c in reader.connections} == {
            *("/camera/image_raw", "/camera/camera_info", "/note")
        }
        connection = reader.choose_image_topic()
        messages = [d for _, _, d in reader.messages([connection])]
        assert [cdr.stamp_ns(d) for d in messages] == stamps
        assert reader.deserialize(messages[0], cdr.IMAGE).width == 64


def test_compressed_topic_stays_compressed(tmp_path):
    write_bag(tmp_path / "a", 5, topic="/c/image_raw/compressed", compressed=True)
    assert run("edit", tmp_path / "a", "-i", "x", "-o", tmp_path / "b", *NULL) == 0
    source = open_source(tmp_path / "b", "/c/image_raw/compressed/edited")
    assert source.msgtype == cdr.COMPRESSED and source.count == 5
    assert next(source.frames())[1].shape == (24, 32, 3)


def bag_of_jpegs(path, broken, frames):
    """A bag with JPEG pictures on /c, those in ``broken`` not to be read."""
    with Writer(path, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        connection = writer.add_connection("/c", cdr.COMPRESSED, typestore=cdr.typestore())
        write_bag(path.with_name("good"), frames, topic="/c", compressed=True)
        with BagReader(path.with_name("good")) as good:
            for i, (_, time_ns, data) in enumerate(good.messages()):
                wrong = cdr.compressed_cdr(b"\xff\xd8 no jpeg", START_NS, "c")
                writer.write(connection, time_ns, wrong if i in broken else data)


def test_corrupt_pictures_are_counted_and_the_rest_is_edited(tmp_path, capsys):
    bag_of_jpegs(tmp_path / "a", broken=[1], frames=4)
    assert run("edit", tmp_path / "a", "-i", "x", "-o", tmp_path / "b", *NULL) == 0
    assert "1 unreadable" in capsys.readouterr().out
    assert open_source(tmp_path / "b", "/c/edited").count == 3


def test_stamps_that_go_back_lose_nothing(tmp_path):
    stamps = [START_NS, START_NS + 10, START_NS + 10, START_NS - 5, START_NS - 4, START_NS + 20]
    write_bag(tmp_path / "a", stamps=stamps)
    assert run("edit", tmp_path / "a", "-i", "x", "-o", tmp_path / "b", *NULL) == 0
    assert open_source(tmp_path / "b", "/camera/image_raw/edited").stamps == stamps


@pytest.mark.parametrize(
    ("prepare", "words", "message"),
    [
        (lambda p: write_bag(p / "a", 2, more_topics=("/o/image",)), [], "name one with --topic"),
        (lambda p: write_bag(p / "a", 2), ["--topic", "/no"], "no topic /no"),
        (lambda p: write_bag(p / "a", 2, extra=True), ["--topic", "/note"], "not images"),
        (lambda p: (p / "a").mkdir(), [], "not a rosbag2"),
        (lambda p: None, [], "no such file"),
        (lambda p: write_bag(p / "a", 2), ["--model", "no-such-model"], "no-such-model"),
        (lambda p: write_bag(p / "a", 2), ["--size", "12"], "WIDTHxHEIGHT"),
        (lambda p: write_bag(p / "a", 2), ["-i", "again"], "two instructions"),
    ],
)
def test_wrong_input_is_one_line_and_code_2(tmp_path, capsys, prepare, words, message):
    prepare(tmp_path)
    output = tmp_path / "b"
    assert run("edit", tmp_path / "a", "-i", "x", "-o", output, "--model", "null", *words) == 2
    shown = capsys.readouterr().err.strip().splitlines()
    assert message in shown[-1] and shown[-1].startswith("egoedit: error: ")
    assert {p.name for p in tmp_path.iterdir()} <= {"a"}


def test_existing_output_stays_as_it_was(tmp_path):
    video = write_video(tmp_path / "a.mp4", 3)
    output = tmp_path / "b.mp4"
    output.write_text("mine")
    assert run("edit", video, "-i", "x", "-o", output, *NULL) == 2
    assert output.read_text() == "mine"
    assert run("edit", video, "-i", "x", "-o", output, *NULL, "--overwrite") == 0
    assert len(list(VideoReader(output))) == 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_in_the_middle_leaves_nothing_behind(tmp_path, number):
    write_bag(tmp_path / "a", 6000, (160, 120))
    words = ("edit", tmp_path / "a", "-i", "x", "-o", tmp_path / "b", "--model", "null")
    process = subprocess.Popen(command(*words), env=environment(), stderr=subprocess.PIPE)
    parts = []
    while not parts and process.poll() is None:
        parts = list(tmp_path.glob(".b.*.part/b/*.mcap"))
        time.sleep(0.005)
    assert parts, process.stderr.read()
    process.send_signal(number)
    assert process.wait(30) == 130
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_data_bag_makes_a_bag_of_a_video(tmp_path):
    video = write_video(tmp_path / "a.mp4", 7)
    assert run("data", "bag", video, "-o", tmp_path / "b", "--topic", "head/image_raw") == 0
    source = open_source(tmp_path / "b")
    assert (source.topic, source.count) == ("/head/image_raw", 7)
    pairs = zip(source.frames(), VideoReader(video), strict=True)
    for (_, bagged), (_, original) in pairs:
        np.testing.assert_array_equal(bagged, original)
    assert run("data", "bag", video, "-o", tmp_path / "c", "--compressed", "--fps", "10") == 0
    source = open_source(tmp_path / "c")
    assert source.topic == "/image_raw/compressed"
    assert source.fps == pytest.approx(10)


@pytest.mark.skipif(not SAMPLES.is_dir(), reason="no real footage here")
def test_real_footage_frame_for_frame(tmp_path):
    for clip in sorted(SAMPLES.glob("*/source.mp4"))[:2]:
        output = tmp_path / f"{clip.parent.name}.mp4"
        assert run("edit", clip, "-i", "", "-o", output, "--model", "null") == 0
        count = 0
        for (a, source), (b, edited) in zip(VideoReader(clip), VideoReader(output), strict=True):
            assert a == b
            if count % 20 == 0:
                assert psnr(area_resize(source, (256, 192)), edited) >= 30
            count += 1
        assert count == 81


def test_a_good_bag_that_begins_with_broken_pictures_is_edited(tmp_path, capsys):
    bag_of_jpegs(tmp_path / "a", broken=range(5), frames=8)
    assert run("edit", tmp_path / "a", "-i", "x", "-o", tmp_path / "b", *NULL) == 0
    assert "5 unreadable" in capsys.readouterr().out
    assert open_source(tmp_path / "b", "/c/edited").count == 3


def test_a_bag_of_broken_pictures_says_what_is_wrong_with_them(tmp_path, capsys):
    bag_of_jpegs(tmp_path / "a", broken=range(2), frames=2)
    assert run("edit", tmp_path / "a", "-i", "x", "-o", tmp_path / "b", *NULL) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "no picture of /c can be read: " in said and "None" not in said
    assert {p.name for p in tmp_path.iterdir()} <= {"a", "good"}
