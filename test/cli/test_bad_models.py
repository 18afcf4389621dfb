# SPDX-License-Identifier: Apache-2.0
"""A model or a setting that cannot be used: exit code 2, one line that says what, no output."""

import dataclasses
import json
import shutil

import pytest
import torch
from replay_support import write_video
from runtime_support import small_model
from safetensors.torch import load_file, save_file

from egoedit_ros.cli.main import main
from egoedit_ros.model.checkpoint import save_editor


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A small model's folder and a video."""
    root = tmp_path_factory.mktemp("made")
    model = small_model(nfe=1)
    save_editor(root / "model", model.config, model.transformer, model.autoencoder)
    return root / "model", write_video(root / "a.mp4", 3)


def _another_model(folder):
    model = small_model()
    config = dataclasses.replace(model.config.transformer, layers=3)
    _configure(folder, transformer=dataclasses.asdict(config))


def _cut_short(folder):
    path = folder / "transformer.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _change(folder, change):
    path = folder / "transformer.safetensors"
    tensors = load_file(path)
    tensors["proj_out.weight"] = change(tensors["proj_out.weight"])
    save_file(tensors, path)


def _integers(folder):
    _change(folder, lambda weight: weight.to(torch.int8))


def _eight_bits(folder):
    _change(folder, lambda weight: weight.to(torch.float8_e4m3fn))


def _nan(folder):
    _change(folder, lambda weight: weight * float("nan"))


def _configure(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


DAMAGE = {
    "another model": (_another_model, "of another model: missing"),
    "cut short": (_cut_short, "not a whole safetensors file"),
    "int8": (_integers, "int8; use a checkpoint in float16"),
    "fp8": (_eight_bits, "float8_e4m3fn; use a checkpoint in float16"),
    "nan": (_nan, "NaN or infinity in proj_out.weight"),
    "size": (lambda folder: _configure(folder, size=[250, 192]), "multiples of 16"),
    "chunk": (lambda folder: _configure(folder, chunk_latents=0), "chunk_latents is 0"),
    "window": (lambda folder: _configure(folder, window_chunks=0), "window_chunks is 0"),
    "steps": (lambda folder: _configure(folder, nfe=0), "nfe is 0"),
    "nothing there": (shutil.rmtree, "no model at"),
}


def _edit(made, model, tmp_path, capfd, *words):
    """Standard error of an edit that is refused."""
    output = tmp_path / "out.mp4"
    command = ["edit", made[1], "-i", "make it blue", "-o", output, "--model", model, *words]
    assert main([str(word) for word in command]) == 2
    assert not output.exists() and not list(tmp_path.glob(".*"))
    return capfd.readouterr().err


@pytest.mark.parametrize("what", DAMAGE)
def test_a_model_that_cannot_be_used(made, tmp_path, capfd, what):
    damage, message = DAMAGE[what]
    model = tmp_path / "damaged model"
    shutil.copytree(made[0], model)
    damage(model)
    error = _edit(made, model, tmp_path, capfd)
    assert message in error and len(error.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "words,message",
    [
        (["--size", "250x192"], "multiples of 16"),
        (["--chunk-latents", "99"], "chunk_latents must be 1 to 32"),
        (["--blend-chunks", "5000"], "blend_chunks is 5000"),
        (["--runtime", "onnx", "--blend-chunks", "2"], "--runtime torch"),
    ],
)
def test_settings_that_do_not_fit(made, tmp_path, capfd, words, message):
    error = _edit(made, made[0], tmp_path, capfd, *words)
    assert message in error and len(error.strip().splitlines()) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("runtime", ["torch", "compile", "onnx", "graphs", "tensorrt"])
def test_cuda_is_asked_for_where_there_is_none(made, tmp_path, capfd, runtime):
    error = _edit(made, made[0], tmp_path, capfd, "--device", "cuda", "--runtime", runtime)
    assert "--device cpu" in error or "CUDA" in error
    assert len(error.strip().splitlines()) == 1


@pytest.mark.parametrize("words", [["--chunk-latents", "0"], ["--nfe", "0"], ["--nfe", "x"]])
def test_counts_below_one(made, tmp_path, capfd, words):
    with pytest.raises(SystemExit) as stopped:
        _edit(made, made[0], tmp_path, capfd, *words)
    assert stopped.value.code == 2 and "whole number from 1 up" in capfd.readouterr().err


def test_too_little_memory_is_said_with_the_number(made, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr("egoedit_ros.model.memory.free_memory", lambda device: 1000)
    # What is kept of a model that was loaded before needs no memory.
    monkeypatch.setattr(
        "egoedit_ros.model.checkpoint.read_safetensors", lambda path: pytest.fail("was loaded")
    )
    model = tmp_path / "model"
    shutil.copytree(made[0], model)
    error = _edit(made, model, tmp_path, capfd)
    assert "needs 0.0 GB on cpu and 0.0 GB are free" in error


@pytest.mark.parametrize("output", ["/dev/null/x", "/proc/egoedit"])
def test_an_export_that_cannot_be_written(made, capfd, output):
    assert main(["export", "--model", str(made[0]), "-o", output]) == 2
    error = capfd.readouterr().err
    assert "choose" in error and len(error.strip().splitlines()) == 1
