# SPDX-License-Identifier: Apache-2.0
"""The GPU check, as far as it goes without one: its error, its measuring and its table."""

import pytest
import torch
from runtime_support import SIZE, small_config, small_model

from egoedit_ros.cli.main import main
from egoedit_ros.model.config import CONFIGS
from egoedit_ros.runtime import gpu_check
from egoedit_ros.runtime.onnx_export import example_inputs
from egoedit_ros.runtime.steps import TorchBackend
from egoedit_ros.stream.edit_session import EditSession

CPU = torch.device("cpu")
GRID = (SIZE[1] // 16, SIZE[0] // 16)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_line_says_so(capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["doctor", "--gpu"]) == 2
    out, err = capfd.readouterr()
    assert len((out + err).strip().splitlines()) == 1 and "no CUDA device" in err
    assert list(tmp_path.iterdir()) == []


def test_parity_sees_what_differs_and_what_does_not():
    model, other = small_model(), small_model(seed=1)
    with torch.no_grad():
        inputs = example_inputs(model, SIZE, 1, 2)
    same = gpu_check.compare_backends(
        TorchBackend(model, GRID), TorchBackend(model, GRID), inputs, CPU
    )
    assert same["ok"] and set(same["max_difference"]) == {"encoder", "denoise_step", "decoder"}
    differs = gpu_check.compare_backends(
        TorchBackend(model, GRID), TorchBackend(other, GRID), inputs, CPU
    )
    assert not differs["ok"]


def test_a_fault_is_noted_in_a_line():
    def fails():
        raise RuntimeError("first\nsecond")

    result = gpu_check.attempt(fails)
    assert result["error"] == "RuntimeError: first" and "second" in result["trace"]


def _only(monkeypatch, **configs):
    monkeypatch.setattr(gpu_check, "CONFIGS", configs)
    monkeypatch.setattr(gpu_check, "get_config", lambda name: configs[name])


def test_configurations_are_measured_or_left_out_with_why(monkeypatch):
    _only(monkeypatch, small=small_config(nfe=2))
    makers = {"eager": lambda model, nfe: EditSession(model, nfe=nfe or None)}
    kept = []
    (row,) = gpu_check.measure_all(
        2**40, CPU, makers, seconds=0.05, keep=lambda rows: kept.append(len(rows))
    )
    assert kept == [1]
    assert row["fps"] > 0 and row["recording_ms"] == 62.5  # one frame at 16 per second
    assert row["first_frame_ms"] > row["recording_ms"]
    assert row["dtype"] == "bfloat16" and row["nfe"] == 2
    (row,) = gpu_check.measure_all(2**20, CPU, makers)
    assert "GiB" in row["left_out"] and "fps" not in row


def test_what_the_paper_measured_has_the_same_columns(monkeypatch):
    _only(monkeypatch, small=small_config(nfe=1))
    makers = {"eager": lambda model, nfe: EditSession(model, nfe=nfe or None)}
    rows = gpu_check.measure_all(2**40, CPU, makers, seconds=0.05)
    rows += [{"configuration": "huge", "backend": "-", "left_out": "needs about 900 GiB of 80"}]
    rows += [{"configuration": "bad", "backend": "tensorrt", "error": "RuntimeError: no"}]
    content = {
        "gpu": {"name": "Some GPU", "memory_bytes": 80 << 30},
        "parity": {"cuda": {"ok": True, "max_difference": {"encoder": 1e-5}},
                   "tensorrt": {"error": "UserError: TensorRT is missing"}},
        "overlap": {"same_frames": True, "alone_ms": 10.0, "overlapped_ms": 5.0},
        "configurations": rows,
        "paper": gpu_check.PAPER,
    }  # fmt: skip
    text = gpu_check.format_report(content)
    for words in ("Some GPU", "855.0", "38.1", "2.00 times", "TensorRT is missing", "900 GiB"):
        assert words in text
    assert gpu_check.PAPER["recording_ms"] == pytest.approx(9e3 / 16, abs=1)


def test_every_configuration_can_be_sized():
    for name in CONFIGS:
        needed = gpu_check.bytes_needed(gpu_check.get_config(name))
        assert needed > 1e6
    assert gpu_check.bytes_needed(gpu_check.get_config("edge")) < 200e6
