# SPDX-License-Identifier: Apache-2.0
"""EgoEditData as published: what is good becomes clips, what is not is named with its line."""

import csv
import json

import cv2
import numpy as np
import pytest
from replay_support import picture, psnr

from egoedit_ros.cli.main import main
from egoedit_ros.data.clip import read_clip
from egoedit_ros.data.footage import Cut
from egoedit_ros.data.importing import ImportReport, import_pairs
from egoedit_ros.data.tables import PAIRS_COLUMNS, PAIRS_DATA_TABLE, PAIRS_TABLE
from egoedit_ros.data.video import VideoWriter
from egoedit_ros.errors import UserError

CUT = Cut(frames=5, size=(64, 48), windows=2)


def write_table(path, columns, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])


def video(path, frames=13, size=(64, 48), shift=0):
    with VideoWriter(path, size, 16) as writer:
        for i in range(frames):
            writer.write(i * 62_500_000, picture(i + shift, size))


@pytest.fixture
def published(tmp_path):
    """A set in the published form: three good pairs, and one of each fault."""
    folder = tmp_path / "egoeditdata"
    (folder / "videos" / "deep").mkdir(parents=True)
    videos = folder / "videos"
    video(videos / "real1.mp4")
    video(videos / "synth1.mp4", shift=9)
    video(videos / "deep" / "kitchen.mp4", shift=18)
    video(videos / "short.mp4", frames=7)
    video(videos / "large.mp4", size=(96, 48))
    (videos / "broken.mp4").write_bytes(b"\x00\x00\x00 ftypisom nonsense")
    cut = (videos / "synth1.mp4").read_bytes()
    (videos / "halved.mp4").write_bytes(cut[: len(cut) // 2])
    (videos / "empty.mp4").write_bytes(b"")
    rows = [
        ("p1", "real1", "synth1", "turn the mug, slowly, into a cactus"),
        ("p2", "synth1", "real1", "give me the mug back"),
        ("p3", "real1", "s2", "set it on fire"),
        ("p4", "real1", "nowhere", "make it blue"),
        ("p5", "real1", "synth1", "  "),
        ("p6", "real1", "short", "shorter"),
        ("p7", "real1", "large", "larger"),
        ("p8", "real1", "broken", "broken"),
        ("p9", "real1", "halved", "half"),
        ("p10", "real1", "empty", "nothing"),
        ("p1", "real1", "synth1", "twice"),
        ("p11", "", "synth1", "of nothing"),
    ]
    write_table(folder / PAIRS_TABLE, PAIRS_COLUMNS, rows)
    urls = [("s2", "https://x.org/v/kitchen.mp4?sig=1"), ("real1", "https://x.org/a.mp4")]
    write_table(folder / PAIRS_DATA_TABLE, ("data_id", "data_url"), urls)
    return folder


def run(published, output, workers=1):
    report = ImportReport()
    list(import_pairs(published, published / "videos", output, CUT, workers, report))
    return report


def test_good_pairs_become_clips_and_faults_are_named(published, tmp_path):
    report = run(published, tmp_path / "out")
    kinds = {p.data_id: p.kind for p in report.problems if p.line < 12}
    assert kinds == {
        "p4": "missing", "p5": "instruction", "p6": "length", "p7": "size",
        "p8": "corrupt", "p9": "corrupt", "p10": "corrupt",
    }  # fmt: skip
    assert [p.kind for p in report.problems if p.line >= 12] == ["row", "row"]
    said = {p.data_id: p.what for p in report.problems}
    assert "nowhere" in said["p4"] and "13" in said["p6"] and "7 frames" in said["p6"]
    assert "64x48" in said["p7"] and "96x48" in said["p7"]
    assert report.rows == 12 and report.used == 3

    clips = [read_clip(p) for p in sorted((tmp_path / "out").glob("*.safetensors"))]
    texts = {t for c in clips for t in c.instructions}
    assert texts == {
        "turn the mug, slowly, into a cactus", "give me the mug back", "set it on fire",
    }  # fmt: skip
    assert len(clips) == report.clips == 4  # two sources of two windows
    first = next(c for c in clips if "turn the mug, slowly, into a cactus" in c.instructions)
    assert first.source.shape == (5, 48, 64, 3) and first.hand is None
    assert psnr(first.source[2], picture(2)) > 28
    target = first.targets[first.instructions.index("turn the mug, slowly, into a cactus")]
    assert psnr(target[2], picture(11)) > 28


def test_a_second_run_adds_what_was_missing_and_nothing_else(published, tmp_path):
    output = tmp_path / "out"
    before = run(published, output)
    made = {p.name: p.stat().st_mtime_ns for p in output.glob("*.safetensors")}
    again = run(published, output)
    assert {p.name: p.stat().st_mtime_ns for p in output.glob("*.safetensors")} == made
    assert (again.used, again.clips, again.counts()) == (
        before.used, before.clips, before.counts(),
    )  # fmt: skip
    video(published / "videos" / "nowhere.mp4", shift=3)
    third = run(published, output)
    assert third.used == 4 and "missing" not in third.counts()
    texts = [t for p in output.glob("*.safetensors") for t in read_clip(p).instructions]
    assert texts.count("make it blue") == 2 and texts.count("set it on fire") == 2


def test_another_cut_is_refused_with_its_name(published, tmp_path):
    run(published, tmp_path / "out")
    with pytest.raises(UserError, match="made with frames 5, not 9"):
        other = Cut(frames=9, size=(64, 48), windows=2)
        list(import_pairs(published, published / "videos", tmp_path / "out", other, 1))


def test_the_command_reports_and_checks_without_writing(published, tmp_path, capsys):
    words = ["data", "import", str(published), "--check", "--size", "64x48", "--workers", "1"]
    assert main([*words, "--json", str(tmp_path / "report.json")]) == 0
    out = capsys.readouterr().out
    assert "line 5 (p4): no video for nowhere" in out
    assert "3 files that cannot be read to their end" in out and "3 of 12 pairs" in out
    content = json.loads((tmp_path / "report.json").read_text())
    assert content["used"] == 3 and content["problems"]["size"] == 1
    assert len(content["list"]) == 9
    assert not list(tmp_path.rglob("*.safetensors"))


def test_other_columns_no_tables_and_nothing_usable(published, tmp_path, capsys):
    write_table(published / PAIRS_TABLE, ("id", "video"), [("a", "b")])
    words = ["data", "import", str(published), "-o", str(tmp_path / "out")]
    assert main(words) == 2
    assert "lacks the columns data_id, source_data_id" in capsys.readouterr().err
    write_table(published / PAIRS_TABLE, PAIRS_COLUMNS, [("a", "b", "c", "d")])
    assert main(words) == 2
    assert "none of 1 pairs is usable; line 2 (a): no video for b and c" in capsys.readouterr().err
    assert main(["data", "import", str(tmp_path / "no"), "--check"]) == 2
    assert "no such folder" in capsys.readouterr().err
    assert main(["data", "import", str(published)]) == 2
    assert "-o FOLDER" in capsys.readouterr().err


def test_image_edits_are_clips_of_one_frame(tmp_path):
    for name, shift in (("a", 0), ("b", 7)):
        cv2.imwrite(str(tmp_path / f"{name}.png"), picture(shift)[..., ::-1])
    write_table(tmp_path / PAIRS_TABLE, PAIRS_COLUMNS, [("e", "a", "b", "make it bluer")])
    report = ImportReport()
    list(import_pairs(tmp_path, tmp_path, tmp_path / "out", CUT, 1, report))
    clip = read_clip(tmp_path / "out" / "00000000.safetensors")
    assert clip.source.shape == (1, 48, 64, 3)
    assert np.array_equal(clip.source[0], picture(0))
    assert np.array_equal(clip.targets[0][0], picture(7))
    assert report.used == 1
