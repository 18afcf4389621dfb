# SPDX-License-Identifier: Apache-2.0
"""The plan's method on this machine: what it predicts for small models, and what they take.

Everything here runs on one core and counts its own CPU time, so that other work on the machine
disturbs little.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable

import numpy as np
import torch

from egoedit_ros.model.autoencoder import build_autoencoder
from egoedit_ros.model.config import AutoencoderConfig, EditorConfig, TransformerConfig, get_config
from egoedit_ros.model.precision import best_dtype
from egoedit_ros.model.transformer import Transformer
from egoedit_ros.runtime.plan import chunk_work
from egoedit_ros.runtime.roofline import Device
from egoedit_ros.stream.edit_session import EditModel, EditSession

SMALL_WAN = EditorConfig(
    name="small wan",
    size=(128, 96),
    chunk_latents=1,
    window_chunks=4,
    nfe=4,
    transformer=TransformerConfig(
        layers=4, heads=4, head_dim=128, ffn_dim=2048, in_channels=32, out_channels=16,
        anchored=False,
    ),
    autoencoder=AutoencoderConfig(kind="taehv", latent_channels=16),
)  # fmt: skip


def typical_seconds(function: Callable[[], object], seconds: float = 0.3) -> float:
    """CPU time of a call: the median of those that fit into ``seconds``, after one more."""
    function()
    times, end = [], time.process_time() + seconds
    while len(times) < 3 or (time.process_time() < end and len(times) < 1000):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return float(np.median(times))


def this_cpu(dtype: torch.dtype) -> Device:
    """Rates of one core of this CPU, measured in about a second: a product of matrices (of about
    the small models' sizes), a convolution, attention, and a pass over a vector."""
    a, b = torch.randn(192, 384).to(dtype), torch.randn(384, 1024).to(dtype)
    matmul = 2 * 192 * 384 * 1024 / typical_seconds(lambda: a @ b)
    image = torch.randn(1, 96, 64, 64).to(dtype, memory_format=torch.channels_last)
    conv = torch.nn.Conv2d(96, 96, 3, padding=1).to(dtype, memory_format=torch.channels_last)
    long = torch.randn(1 << 20).to(dtype)  # activations of small models stay in the caches
    q = torch.randn(1, 4, 192, 64).to(dtype)
    kv = torch.randn(1, 4, 576, 64).to(dtype)
    with torch.no_grad():
        conv_rate = 2 * 9 * 96 * 96 * 64 * 64 / typical_seconds(lambda: conv(image))
        attention = (
            4
            * 4
            * 192
            * 576
            * 64
            / typical_seconds(lambda: torch.nn.functional.scaled_dot_product_attention(q, kv, kv))
        )
    bandwidth = 2 * long.nbytes / typical_seconds(lambda: torch.neg(long))
    small = torch.randn(8).to(dtype)
    launch = typical_seconds(lambda: small.neg(), 0.05)
    return Device(
        "this CPU", matmul, matmul, bandwidth, 0.0, matmul=1.0, conv=conv_rate / matmul,
        attention=attention / matmul, streaming=1.0, launch_s=launch,
    )  # fmt: skip


def random_model(config: EditorConfig, dtype: torch.dtype) -> EditModel:
    """An editor with random weights: speed does not depend on them."""
    torch.manual_seed(0)
    device = torch.device("cpu")
    transformer = Transformer(config.transformer).eval().requires_grad_(False).to(dtype)
    autoencoder = build_autoencoder(config.autoencoder).eval().requires_grad_(False)
    return EditModel(config, transformer, autoencoder.place(device, dtype), device, dtype)


def measure(config: EditorConfig, dtype: torch.dtype, chunks: int = 6) -> dict[str, float]:
    """CPU milliseconds of each stage of a steady chunk, median over ``chunks`` of them."""
    session = EditSession(random_model(config, dtype))
    session.set_instruction("turn the red ball blue", 0)
    width, height = session.size
    rows: list[dict[str, float]] = []
    for _ in range(config.window_chunks + 1 + chunks):
        work = session.begin(np.zeros((session.frames_needed, height, width, 3), np.uint8))
        row = {}
        for name in ("ingest", "encode", "denoise", "decode", "settle"):
            start = time.process_time()
            session.settle() if name == "settle" else getattr(session, name)(work)
            row[f"{name}_ms"] = 1e3 * (time.process_time() - start)
        rows.append(row)
    kept = rows[-chunks:]
    return {
        name: float(np.median([r[name] for r in kept])) for name in kept[0] if name != "ingest_ms"
    }


def cpu_check() -> dict:
    """Predicted and measured stages of ``edge`` and a small Wan on one core (some seconds)."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _cpu_check(best_dtype(torch.device("cpu")))
    finally:
        torch.set_num_threads(before)


def _cpu_check(dtype: torch.dtype) -> dict:
    load = os.getloadavg()[0]
    cpu = this_cpu(dtype)
    models = {}
    for config in (get_config("edge"), SMALL_WAN):
        work = chunk_work(config, config.window_chunks, first=False)
        predicted = {
            f"{f.name}_ms": 1e3 * cpu.seconds(getattr(work, f.name))
            for f in dataclasses.fields(work)
        }
        measured = measure(config, dtype)
        models[config.name] = {
            "size": list(config.size),
            "nfe": config.nfe,
            "predicted": predicted | {"chunk_ms": sum(predicted.values())},
            "measured": measured | {"chunk_ms": sum(measured.values())},
        }
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "threads": 1,
        "load": load,
        "rates": {
            "matmul_flops": cpu.flops,
            "conv_flops": cpu.flops * cpu.conv,
            "attention_flops": cpu.flops * cpu.attention,
            "bytes": cpu.bandwidth,
            "call_us": 1e6 * cpu.launch_s,
        },
        "models": models,
    }
