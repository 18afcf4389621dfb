# SPDX-License-Identifier: Apache-2.0
"""``bench edit --suite egoeditbench``, run as a user runs it, on a small benchmark."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from bench.judge_server import JudgeServer, answer
from bench.suite_support import ITEMS, make_bench, moving, write_table, write_video

from egoedit_ros.bench import edit_jobs, egoeditbench
from egoedit_ros.bench.metrics import hands
from egoedit_ros.cli.main import main
from egoedit_ros.data.tables import EDITS_COLUMNS, EDITS_TABLE


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return make_bench(tmp_path_factory.mktemp("bench"))


@pytest.fixture
def bench(whole, tmp_path, monkeypatch) -> Path:
    # There are no hands in these pictures to be looked for.
    monkeypatch.setattr(hands, "missing", lambda: "not looked for")
    return Path(shutil.copytree(whole, tmp_path / "bench"))


def command(bench: Path, *more: str) -> tuple[int, dict]:
    out = bench / "out.json"
    words = ["bench", "edit", "--suite", "egoeditbench", "--tables", str(bench / "tables")]
    words += ["--videos", str(bench / "videos"), "--work", str(bench / "work")]
    code = main([*words, *more, "--json", str(out), "--overwrite"])
    return code, json.loads(out.read_text()) if code == 0 else {}


def outputs(bench: Path) -> tuple[str, str]:
    return "--outputs", str(bench / "outputs")


def test_a_folder_of_outputs_is_scored(bench, capsys):
    code, found = command(bench, *outputs(bench), "--name", "theirs")
    assert code == 0
    for key in ("host", "versions", "git_revision", "command", "config", "input_sha256"):
        assert key in found
    assert list(found["tasks"]) == ["Add Object", "Change Object", "Video-to-Depth"]
    assert [i["data_id"] for i in found["items"]] == ["e1", "e2", "e3"]
    values = [t["edit_strength"] for t in found["tasks"].values()]
    assert found["mean"]["edit_strength"] == pytest.approx(np.mean(values))
    assert found["tasks"]["Video-to-Depth"]["background_psnr"] is None
    assert found["mean"]["vlm"] is None and "--judge" in found["unavailable"]["vlm"]
    assert "ViCLIP" in found["unavailable"]["text_alignment"]
    assert found["mean"]["text_alignment"] is None
    assert len(found["published"]) == 8 and not found["problems"]
    printed = capsys.readouterr().out
    assert "EgoEdit-RT" in printed and "theirs" in printed


def test_the_page_shows_frames_worst_first_and_needs_no_network(bench):
    write_video(bench / "outputs" / "e2.mp4", moving(seed=7)[::-1])  # something else altogether
    assert command(bench, *outputs(bench))[0] == 0
    page = (bench / "work" / "report.html").read_text()
    assert page.index("add a spoon") < page.index("turn the ball blue")
    assert page.count("data:image/jpeg") == 3
    assert "http" not in page.replace("https://example.org", "")
    assert "src=" in page and "<link" not in page and "<script src" not in page


def test_videos_that_lack_or_do_not_decode_are_listed_and_the_rest_goes_on(bench, capsys):
    (bench / "videos" / "kitchen.mp4").unlink()
    (bench / "outputs" / "e2.mp4").write_bytes(b"no video")
    code, found = command(bench, *outputs(bench))
    assert code == 0
    problems = {p["data_id"]: p["problem"] for p in found["problems"]}
    assert "no source s2.mp4" in problems["e3"]
    assert "cannot be read" in problems["e2"]
    assert [i["data_id"] for i in found["items"]] == ["e1"]
    assert "problem: e3" in capsys.readouterr().out


def test_nothing_to_score_is_an_error(bench, capsys):
    shutil.rmtree(bench / "outputs")
    (bench / "outputs").mkdir()
    assert command(bench, *outputs(bench))[0] == 2
    assert "no output e1.mp4" in capsys.readouterr().err


def test_missing_columns_and_options_are_errors(bench, capsys):
    write_table(bench / "tables" / EDITS_TABLE, EDITS_COLUMNS[:2], [ITEMS[0][:2]])
    assert command(bench, *outputs(bench))[0] == 2
    assert "lacks the columns" in capsys.readouterr().err
    assert main(["bench", "edit", "--suite", "egoeditbench"]) == 2
    assert "--tables" in capsys.readouterr().err


def test_other_length_size_and_rate_are_compared_and_said(bench):
    frames = moving(seed=1)[:, ::2, ::2]
    write_video(bench / "outputs" / "e1.mp4", frames[:20:2], fps=8)
    code, found = command(bench, *outputs(bench), "--tasks", "change")
    assert code == 0
    (item,) = found["items"]
    assert "80x60 against 160x120" in item["notes"][0]
    assert "10 frames at 8/s against 24 at 16/s; matched by time" in item["notes"][1]
    assert item["background_psnr"] > 20


def test_a_stopped_run_goes_on_where_it_was(bench, monkeypatch):
    _, first = command(bench, *outputs(bench))
    done = []
    score = edit_jobs.score_pair

    def counted(*args):
        done.append(args)
        return score(*args)

    monkeypatch.setattr(edit_jobs, "score_pair", counted)
    _, again = command(bench, *outputs(bench))
    assert not done and again["items"] == first["items"]
    write_video(bench / "outputs" / "e1.mp4", moving(seed=1))
    _, changed = command(bench, *outputs(bench))
    assert len(done) == 1
    assert changed["items"][0]["edit_strength"] < first["items"][0]["edit_strength"]
    kept = bench / "work" / "items" / "e2.json"
    kept.write_text("{")
    command(bench, *outputs(bench))
    assert len(done) == 2


def test_a_model_of_ours_edits_once(bench, monkeypatch):
    made = []
    edit = edit_jobs.edit_video

    def counted(*args):
        made.append(args[1].name)
        return edit(*args)

    monkeypatch.setattr(edit_jobs, "edit_video", counted)
    options = ("--model", "null", "--output-size", "camera", "--limit", "2")
    code, found = command(bench, *options)
    assert code == 0 and len(made) == 2
    for item in found["items"]:
        assert item["edit_strength"] < 1 and item["temporal_error"] == pytest.approx(1, abs=0.1)
        assert item["chunk_jump"] == pytest.approx(1, abs=0.2)
    assert (bench / "work" / "edited" / "e1.mp4").exists()
    command(bench, *options)
    assert len(made) == 2
    command(bench, *options, "--seed", "3")
    assert len(made) == 4
    _, shorter = command(bench, *options, "--seed", "3", "--frames", "9")
    assert len(made) == 6
    note = json.loads((bench / "work" / "edited" / "e1.json").read_text())
    assert note["frames"] == 9


def test_edits_are_made_anew_when_any_file_of_the_model_changes(tmp_path):
    model, beside = tmp_path / "model", tmp_path / "beside"
    for folder in (model / "vae", beside):
        folder.mkdir(parents=True)
    (beside / "net.pt").write_bytes(b"1")
    parts = {"transformer": "../beside/net.pt", "autoencoder": ["vae"], "text_encoder": "gone"}
    (model / "editor.json").write_text(json.dumps(parts))
    (model / "vae" / "weights.pth").write_bytes(b"1")
    (model / "vae" / "config.json").write_text("{}")
    (model / "notes.txt").write_text("1")
    files = [model / "editor.json", *(model / "vae").iterdir(), beside / "net.pt"]
    for name in (model, model / "editor.json"):
        for path in files:
            before = edit_jobs._weights_stat(str(name))
            path.write_text(path.read_text() + " ")
            assert edit_jobs._weights_stat(str(name)) != before, path
        before = edit_jobs._weights_stat(str(name))
        (model / "notes.txt").write_text("other")
        assert edit_jobs._weights_stat(str(name)) == before
    assert edit_jobs._weights_stat("null") == ["null"]


def test_a_model_that_is_not_there_is_an_error_before_any_work(bench, capsys):
    assert command(bench, "--model", str(bench / "nothing"))[0] == 2
    assert "nothing" in capsys.readouterr().err
    assert not (bench / "work" / "items").exists()


@pytest.mark.slow
def test_several_processes_give_what_one_gives(bench):
    _, alone = command(bench, *outputs(bench))
    shutil.rmtree(bench / "work")
    _, together = command(bench, *outputs(bench), "--workers", "2")
    for one, two in zip(alone["items"], together["items"], strict=True):
        assert one["temporal_error"] == two["temporal_error"]
        assert one["background_psnr"] == two["background_psnr"]


def test_the_judge_scores_and_what_it_cannot_judge_is_listed(bench):
    def behave(number, body):
        return answer("no idea") if "spoon" in json.dumps(body) else None

    judge = ("--judge-key-env", "", "--judge-model", "a-judge")
    with JudgeServer(behave).running() as server:
        code, found = command(bench, *outputs(bench), "--judge", server.url, *judge)
        sent = len(server.requests)
        _, again = command(bench, *outputs(bench), "--judge", server.url, *judge)
    assert code == 0
    scores = {i["data_id"]: i["vlm"] for i in found["items"]}
    assert scores == {"e1": 6, "e2": None, "e3": 6}
    assert found["mean"]["vlm"] == 6
    assert [p["data_id"] for p in found["problems"]] == ["e2"]
    assert found["config"]["judge"]["requests"] == sent
    # Only what was not understood is asked again.
    assert all("spoon" in json.dumps(r) for r in server.requests[sent:])
    assert again["items"][0]["vlm"] == 6


def test_no_key_is_an_error_before_any_work(bench, capsys, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert command(bench, *outputs(bench), "--judge", "http://localhost:1/v1")[0] == 2
    assert "OPENAI_API_KEY" in capsys.readouterr().err
    assert not (bench / "work" / "items").exists()


def test_without_network_the_other_figures_are_there(bench, monkeypatch):
    monkeypatch.setattr("egoedit_ros.bench.judge_client.TRIES", 2)
    judge = ("--judge", "http://127.0.0.1:9/v1", "--judge-key-env", "")
    code, found = command(bench, *outputs(bench), *judge)
    assert code == 0 and found["mean"]["vlm"] is None
    assert "refused" in found["unavailable"]["vlm"]
    assert found["mean"]["temporal_error"] is not None


def test_absent_weights_give_no_number(bench):
    code, found = command(bench, *outputs(bench), "--clip", "nobody/nothing", "--limit", "1")
    assert code == 0 and found["mean"]["clip_consistency"] is None
    assert "not available" in found["unavailable"]["clip_consistency"]
    assert "not asked for" in found["unavailable"]["pickscore"]


def test_weights_at_hand_give_the_papers_figures(bench, tmp_path):
    from bench.clip_support import make_clip

    folder = str(make_clip(tmp_path / "clip"))
    more = ("--clip", folder, "--pickscore", folder, "--limit", "1", "--device", "cpu")
    code, found = command(bench, *outputs(bench), *more)
    assert code == 0
    assert 0 < found["mean"]["clip_consistency"] <= 100
    assert found["mean"]["pickscore"] is not None


def test_worst_is_by_rank_and_by_the_judge_where_there_is_one():
    values = dict.fromkeys(egoeditbench.NAMES)
    good = {"values": values | {"background_psnr": 40.0, "temporal_error": 1.0}}
    bad = {"values": values | {"background_psnr": 20.0, "temporal_error": 3.0}}
    assert egoeditbench.badness([good, bad]) == [0.0, 1.0]
    good["values"]["vlm"], bad["values"]["vlm"] = 2.0, 8.0
    assert egoeditbench.badness([good, bad]) == [1.0, 0.0]
    assert egoeditbench.badness([{"values": values}]) == [0.0]
