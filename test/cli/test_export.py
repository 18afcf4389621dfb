# SPDX-License-Identifier: Apache-2.0
"""``egoedit export`` writes all or nothing, and says in one line what is wrong."""

import json
import os

import pytest
import torch
from runtime_support import SIZE, small_model

from egoedit_ros.cli.main import main
from egoedit_ros.model.checkpoint import save_editor

pytest.importorskip("onnxruntime")
FILES = {"encoder.onnx", "denoise_step.onnx", "decoder.onnx", "export.json"}
WORDS = "x".join(map(str, SIZE))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "bundle"
    model = small_model()
    save_editor(folder, model.config, model.transformer, model.autoencoder)
    return str(folder)


def _error(capfd, *words):
    code = main(["export", *map(str, words)])
    lines = [x for x in capfd.readouterr().err.splitlines() if x.startswith("egoedit: error")]
    assert code == 2 and len(lines) == 1
    return lines[0]


def test_export_writes_files_and_says_how_near_they_are(bundle, tmp_path, capfd):
    out = tmp_path / "onnx"
    words = ["export", "--model", bundle, "-o", str(out), "--size", WORDS, "--chunk-latents", "3"]
    assert main([*words, "--json", str(tmp_path / "r.json")]) == 0
    assert set(os.listdir(out)) == FILES
    manifest = json.loads((out / "export.json").read_text())
    assert manifest == json.loads((tmp_path / "r.json").read_text())
    assert manifest["size"] == list(SIZE) and manifest["chunk_latents"] == 3
    assert "denoise_step.onnx" in capfd.readouterr().out
    assert "exists already" in _error(capfd, *words[1:])
    before = (out / "export.json").stat().st_ino
    assert main([*words, "--overwrite"]) == 0
    assert (out / "export.json").stat().st_ino != before


def test_wrong_input(bundle, tmp_path, capfd):
    assert "no model" in _error(capfd, "--model", tmp_path / "none", "-o", tmp_path / "o")
    assert "multiples of 16" in _error(
        capfd, "--model", bundle, "-o", tmp_path / "o", "--size", "100x100"
    )
    (tmp_path / "file").write_text("")
    assert "is a file" in _error(capfd, "--model", bundle, "-o", tmp_path / "file")
    other = tmp_path / "photos"
    other.mkdir()
    (other / "me.png").write_text("")
    assert "not replaced" in _error(capfd, "--model", bundle, "-o", other, "--overwrite")
    assert sorted(os.listdir(tmp_path)) == ["file", "photos"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_is_not_writable(bundle, tmp_path, capfd):
    tmp_path.chmod(0o500)
    assert "not writable" in _error(capfd, "--model", bundle, "-o", tmp_path / "o")


def test_a_place_where_nothing_can_be_made(bundle, capfd):
    assert "writ" in _error(capfd, "--model", bundle, "-o", "/proc/egoedit_export")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_tensorrt_needs_a_gpu(bundle, tmp_path, capfd):
    line = _error(capfd, "--model", bundle, "-o", tmp_path / "o", "--tensorrt")
    assert "no CUDA device" in line and os.listdir(tmp_path) == []
