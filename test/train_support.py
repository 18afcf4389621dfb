# SPDX-License-Identifier: Apache-2.0
"""A tiny editor and cached clips for the training tests."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from safetensors.torch import save_file

from egoedit_ros.data.latents import LatentClip
from egoedit_ros.model.config import (
    AutoencoderConfig,
    EditorConfig,
    TransformerConfig,
)

TINY = EditorConfig(
    name="tiny",
    size=(64, 48),
    chunk_latents=1,
    window_chunks=2,
    nfe=3,
    transformer=TransformerConfig(
        layers=2,
        heads=2,
        head_dim=24,
        ffn_dim=48,
        in_channels=8,
        out_channels=4,
        freq_dim=16,
        gates=2,
    ),
    autoencoder=AutoencoderConfig(
        latent_channels=4, width=16, deep_width=16, encoder_blocks=1, decoder_blocks=(1, 1)
    ),
)
VELOCITY = dataclasses.replace(
    TINY, transformer=dataclasses.replace(TINY.transformer, anchored=False, gates=0)
)


def make_clip(seed: int = 0, edits: int = 2, frames: int = 4) -> LatentClip:
    """Random latents with an edited corner; texts as long as MiniLM's."""
    rng = torch.Generator().manual_seed(seed)
    edited = torch.zeros(2, edits, frames, 6, 8, dtype=torch.bool)
    edited[..., 1:4, 2:6] = True
    latents = torch.randn(2, 1 + edits, frames, 4, 6, 8, generator=rng).half()
    return LatentClip(latents, edited, torch.randn(edits, 48, 384, generator=rng).half())


def cache_clips(folder: Path, count: int = 3, frames: int = 4) -> Path:
    """A folder of latents as the stage ``latents`` leaves it."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(count):
        clip = make_clip(seed, frames=frames)
        tensors = {"latents": clip.latents, "edited": clip.edited, "text": clip.text}
        save_file(tensors, folder / f"{seed:08d}.safetensors")
    return folder


def tiny_recipe(folder: Path, output: str) -> dict:
    """The model and folders of a recipe for :data:`TINY` (two sampling steps)."""
    transformer = dataclasses.asdict(TINY.transformer)
    names = ("layers", "heads", "head_dim", "ffn_dim", "in_channels", "out_channels", "freq_dim",
             "gates")  # fmt: skip
    autoencoder = dataclasses.asdict(TINY.autoencoder)
    own = ("latent_channels", "width", "deep_width", "encoder_blocks", "decoder_blocks")
    return {
        "model": {
            "base": "edge",
            "name": "tiny",
            "size": list(TINY.size),
            "nfe": 2,
            "transformer": {k: transformer[k] for k in names},
            "autoencoder": {
                k: list(v) if isinstance(v := autoencoder[k], tuple) else v for k in own
            },
        },
        "folders": {
            "output": str(folder / output),
            "clips": str(folder / "clips"),
            "latents": str(folder / "latents"),
            "validation": str(folder / "validation"),
        },
    }
