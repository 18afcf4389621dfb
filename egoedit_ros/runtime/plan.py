# SPDX-License-Identifier: Apache-2.0
"""How fast a model will be on a GPU, from its own FLOPs and bytes; checked against the paper.

What is fitted and what is predicted is said with every figure: see :func:`paper_check` and
docs/plan.md.
"""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass
from functools import lru_cache

import torch

from egoedit_ros.errors import UserError
from egoedit_ros.model.autoencoder import build_autoencoder
from egoedit_ros.model.cache import KeyValueCache
from egoedit_ros.model.config import AutoencoderConfig, EditorConfig, TransformerConfig, get_config
from egoedit_ros.model.transformer import Transformer
from egoedit_ros.runtime.roofline import CONV, GPUS, Device, Work, count

PRECISIONS = ("bf16", "fp8")
OVERLAPS = ("none", "full")
META = torch.device("meta")
# Of the transformer's element-wise work when it is compiled (three operations in one pass).
FUSED = 1 / 3

# EgoEdit, Table 2: one H100, 512x384, 16 fps.
PAPER = {
    "recording_ms": 562.0,
    "autoencoder_ms": 217.0,
    "model_ms": 75.7,
    "first_frame_ms": 855.0,
    "fps_model": 134.0,
    "fps": 38.1,
    "autoencoder_steady_ms": 12e3 / 38.1 - 12e3 / 134,  # derived: of a 12-frame chunk
    "autoencoder_81_frames_ms": 1520.0,
    "model_81_frames_80_nfe_ms": 6850.0,
}


@dataclass(frozen=True)
class Stages:
    """Work of a chunk: the first of a stream, and a steady one with the window full.

    denoise: all steps; settle: the pass that writes the clean chunk into the cache.
    """

    encode: Work
    denoise: Work
    settle: Work
    decode: Work


@dataclass(frozen=True)
class Prediction:
    """Milliseconds, frames a second and bytes; see :func:`predict`."""

    first: dict[str, float]
    steady: dict[str, float]
    first_frame_ms: float
    fps: float
    fps_model: float
    memory_bytes: dict[str, float]


def frames_of(chunk_latents: int, first: bool) -> int:
    return 4 * chunk_latents - (3 if first else 0)


@lru_cache(maxsize=32)
def autoencoder_work(kind: AutoencoderConfig, size: tuple[int, int], frames: tuple[int, ...]):
    """Work of encoding and decoding chunks of so many frames, in a row; bf16."""
    with META:
        stream = build_autoencoder(kind).to(torch.bfloat16).open_stream()
    out = []
    for index, number in enumerate(frames):
        pixels = torch.empty(number, 3, size[1], size[0], dtype=torch.bfloat16, device=META)
        coded = []
        encode = count(lambda p=pixels, i=index, c=coded: c.append(stream.encode(p, i == 0)))
        decode = count(lambda c=coded: stream.decode(c[0].latents, c[0]))
        out.append((encode, decode))
    return out


def _forward_work(
    config: TransformerConfig, grid: tuple[int, int], chunk: int, window: int, past: int
) -> tuple[Work, Work]:
    """Two forwards of one chunk with ``past`` chunks in sight: the one that gathers the past, and
    each of the others."""
    with META:
        net = Transformer(config).to(torch.bfloat16)
        cache = KeyValueCache(net, grid, chunk, window)
    cache._order = list(range(past))
    side = config.patch[1]
    shape = (1, chunk, config.out_channels, grid[0] * side, grid[1] * side)
    latents = torch.empty(shape, dtype=torch.bfloat16, device=META)
    context = net.text(torch.empty(1, config.text_len, config.text_dim, device=META))
    modulation = net.modulation(torch.empty(1, 1, device=META))

    def forward() -> None:
        net(net.embed(latents), modulation, context, cache.attend(store=False), grid)

    return count(forward), count(forward)


@lru_cache(maxsize=64)
def forward_work(
    config: TransformerConfig, grid: tuple[int, int], chunk: int, window: int, past: int
) -> tuple[Work, Work]:
    """As :func:`_forward_work`: all blocks are alike, so two are counted for all."""
    one, two = (
        _forward_work(dataclasses.replace(config, layers=n), grid, chunk, window, past)
        for n in (1, 2)
    )
    return tuple(
        a + (b - a).times(config.layers - 1) for a, b in zip(one, two, strict=True)
    )  # fmt: skip


def chunk_work(config: EditorConfig, past: int, first: bool) -> Stages:
    """The stages of a chunk of ``config`` with ``past`` chunks in its window."""
    transformer = config.transformer
    side = 8 * transformer.patch[1]
    if any(edge % side for edge in config.size):
        raise UserError(
            f"size {config.size[0]}x{config.size[1]} does not fit; both sides must be multiples of "
            f"{side}"
        )
    grid = (config.size[1] // side, config.size[0] // side)
    chunk = config.chunk_latents
    frames = (frames_of(chunk, True), frames_of(chunk, False))
    encode, decode = autoencoder_work(config.autoencoder, config.size, frames)[0 if first else 1]
    gathering, other = forward_work(transformer, grid, chunk, config.window_chunks, past)
    return Stages(encode, gathering + other.times(config.nfe - 1), other, decode)


def memory_bytes(config: EditorConfig, precision: str) -> dict[str, float]:
    """Bytes on the device: weights, and the cache with what a chunk sees: its rotated copy and the
    chunk's own keys and values."""
    with META:
        transformer = Transformer(config.transformer)
        autoencoder = build_autoencoder(config.autoencoder)
    weights = sum(p.numel() for p in transformer.parameters())
    t, side = config.transformer, 8 * config.transformer.patch[1]
    tokens = config.chunk_latents * (config.size[0] // side) * (config.size[1] // side)
    chunk = 2 * t.layers * tokens * t.dim * 2
    parts = {
        "transformer": weights * (1 if precision == "fp8" else 2),
        "autoencoder": 2 * sum(p.numel() for p in autoencoder.parameters()),
        "cache": chunk * config.window_chunks,
        "cache_rotated": chunk * (config.window_chunks + 1),
        "text_in_layers": 2 * t.layers * t.text_len * t.dim * 2,
    }
    return {**parts, "total": sum(parts.values())}


def predict(
    config: EditorConfig,
    device: Device,
    precision: str = "bf16",
    overlap: str = "none",
    fused: float = FUSED,
) -> Prediction:
    """Time of each stage, fps and the first frame's latency.

    overlap ``full``: while a chunk is denoised the next is encoded and the last decoded, and
    neither slows the other: an upper bound, as they share one GPU.
    """
    fp8 = precision == "fp8"

    def stages(work: Stages) -> dict[str, float]:
        return {
            "encode_ms": 1e3 * device.seconds(work.encode),
            "denoise_ms": 1e3 * device.seconds(work.denoise, fp8, fused),
            "settle_ms": 1e3 * device.seconds(work.settle, fp8, fused),
            "decode_ms": 1e3 * device.seconds(work.decode),
        }

    first = stages(chunk_work(config, 0, True))
    steady = stages(chunk_work(config, config.window_chunks, False))
    recording = 1e3 * frames_of(config.chunk_latents, True) / config.fps
    model = steady["denoise_ms"] + steady["settle_ms"]
    parts = (steady["encode_ms"], model, steady["decode_ms"])
    period = max(parts) if overlap == "full" else sum(parts)
    frames = frames_of(config.chunk_latents, False)
    first["recording_ms"] = recording
    return Prediction(
        first=first,
        steady=steady,
        first_frame_ms=recording
        + first["encode_ms"]
        + first["denoise_ms"]
        + first["decode_ms"],
        fps=1e3 * frames / period,
        fps_model=1e3 * frames / model,
        memory_bytes=memory_bytes(config, precision),
    )  # fmt: skip


def calibrated(device: Device) -> Device:
    """``device`` with its share for convolutions taken from the one figure that is fitted: Table
    2's 1520 ms for Wan's autoencoder on 81 frames, there and back, on an H100."""
    fitted = _h100_by_table_2()
    return dataclasses.replace(device, conv=fitted.conv)


@lru_cache(maxsize=1)
def _h100_by_table_2() -> Device:
    work = whole_clip_autoencoder_work()
    return GPUS["h100"].fitted(CONV, work, PAPER["autoencoder_81_frames_ms"] / 1e3)


@lru_cache(maxsize=1)
def whole_clip_autoencoder_work() -> Work:
    """Wan's autoencoder on 81 frames of 512x384: a first chunk of 9 frames and 6 of 12."""
    config = get_config("egoedit-10b")
    first, later = autoencoder_work(config.autoencoder, config.size, (9, 12))
    return first[0] + first[1] + (later[0] + later[1]).times(6)


def paper_config(patch: int = 2) -> EditorConfig:
    """EgoEdit-RT as Table 2 measured it; patch: pixels of the latent that a token takes."""
    config = get_config("egoedit-10b")
    transformer = dataclasses.replace(config.transformer, patch=(1, patch, patch))
    return dataclasses.replace(config, transformer=transformer)


def paper_check() -> dict:
    """Predictions beside Table 2, for a 2x2 patch (as derived from the paper's text) and 4x4."""
    h100 = calibrated(GPUS["h100"])
    rows, implied = {}, {}
    for patch in (2, 4):
        config = paper_config(patch)
        got = predict(config, h100)
        rows[f"patch_{patch}x{patch}"] = {
            "recording_ms": got.first["recording_ms"],
            "autoencoder_ms": got.first["encode_ms"] + got.first["decode_ms"],
            "autoencoder_steady_ms": got.steady["encode_ms"] + got.steady["decode_ms"],
            "model_ms": got.first["denoise_ms"],
            "first_frame_ms": got.first_frame_ms,
            "fps_model": got.fps_model,
            "fps": got.fps,
        }
        grid = (384 // 8 // patch, 512 // 8 // patch)
        clip = forward_work(config.transformer, grid, 21, 1, 0)[1].flops
        chunk = chunk_work(config, 0, True).denoise.flops
        implied[f"patch_{patch}x{patch}"] = {
            "tokens_per_latent": grid[0] * grid[1],
            "first_chunk_flops": chunk,
            "implied_flops_per_s": chunk / (PAPER["model_ms"] / 1e3),
            "implied_flops_per_s_81_frames": 80 * clip / (PAPER["model_81_frames_80_nfe_ms"] / 1e3),
            "peak_bf16": h100.flops,
            "peak_fp8": h100.fp8_flops,
        }
    keys = ("recording_ms", "autoencoder_ms", "autoencoder_steady_ms", "model_ms",
            "first_frame_ms", "fps_model", "fps")  # fmt: skip
    return {
        "paper": {k: PAPER[k] for k in keys},
        "predicted": rows,
        "implied": implied,
        "fitted": {
            "conv": h100.conv,
            "to": "autoencoder, 81 frames: 1520 ms (Table 2, bidirectional)",
        },
        "assumed": {
            "matmul": h100.matmul,
            "attention": h100.attention,
            "streaming": h100.streaming,
            "launch_us": 1e6 * h100.launch_s,
            "fused": FUSED,
        },
    }


def what_would_beat(config: EditorConfig, device: Device) -> list[dict]:
    """fps and first-frame latency over autoencoder, chunk size, NFE, precision and overlap."""
    rows = []
    for kind, chunk, nfe in itertools.product(("wan", "wan+taehv", "taehv"), (3, 1), (4, 2)):
        window = max(1, config.window_chunks * config.chunk_latents // chunk)  # the same past
        autoencoder = dataclasses.replace(config.autoencoder, kind=kind)
        asked = dataclasses.replace(
            config, chunk_latents=chunk, window_chunks=window, nfe=nfe, autoencoder=autoencoder
        )
        for precision, overlap in itertools.product(PRECISIONS, OVERLAPS):
            got = predict(asked, device, precision, overlap)
            rows.append(
                {
                    "autoencoder": kind,
                    "chunk_latents": chunk,
                    "nfe": nfe,
                    "precision": precision,
                    "overlap": overlap,
                    "fps": got.fps,
                    "first_frame_ms": got.first_frame_ms,
                    "beats_fps": got.fps > PAPER["fps"],
                    "beats_first_frame": got.first_frame_ms < PAPER["first_frame_ms"],
                }
            )
    return rows
