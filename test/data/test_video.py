# SPDX-License-Identifier: Apache-2.0
from fractions import Fraction

import numpy as np
import pytest
from replay_support import picture, psnr, write_video

from egoedit_ros.data.video import VideoReader, VideoWriter
from egoedit_ros.errors import UserError


def test_pictures_and_colours_survive(tmp_path):
    size = (96, 64)
    path = write_video(tmp_path / "a.mp4", 5, size)
    read = list(VideoReader(path))
    assert len(read) == 5
    for i, (_, rgb) in enumerate(read):
        assert rgb.shape == (64, 96, 3)
        assert psnr(rgb, picture(i, size)) > 32


def test_uneven_timing_is_kept_to_the_nanosecond(tmp_path):
    stamps = [0, 62_500_000, 125_000_000, 500_000_000, 562_500_000]
    with VideoWriter(tmp_path / "a.mp4", (64, 48), 16, Fraction(1, 16_000)) as writer:
        for i, stamp in enumerate(stamps):
            writer.write(stamp, picture(i))
    reader = VideoReader(tmp_path / "a.mp4")
    assert [stamp for stamp, _ in reader] == stamps
    assert reader.stamps() == stamps


@pytest.mark.parametrize("size", [(1, 1), (33, 17), (64, 47)])
def test_odd_sizes_get_one_repeated_row_or_column(tmp_path, size):
    write_video(tmp_path / "a.mp4", 2, size)
    reader = VideoReader(tmp_path / "a.mp4")
    assert reader.size == tuple(side + side % 2 for side in size)


def test_stamps_that_repeat_do_not_stop_the_writer(tmp_path):
    with VideoWriter(tmp_path / "a.mp4", (64, 48), 16) as writer:
        for stamp in (0, 0, 10**9, 5 * 10**8):
            writer.write(stamp, picture(0))
    stamps = [stamp for stamp, _ in VideoReader(tmp_path / "a.mp4")]
    assert len(stamps) == 4 and stamps == sorted(set(stamps))


def test_a_failure_leaves_no_file(tmp_path):
    with pytest.raises(RuntimeError), VideoWriter(tmp_path / "a.mp4", (64, 48)) as writer:
        writer.write(0, picture(0))
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_truncated_video_gives_the_frames_before_the_cut(tmp_path):
    path = write_video(tmp_path / "a.mp4", 60, (160, 120))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 3 // 4])
    frames = list(VideoReader(path))
    assert 0 < len(frames) < 60
    assert [s for s, _ in frames] == sorted(s for s, _ in frames)


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "no such file"), (b"", "empty"), (b"this is text, not video" * 50, "cannot be read")],
)
def test_what_is_no_video_says_so(tmp_path, content, words):
    path = tmp_path / "a.mp4"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=words):
        VideoReader(path)


def test_sound_alone_is_no_video(tmp_path):
    import av

    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(UserError, match="no video stream"):
        VideoReader(path)
