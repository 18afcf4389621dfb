# SPDX-License-Identifier: Apache-2.0
"""The streaming rules: framing, switches, restarts, faults, pictures, latency that adds up."""

import time

import cv2
import numpy as np
import pytest

from egoedit_ros.errors import UserError
from egoedit_ros.stream.editor import StreamEditor
from egoedit_ros.stream.latency import finish
from egoedit_ros.stream.session import ChunkResult, NullSession
from egoedit_ros.stream.types import Frame, Instruction, StreamSettings, parse_size

SIZE = (32, 24)


class InvertingSession(NullSession):
    """Inverts the left half of the picture: an edit that a test can see. Notes what it is told."""

    name = "inverting"

    def __init__(self, size=SIZE, chunk_latents=1):
        super().__init__(size, chunk_latents)
        self.chunks, self.told, self.resets, self.skipped = [], [], 0, []
        self.broken = False

    def set_instruction(self, text, seed):
        self.told.append((text, seed))

    def run(self, frames):
        if self.broken:
            raise RuntimeError("out of memory\nand more")
        assert len(frames) == self.frames_needed
        self.chunks.append(len(frames))
        self._first = False
        edited, mask = frames.copy(), np.zeros(frames.shape[:3], np.uint8)
        half = frames.shape[2] // 2
        edited[:, :, :half] = 255 - edited[:, :, :half]
        mask[:, :, :half] = 255
        return ChunkResult(edited, mask, 0.1, 0.2, 0.3)

    def skip(self, frames):
        assert len(frames) == self.frames_needed
        self.skipped.append(len(frames))
        super().skip(frames)

    def reset(self):
        self.resets += 1
        super().reset()


def frame(stamp, size=(64, 48), value=None):
    rng = np.random.default_rng(stamp)
    image = rng.integers(0, 256, (size[1], size[0], 3), np.uint8)
    if value is not None:
        image[:] = value
    return Frame(stamp, image, time.perf_counter_ns(), token=f"header {stamp}")


def editor_with(text="make it blue", settings=None, **session):
    editor = StreamEditor(InvertingSession(**session), settings)
    if text is not None:
        editor.set_instruction(Instruction("first", text))
    return editor


def push_all(editor, stamps, **kwargs):
    return [e for s in stamps for e in editor.push(frame(s, **kwargs))]


@pytest.mark.parametrize("latents, chunks", [(1, [1, 4, 4]), (3, [9, 12])])
def test_chunks_are_framed_as_wan_frames_them(latents, chunks):
    editor = editor_with(chunk_latents=latents)
    out = push_all(editor, range(sum(chunks)))
    assert editor.session.chunks == chunks
    assert [e.frame.stamp_ns for e in out] == list(range(sum(chunks)))
    assert [e.frame_index for e in out] == list(range(sum(chunks)))
    assert [e.chunk_index for e in out] == [i for i, n in enumerate(chunks) for _ in range(n)]
    assert all(e.edited and e.frame.token == f"header {e.frame.stamp_ns}" for e in out)


def test_flush_sends_what_is_left_and_the_next_frame_begins_a_stream():
    editor = editor_with()
    out = push_all(editor, range(7))
    left = editor.flush()
    assert [e.frame.stamp_ns for e in out + left] == list(range(7))
    assert len(left) == 2 and editor.session.chunks == [1, 4, 4]
    assert editor.flush() == []
    push_all(editor, range(7, 12))
    assert editor.session.chunks == [1, 4, 4, 1, 4]
    assert editor.dropped == 0


def test_an_empty_instruction_passes_the_camera_through():
    editor = editor_with(text=None)
    out = push_all(editor, range(5))
    assert not any(e.edited for e in out) and editor.state == "passthrough"
    for e in out:
        assert np.array_equal(
            e.image, cv2.resize(e.frame.image, SIZE, interpolation=cv2.INTER_AREA)
        )
        assert not e.mask.any()
    editor.set_instruction(Instruction("", "make it blue"))
    assert all(e.edited for e in push_all(editor, range(5, 9)))
    editor.set_instruction(Instruction("", ""))
    assert not any(e.edited for e in push_all(editor, range(9, 13)))
    assert editor.session.skipped == [1, 4, 4] and editor.session.chunks == [4]


def test_bypass_passes_through_and_keeps_the_instruction():
    editor = editor_with()
    push_all(editor, range(1))
    editor.settings.bypass = True
    assert not any(e.edited for e in push_all(editor, range(1, 5)))
    editor.settings.bypass = False
    assert all(e.edited for e in push_all(editor, range(5, 9)))


def test_a_stamped_instruction_acts_at_the_first_chunk_not_before_its_stamp():
    editor = editor_with()
    editor.set_instruction(Instruction("later", "make it red", seed=7, stamp_ns=6))
    out = push_all(editor, range(13))  # chunks begin at 0, 1, 5, 9
    assert [e.instruction.id for e in out] == ["first"] * 9 + ["later"] * 4
    assert [e.frame.stamp_ns for e in out if e.first_of_instruction] == [0, 9]
    assert editor.session.told == [("make it blue", 0), ("make it red", 7)]


def test_an_unstamped_instruction_acts_at_the_next_chunk():
    editor = editor_with()
    push_all(editor, range(3))
    editor.set_instruction(Instruction("next", "make it red"))
    assert {e.instruction.id for e in push_all(editor, range(3, 5))} == {"next"}


def test_of_several_due_the_latest_acts_and_the_others_never_show():
    editor = editor_with(text=None)
    for name, stamp in (("a", 3), ("b", 2), ("c", 3)):
        editor.set_instruction(Instruction(name, name, stamp_ns=stamp))
    out = push_all(editor, range(9))
    assert [e.instruction.id for e in out if e.first_of_instruction] == ["c"]


def test_ids_are_given_where_they_are_missing():
    editor = editor_with(text=None)
    ids = {editor.set_instruction(Instruction("", "x")).id for _ in range(3)}
    assert len(ids) == 3 and "" not in ids


def test_an_instruction_with_reset_begins_the_past_anew_and_loses_no_frame():
    editor = editor_with()
    out = push_all(editor, range(7))
    resets = editor.session.resets
    editor.set_instruction(Instruction("anew", "make it red", reset=True))
    out += push_all(editor, range(7, 10))
    assert editor.session.resets == resets + 1
    assert editor.session.chunks == [1, 4, 1, 4]
    assert [e.frame.stamp_ns for e in out] == list(range(10))


def test_a_stamp_that_goes_back_forgets_the_stream():
    editor = editor_with()
    push_all(editor, (100, 101, 102))
    out = push_all(editor, (5, 6, 7, 8, 9))
    assert [e.frame.stamp_ns for e in out] == [5, 6, 7, 8, 9]
    assert editor.dropped == 2


def test_a_stamp_that_repeats_is_a_frame_like_any_other():
    editor = editor_with()
    out = push_all(editor, (4, 4, 4, 4, 4))
    assert [e.frame.stamp_ns for e in out] == [4] * 5 and editor.dropped == 0


def test_another_size_forgets_the_stream():
    editor = editor_with()
    push_all(editor, (0, 1, 2))
    out = push_all(editor, (3, 4, 5, 6, 7), size=(40, 40))
    assert [e.frame.stamp_ns for e in out] == [3, 4, 5, 6, 7]
    assert editor.dropped == 2


def test_reset_drops_what_is_inside_and_says_how_much():
    editor = editor_with()
    push_all(editor, range(4))
    assert editor.reset() == 3 == editor.dropped
    assert [e.frame.stamp_ns for e in push_all(editor, range(10, 15))] == list(range(10, 15))
    assert editor.instruction.id == "first"


def test_a_fault_passes_the_camera_through_and_tries_again():
    events = []
    session = InvertingSession()
    editor = StreamEditor(session, on_event=events.append)
    editor.set_instruction(Instruction("first", "make it blue"))
    session.broken = True
    out = push_all(editor, range(5))
    assert len(out) == 5 and not any(e.edited for e in out)
    assert editor.state == "fault" and editor.fault == "RuntimeError: out of memory"
    session.broken = False
    out += push_all(editor, range(5, 10))
    assert [e.frame.stamp_ns for e in out] == list(range(10))
    assert out[-1].edited and editor.state == "active"
    assert len([e for e in events if "fault" in e]) == 1 and "works again" in events[-1]
    # The switch is told with the first frame that shows it.
    assert [e.frame.stamp_ns for e in out if e.first_of_instruction] == [5]


def test_a_session_that_cannot_even_reset_does_not_stop_the_frames():
    session = InvertingSession()
    session.broken = True
    session.reset = session.skip = session.run
    editor = StreamEditor(session)
    editor.set_instruction(Instruction("first", "make it blue"))
    out = push_all(editor, range(6)) + editor.flush()
    assert [e.frame.stamp_ns for e in out] == list(range(6))


def test_warm_up_leaves_a_fresh_stream():
    editor = editor_with()
    editor.warm_up()
    editor.session.chunks.clear()
    push_all(editor, range(5))
    assert editor.session.chunks == [1, 4]
    assert editor.session.told[-1] == ("make it blue", 0)


def test_camera_size_keeps_untouched_pixels_bit_for_bit():
    editor = editor_with(settings=StreamSettings(output_size="camera"))
    (e,) = editor.push(frame(0, size=(128, 96)))
    assert e.image.shape == (96, 128, 3) and e.mask.shape == (96, 128)
    assert np.array_equal(e.image[:, 68:], e.frame.image[:, 68:])
    assert not e.mask[:, 68:].any() and (e.mask[:, :60] == 255).all()
    small = cv2.resize(e.frame.image, SIZE, interpolation=cv2.INTER_AREA)
    again = cv2.resize(e.image, SIZE, interpolation=cv2.INTER_AREA)
    assert np.abs(again[:, :14].astype(int) - (255 - small[:, :14])).mean() < 12


def test_camera_size_with_crop_leaves_the_margins_alone():
    editor = editor_with(settings=StreamSettings(output_size="camera", fit="crop"))
    (e,) = editor.push(frame(0, size=(200, 96), value=40))  # the model sees columns 36 to 164
    assert (e.image[:, :36] == 40).all() and (e.image[:, 164:] == 40).all()
    assert (e.image[:, 40:90] == 215).all() and (e.image[:, 110:] == 40).all()


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (3840, 2160)])
@pytest.mark.parametrize("output_size", ["model", "camera"])
@pytest.mark.parametrize("fit", ["stretch", "crop"])
def test_odd_camera_sizes(size, output_size, fit):
    editor = editor_with(settings=StreamSettings(output_size=output_size, fit=fit))
    (e,) = editor.push(frame(0, size=size))
    w, h = size if output_size == "camera" else SIZE
    assert e.image.shape == (h, w, 3) and e.mask.shape == (h, w)


@pytest.mark.parametrize("text", ["make it blue", ""])
def test_stages_add_up_to_the_total(text):
    editor = editor_with(text)
    out = []
    for stamp in range(5):
        f = frame(stamp)
        f.transport_ms = 1.5
        out += editor.push(f)
    for e in out:
        begin = time.perf_counter_ns()
        stages, total = finish(e, begin, begin + 2_000_000)
        assert sum(stages.values()) == pytest.approx(total, abs=1e-6)
        assert stages["publish"] == 2.0 and stages["transport"] == 1.5
        assert min(stages.values()) >= 0.0


def test_same_input_same_output():
    def run():
        editor = editor_with()
        editor.set_instruction(Instruction("b", "other", seed=3, stamp_ns=4))
        return np.stack([e.image for e in push_all(editor, range(11)) + editor.flush()])

    assert np.array_equal(run(), run())


def test_settings_and_sizes_are_checked():
    assert parse_size(" 256x192 ") == (256, 192) and parse_size("") is None
    for bad in ("256", "axb", "0x10", "256x", "-1x5", "9999x9999", "٣x٤"):
        with pytest.raises(UserError):
            parse_size(bad)
    with pytest.raises(UserError, match="fit is 'squeeze'; use one of: stretch, crop"):
        StreamSettings(fit="squeeze")
