# SPDX-License-Identifier: Apache-2.0
"""Runs exported files in ONNX Runtime, on the CPU."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from egoedit_ros.errors import UserError
from egoedit_ros.runtime.steps import INPUTS, PIECES, PieceSession
from egoedit_ros.stream.edit_session import load_model


def read_manifest(folder: Path) -> dict:
    """What :func:`~egoedit_ros.runtime.onnx_export.export` wrote about its files."""
    path = folder / "export.json"
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        raise UserError(f"{folder} holds no export; make one: egoedit export -o DIR") from None


class OnnxBackend:
    """A :class:`~egoedit_ros.runtime.steps.Backend` over the files in ``folder``.

    threads: cores of each piece; 0: as many as torch uses. Same threads, same bits.
    """

    name = "onnx"

    def __init__(self, folder: Path, threads: int = 0) -> None:
        try:
            import onnxruntime
        except ImportError:
            raise UserError("ONNX Runtime is missing: pip install onnxruntime") from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or torch.get_num_threads()
        options.inter_op_num_threads = 1
        # Waiting threads must not spin: the cores belong to torch between two calls.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        self._sessions = {}
        for piece in PIECES:
            path = folder / f"{piece}.onnx"
            try:
                self._sessions[piece] = onnxruntime.InferenceSession(
                    str(path), options, providers=["CPUExecutionProvider"]
                )
            except Exception as error:
                line = str(error).splitlines()[0]
                raise UserError(f"{path} cannot be loaded ({line}); export it again") from None

    def run(self, piece: str, *inputs: Tensor) -> tuple[Tensor, ...]:
        arrays = {
            name: np.ascontiguousarray(tensor.numpy())
            for name, tensor in zip(INPUTS[piece], inputs, strict=True)
        }
        return tuple(torch.from_numpy(out) for out in self._sessions[piece].run(None, arrays))


def open_onnx_session(model: str, device: str = "auto", *args, **options) -> PieceSession:
    """A stream whose networks run in ONNX Runtime, from files exported on first use (seconds).

    args, options: as EditSession's after the model. Raises UserError as load_model does, and for a
    device that is not the CPU.
    """
    from egoedit_ros.runtime.onnx_export import cached_export

    if device == "cuda":
        raise UserError("the ONNX runtime is for the CPU; use --device cpu, or --runtime torch")
    loaded = load_model(model, "cpu", torch.float32)

    def backend(session: PieceSession) -> OnnxBackend:
        return OnnxBackend(cached_export(loaded, session.size, session.chunk_latents))

    return PieceSession(loaded, backend, *args, **options)
