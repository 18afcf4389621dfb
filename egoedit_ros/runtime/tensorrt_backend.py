# SPDX-License-Identifier: Apache-2.0
"""Exported files as TensorRT engines, kept by GPU and version. NOT RUN YET: see cuda.py."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from egoedit_ros.errors import UserError
from egoedit_ros.runtime.cuda import require_cuda
from egoedit_ros.runtime.steps import (
    DECODER,
    ENCODER,
    INPUTS,
    OUTPUTS,
    PIECES,
    STEP,
    PieceSession,
)
from egoedit_ros.stream.edit_session import load_model

WORKSPACE = 4 << 30


def tensorrt() -> Any:
    """The ``tensorrt`` module. Raises UserError where it or a CUDA device is missing."""
    require_cuda()
    try:
        import tensorrt as trt
    except ImportError:
        raise UserError("TensorRT is missing: pip install -e '.[gpu]'") from None
    return trt


def engine_name(piece: str, onnx_sha256: str, gpu: str, capability: str, version: str,
                precision: str) -> str:  # fmt: skip
    """File name of an engine: an engine works only for the GPU and version that it was built for.

    >>> engine_name("decoder", "ab" * 32, "NVIDIA H100 80GB HBM3", "9.0", "10.9.0", "bf16")
    'decoder-NVIDIA_H100_80GB_HBM3-sm9.0-trt10.9.0-bf16-abababababababab.engine'
    """
    gpu = re.sub(r"[^A-Za-z0-9]+", "_", gpu).strip("_")
    return f"{piece}-{gpu}-sm{capability}-trt{version}-{precision}-{onnx_sha256[:16]}.engine"


def open_axes(manifest: dict, window_chunks: int | None = None) -> dict[str, dict[str, list]]:
    """Smallest, usual and largest shape of each input that has an open axis, by piece and name.

    N, latent frames at a time: 1 to a chunk; P, tokens of the past: none to a full window.
    """
    chunk = manifest["chunk_latents"]
    tokens = chunk * (manifest["size"][0] // 16) * (manifest["size"][1] // 16)
    past = tokens * (manifest["window_chunks"] if window_chunks is None else window_chunks)
    ranges = {"N": (1, chunk, chunk), "P": (0, past, past)}
    profiles: dict[str, dict[str, list]] = {}
    for piece in (ENCODER, STEP, DECODER):
        profiles[piece] = {
            name: [
                tuple(ranges[n][i] if isinstance(n, str) else n for n in shape) for i in range(3)
            ]
            for name, shape in manifest["inputs"][piece].items()
            if any(isinstance(n, str) for n in shape)
        }
    return profiles


def set_precision(trt: Any, config: Any, precision: str) -> None:
    """Let the builder of ``config`` compute in fp32 (exactly), fp16 or bf16.

    Raises UserError for a TensorRT that wants the types written into the file instead (11 on).
    """
    if precision == "fp32":
        config.clear_flag(trt.BuilderFlag.TF32)
        return
    flag = getattr(trt.BuilderFlag, precision.upper(), None)
    if flag is None:
        raise UserError(
            f"TensorRT {trt.__version__} cannot be asked for {precision}; "
            "pip install 'tensorrt>=10,<11'"
        )
    config.set_flag(flag)


def build_engine(onnx: Path, profile: dict[str, list], precision: str) -> bytes:
    """Build an engine of a file; minutes for a large model. precision: fp32, fp16 or bf16."""
    trt = tensorrt()
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx)):
        raise UserError(f"TensorRT cannot read {onnx}: {parser.get_error(0)}; export it again")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE)
    set_precision(trt, config, precision)
    shapes = builder.create_optimization_profile()
    for name, (smallest, usual, largest) in profile.items():
        shapes.set_shape(name, smallest, usual, largest)
    config.add_optimization_profile(shapes)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise UserError(f"TensorRT could not build an engine of {onnx}; its messages are above")
    return bytes(engine)


def get_engine(folder: Path, piece: str, manifest: dict, precision: str) -> Path:
    """The engine of a piece beside its file, built if there is none for this GPU and version."""
    trt = tensorrt()
    onnx = folder / manifest["files"][piece]
    capability = ".".join(map(str, torch.cuda.get_device_capability()))
    digest = hashlib.sha256(onnx.read_bytes()).hexdigest()
    gpu = torch.cuda.get_device_name()
    name = engine_name(piece, digest, gpu, capability, trt.__version__, precision)
    path = folder / "tensorrt" / name
    if not path.is_file():
        engine = build_engine(onnx, open_axes(manifest)[piece], precision)
        path.parent.mkdir(exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")
        part.write_bytes(engine)
        part.replace(path)
    return path


class TensorRTBackend:
    """A :class:`~egoedit_ros.runtime.steps.Backend` over engines of exported files.

    Engines take and give float32; inside they compute in ``precision``. Runs on torch's current
    stream, so it fits into any lane.
    """

    name = "tensorrt"

    def __init__(self, folder: Path, precision: str = "bf16") -> None:
        from egoedit_ros.runtime.onnx_backend import read_manifest

        trt = tensorrt()
        manifest = read_manifest(folder)
        self._runtime = trt.Runtime(trt.Logger(trt.Logger.WARNING))
        self._contexts = {}
        for piece in PIECES:
            path = get_engine(folder, piece, manifest, precision)
            engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
            if engine is None:
                raise UserError(f"{path} cannot be loaded; delete it, and it is built again")
            self._contexts[piece] = engine.create_execution_context()

    def run(self, piece: str, *inputs: Tensor) -> tuple[Tensor, ...]:
        context = self._contexts[piece]
        kept = []  # alive until the work is queued
        for name, tensor in zip(INPUTS[piece], inputs, strict=True):
            tensor = tensor.float().contiguous()
            kept.append(tensor)
            context.set_input_shape(name, tuple(tensor.shape))
            # An empty tensor has no address, and TensorRT wants one.
            address = tensor if tensor.numel() else torch.empty(16, device=tensor.device)
            kept.append(address)
            context.set_tensor_address(name, address.data_ptr())
        outputs = []
        for name in OUTPUTS[piece]:
            out = torch.empty(tuple(context.get_tensor_shape(name)), device=inputs[0].device)
            context.set_tensor_address(name, out.data_ptr())
            outputs.append(out)
        if not context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
            raise RuntimeError(f"TensorRT failed on {piece}; its message is above")
        return tuple(outputs)


def tensorrt_backend(model: str, precision: str = "bf16") -> Callable[[PieceSession], Any]:
    """For a session's ``make_backend``: engines of ``model``, exported and built on first use."""

    def make(session: PieceSession) -> TensorRTBackend:
        from egoedit_ros.runtime.onnx_export import cached_export

        here = load_model(model, "cpu", torch.float32)
        folder = cached_export(here, session.size, session.chunk_latents)
        return TensorRTBackend(folder, precision)

    return make
