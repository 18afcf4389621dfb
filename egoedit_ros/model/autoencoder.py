# SPDX-License-Identifier: Apache-2.0
"""The bundled streaming autoencoder: 1 pixel frame, then 4, to a latent frame at 1/8 resolution.

Each latent frame is coded by itself (a first, single frame is repeated four times), so there is no
state to carry and nothing to drift. The code is a linear one: each 8x8 column of four frames, 768
numbers, in its most telling directions (a Karhunen-Loeve transform, found once from data). Squared
errors of latents then are squared errors of pixels, little of a picture can be lost unseen, and the
decoder may be trained, or changed, while a transformer trains on the same latents. It begins as the
transform's inverse and learns what that misses.

The decoder sees the source's fine features and its latents beside the edited latents, and predicts
with the picture a mask of where the edit is: outside of it the camera's own pixels are kept. That
keeps hands and background exact at almost no cost, and for an edit that keeps the shape (a new
colour) the edges are the camera's too. No layer normalises over the picture: what is decoded here
does not depend on what happens there, and a crop trains what a whole frame runs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from egoedit_ros.errors import UserError
from egoedit_ros.model.config import AutoencoderConfig

CELL = 8  # pixels of a latent cell
FINE = 4  # of a cell of fine features
FIT_AT_ONCE = 64  # latent frames


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
    """latents ``[N, C, H/8, W/8]`` of about unit variance; fine: features ``[N, D, H/4, W/4]``,
    None where they were not asked for."""

    latents: Tensor
    fine: Tensor | None


class ResidualBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.conv1(F.silu(x))))


class NormedBlock(ResidualBlock):
    """With its input normalised: a picture may be dark or bright."""

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.conv1(F.group_norm(x, 1))))


def _blocks(width: int, count: int) -> nn.Sequential:
    return nn.Sequential(*(ResidualBlock(width) for _ in range(count)))


class EdgeAutoencoder(nn.Module):
    """Weights only. Pictures are float in -1..1, latents are normalised to about unit variance.

    Letters: N latent frames of any stream, T = 4 pixel frames of each, C latent channels.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        wide, deep = config.width, config.deep_width
        shades, channels = 3 * config.temporal, config.latent_channels
        inside = shades * CELL * CELL
        self.encoder_in = nn.Conv2d(shades * FINE * FINE, wide, 1)
        self.encoder_fine = _blocks(wide, config.encoder_blocks)

        self.decoder_in = nn.Conv2d(2 * channels, deep, 3, padding=1)
        self.decoder_coarse = _blocks(deep, config.decoder_blocks[0])
        self.decoder_up = nn.Conv2d(deep, 4 * wide, 1)
        self.decoder_skip = nn.Conv2d(wide, wide, 1)
        self.decoder_fine = _blocks(wide, config.decoder_blocks[1])
        self.decoder_out = nn.Conv2d(wide, (shades + config.temporal) * FINE * FINE, 1)
        nn.init.zeros_(self.decoder_out.weight)
        nn.init.zeros_(self.decoder_out.bias)
        self.decoder_linear = nn.Linear(channels, inside)
        self.register_buffer("basis", torch.eye(channels, inside))
        self.register_buffer("latents_mean", torch.zeros(channels))
        self.register_buffer("latents_std", torch.ones(channels))

    def _pack(self, frames: Tensor, size: int) -> Tensor:
        """``[N, T, 3, H, W]`` to squares ``[N, H/size, W/size, 3*T*size*size]``; a single frame is
        repeated. As pixel_unshuffle of the joined frames, channels last."""
        if frames.shape[1] == 1:
            frames = frames.expand(-1, self.config.temporal, -1, -1, -1)
        n, t, c, h, w = frames.shape
        cells = frames.reshape(n, t, c, h // size, size, w // size, size)
        return cells.permute(0, 3, 5, 1, 2, 4, 6).reshape(n, h // size, w // size, -1)

    def _unpack(self, cells: Tensor, size: int) -> Tensor:
        """Squares ``[N, h, w, K*size*size]`` to planes ``[N, K, size*h, size*w]``."""
        n, h, w, _ = cells.shape
        x = cells.reshape(n, h, w, -1, size, size).permute(0, 3, 1, 4, 2, 5)
        return x.reshape(n, -1, size * h, size * w)

    @torch.no_grad()
    def fit(self, frames: Tensor | Iterable[Tensor]) -> None:
        """Find the transform from ``[N, T, 3, H, W]``, and begin the decoder as its inverse.

        frames: all at once, or part by part, of which only one is held at a time.

        A latent's deviation is the root of its direction's own: fine detail is not lifted to the
        rank of what carries the picture, nor left so small that nothing learns it.
        """
        count, total, products = 0, 0.0, 0.0
        for part in frames.split(FIT_AT_ONCE) if isinstance(frames, Tensor) else frames:
            # The mean is not known yet: taken from the sums afterwards, float32 would lose by it.
            cells = self._pack(part.double(), CELL).flatten(0, 2)
            count, total = count + len(cells), total + cells.sum(0)
            products = products + cells.T @ cells
        mean = total / count
        values, vectors = torch.linalg.eigh(products / count - torch.outer(mean, mean))
        order = values.argsort(descending=True)[: self.config.latent_channels]
        deviation = values[order].clamp(min=1e-8).sqrt()
        scale = (deviation * deviation.mean()).sqrt()
        basis = vectors[:, order].T
        self.basis.copy_(basis)
        self.latents_mean.copy_(basis @ mean)
        self.latents_std.copy_(scale)
        self.decoder_linear.weight.copy_(basis.T * scale)
        self.decoder_linear.bias.copy_(mean)

    def encode(self, frames: Tensor, fine: bool = True) -> Encoded:
        """Encode frames ``[N, 1 or 4, 3, H, W]`` in -1..1. fine: also what the decoder wants to see
        of a source."""
        coded = F.linear(self._pack(frames, CELL).float(), self.basis)
        latents = ((coded - self.latents_mean) / self.latents_std).permute(0, 3, 1, 2)
        latents = latents.to(frames.dtype)
        return Encoded(latents, self._look(frames) if fine else None)

    def _look(self, frames: Tensor) -> Tensor:
        return self.encoder_fine(self.encoder_in(self._pack(frames, FINE).permute(0, 3, 1, 2)))

    def decode(self, latents: Tensor, source: Encoded | None) -> tuple[Tensor, Tensor]:
        """Latents ``[N, C, h, w]`` to frames ``[N, 4, 3, H, W]`` and mask logits ``[N, 4, H, W]``.

        source: the camera's frames encoded, or None for plain reconstruction.
        """
        beside = torch.zeros_like(latents) if source is None else source.latents
        x = torch.cat([latents, beside], dim=1).contiguous(memory_format=torch.channels_last)
        x = self.decoder_up(self.decoder_coarse(self.decoder_in(x)))
        x = F.pixel_shuffle(x, 2)
        if source is not None:
            x = x + self.decoder_skip(source.fine)
        x = self.decoder_out(F.silu(self.decoder_fine(x))).permute(0, 2, 3, 1)
        x = self._unpack(x, FINE)
        t = self.config.temporal
        frames = x[:, : 3 * t] + self._unpack(self.decoder_linear(latents.movedim(1, -1)), CELL)
        return frames.unflatten(1, (t, 3)), x[:, 3 * t :]

    def open_stream(self) -> EdgeStream:
        return EdgeStream(self)

    def place(self, device: torch.device, dtype: torch.dtype) -> EdgeAutoencoder:
        """Move to ``device`` in ``dtype``; the transform stays float32."""
        transform = {n: getattr(self, n) for n in ("basis", "latents_mean", "latents_std")}
        self.to(device, dtype, memory_format=torch.channels_last)
        for name, values in transform.items():
            setattr(self, name, values.float().to(device))
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
