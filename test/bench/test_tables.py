# SPDX-License-Identifier: Apache-2.0
"""The published tables and their videos: read, or said what is wrong with them."""

from __future__ import annotations

import pytest
from bench.suite_support import ITEMS, write_table

from egoedit_ros.bench.paper import PUBLISHED_METRICS, published
from egoedit_ros.data.tables import (
    DATA_COLUMNS,
    DATA_TABLE,
    EDITS_COLUMNS,
    EDITS_TABLE,
    VideoFolder,
    read_bench,
)
from egoedit_ros.errors import UserError


def test_the_tables_are_read(tmp_path):
    write_table(tmp_path / EDITS_TABLE, EDITS_COLUMNS, list(ITEMS))
    write_table(tmp_path / DATA_TABLE, DATA_COLUMNS, [("s2", "https://x.org/kitchen.mp4?a=b")])
    items = read_bench(tmp_path)
    assert [i.data_id for i in items] == ["e1", "e2", "e3"]
    assert items[2].instruction == "Turn the video into a depth map."
    assert items[2].url == "https://x.org/kitchen.mp4?a=b" and items[0].url == ""


@pytest.mark.parametrize(
    ("columns", "rows", "said"),
    [
        (EDITS_COLUMNS[:3], [ITEMS[0][:3]], "lacks the columns edit_task, sub_edit_task; it has"),
        (EDITS_COLUMNS, [], "no rows"),
        (EDITS_COLUMNS, [ITEMS[0], ITEMS[0]], "line 3: e1 is there twice"),
        (EDITS_COLUMNS, [("../e", "s", "t", "add", "")], "line 2: data_id is '../e'"),
        (EDITS_COLUMNS, [("", "s", "t", "add", "")], "line 2: data_id is ''"),
    ],
)
def test_what_is_wrong_with_a_table_is_said(tmp_path, columns, rows, said):
    write_table(tmp_path / EDITS_TABLE, columns, rows)
    with pytest.raises(UserError, match=said):
        read_bench(tmp_path)


def test_what_is_no_table(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        read_bench(tmp_path / "nowhere")
    with pytest.raises(UserError, match=f"no {EDITS_TABLE}"):
        read_bench(tmp_path)
    (tmp_path / EDITS_TABLE).write_bytes(b"\xff\xfe\x00nonsense")
    with pytest.raises(UserError, match="UTF-8"):
        read_bench(tmp_path)


def test_videos_are_found_by_id_by_address_and_by_kind(tmp_path):
    write_table(tmp_path / EDITS_TABLE, EDITS_COLUMNS, list(ITEMS))
    write_table(tmp_path / DATA_TABLE, DATA_COLUMNS, [("s2", "https://x.org/v/kitchen.mp4?a=b")])
    one, _, three = read_bench(tmp_path)
    videos = tmp_path / "videos"
    (videos / "more").mkdir(parents=True)
    for name in ("s1.mkv", "more/kitchen.mp4", "s1_depth.mp4", "notes.txt", ".s3.mp4"):
        (videos / name).write_bytes(b"")
    folder = VideoFolder(videos)
    assert len(folder) == 3
    assert folder.source_of(one) == videos / "s1.mkv"
    assert folder.source_of(one, "depth") == videos / "s1_depth.mp4"
    assert folder.source_of(one, "pose") == videos / "s1.mkv"
    assert folder.source_of(three) == videos / "more" / "kitchen.mp4"
    with pytest.raises(UserError, match="no such folder"):
        VideoFolder(tmp_path / "nowhere")


def test_the_papers_rows():
    rows = {r["method"]: r for r in published()}
    assert len(rows) == 8
    assert [rows["EgoEdit-RT"][m] for m in PUBLISHED_METRICS] == [7.71, 19.13, 16.34, 96.41]
    assert rows["StreamDiffusion"]["clip_consistency"] == 86.83 and rows["EgoEdit-RT"]["streaming"]
