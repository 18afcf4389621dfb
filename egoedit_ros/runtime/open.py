# SPDX-License-Identifier: Apache-2.0
"""Sessions by the name of a runtime other than plain torch."""

from __future__ import annotations

from egoedit_ros.errors import UserError
from egoedit_ros.runtime.steps import PieceSession
from egoedit_ros.stream.edit_session import load_model


def open_in(runtime: str, model: str, device: str = "auto", *args, **options) -> PieceSession:
    """Open a stream whose network runs in ``compile``, ``onnx``, ``graphs`` or ``tensorrt``.

    args, options: as EditSession's after the model. compile: needs a C++ compiler on the CPU.
    onnx: on the CPU. graphs, tensorrt: on CUDA, no stream has run on them yet.
    Raises UserError as load_model does, and where the runtime has not what it needs.
    """
    if runtime == "onnx":
        from egoedit_ros.runtime.onnx_backend import open_onnx_session

        return open_onnx_session(model, device, *args, **options)
    if runtime == "compile":
        from egoedit_ros.runtime.compiled import compiled_backend

        return PieceSession(load_model(model, device), compiled_backend, *args, **options)
    if device == "cpu":
        raise UserError(f"the runtime {runtime} needs a CUDA device; use --runtime torch or onnx")
    from egoedit_ros.runtime.cuda import Context, CudaSession, graph_backend, require_cuda

    require_cuda()
    if runtime == "graphs":
        return CudaSession(Context(), load_model(model, "cuda"), graph_backend, *args, **options)
    from egoedit_ros.runtime.tensorrt_backend import tensorrt_backend

    backend = tensorrt_backend(model)
    return CudaSession(Context(), load_model(model, "cuda"), backend, *args, **options)
