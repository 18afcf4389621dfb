# SPDX-License-Identifier: Apache-2.0
"""``egoedit doctor --gpu``: are the CUDA parts right on this GPU, and how fast?

Run once, on an H200 without TensorRT and without the text encoder (docs/runtime.md): the parity of
CUDA, graphs and torch.compile. The overlap, the speeds and TensorRT have NOT RUN YET.

Parity of CUDA, graphs, torch.compile and TensorRT with the CPU, the timeline of overlapped stages,
frames per second and latency of every configuration that fits, beside the paper's Table 2. What
fails is noted and the rest goes on. Only the parts that need no GPU are tested.
"""

from __future__ import annotations

import tempfile
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from egoedit_ros.errors import UserError
from egoedit_ros.model.autoencoder import build_autoencoder
from egoedit_ros.model.config import CONFIGS, EditorConfig, get_config
from egoedit_ros.model.transformer import Transformer
from egoedit_ros.runtime.steps import TorchBackend, pieces_of
from egoedit_ros.stream.edit_session import EditModel, EditSession, load_model
from egoedit_ros.stream.session import frames_in_chunk

TOLERANCE = 1e-3
CAMERA_FPS = 16.0  # as in the paper's Table 2
SPARE_BYTES = 3 << 30  # for activations and what libraries take
# EgoEdit, Table 2, EgoEdit-RT on one H100 at 512x384: 4 steps, 9 frames first, then 12.
PAPER = {
    "configuration": "EgoEdit-RT (paper, H100)",
    "backend": "-",
    "fps": 38.1,
    "recording_ms": 562.0,
    "autoencoder_ms": 217.0,
    "model_ms": 75.7,
    "first_frame_ms": 855.0,
}

MakeSession = Callable[[EditModel, int], EditSession]


def run_gpu_check(json_file: Path | None = None) -> int:
    """Check everything, print the table and write the JSON, after each part, so that a machine that
    is taken away leaves what was found. Returns 0, or 1 if something failed.

    Raises UserError where there is no CUDA device (exit code 2).
    """
    from egoedit_ros.runtime.cuda import Context, require_cuda

    require_cuda()
    from egoedit_ros.bench.provenance import provenance
    from egoedit_ros.bench.report import write_json

    context = Context()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    properties = torch.cuda.get_device_properties(0)
    path = json_file or Path("gpu_check.json")
    content = {
        "gpu": {
            "name": properties.name,
            "memory_bytes": properties.total_memory,
            "capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
        },
        "paper": PAPER,
        "parity": {},
        "overlap": {},
        "configurations": [],
    } | provenance({"tolerance": TOLERANCE}, None)

    def keep(rows: list[dict] | None = None) -> None:
        content["configurations"] = rows or []
        write_json(content, path)

    content["parity"] = check_parity()
    keep()
    content["overlap"] = attempt(lambda: check_overlap(context))
    keep()
    free, makers = torch.cuda.mem_get_info()[0], session_makers(context)
    measure_all(free, torch.device("cuda"), makers, keep=keep)
    print(format_report(content))
    print(f"\nall figures: {path}")
    results = [*content["parity"].values(), content["overlap"], *content["configurations"]]
    return 1 if any("error" in r or r.get("ok") is False for r in results) else 0


def attempt(action: Callable[[], dict]) -> dict:
    """What ``action`` returns, or {"error": one line, "trace": the rest}."""
    try:
        return action()
    except Exception as error:
        line = (str(error).splitlines() or [""])[0]
        return {"error": f"{type(error).__name__}: {line}", "trace": traceback.format_exc()}


def compare_backends(reference, other, inputs: dict, device: torch.device) -> dict:
    """Greatest difference of each piece's outputs on the same inputs, with the reference's NaN as
    wrong as any other."""
    differences = {}
    with torch.inference_mode():
        for piece, tensors in inputs.items():
            wanted = reference.run(piece, *tensors)
            got = other.run(piece, *(t.to(device) for t in tensors))
            again = other.run(piece, *(t.to(device) for t in tensors))
            differences[piece] = max(
                float((g.float().cpu() - w).abs().nan_to_num(float("inf")).max())
                for out in (got, again)
                for g, w in zip(out, wanted, strict=True)
            )
    return {"ok": max(differences.values()) <= TOLERANCE, "max_difference": differences}


def check_parity() -> dict[str, dict]:
    """The pieces of ``edge`` in float32 by every backend, against torch on the CPU."""
    from egoedit_ros.runtime.compiled import CompiledBackend
    from egoedit_ros.runtime.cuda import GraphBackend
    from egoedit_ros.runtime.onnx_export import example_inputs, export
    from egoedit_ros.runtime.tensorrt_backend import TensorRTBackend

    device = torch.device("cuda")
    here = load_model("edge", "cpu", torch.float32)
    there = load_model("edge", "cuda", torch.float32)
    config = here.config
    grid = (config.size[1] // 16, config.size[0] // 16)
    with torch.no_grad():
        inputs = example_inputs(here, config.size, config.chunk_latents, config.window_chunks)
    reference = TorchBackend(here, grid)

    def tensorrt() -> dict:
        with tempfile.TemporaryDirectory(prefix="egoedit_gpu_") as folder:
            export(here, Path(folder))
            return compare_backends(
                reference, TensorRTBackend(Path(folder), "fp32"), inputs, device
            )

    def of(make: Callable[[], object]) -> dict:
        return attempt(lambda: compare_backends(reference, make(), inputs, device))

    return {
        "cuda": of(lambda: TorchBackend(there, grid)),
        "cuda graphs": of(lambda: GraphBackend(there, grid)),
        "torch.compile": of(
            lambda: CompiledBackend(there, grid, config.chunk_latents, config.window_chunks)
        ),
        "tensorrt": attempt(tensorrt),
    }


def check_overlap(context) -> dict:
    """``edge`` on CUDA graphs one chunk at a time and overlapped: same frames, timeline, gain."""
    import time

    from egoedit_ros.runtime.cuda import cuda_stream, timeline

    make = session_makers(context)["cuda graphs"]
    session = make(load_model("edge", "cuda"), 0)
    session.set_instruction("turn the red ball blue", 0)

    def chunks(count: int):
        rng = np.random.default_rng(0)
        width, height = session.size
        for _ in range(count):
            shape = (session.frames_needed, height, width, 3)
            yield rng.integers(0, 256, shape, dtype=np.uint8)

    wanted = [session.run(c).frames for c in chunks(24)]  # captures the graphs too
    session.reset()
    start = time.perf_counter()
    wanted = [session.run(c).frames for c in chunks(24)]
    alone = time.perf_counter() - start
    session.reset()
    stream, lanes = cuda_stream(session, context)
    start = time.perf_counter()
    got = [work.picture for work in stream.run(chunks(24))]
    overlapped = time.perf_counter() - start
    context.push()
    try:
        rows = timeline(lanes)
    finally:
        context.pop()
        stream.close()
    same = all(np.array_equal(a, b) for a, b in zip(got, wanted, strict=True))
    return {
        "ok": same,
        "same_frames": same,
        "chunks": 24,
        "alone_ms": 1e3 * alone,
        "overlapped_ms": 1e3 * overlapped,
        "timeline": rows,
    }


def session_makers(context) -> dict[str, MakeSession]:
    """How to open a stream on a model, by backend's name. The number is the steps, 0: its own."""
    from egoedit_ros.runtime.compiled import compiled_backend
    from egoedit_ros.runtime.cuda import CudaSession, graph_backend
    from egoedit_ros.runtime.tensorrt_backend import tensorrt_backend

    def maker(backend) -> MakeSession:
        return lambda model, nfe: CudaSession(context, model, backend, nfe=nfe or None)

    return {
        "cuda": maker(lambda s: TorchBackend(s.model, s.grid)),
        "cuda graphs": maker(graph_backend),
        "torch.compile": maker(compiled_backend),
        "tensorrt": maker(tensorrt_backend("edge")),
    }


def bytes_needed(config: EditorConfig) -> int:
    """Device memory that a configuration takes in bfloat16, roughly; nothing is allocated."""
    with torch.device("meta"):
        networks = (Transformer(config.transformer), build_autoencoder(config.autoencoder))
    weights = sum(p.numel() for n in networks for p in n.parameters())
    tokens = config.chunk_latents * (config.size[0] // 16) * (config.size[1] // 16)
    # Keys and values: the ring, and the rotated past twice over (as a list and stacked).
    past = 2 * config.transformer.layers * config.transformer.dim * tokens
    return 2 * (weights + 3 * past * (config.window_chunks + 1))


def random_model(config: EditorConfig, device: torch.device, dtype: torch.dtype) -> EditModel:
    """The configuration with random weights, made on the device: speed does not depend on them.

    The text encoder is the bundled one: its own weights may not be here, and it runs once per
    instruction.
    """
    text = replace(config.transformer, text_dim=384)
    config = replace(config, text_encoder="minilm", text_folder="", transformer=text)
    with torch.device("meta"):
        transformer = Transformer(config.transformer)
    transformer = transformer.to(dtype).to_empty(device=device)
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    autoencoder = build_autoencoder(config.autoencoder).place(device, dtype)
    for network in (transformer, autoencoder):
        network.eval().requires_grad_(False)
    return EditModel(config, transformer, autoencoder, device, dtype)


def measure_all(
    free_bytes: int,
    device: torch.device,
    makers: dict[str, MakeSession],
    seconds: float = 8.0,
    keep: Callable[[list[dict]], None] = lambda rows: None,
) -> list[dict]:
    """Speed of each configuration by each backend; those that do not fit are named with why.

    keep: called with the rows so far after each.
    """
    rows: list[dict] = []
    for name in sorted(CONFIGS):
        config = get_config(name)
        needed = attempt(lambda config=config: {"bytes": bytes_needed(config) + SPARE_BYTES})
        if "error" in needed or needed["bytes"] > free_bytes:
            why = needed.get("error") or (
                f"needs about {needed['bytes'] / 2**30:.0f} GiB of {free_bytes / 2**30:.0f}"
            )
            rows.append({"configuration": name, "backend": "-", "left_out": why})
            keep(rows)
            continue
        loaded = attempt(lambda config=config: {"model": _model(config, device)})
        for backend, make in makers.items():
            if backend == "tensorrt" and name != "edge":
                continue  # exported files are of models whose every piece can be a file
            row = {"configuration": name, "backend": backend}
            if "error" in loaded:
                rows.append(row | loaded)
                keep(rows)
                break
            rows.append(row | attempt(lambda m=make, x=loaded: measure(x["model"], m, seconds)))
            keep(rows)
        loaded.clear()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return rows


def _model(config: EditorConfig, device: torch.device) -> EditModel:
    """With its weights where they are bundled, else random ones."""
    try:
        return load_model(config.name, device.type)
    except UserError:
        return random_model(config, device, torch.bfloat16)


def measure(model: EditModel, make: MakeSession, seconds: float = 8.0) -> dict:
    """Frames per second, and the first frame as the paper counts it: recording, then editing."""
    from egoedit_ros.bench.engine import INSTRUCTION, measure_first_frame_ms, measure_fps

    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    session = make(model, 0)
    fps = measure_fps(session, seconds)
    computing = measure_first_frame_ms(session)
    session.set_instruction(INSTRUCTION, 0)
    width, height = session.size
    runs = []
    for _ in range(5):
        session.reset()
        frames = np.zeros((session.frames_needed, height, width, 3), np.uint8)
        runs.append(session.run(frames))
    coding, denoising = (
        float(np.median(values))
        for values in (
            [r.encode_ms + r.decode_ms for r in runs],
            [r.denoise_ms for r in runs],
        )
    )
    recording = 1e3 * frames_in_chunk(session.chunk_latents, True) / CAMERA_FPS
    return {
        "size": f"{width}x{height}",
        "chunk_latents": session.chunk_latents,
        "nfe": session.nfe,
        "dtype": str(model.dtype).removeprefix("torch."),
        "pieces": list(pieces_of(model)),
        "fps": fps,
        "recording_ms": recording,
        "autoencoder_ms": coding,
        "model_ms": denoising,
        "first_frame_ms": recording + computing,
        "memory_bytes": torch.cuda.max_memory_allocated() if model.device.type == "cuda" else None,
    }


def format_report(content: dict) -> str:
    """The results as text: parity, overlap, and the table beside the paper's."""
    lines = [f"{content['gpu']['name']}, {content['gpu']['memory_bytes'] / 2**30:.0f} GiB", ""]
    for name, result in content["parity"].items():
        worst = max(result["max_difference"].values()) if "max_difference" in result else None
        verdict = result.get("error") or ("the CPU's" if result["ok"] else "NOT the CPU's")
        lines.append(
            f"{name:14}  {verdict}" + (f" within {worst:.1g}" if worst is not None else "")
        )
    overlap = content["overlap"]
    if "error" in overlap:
        lines.append(f"{'overlap':14}  {overlap['error']}")
    else:
        same = "the same frames" if overlap["same_frames"] else "OTHER frames"
        lines.append(
            f"{'overlap':14}  {same}, {overlap['alone_ms'] / overlap['overlapped_ms']:.2f} times "
            "the speed of one chunk at a time"
        )
    columns = ("fps", "recording_ms", "autoencoder_ms", "model_ms", "first_frame_ms")
    heads = ("fps", "recording", "autoencoder", "model", "first frame ms")
    lines += ["", f"{'':26}{'':15}" + "".join(f"{head:>15}" for head in heads)]
    for row in [content["paper"], *content["configurations"]]:
        words = row.get("left_out") or row.get("error")
        cells = words or "".join(f"{row[c]:15.1f}" for c in columns)
        lines.append(f"{row['configuration']:26}{row['backend']:15}{cells}")
    return "\n".join(lines)
