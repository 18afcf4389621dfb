# SPDX-License-Identifier: Apache-2.0
"""Bags as training data: the right halves under the right words, and nothing that is neither."""

import numpy as np
import pytest
from replay_support import FRAME_ID, PERIOD_NS, START_NS, egoedit, picture, psnr, write_bag

from egoedit_ros.cli.main import main
from egoedit_ros.data import cdr
from egoedit_ros.data.bag_writer import BagWriter
from egoedit_ros.data.clip import read_clip
from egoedit_ros.data.footage import Cut
from egoedit_ros.data.pairs import BagPairs, BagTopics
from egoedit_ros.errors import UserError

CUT = Cut(frames=5, size=(64, 48), windows=8)
LATE = 3 * PERIOD_NS  # the edited frame is recorded so long after its source


def stamp(index):
    return START_NS + index * PERIOD_NS


def edited_bag(
    path, frames=22, active=((0, "make it red"), (10, "make it blue")), drops=(), passed=(),
    kind=cdr.ACTIVE_INSTRUCTION, extra=(),
):  # fmt: skip
    """What a replay leaves: source, edited (its pictures inverted), instructions, latency."""
    types = cdr.typestore().types
    messages = []
    for i in range(frames):
        source = cdr.image_cdr(picture(i), stamp(i), FRAME_ID)
        messages.append((stamp(i), "/image_raw", source))
        for topic in extra:
            messages.append((stamp(i), topic, source))
        if i in drops:
            continue
        edited = cdr.image_cdr(255 - picture(i), stamp(i), FRAME_ID)
        messages.append((stamp(i) + LATE, "/edited/image_raw", edited))
        latency = types[cdr.FRAME_LATENCY](
            header=cdr.make_header(stamp(i), FRAME_ID), frame_index=i, chunk_index=i,
            instruction_id="", outcome=int(i in passed), transport_ms=0.0, buffer_ms=0.0,
            preprocess_ms=0.0, encode_ms=0.0, denoise_ms=0.0, decode_ms=0.0, publish_ms=0.0,
            total_ms=0.0, deadline_missed=False,
        )  # fmt: skip
        messages.append(
            (stamp(i) + LATE + 1, "/latency", cdr.serialize(latency, cdr.FRAME_LATENCY))
        )
    for index, text in active:
        if kind == cdr.ACTIVE_INSTRUCTION:
            # Published when its first frame has gone out, so recorded after that frame.
            made = types[kind](
                header=cdr.make_header(stamp(index), FRAME_ID), id="a", text=text, seed=0,
                chunk_index=0, switch_latency_ms=1.0,
            )  # fmt: skip
            time = stamp(index) + LATE + 2
        else:
            made, time = types[kind](data=text), stamp(index) + LATE - 5
        messages.append((time, "/instruction_text", cdr.serialize(made, kind)))
    with BagWriter(path) as writer:
        for topic in ("/image_raw", "/edited/image_raw", *extra):
            writer.add_topic(topic, cdr.IMAGE)
        writer.add_topic("/latency", cdr.FRAME_LATENCY)
        writer.add_topic("/instruction_text", kind)
        for time, topic, data in sorted(messages, key=lambda m: m[0]):
            writer.write(topic, time, data)
    return path


def indices(clip):
    """Which source frames a clip holds, from the colour that counts them."""
    return [int(frame[0, 0, 2]) // 9 for frame in clip.source]


@pytest.mark.parametrize("kind", [cdr.ACTIVE_INSTRUCTION, "std_msgs/msg/String"])
def test_frames_are_paired_by_stamp_under_the_words_in_force(tmp_path, kind):
    with BagPairs(edited_bag(tmp_path / "a", kind=kind)) as pairs:
        clips = list(pairs.clips(CUT))
    assert [(c.instructions[0], indices(c)) for c in clips] == [
        ("make it red", [0, 1, 2, 3, 4]),
        ("make it red", [5, 6, 7, 8, 9]),
        ("make it blue", [10, 11, 12, 13, 14]),
        ("make it blue", [15, 16, 17, 18, 19]),
    ]
    for clip in clips:
        assert np.array_equal(clip.targets[0], 255 - clip.source)


def test_no_window_spans_a_gap_a_switch_or_a_frame_passed_through(tmp_path):
    bag = edited_bag(tmp_path / "a", frames=30, drops=(6, 7, 8), passed=(16, 17, 18))
    with BagPairs(bag) as pairs:
        found = [indices(c) for c in pairs.clips(CUT)]
    assert found == [[0, 1, 2, 3, 4], [10, 11, 12, 13, 14], [19, 20, 21, 22, 23],
                     [24, 25, 26, 27, 28]]  # fmt: skip


def test_an_empty_instruction_is_no_pair(tmp_path):
    bag = edited_bag(tmp_path / "a", active=((0, ""), (12, "make it blue")))
    with BagPairs(bag) as pairs:
        assert [indices(c) for c in pairs.clips(CUT)] == [
            [12, 13, 14, 15, 16],
            [17, 18, 19, 20, 21],
        ]
    nothing = edited_bag(tmp_path / "b", active=((0, " "),))
    with BagPairs(nothing) as pairs, pytest.raises(UserError, match="no run of 5 edited frames"):
        list(pairs.clips(CUT))


def test_fast_cameras_are_thinned_and_long_bags_sampled(tmp_path):
    bag = edited_bag(tmp_path / "a", frames=28, active=((0, "make it red"),))
    with BagPairs(bag) as pairs:
        slow = [indices(c) for c in pairs.clips(Cut(frames=5, fps=8, size=(64, 48)))]
        few = [indices(c)[0] for c in pairs.clips(Cut(frames=5, size=(64, 48), windows=2))]
    assert slow == [[0, 2, 4, 6, 8], [10, 12, 14, 16, 18]]
    assert few == [0, 20]


def test_what_cannot_be_told_is_asked_for(tmp_path):
    two = edited_bag(tmp_path / "two", extra=("/other/image",))
    with pytest.raises(UserError, match="2 topics could be the source.*--source-topic"):
        BagPairs(two)
    with BagPairs(two, BagTopics(source="/image_raw")) as pairs:
        assert pairs.source.topic == "/image_raw"
    with pytest.raises(UserError, match="/latency carries no instruction; name one"):
        BagPairs(two, BagTopics(source="/image_raw", instruction="/latency"))


def test_the_command_makes_clips_of_good_bags_and_names_the_others(tmp_path, capsys):
    for name in ("a", "b"):
        edited_bag(tmp_path / "bags" / name, frames=12)
    with BagWriter(tmp_path / "bags" / "c") as writer:
        writer.add_topic("/image_raw", cdr.IMAGE)
        writer.write("/image_raw", 1, cdr.image_cdr(picture(0), 1, FRAME_ID))
    words = ["data", "pairs", str(tmp_path / "bags"), "-o", str(tmp_path / "out")]
    words += ["--frames", "5", "--size", "64x48", "--workers", "1"]
    assert main(words) == 0
    said = capsys.readouterr()
    assert "no topic is the edited pictures" in said.err and "bags/c" in said.err
    paths = sorted((tmp_path / "out").glob("*.safetensors"))
    assert f"{len(paths)} clips" in said.out and len(paths) == 4
    assert {read_clip(p).origin.split()[0] for p in paths} == {"a", "b"}
    # Another bag later: what is there keeps its numbers.
    made = {p.name: p.stat().st_mtime_ns for p in paths}
    edited_bag(tmp_path / "bags" / "0", frames=12)
    assert main(words) == 0
    now = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("*.safetensors")}
    assert len(now) == 6 and made.items() <= now.items()


@pytest.mark.ros
def test_what_a_replay_leaves_is_a_training_bag(tmp_path):
    write_bag(tmp_path / "bag", 20, extra=True)
    result = egoedit(
        *("replay", tmp_path / "bag", "-i", "make it blue", "-i", "0.5:make it red"),
        *("-o", tmp_path / "out", "--model", "null", "--size", "64x48"),
    )
    assert result.returncode == 0, result.stderr
    with BagPairs(tmp_path / "out" / "edited") as pairs:
        clips = list(pairs.clips(CUT))
    # Chunks begin at frames 0, 1, 5, 9: second 0.5 is frame 8.
    assert [(c.instructions[0], indices(c)[0]) for c in clips] == [
        ("make it blue", 0),
        ("make it red", 9),
        ("make it red", 14),
    ]
    assert all(psnr(c.source, c.targets[0]) > 40 for c in clips)  # this model changes nothing
