# SPDX-License-Identifier: Apache-2.0
"""Algorithmic edits of footage, made by processes that may die."""

import os
import subprocess
import sys
import time
from pathlib import Path

import crew_support
import numpy as np
import pytest
from crew_support import half_then_die, refuse
from replay_support import environment, picture, write_bag, write_video

from egoedit_ros.cli.main import main
from egoedit_ros.data.algorithmic import RECIPES, TASKS, draw_recipes
from egoedit_ros.data.clip import StoredClip, read_clip, write_stored
from egoedit_ros.data.crew import run_crew
from egoedit_ros.data.footage import Cut, read_windows, starts, thin
from egoedit_ros.data.making import edit_windows
from egoedit_ros.errors import UserError

CUT = Cut(frames=5, size=(64, 48), windows=8)


def pictures(count=6, size=(64, 48)):
    rng = np.random.default_rng(0)
    base = rng.integers(0, 256, (size[1] // 4, size[0] // 4, 3), np.uint8).repeat(4, 0).repeat(4, 1)
    return np.stack([np.roll(base, 2 * i, axis=1) for i in range(count)])


@pytest.mark.parametrize("name", RECIPES)
def test_each_look_changes_the_picture_and_nothing_flickers(name):
    frames = pictures()
    before = frames.copy()
    made = RECIPES[name].run(frames)
    assert made.shape == frames.shape and made.dtype == np.uint8
    assert np.array_equal(frames, before)
    assert np.abs(made.astype(int) - frames).mean() > 4
    # A frame's look depends on that frame alone: what stands still, stands still.
    assert np.array_equal(RECIPES[name].run(frames[3:4])[0], made[3])


def test_looks_are_what_they_say():
    gray = np.full((1, 48, 64, 3), 128, np.uint8)
    mean = {n: RECIPES[n].run(gray).mean((0, 1, 2)) for n in ("warm", "cold", "night", "sepia")}
    assert mean["warm"][0] > mean["warm"][2] and mean["cold"][2] > mean["cold"][0]
    assert mean["night"].mean() < 60 and mean["night"].argmax() == 2
    assert mean["sepia"][0] > mean["sepia"][1] > mean["sepia"][2]
    sketch = RECIPES["canny"].run(pictures())
    assert set(np.unique(sketch)) == {0, 255}
    rough = pictures(2, (256, 192))
    steps = [
        np.abs(np.diff(frames.astype(int), axis=2)).mean()
        for frames in (rough, RECIPES["blur"].run(rough), RECIPES["strong_blur"].run(rough))
    ]
    assert steps[0] > 2 * steps[1] > 4 * steps[2]
    assert len(np.unique(RECIPES["pixel_art"].run(rough))) <= 6


def test_wording_varies_and_the_unseen_is_never_drawn():
    drawn = [draw_recipes(np.random.default_rng(i), 3) for i in range(400)]
    texts = {t.lower().rstrip(".") for one in drawn for _, t in one}
    unseen = {t.lower().rstrip(".") for r in RECIPES.values() for t in r.unseen}
    assert len(texts) > 60 and not texts & unseen
    assert {r.task for one in drawn for r, _ in one} == set(TASKS)
    assert all(len({r.task for r, _ in one}) == 3 for one in drawn)
    held_out = draw_recipes(np.random.default_rng(0), 3, held_out=True)
    assert {t.lower().rstrip(".") for _, t in held_out} <= unseen


def test_footage_is_thinned_and_cut():
    assert thin([i * 33_333_333 for i in range(12)], 16) == [0, 2, 4, 6, 8, 9, 11]
    assert thin([i * 100_000_000 for i in range(5)], 16) == [0, 1, 2, 3, 4]
    assert starts(20, Cut(frames=5, windows=8)) == [0, 5, 10, 15]
    assert starts(100, Cut(frames=5, windows=3)) == [0, 47, 95]
    assert starts(4, Cut(frames=5)) == [0, 1, 2, 3] and starts(0, Cut()) == []
    with pytest.raises(UserError, match="give 1, 5, 9"):
        Cut(frames=6)


def test_windows_of_a_bag_and_of_a_video_are_its_frames(tmp_path):
    write_bag(tmp_path / "bag", 11)
    windows = list(read_windows(tmp_path / "bag", None, CUT))
    assert len(windows) == 2
    assert all(np.array_equal(windows[1][i], picture(5 + i)) for i in range(5))
    video = write_video(tmp_path / "a.mp4", 11)
    assert [w.shape for w in read_windows(video, None, CUT)] == [(5, 48, 64, 3)] * 2


def test_the_same_seed_gives_the_same_clips(tmp_path):
    write_bag(tmp_path / "bag", 11)
    one, other = (edit_windows(tmp_path / "bag", None, CUT, 3, seed=4) for _ in range(2))
    assert [c.instructions for c in one] == [c.instructions for c in other]
    assert all(np.array_equal(a.targets[2], b.targets[2]) for a, b in zip(one, other, strict=True))
    assert [c.instructions for c in edit_windows(tmp_path / "bag", None, CUT, 3, seed=5)] != [
        c.instructions for c in one
    ]


def test_the_command_goes_on_and_names_what_it_leaves_out(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    write_bag(tmp_path / "in" / "bag", 11)
    write_video(tmp_path / "in" / "a.mp4", 6)
    (tmp_path / "in" / "broken.mp4").write_bytes(b"nonsense")
    words = ["data", "algorithmic", str(tmp_path / "in"), "-o", str(tmp_path / "out")]
    words += ["--frames", "5", "--size", "64x48", "--edits", "2", "--workers", "2"]
    assert main(words) == 0
    said = capsys.readouterr()
    assert "left out" in said.err and "broken.mp4 cannot be read as a video" in said.err
    paths = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(paths) == 3 and "3 clips" in said.out
    clip = read_clip(paths[0])
    assert len(clip.targets) == 2 and set(clip.tasks) <= set(TASKS) and clip.hand is None
    made = {p.name: p.stat().st_mtime_ns for p in paths}
    paths[1].unlink()
    assert main(words) == 0
    again = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("*.safetensors")}
    # The input whose first clip was missing is made again, the other is not.
    assert again.keys() == made.keys()
    assert [again[n] != made[n] for n in sorted(made)] == [False, True, True]
    assert main([*words, "--seed", "3"]) == 2
    assert "was made with seed 0, not 3" in capsys.readouterr().err
    assert main([*words, "--tasks", "waltz"]) == 2
    assert "no algorithmic task 'waltz'" in capsys.readouterr().err


def test_a_worker_that_dies_gives_one_line_and_what_it_wrote_is_kept(tmp_path):
    done = []
    with pytest.raises(UserError, match="ended with code -9; what it wrote is kept") as caught:
        for number in run_crew(half_then_die, tmp_path, [0, 1, 2, 3], 1):
            done.append(number)
    assert "\n" not in str(caught.value) and done == [0, 1]
    assert [read_clip(p).seed for p in sorted(tmp_path.glob("*.safetensors"))] == [0, 1]
    with pytest.raises(UserError, match="^no room left$"):
        list(run_crew(refuse, "no room left", [1], 1))


def test_of_a_parent_that_is_killed_no_worker_stays_behind(tmp_path):
    parent = subprocess.Popen([sys.executable, crew_support.__file__, str(tmp_path)])
    assert _comes((tmp_path / "pid").exists, 60)
    worker = int((tmp_path / "pid").read_text())
    os.kill(worker, 0)  # it is there
    parent.kill()
    parent.wait()
    assert _comes(lambda: not _lives(worker), 30)


def _comes(condition, seconds):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


def _lives(process):
    """Whether it runs: an ended one that nobody waited for does not."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except FileNotFoundError:
        return False


def test_a_clip_without_a_hand_and_of_odd_width_comes_back(tmp_path):
    frames = pictures(5)[:, :, :61]
    hand = frames[..., 0] > 128
    for number, mask in ((0, None), (1, hand)):
        write_stored(tmp_path, StoredClip(number, ["t"], ["do"], frames, [frames], mask, "here"))
        clip = read_clip(tmp_path / f"{number:08d}.safetensors")
        assert np.array_equal(clip.source, frames) and clip.origin == "here"
        assert clip.hand is None if mask is None else np.array_equal(clip.hand, hand)


def test_a_file_that_cannot_be_written_is_said_and_leaves_nothing_half(tmp_path):
    """A limit on the size of files stands for a full disk."""
    write_bag(tmp_path / "bag", 11)
    code = (
        "import resource, sys\n"
        "from egoedit_ros.cli.main import main\n"
        "if __name__ == '__main__':\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))\n"
        "    sys.exit(main(sys.argv[1:]))"
    )
    script = tmp_path / "full.py"
    script.write_text(code)
    words = ["data", "algorithmic", tmp_path / "bag", "-o", tmp_path / "out", "--size", "64x48"]
    made = subprocess.run(
        [sys.executable, script, *words, "--frames", "5", "--edits", "1", "--workers", "1"],
        capture_output=True, text=True, timeout=120, env=environment(),
    )  # fmt: skip
    last = made.stderr.strip().splitlines()[-1]
    assert made.returncode == 2 and "cannot write" in last and "make room" in last
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["made.json"]
