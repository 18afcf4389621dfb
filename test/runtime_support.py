# SPDX-License-Identifier: Apache-2.0
"""A small editor with random weights: what the runtime's tests run."""

from __future__ import annotations

import numpy as np
import torch

from egoedit_ros.model.autoencoder import build_autoencoder
from egoedit_ros.model.config import AutoencoderConfig, EditorConfig, TransformerConfig
from egoedit_ros.model.transformer import Transformer
from egoedit_ros.stream.edit_session import EditModel

SIZE = (64, 48)
TEXT = "turn the red ball blue"


def small_config(**changes) -> EditorConfig:
    return EditorConfig(
        name="small",
        size=SIZE,
        transformer=TransformerConfig(
            layers=2, heads=2, head_dim=24, ffn_dim=64, in_channels=16, out_channels=8,
            freq_dim=32, text_len=8,
        ),
        autoencoder=AutoencoderConfig(latent_channels=8, width=16, deep_width=16),
        **changes,
    )  # fmt: skip


def small_model(seed: int = 0, **changes) -> EditModel:
    """A whole editor, float32 on the CPU, whose every part has something to say."""
    config = small_config(**changes)
    torch.manual_seed(seed)
    transformer = Transformer(config.transformer)
    autoencoder = build_autoencoder(config.autoencoder)
    for parameter in autoencoder.parameters():  # its residual branches begin at zero
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    torch.nn.init.normal_(autoencoder.decoder_out.bias, std=2.0)  # masks that are not all zero
    for network in (transformer, autoencoder):
        network.eval().requires_grad_(False)
    autoencoder.to(memory_format=torch.channels_last)
    return EditModel(config, transformer, autoencoder, torch.device("cpu"), torch.float32)


def pictures(session, count: int, seed: int = 0):
    """Chunks for a session, each made when it is asked for: the first one is shorter."""
    rng = np.random.default_rng(seed)
    width, height = session.size
    for _ in range(count):
        shape = (session.frames_needed, height, width, 3)
        yield rng.integers(0, 256, shape, dtype=np.uint8)
