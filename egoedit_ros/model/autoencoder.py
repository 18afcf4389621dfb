# SPDX-License-Identifier: Apache-2.0
"""The bundled streaming autoencoder: 1 pixel frame, then 4, to a latent frame at 1/8 resolution.

Each latent frame is coded by itself (a first, single frame is repeated four times), so there is no
state to carry and nothing to drift. The decoder sees the source's fine features (which encoding it
gave anyway) and its latents beside the edited latents, and predicts with the picture a mask of
where the edit is: outside of it the camera's own pixels are kept. That keeps hands and background
exact at almost no cost, and for an edit that keeps the shape (a new colour) the edges are the
camera's too. It learns plain reconstruction at the same time (source hidden), because a decoder
that always sees the source learns to ignore the latent.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from egoedit_ros.model.config import AutoencoderConfig

LATENT_BOUND = 3.0


@dataclass(slots=True)
class Encoded:
    """latents ``[N, C, H/8, W/8]`` of about unit variance; fine: features ``[N, D, H/4, W/4]``."""

    latents: Tensor
    fine: Tensor


class ResidualBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.conv1(F.silu(self.norm(x)))))


class EdgeAutoencoder(nn.Module):
    """Weights only. Pictures are float in -1..1, latents are normalised to about unit variance.

    Letters: N latent frames of any stream, T = 4 pixel frames of each, C latent channels.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        wide, deep = config.width, config.deep_width
        pixels = 3 * config.temporal * 16  # four frames, unshuffled by 4
        channels = config.latent_channels
        self.encoder_in = nn.Conv2d(pixels, wide, 3, padding=1)
        self.encoder_fine = nn.Sequential(
            *(ResidualBlock(wide) for _ in range(config.encoder_blocks[0]))
        )
        self.encoder_down = nn.Conv2d(4 * wide, deep, 1)
        self.encoder_coarse = nn.Sequential(
            *(ResidualBlock(deep) for _ in range(config.encoder_blocks[1]))
        )
        self.encoder_out = nn.Conv2d(deep, channels, 1)

        self.decoder_in = nn.Conv2d(2 * channels, deep, 3, padding=1)
        self.decoder_coarse = nn.Sequential(
            *(ResidualBlock(deep) for _ in range(config.decoder_blocks[0]))
        )
        self.decoder_up = nn.Conv2d(deep, 4 * wide, 1)
        self.decoder_skip = nn.Conv2d(wide, wide, 1)
        self.decoder_fine = nn.Sequential(
            *(ResidualBlock(wide) for _ in range(config.decoder_blocks[1]))
        )
        self.decoder_norm = nn.GroupNorm(8, wide)
        self.decoder_out = nn.Conv2d(wide, pixels + 16 * config.temporal, 3, padding=1)
        self.register_buffer("latents_mean", torch.zeros(channels))
        self.register_buffer("latents_std", torch.ones(channels))

    def _pack(self, frames: Tensor) -> Tensor:
        """``[N, T, 3, H, W]`` to ``[N, 3*T*16, H/4, W/4]``; a single frame is repeated."""
        if frames.shape[1] == 1:
            frames = frames.expand(-1, self.config.temporal, -1, -1, -1)
        return F.pixel_unshuffle(frames.flatten(1, 2), 4).contiguous(
            memory_format=torch.channels_last
        )

    def _normal(self, latents: Tensor, inverse: bool = False) -> Tensor:
        scale = (self.latents_mean, self.latents_std)
        mean, std = (s[:, None, None].to(latents.dtype) for s in scale)
        return latents * std + mean if inverse else (latents - mean) / std

    def encode(self, frames: Tensor) -> Encoded:
        """Encode frames ``[N, 1 or 4, 3, H, W]`` in -1..1."""
        fine = self.encoder_fine(self.encoder_in(self._pack(frames)))
        x = self.encoder_coarse(self.encoder_down(F.pixel_unshuffle(fine, 2)))
        x = LATENT_BOUND * torch.tanh(self.encoder_out(F.silu(x)) / LATENT_BOUND)
        return Encoded(self._normal(x), fine)

    def decode(self, latents: Tensor, source: Encoded | None) -> tuple[Tensor, Tensor]:
        """Latents ``[N, C, h, w]`` to frames ``[N, 4, 3, H, W]`` and mask logits ``[N, 4, H, W]``.

        source: the camera's frames encoded, or None for plain reconstruction.
        """
        latents = self._normal(latents, inverse=True)
        if source is None:
            beside = torch.zeros_like(latents)
        else:
            beside = self._normal(source.latents, inverse=True)
        x = torch.cat([latents, beside], dim=1).contiguous(memory_format=torch.channels_last)
        x = self.decoder_up(self.decoder_coarse(self.decoder_in(x)))
        x = F.pixel_shuffle(x, 2)
        if source is not None:
            x = x + self.decoder_skip(source.fine)
        x = self.decoder_out(F.silu(self.decoder_norm(self.decoder_fine(x))))
        x = F.pixel_shuffle(x, 4)
        t = self.config.temporal
        return x[:, : 3 * t].unflatten(1, (t, 3)), x[:, 3 * t :]


def composite(frames: Tensor, mask: Tensor, source: Tensor) -> Tensor:
    """``source`` with ``frames`` where ``mask`` (0..1, ``[N, T, H, W]``) says so."""
    mask = mask.unsqueeze(2)
    return source + mask * (frames - source)


def build_autoencoder(config: AutoencoderConfig) -> nn.Module:
    return EdgeAutoencoder(config)
