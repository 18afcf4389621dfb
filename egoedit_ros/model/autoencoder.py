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
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from egoedit_ros.errors import UserError
from egoedit_ros.model.config import AutoencoderConfig

LATENT_BOUND = 3.0


@dataclass(slots=True)
class Coded:
    """A chunk of the camera's frames, encoded.

    latents: ``[F, C, h, w]``, normalised; first: the chunk begins its stream; detail: what the
    decoder of the same autoencoder wants to see of it.
    """

    latents: Tensor
    first: bool
    detail: object = None


class AutoencoderStream(Protocol):
    """What one stream needs of an autoencoder; the module itself keeps nothing.

    Encoding and decoding share no state, so each may run in a thread of its own; each must see the
    chunks in order. stateful: what comes out depends on the chunks before.
    """

    stateful: bool

    def encode(self, pixels: Tensor, first: bool) -> Coded:
        """Encode ``[n, 3, H, W]`` in -1..1, n = 1 + 4k if first else 4k; first forgets the past."""

    def decode(self, latents: Tensor, source: Coded) -> tuple[Tensor, Tensor | None]:
        """Latents ``[F, C, h, w]`` to frames ``[n, 3, H, W]`` in about -1..1, and mask logits
        ``[n, H, W]`` of where the edit is, None from a decoder that cannot tell."""

    def memory_bytes(self) -> int:
        """Bytes that the stream holds."""


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
        # pixel_unshuffle(frames.flatten(1, 2), 4), channels last, in one pass over the pixels.
        n, t, c, h, w = frames.shape
        cells = frames.reshape(n, t, c, h // 4, 4, w // 4, 4).permute(0, 3, 5, 1, 2, 4, 6)
        return cells.reshape(n, h // 4, w // 4, -1).permute(0, 3, 1, 2)

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
        # pixel_shuffle(x, 4), each channel in one piece: what follows goes over whole pictures.
        n, _, h, w = x.shape
        x = x.permute(0, 2, 3, 1).reshape(n, h, w, -1, 4, 4).permute(0, 3, 1, 4, 2, 5)
        x = x.reshape(n, -1, 4 * h, 4 * w)
        t = self.config.temporal
        return x[:, : 3 * t].unflatten(1, (t, 3)), x[:, 3 * t :]

    def open_stream(self) -> EdgeStream:
        return EdgeStream(self)

    def place(self, device: torch.device, dtype: torch.dtype) -> EdgeAutoencoder:
        """Move to ``device`` in ``dtype``; what scales latents stays float32."""
        means = self.latents_mean, self.latents_std
        self.to(device, dtype, memory_format=torch.channels_last)
        self.latents_mean, self.latents_std = (m.to(device) for m in means)
        return self


class EdgeStream:
    """An :class:`AutoencoderStream` without state: every latent frame is coded by itself."""

    stateful = False

    def __init__(self, autoencoder: EdgeAutoencoder) -> None:
        self._autoencoder = autoencoder

    def encode(self, pixels: Tensor, first: bool) -> Coded:
        source = [self._autoencoder.encode(group) for group in latent_groups(pixels, first)]
        return Coded(_join([s.latents for s in source]), first, source)

    def decode(self, latents: Tensor, source: Coded) -> tuple[Tensor, Tensor]:
        made, masks, begin = [], [], 0
        for group in source.detail:
            count = len(group.latents)
            frames, logits = self._autoencoder.decode(latents[begin : begin + count], group)
            if source.first and begin == 0:  # one pixel frame: the four decoded agree
                frames, logits = frames[:, :1], logits[:, :1]
            made.append(frames.flatten(0, 1))
            masks.append(logits.flatten(0, 1))
            begin += count
        return _join(made), _join(masks)

    def memory_bytes(self) -> int:
        return 0


def _join(parts: list[Tensor]) -> Tensor:
    """The parts one after another; a single one is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def latent_groups(pixels: Tensor, first: bool) -> list[Tensor]:
    """``[n, 3, h, w]`` to the frames of each latent ``[N, 1 or 4, 3, h, w]``."""
    if not first:
        return [pixels.unflatten(0, (-1, 4))]
    groups = [pixels[None, :1]]
    return groups + ([pixels[1:].unflatten(0, (-1, 4))] if len(pixels) > 1 else [])


def composite(frames: Tensor, mask: Tensor, source: Tensor) -> Tensor:
    """``source`` with ``frames`` where ``mask`` (0..1, ``[N, T, H, W]``) says so."""
    mask = mask.unsqueeze(2)
    return source + mask * (frames - source)


def build_autoencoder(config: AutoencoderConfig) -> nn.Module:
    """The module of ``config.kind``. All have ``open_stream()`` and ``place(device, dtype)``."""
    if config.kind == "edge":
        return EdgeAutoencoder(config)
    from egoedit_ros.model.taehv import TinyAutoencoder
    from egoedit_ros.model.wan_autoencoder import MixedAutoencoder, WanAutoencoder

    if config.kind == "wan":
        return WanAutoencoder()
    if config.kind == "taehv":
        return TinyAutoencoder(config.latent_channels)
    if config.kind == "wan+taehv":
        return MixedAutoencoder(WanAutoencoder(), TinyAutoencoder(config.latent_channels))
    raise UserError(f"no autoencoder called {config.kind!r}; use edge, wan, taehv or wan+taehv")
