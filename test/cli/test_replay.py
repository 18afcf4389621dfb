# SPDX-License-Identifier: Apache-2.0
"""``egoedit replay`` as a user runs it: real nodes as processes, real Fast DDS, real bags."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from replay_support import (
    PERIOD_NS,
    SAMPLES,
    START_NS,
    command,
    egoedit,
    environment,
    picture,
    psnr,
    write_bag,
    write_video,
)

from egoedit_ros.cli.graph import environment as graph_environment
from egoedit_ros.cli.replay import latents_of
from egoedit_ros.data import cdr
from egoedit_ros.data.bag_writer import BagWriter
from egoedit_ros.data.bags import BagReader
from egoedit_ros.data.video import VideoReader
from egoedit_ros.stream.images import area_resize

NULL = ("--model", "null", "--size", "32x24")
FRAMES = 27
# The contract's table "What a replay leaves in its folder".
CONTRACT_KEYS = {
    *("frames_in", "frames_out", "dropped", "fps_in", "fps_out", "first_frame_ms", "latency_ms"),
    *("stages_ms", "jitter_ms", "deadline_ms", "deadline_misses", "instruction_switch_ms"),
    *("model", "size", "chunk_latents", "device", "host", "versions", "input_sha256"),
}


def messages(folder: Path) -> dict[str, list[bytes]]:
    """A replay's recorded messages by topic."""
    found: dict[str, list[bytes]] = {}
    with BagReader(folder / "edited") as reader:
        for connection, _, data in reader.messages():
            found.setdefault(connection.topic, []).append(bytes(data))
    return found


def parsed(data: bytes, msgtype: str):
    return cdr.typestore().deserialize_cdr(data, msgtype)


def report_of(folder: Path) -> dict:
    return json.loads((folder / "report.json").read_text())


@pytest.fixture(scope="module")
def replayed(tmp_path_factory):
    """One replay of a bag with camera_info: unedited, then two instructions."""
    folder = tmp_path_factory.mktemp("replay")
    stamps = write_bag(folder / "bag", FRAMES, extra=True)
    # The quotes, colon and newline must survive the way to the nodes.
    tricky = '1.0:turn "it": into\na cube #2'
    result = egoedit(
        *("replay", folder / "bag", "-i", "", "-i", "0.5:make it blue", "-i", tricky),
        *("-o", folder / "out", *NULL, "--json", folder / "copy.json"),
    )
    assert result.returncode == 0, result.stderr
    return folder, stamps, result


def test_every_frame_comes_out_once_with_its_stamp_in_order(replayed):
    folder, stamps, _ = replayed
    found = messages(folder / "out")
    assert [cdr.stamp_ns(d) for d in found["/edited/image_raw"]] == stamps
    assert [cdr.stamp_ns(d) for d in found["/latency"]] == stamps
    assert [cdr.stamp_ns(d) for d in found["/image_raw"]] == stamps
    report = report_of(folder / "out")
    assert (report["frames_in"], report["frames_out"]) == (FRAMES, FRAMES)
    assert report["dropped"] == {"transport": 0, "policy": 0, "error": 0}


def test_without_an_instruction_it_is_the_cameras_picture(replayed):
    folder, stamps, _ = replayed
    found = messages(folder / "out")
    for source, edited in list(zip(found["/image_raw"], found["/edited/image_raw"], strict=True))[
        :8
    ]:
        before, after = parsed(source, cdr.IMAGE), parsed(edited, cdr.IMAGE)
        small = area_resize(before.data.reshape(48, 64, 3), (32, 24))
        assert psnr(after.data.reshape(24, 32, 3), small) >= 45
        assert after.header.frame_id == before.header.frame_id


def test_camera_info_is_recorded_and_scaled(replayed):
    folder, stamps, _ = replayed
    found = messages(folder / "out")
    infos = [parsed(d, cdr.CAMERA_INFO) for d in found["/camera_info"]]
    assert len(infos) == FRAMES
    scaled = parsed(found["/edited/camera_info"][-1], cdr.CAMERA_INFO)
    assert (scaled.width, scaled.height) == (32, 24)
    assert scaled.k[0] == pytest.approx(infos[0].k[0] / 2)


def test_instructions_switch_where_they_should(replayed):
    folder, stamps, _ = replayed
    found = messages(folder / "out")
    switches = [parsed(d, cdr.ACTIVE_INSTRUCTION) for d in found["/instruction/active"]]
    texts = [switch.text for switch in switches]
    assert texts[-2:] == ["make it blue", 'turn "it": into\na cube #2']
    for switch, seconds in zip(switches[-2:], (0.5, 1.0), strict=True):
        stamp = switch.header.stamp.sec * 10**9 + switch.header.stamp.nanosec
        # The first chunk that begins at or after the instruction: at most one chunk later.
        assert 0 <= stamp - START_NS - seconds * 1e9 < 4 * PERIOD_NS
    assert len(report_of(folder / "out")["instruction_switch_ms"]) == 2


def test_report_has_the_contracts_keys(replayed):
    folder, _, result = replayed
    report = report_of(folder / "out")
    assert set(report) >= CONTRACT_KEYS
    assert json.loads((folder / "copy.json").read_text()) == report
    assert (report["model"], report["size"], report["chunk_latents"]) == ("null", "32x24", 1)
    assert report["interrupted"] is False
    assert report["editor_memory_bytes"] > 0
    assert sum(report["stages_ms"].values()) > 0
    assert set(report["latency_ms"]) == {"p50", "p90", "p95", "p99", "max"}
    assert "27 / 27" in result.stdout


def test_page_and_video_show_it(replayed):
    folder, _, _ = replayed
    page = (folder / "out" / "report.html").read_text()
    assert page.count("<svg") >= 5 and page.count("data:image/jpeg") >= 6
    assert "turn &quot;it&quot;: into" in page
    assert not any(
        outside in page for outside in ('src="http', 'href="http', "url(http", "@import")
    )
    video = VideoReader(folder / "out" / "side_by_side.mp4")
    assert len(list(video)) == FRAMES
    assert video.size[0] > 2 * 384


def test_an_output_that_exists_is_refused_and_the_rest_of_the_folder_is_left_alone(replayed):
    folder, _, _ = replayed
    result = egoedit("replay", folder / "bag", "-i", "x", "-o", folder / "out", *NULL)
    assert result.returncode == 2
    assert "--overwrite" in result.stderr and len(result.stderr.splitlines()) == 1


def test_video_looped_in_real_time(tmp_path):
    write_video(tmp_path / "a.mp4", 9)
    result = egoedit(
        *("replay", tmp_path / "a.mp4", "-i", "x", "-o", tmp_path / "out", *NULL),
        *("--loop", "2", "--policy", "latest", "--output-size", "camera"),
    )
    assert result.returncode == 0, result.stderr
    report, found = report_of(tmp_path / "out"), messages(tmp_path / "out")
    assert report["frames_in"] == 18
    assert report["frames_in"] == report["frames_out"] + sum(report["dropped"].values())
    stamps = [cdr.stamp_ns(d) for d in found["/image_raw"]]
    assert stamps == [10**9 + i * PERIOD_NS for i in range(18)]
    assert parsed(found["/edited/image_raw"][0], cdr.IMAGE).width == 64


def test_compressed_bag_with_chunks_of_three(tmp_path):
    stamps = write_bag(tmp_path / "a", 23, topic="/c/image_raw/compressed", compressed=True)
    result = egoedit(
        *("replay", tmp_path / "a", "-i", "x", "-o", tmp_path / "out", *NULL),
        *("--chunk-latents", "3", "--rate", "4"),
    )
    assert result.returncode == 0, result.stderr
    found = messages(tmp_path / "out")
    assert [cdr.stamp_ns(d) for d in found["/edited/image_raw"]] == stamps
    assert len(found["/image_raw/compressed"]) == 23
    latencies = [parsed(d, cdr.FRAME_LATENCY) for d in found["/latency"]]
    assert [m.chunk_index for m in latencies] == [0] * 9 + [1] * 12 + [2] * 2


def test_frames_that_cannot_be_read_or_change_size_are_counted(tmp_path):
    """Two of an unknown encoding; after 1 + 4 + 2 more a larger picture, which drops those 2."""
    frames = [picture(i) for i in range(9)] + [picture(i, (80, 48)) for i in range(9, 15)]
    with BagWriter(tmp_path / "a") as writer:
        writer.add_topic("/image_raw", cdr.IMAGE)
        for i, rgb in enumerate(frames):
            stamp = START_NS + i * PERIOD_NS
            message = parsed(cdr.image_cdr(rgb, stamp, "c"), cdr.IMAGE)
            message.encoding = "32FC7" if i in (2, 4) else "rgb8"
            writer.write("/image_raw", stamp, cdr.serialize(message, cdr.IMAGE))
    result = egoedit("replay", tmp_path / "a", "-i", "x", "-o", tmp_path / "out", *NULL)
    assert result.returncode == 0, result.stderr
    report = report_of(tmp_path / "out")
    assert (report["frames_in"], report["frames_out"]) == (15, 11)
    assert report["dropped"] == {"transport": 0, "policy": 2, "error": 2}


def child_of(process: subprocess.Popen, node: str) -> int:
    """Process id of a node that the command started, once it runs."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                parent = int(stat.read_text().rpartition(")")[2].split()[1])
                words = (stat.parent / "cmdline").read_text()
            except OSError:
                continue
            if parent == process.pid and f"nodes.{node}_node" in words:
                return int(stat.parent.name)
        time.sleep(0.02)
    raise AssertionError(f"no {node} was started")


def start_long_replay(tmp_path: Path) -> subprocess.Popen:
    """A replay of some minutes, returned when frames are flowing."""
    write_bag(tmp_path / "a", 40, extra=True)
    words = ("replay", tmp_path / "a", "-i", "x", "-o", tmp_path / "out", "--loop", "100", *NULL)
    process = subprocess.Popen(
        command(*words),
        env=environment(),
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    notes = tmp_path / "out" / "logs" / "arrivals.jsonl"
    deadline = time.monotonic() + 60
    while not (notes.exists() and '"/edited/image_raw"' in notes.read_text()):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.05)
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_closes_the_bag_and_writes_the_report(tmp_path, number):
    process = start_long_replay(tmp_path)
    recorder = child_of(process, "recorder")
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    report, found = report_of(tmp_path / "out"), messages(tmp_path / "out")
    assert report["interrupted"] is True
    assert report["frames_out"] == len(found["/edited/image_raw"]) > 0
    assert (tmp_path / "out" / "edited" / "metadata.yaml").exists()
    assert len(list(VideoReader(tmp_path / "out" / "side_by_side.mp4"))) > 0
    assert not Path(f"/proc/{recorder}").exists()


@pytest.mark.parametrize("node", ["recorder", "replay", "editor"])
def test_a_node_that_dies_is_noticed_and_what_was_recorded_stays(tmp_path, node):
    process = start_long_replay(tmp_path)

    os.kill(child_of(process, node), signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1, errors
    last = errors.strip().splitlines()[-1]
    assert f"the {node} was killed by SIGKILL" in last and "what was recorded is in" in last
    report = report_of(tmp_path / "out")
    assert report["interrupted"] is True and node in report["error"]
    assert len(messages(tmp_path / "out")["/edited/image_raw"]) > 0


def test_a_killed_command_leaves_no_nodes(tmp_path):
    process = start_long_replay(tmp_path)
    children = [child_of(process, node) for node in ("recorder", "replay", "editor")]
    process.kill()
    process.communicate(timeout=10)
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in children):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    # The recorder had time to close its bag.
    assert len(messages(tmp_path / "out")["/edited/image_raw"]) > 0


def test_a_model_that_is_not_there_is_wrong_input(tmp_path):
    write_bag(tmp_path / "a", 3)
    result = egoedit("replay", tmp_path / "a", "-i", "x", "-o", tmp_path / "o", "--model", "nope")
    assert result.returncode == 2
    assert "nope" in result.stderr.strip().splitlines()[-1]
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("prepare", "words", "message"),
    [
        (lambda p: (p / "a").mkdir(), (), "not a rosbag2"),
        (lambda p: write_bag(p / "a", 2, more_topics=("/o/i",)), (), "name one with --topic"),
        (lambda p: write_bag(p / "a", 2), ("--topic", "/no"), "no topic /no"),
        (lambda p: write_bag(p / "a", 2, extra=True), ("--topic", "/note"), "not images"),
    ],
)
def test_wrong_input_starts_nothing(tmp_path, prepare, words, message):
    prepare(tmp_path)
    result = egoedit("replay", tmp_path / "a", "-i", "x", "-o", tmp_path / "o", *NULL, *words)
    assert result.returncode == 2
    assert message in result.stderr and len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "o").exists()


def test_an_output_below_a_file_cannot_be_made(tmp_path):
    write_bag(tmp_path / "a", 2)
    (tmp_path / "file").write_text("")
    result = egoedit("replay", tmp_path / "a", "-i", "x", "-o", tmp_path / "file" / "o", *NULL)
    assert result.returncode == 2 and "is a file" in result.stderr


@pytest.mark.skipif(not SAMPLES.is_dir(), reason="no real footage here")
@pytest.mark.parametrize("which", [0, 1])
def test_real_footage_as_a_bag(tmp_path, which):
    clip = sorted(SAMPLES.glob("*/source.mp4"))[which]
    form = ("--size", "640x480") if which == 0 else ("--compressed",)
    assert egoedit("data", "bag", clip, "-o", tmp_path / "bag", *form).returncode == 0
    result = egoedit(
        "replay", tmp_path / "bag", "-i", "", "-o", tmp_path / "out", "--model", "null"
    )
    assert result.returncode == 0, result.stderr
    found, report = messages(tmp_path / "out"), report_of(tmp_path / "out")
    assert (report["frames_in"], report["frames_out"]) == (81, 81)
    with BagReader(tmp_path / "bag") as reader:
        stamps = [cdr.stamp_ns(data) for _, _, data in reader.messages()]
    assert [cdr.stamp_ns(d) for d in found["/edited/image_raw"]] == stamps
    if which == 0:
        for source, edited in list(
            zip(found["/image_raw"], found["/edited/image_raw"], strict=True)
        )[::20]:
            before = parsed(source, cdr.IMAGE).data.reshape(480, 640, 3)
            after = parsed(edited, cdr.IMAGE).data.reshape(192, 256, 3)
            assert psnr(after, area_resize(before, (256, 192))) >= 45


@pytest.mark.parametrize("name", ["logs", "edited"])
def test_what_no_replay_left_is_not_replaced(tmp_path, name):
    write_bag(tmp_path / "a", 2)
    mine = tmp_path / "out" / name / "mine.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    words = ["replay", tmp_path / "a", "-i", "x", "-o", tmp_path / "out", *NULL, "--overwrite"]
    result = egoedit(*words)
    assert result.returncode == 2 and "is not of a replay" in result.stderr
    assert mine.read_text() == "mine"


def test_the_graph_keeps_out_of_the_domain_of_a_robot_that_runs(monkeypatch):
    monkeypatch.setenv("ROS_DOMAIN_ID", "5")
    assert all(graph_environment()["ROS_DOMAIN_ID"] != "5" for _ in range(300))
    assert graph_environment(5)["ROS_DOMAIN_ID"] == "5"


def test_the_length_of_a_chunk_is_read_from_the_model(tmp_path):
    assert (latents_of("edge"), latents_of("null")) == (1, 1)
    (tmp_path / "config.json").write_text('{"chunk_latents": 2}')
    assert latents_of(str(tmp_path)) == 2
    assert latents_of(str(tmp_path / "none")) == 3
