# SPDX-License-Identifier: Apache-2.0
"""A model as ONNX files: encoder, denoise step and decoder, checked against torch.

The files are float32 and of one size and chunk length; the past's length and the number of latent
frames that the autoencoder takes at once stay open. Names and shapes: steps.py and the manifest
``export.json`` that is written with them.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from egoedit_ros.cache_folder import cache_folder
from egoedit_ros.errors import UserError
from egoedit_ros.model.cache import KeyValueCache
from egoedit_ros.model.flow import step_sigmas
from egoedit_ros.runtime.steps import (
    DECODER,
    ENCODER,
    INPUTS,
    OUTPUTS,
    PIECES,
    STEP,
    make_pieces,
)
from egoedit_ros.stream.edit_session import EditModel

OPSET = 18
FORMAT = 1
TOLERANCE = 1e-3
MANIFEST = "export.json"
# Axes that are not fixed in the files, by tensor.
OPEN_AXES = {
    ENCODER: {"frames": {0: "N"}, "source_latents": {0: "N"}, "source_fine": {0: "N"},
              "source_tokens": {1: "N"}},
    STEP: {"past_keys": {3: "P"}, "past_values": {3: "P"}},
    DECODER: {"latents": {0: "N"}, "source_latents": {0: "N"}, "source_fine": {0: "N"},
              "frames": {0: "N"}, "mask_logits": {0: "N"}},
}  # fmt: skip


def check_exportable(model: EditModel, size: tuple[int, int]) -> None:
    """Raise UserError unless these sizes and this model can be written as files."""
    if any(side % 16 or side < 32 for side in size):
        raise UserError(
            f"size {size[0]}x{size[1]} does not fit the model; both sides must be multiples of 16"
        )
    if model.dtype != torch.float32:
        raise UserError("only float32 networks are exported; load the model with float32")
    if model.config.autoencoder.kind != "edge":
        raise UserError(
            f"an autoencoder of kind {model.config.autoencoder.kind} carries state from chunk to "
            "chunk and cannot be exported yet; export a model with the edge autoencoder"
        )


def example_inputs(
    model: EditModel, size: tuple[int, int], chunk_latents: int, past_chunks: int, seed: int = 0
) -> dict[str, tuple[Tensor, ...]]:
    """Random inputs of each piece, in its order, with ``past_chunks`` chunks of past."""
    rng = torch.Generator().manual_seed(seed)

    def some(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng)

    net, config = model.transformer, model.config
    t, a = config.transformer, config.autoencoder
    width, height = size
    rows, columns = height // 16, width // 16
    chunk = chunk_latents * rows * columns
    cache = KeyValueCache(net, (rows, columns), chunk_latents, max(1, past_chunks))
    for _ in range(past_chunks):
        keys, values = (
            [some(1, t.heads, chunk, t.head_dim) for _ in range(t.layers)] for _ in range(2)
        )
        cache.write(keys, values)
    if past_chunks:
        past = tuple(torch.stack(side) for side in zip(*cache.past(), strict=True))
    else:
        past = (torch.zeros(t.layers, 1, t.heads, 0, t.head_dim),) * 2
    text = net.text(some(1, t.text_len, t.text_dim))
    latents = (chunk_latents, a.latent_channels, height // a.spatial, width // a.spatial)
    return {
        ENCODER: (some(chunk_latents, a.temporal, 3, height, width).clamp(-1, 1),),
        STEP: (
            some(1, chunk_latents, t.out_channels, 2 * rows, 2 * columns),
            some(1, chunk_latents, rows * columns, t.dim),
            torch.full((1, 1), 625.0),
            torch.stack(text.keys),
            torch.stack(text.values),
            *past,
            *cache.rotation(),
        ),
        DECODER: (
            some(*latents),
            some(*latents),
            some(chunk_latents, a.width, height // 4, width // 4),
        ),
    }


def export(
    model: EditModel,
    folder: Path,
    size: tuple[int, int] | None = None,
    chunk_latents: int | None = None,
    name: str = "",
) -> dict:
    """Write the pieces of ``model`` and the manifest into ``folder``, which must exist.

    model: float32 on the CPU. Returns the manifest, which tells the greatest difference to torch.
    Raises UserError if the model cannot be exported or a file does not compute what torch does.
    """
    config = model.config
    size = size or config.size
    chunk_latents = chunk_latents or config.chunk_latents
    check_exportable(model, size)
    grid = (size[1] // 16, size[0] // 16)
    with torch.no_grad():
        examples = example_inputs(model, size, chunk_latents, 1)
        for piece, module in make_pieces(model, grid).items():
            _write(module, piece, examples[piece], folder / f"{piece}.onnx")
    differences = compare(model, folder, size, chunk_latents)
    worst = max(differences, key=lambda piece: differences[piece])
    if not differences[worst] <= TOLERANCE:
        raise UserError(
            f"{worst}.onnx differs from torch by {differences[worst]:.2g}, more than {TOLERANCE:g};"
            " use another version of onnxruntime, and report it"
        )
    manifest = {
        "format": FORMAT,
        "model": name or config.name,
        "weights": fingerprint(model),
        "size": list(size),
        "chunk_latents": chunk_latents,
        "window_chunks": config.window_chunks,
        "sink_chunks": config.sink_chunks,
        "nfe": config.nfe,
        "sigmas": step_sigmas(config.nfe, config.shift, config.strength),
        "anchored": config.transformer.anchored,
        "opset": OPSET,
        "files": {p: f"{p}.onnx" for p in PIECES},
        "inputs": {p: _shapes(INPUTS[p], examples[p], OPEN_AXES[p]) for p in PIECES},
        "outputs": {p: list(OUTPUTS[p]) for p in PIECES},
        "max_difference_to_torch": differences,
        "config": config.to_dict(),
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    return manifest


def _shapes(names: tuple[str, ...], tensors: tuple[Tensor, ...], axes: dict) -> dict[str, list]:
    return {
        name: [axes.get(name, {}).get(i, n) for i, n in enumerate(tensor.shape)]
        for name, tensor in zip(names, tensors, strict=True)
    }


def compare(
    model: EditModel, folder: Path, size: tuple[int, int], chunk_latents: int
) -> dict[str, float]:
    """Greatest difference of each file's outputs to torch's, without a past and with a full one."""
    from egoedit_ros.runtime.onnx_backend import OnnxBackend

    files = OnnxBackend(folder)
    pieces = make_pieces(model, (size[1] // 16, size[0] // 16))
    differences = dict.fromkeys(PIECES, 0.0)
    with torch.no_grad():
        for past in {0, model.config.window_chunks}:
            inputs = example_inputs(model, size, chunk_latents, past, seed=1 + past)
            for piece in PIECES:
                wanted = pieces[piece](*inputs[piece])
                got = files.run(piece, *inputs[piece])
                worst = max(
                    float((g - w).abs().max()) for g, w in zip(got, wanted, strict=True)
                )  # fmt: skip
                # max() would keep the number and lose a NaN.
                differences[piece] = worst if np.isnan(worst) else max(differences[piece], worst)
    return differences


def fingerprint(model: EditModel) -> str:
    """SHA-256 of all weights and the configuration: names what files were made from."""
    digest = hashlib.sha256(json.dumps(model.config.to_dict(), sort_keys=True).encode())
    for network in (model.transformer, model.autoencoder):
        for name, tensor in sorted(network.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _write(module: torch.nn.Module, piece: str, example: tuple[Tensor, ...], path: Path) -> None:
    # The exporter that traces needs nothing beside torch; the other one needs onnxscript.
    torch.onnx.register_custom_op_symbolic("aten::rms_norm", _rms_norm, OPSET)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            example,
            str(path),
            input_names=list(INPUTS[piece]),
            output_names=list(OUTPUTS[piece]),
            dynamic_axes=OPEN_AXES[piece],
            opset_version=OPSET,
            dynamo=False,
        )


def _rms_norm(g, x, shape, weight, eps):
    """``aten::rms_norm`` over the last axis in plain operations: the exporter lacks it."""
    from torch.onnx.symbolic_helper import _get_const

    eps = _get_const(eps, "f", "eps")
    eps = torch.finfo(torch.float32).eps if eps is None else eps
    square = g.op("Mul", x, x)
    last = g.op("Constant", value_t=torch.tensor([-1]))
    mean = g.op("ReduceMean", square, last, keepdims_i=1)
    root = g.op("Sqrt", g.op("Add", mean, g.op("Constant", value_t=torch.tensor(eps))))
    normal = g.op("Div", x, root)
    return normal if weight is None or weight.node().mustBeNone() else g.op("Mul", normal, weight)


def cached_export(model: EditModel, size: tuple[int, int], chunk_latents: int) -> Path:
    """The folder with these weights' files at this size, made on first use.

    It lies in ``$EGOEDIT_CACHE`` or ``~/.cache/egoedit_ros`` and is named by what is in it.
    """
    import onnxruntime

    check_exportable(model, size)
    versions = f"{FORMAT}-{OPSET}-{torch.__version__}-{onnxruntime.__version__}"
    what = f"{fingerprint(model)}-{size}-{chunk_latents}-{versions}"
    folder = cache_folder("onnx") / hashlib.sha256(what.encode()).hexdigest()[:24]
    if not (folder / MANIFEST).is_file():
        from egoedit_ros.runtime.whole import write_whole

        write_whole(folder, lambda part: export(model, part, size, chunk_latents), replace=True)
    return folder
