# SPDX-License-Identifier: Apache-2.0
import json

import pytest

from egoedit_ros.cli.main import main


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """The slow parts, tested elsewhere, as they are for something small."""
    from egoedit_ros.runtime import plan

    keys = ("recording_ms", "autoencoder_ms", "model_ms")
    row = dict.fromkeys(keys, 1.0)
    implied = {"tokens_per_latent": 1, "implied_flops_per_s": 1, "peak_bf16": 1, "peak_fp8": 1}
    check = {
        "paper": row, "predicted": {"patch_2x2": row, "patch_4x4": row},
        "implied": {"patch_2x2": implied, "patch_4x4": implied},
        "fitted": {"conv": 0.2, "to": "x"},
        "assumed": {"matmul": 0.6, "attention": 0.5, "streaming": 0.8, "launch_us": 4.0},
    }  # fmt: skip
    monkeypatch.setattr(plan, "calibrated", lambda device: device)
    monkeypatch.setattr(plan, "paper_check", lambda: check)


def test_a_plan_is_printed_and_written(tmp_path, capsys):
    path = tmp_path / "plan.json"
    words = ["plan", "--model", "edge", "--no-measure", "--json", str(path)]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "edge at 256x192 on one H100 SXM" in out and "Table 2" in out
    content = json.loads(path.read_text())
    assert content["prediction"]["fps"] > 0
    assert {"host", "versions", "git_revision", "command", "config"} <= set(content)
    assert main(words) == 2  # it exists
    assert main([*words, "--overwrite", "--gpu", "rtx5090"]) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "edge", "--size", "250x192"], "multiples of 16"),
        (["--model", "wan-7b"], "no model called"),
        (["--model", "edge", "--autoencoder", "wan"], "its own autoencoder"),
    ],
)
def test_wrong_input_is_one_line(words, message, capsys):
    assert main(["plan", "--no-measure", *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize("words", [["--gpu", "abacus"], ["--chunk-latents", "0"]])
def test_choices(words):
    with pytest.raises(SystemExit) as end:
        main(["plan", *words])
    assert end.value.code == 2
