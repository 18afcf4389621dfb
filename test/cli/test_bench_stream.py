# SPDX-License-Identifier: Apache-2.0
"""``egoedit bench stream`` as a user runs it: real processes, real Fast DDS, short."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from replay_support import START_NS, command, egoedit, environment, write_bag

from egoedit_ros.cli.bench_stream import _join_theirs as join_theirs
from egoedit_ros.cli.graph import environment as graph_environment
from egoedit_ros.data import cdr
from egoedit_ros.data.bag_writer import BagWriter

NULL = ("--model", "null", "--size", "32x24")
SHORT = ("--runs", "2", "--seconds", "1", "--no-search", "--switches", "3")
CONTRACT_KEYS = {
    *("peak_fps", "fixed", "ros_overhead_ms", "passthrough_ms", "graph_minus_direct_ms"),
    *("instruction_switch_ms", "host", "versions", "git_revision", "command", "config"),
    *("input_sha256", "schema"),
}
REPORT_KEYS = {
    *("frames_in", "frames_out", "dropped", "fps_in", "fps_out", "first_frame_ms", "latency_ms"),
    *("stages_ms", "jitter_ms", "deadline_ms", "deadline_misses", "instruction_switch_ms", "runs"),
    *("model", "size", "chunk_latents", "device", "host", "versions", "input_sha256"),
}


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """One short benchmark with everything but the search."""
    folder = tmp_path_factory.mktemp("stream")
    write_bag(folder / "bag", frames=20)
    done = egoedit(
        *("bench", "stream", folder / "bag", *NULL, *SHORT, "--rates", "20,own", "--limit", "50"),
        *("--json", folder / "out.json", "--html", folder / "out.html"),
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return folder, json.loads((folder / "out.json").read_text()), done.stdout


def test_the_contract_is_kept(measured):
    _, content, _ = measured
    assert set(content) >= CONTRACT_KEYS
    assert list(content["fixed"]) == ["20", "own"]
    for figures in content["fixed"].values():
        assert set(figures) >= REPORT_KEYS
        assert set(figures["latency_ms"]) == {"p50", "p90", "p95", "p99", "max"}
        assert len(figures["runs"]) == 2 and figures["chunk_latents"] == 1
        for one in figures["runs"]:
            # On a machine that is busy with other things a frame may well be lost.
            assert one["frames_in"] - one["frames_out"] == sum(one["dropped"].values())
            assert one["frames_out"] > 0 and set(one["dropped"]) == {"transport", "policy", "error"}
    assert content["fixed"]["20"]["frames_in"] == 20 and content["own_hz"] == pytest.approx(16)
    assert content["peak_fps"] is None  # not looked for
    assert content["ros_overhead_ms"]["p50"] > 0 and content["passthrough_ms"]["p50"] > 0
    assert content["graph_minus_direct_ms"] is not None
    assert len(content["switches"]["ms"]) == 3 and content["instruction_switch_ms"]["p95"] > 0
    assert content["config"]["model"] == "null" and content["config"]["size"] == "32x24"


def test_processes_are_watched_with_an_idle_baseline(measured):
    _, content, _ = measured
    assert set(content["idle"]) == {"editor", "bench"} == set(content["fixed"]["20"]["usage"])
    assert content["fixed"]["20"]["usage"]["editor"]["memory_bytes"] > 10 << 20


def test_the_baselines_are_those_of_the_contract(measured):
    _, content, _ = measured
    assert content["baseline"]["converter"] in ("numpy", "cv_bridge")
    null = content["baseline"]["null"]["runs"][0]
    assert null["frames_in"] == 30  # 30 Hz for one second
    assert content["limit"]["rate"] == 50 and content["limit"]["limited_by"] in (
        *("", "graph", "player"),
    )


def test_table_and_page(measured):
    folder, _, printed = measured
    for word in ("ROS overhead, null model", "plain pass-through node", "| 20 Hz |"):
        assert word in printed
    page = (folder / "out.html").read_text()
    assert page.count("<svg") >= 8
    for word in ("Latency of each frame", "Distribution", "By stage", "Where the frames went"):
        assert word in page
    assert "<script" not in page and "http" not in page.split("</style>")[1].split("<svg")[0]


def test_two_results_can_be_compared(measured):
    folder, _, _ = measured
    done = egoedit("bench", "compare", folder / "out.json", folder / "out.json")
    assert done.returncode == 0 and "0 better, 0 worse" in done.stdout


def test_a_node_that_runs_already(tmp_path):
    """The search too, of a node that is not ours to start."""
    write_bag(tmp_path / "bag", frames=8)
    words = [sys.executable, "-m", "egoedit_ros.nodes.passthrough_node", "--ros-args"]
    words += ["-r", "image_raw:=/their/camera", "-r", "edited/image_raw:=/their/picture"]
    theirs = subprocess.Popen(words, env=environment())
    try:
        done = egoedit(
            *("bench", "stream", tmp_path / "bag", "--image-topic", "/their/camera"),
            *("--output-topic", "/their/picture", "--rates", "20", "--runs", "1"),
            *("--seconds", "1", "--most", "20", "--no-baselines", "--wait", "60"),
            *("--json", tmp_path / "out.json"),
            timeout=200,
        )
    finally:
        theirs.terminate()
        theirs.wait()
    assert done.returncode == 0, done.stderr[-2000:]
    content = json.loads((tmp_path / "out.json").read_text())
    assert content["search"]["probes"][0]["rate"] == 16
    assert content["fixed"]["20"]["frames_in"] == 20
    assert content["config"]["model"] is None and content["ros_overhead_ms"] is None
    assert content["output_topic"] == "/their/picture"
    assert content["fixed"]["20"]["size"] == "64x48"


@pytest.mark.parametrize("domain", ["7", "101"])
def test_baselines_keep_out_of_the_domain_of_a_node_that_runs(monkeypatch, domain):
    monkeypatch.setenv("ROS_DOMAIN_ID", domain)
    monkeypatch.delenv("ROS_AUTOMATIC_DISCOVERY_RANGE")
    own = graph_environment()
    theirs = {"ROS_DOMAIN_ID": "55", "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}
    assert own["ROS_DOMAIN_ID"] != domain
    join_theirs(theirs)
    # Their node may be on another machine.
    assert theirs == {"ROS_DOMAIN_ID": domain}


def one_line(done: subprocess.CompletedProcess, *words: str) -> None:
    assert done.returncode == 2, done.stderr[-2000:]
    last = done.stderr.strip().splitlines()[-1]
    assert last.rpartition("\r")[2].startswith("egoedit: error: ")
    for word in words:
        assert word in last


def test_nobody_there(tmp_path):
    write_bag(tmp_path / "bag")
    words = ("--image-topic", "/no/one", "--output-topic", "/no/picture", "--wait", "1")
    done = egoedit("bench", "stream", tmp_path / "bag", *words, timeout=100)
    one_line(done, "nobody publishes /no/picture")


def test_wrong_input_is_one_line(tmp_path):
    bag = tmp_path / "bag"
    write_bag(bag)
    one_line(egoedit("bench", "stream", tmp_path / "none"), "no such file")
    one_line(egoedit("bench", "stream", bag, "--topic", "/x"), "/x")
    one_line(egoedit("bench", "stream", bag, "--rates", "quick"), "'quick'")
    one_line(egoedit("bench", "stream", bag, "--image-topic", "/a"), "both")
    (tmp_path / "out.html").touch()
    one_line(egoedit("bench", "stream", bag, "--html", tmp_path / "out.html"), "exists")


def test_a_bag_without_images_and_a_model_that_is_not_there(tmp_path):
    with BagWriter(tmp_path / "text") as writer:
        writer.add_topic("/note", "std_msgs/msg/String")
        note = cdr.typestore().types["std_msgs/msg/String"](data="x")
        writer.write("/note", START_NS, cdr.serialize(note, "std_msgs/msg/String"))
    one_line(egoedit("bench", "stream", tmp_path / "text"), "image")
    write_bag(tmp_path / "bag")
    one_line(egoedit("bench", "stream", tmp_path / "bag", "--model", "no/such"), "no model at")


def test_an_interrupted_benchmark_leaves_no_process_and_no_file(tmp_path):
    write_bag(tmp_path / "bag")
    out = tmp_path / "out.json"
    env = environment() | {"TMPDIR": str(tmp_path)}
    words = command("bench", "stream", tmp_path / "bag", *NULL, "--json", out)
    running = subprocess.Popen(words, env=env, stderr=subprocess.PIPE, text=True)
    try:
        end = time.monotonic() + 100
        while not list(tmp_path.glob("egoedit_bench_*/graph/events.jsonl")):
            assert time.monotonic() < end and running.poll() is None
            time.sleep(0.05)
        nodes = [
            int(p)
            for p in os.listdir("/proc")
            if p.isdigit() and str(tmp_path) in _command_line(p) and int(p) != running.pid
        ]
        assert len(nodes) >= 2
        running.send_signal(signal.SIGINT)
        running.communicate(timeout=100)
    finally:
        running.kill()
        running.wait()
    assert running.returncode == 130 and not out.exists()
    assert not list(tmp_path.glob("egoedit_bench_*"))
    assert not [pid for pid in nodes if str(tmp_path) in _command_line(str(pid))]


def _command_line(pid: str) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read().decode(errors="replace")
    except OSError:
        return ""
