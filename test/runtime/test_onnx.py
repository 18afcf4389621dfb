# SPDX-License-Identifier: Apache-2.0
"""Exported files compute what torch computes, and a stream on them edits as torch's does."""

import json
import os

import numpy as np
import pytest
import torch
from runtime_support import SIZE, TEXT, pictures, small_model

from egoedit_ros.errors import UserError
from egoedit_ros.model.checkpoint import save_editor
from egoedit_ros.runtime import onnx_export
from egoedit_ros.runtime.onnx_backend import OnnxBackend, read_manifest
from egoedit_ros.runtime.steps import PIECES, PieceSession
from egoedit_ros.runtime.whole import write_whole
from egoedit_ros.stream.edit_session import EditSession
from egoedit_ros.stream.session import open_session

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture(scope="module", params=[1, 3], ids=["1 latent", "3 latents"])
def exported(request, model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    onnx_export.export(model, folder, SIZE, request.param)
    return folder


def _stream(session, count):
    session.set_instruction(TEXT, 3)
    return [session.run(chunk) for chunk in pictures(session, count)]


def test_the_files_are_valid_and_within_tolerance(exported):
    manifest = read_manifest(exported)
    for piece in PIECES:
        onnx.checker.check_model(exported / manifest["files"][piece])
        assert 0 < manifest["max_difference_to_torch"][piece] <= 1e-3
    assert manifest["inputs"]["denoise_step"]["past_keys"][3] == "P"


def test_a_stream_on_the_files_edits_as_torch_does(model, exported):
    chunk = read_manifest(exported)["chunk_latents"]
    wanted = _stream(EditSession(model, SIZE, chunk), 5)
    session = PieceSession(model, lambda s: OnnxBackend(exported, 1), SIZE, chunk)
    for got, alone in zip(_stream(session, 5), wanted, strict=True):
        difference = np.abs(got.frames.astype(int) - alone.frames)
        assert difference.max() <= 2 and difference.mean() < 0.05
    assert session.runtime == "onnx"


def test_same_stream_same_bits(model, exported):
    chunk = read_manifest(exported)["chunk_latents"]
    one, two = (
        _stream(PieceSession(model, lambda s: OnnxBackend(exported, 1), SIZE, chunk), 3)
        for _ in range(2)
    )
    assert all(np.array_equal(a.frames, b.frames) for a, b in zip(one, two, strict=True))


@pytest.fixture
def bundle(model, tmp_path, monkeypatch):
    monkeypatch.setenv("EGOEDIT_CACHE", str(tmp_path / "cache"))
    save_editor(tmp_path / "bundle", model.config, model.transformer, model.autoencoder)
    return tmp_path / "bundle"


def test_open_session_exports_once(bundle, monkeypatch):
    session = open_session(str(bundle), "cpu", runtime="onnx")
    assert len(_stream(session, 2)) == 2
    monkeypatch.setattr(onnx_export, "export", None)  # not called again
    open_session(str(bundle), "auto", runtime="onnx")


def test_what_cannot_be_asked_for(bundle):
    with pytest.raises(UserError, match="CPU"):
        open_session(str(bundle), "cuda", runtime="onnx")
    with pytest.raises(UserError, match="no runtime"):
        open_session(str(bundle), runtime="abacus")


def test_a_file_that_computes_something_else_is_refused(model, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_export, "TOLERANCE", 0.0)
    with pytest.raises(UserError, match="differs from torch"):
        write_whole(tmp_path / "out", lambda part: onnx_export.export(model, part))
    assert list(tmp_path.iterdir()) == []


def test_a_broken_file_is_told(exported, tmp_path):
    for piece in PIECES:
        (tmp_path / f"{piece}.onnx").write_bytes(b"not onnx")
    with pytest.raises(UserError, match="export it again"):
        OnnxBackend(tmp_path)
    with pytest.raises(UserError, match="no export"):
        read_manifest(tmp_path)


def test_models_that_cannot_be_exported(model):
    with pytest.raises(UserError, match="multiples of 16"):
        onnx_export.check_exportable(model, (100, 100))
    wrong = type(model)(
        model.config, model.transformer, model.autoencoder, model.device, torch.bfloat16
    )
    with pytest.raises(UserError, match="float32"):
        onnx_export.check_exportable(wrong, SIZE)


def test_folders_appear_whole_or_not_at_all(tmp_path):
    def fails(part):
        (part / "half").write_text("x")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_whole(tmp_path / "out", fails)
    assert list(tmp_path.iterdir()) == []
    write_whole(tmp_path / "out", lambda part: (part / "a").write_text(json.dumps(1)))
    write_whole(tmp_path / "out", lambda part: (part / "b").write_text("2"), replace=True)
    assert os.listdir(tmp_path / "out") == ["b"]
