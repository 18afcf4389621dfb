# SPDX-License-Identifier: Apache-2.0
"""Wan 2.1's autoencoder (diffusers' ``AutoencoderKLWan``) as a stream.

diffusers clears the caches of its causal convolutions at every call. Here they belong to a stream,
so that frames can come in as the camera takes them; the result is that of the whole clip.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from egoedit_ros.errors import UserError
from egoedit_ros.model.autoencoder import AutoencoderStream, Coded
from egoedit_ros.model.checkpoint import fill
from egoedit_ros.model.memory import require_memory
from egoedit_ros.model.tensor_files import open_tensors, read_json


def _diffusers():
    try:
        import diffusers
    except ImportError:
        raise UserError(
            "Wan's autoencoder needs diffusers: pip install diffusers, or use the taehv autoencoder"
        ) from None
    return diffusers.AutoencoderKLWan


class WanAutoencoder(nn.Module):
    """Weights only; ``options`` are those of diffusers' ``AutoencoderKLWan``."""

    def __init__(self, **options) -> None:
        super().__init__()
        self.wan = _diffusers()(**options)
        config = self.wan.config
        if config.scale_factor_spatial != 8 or config.patch_size is not None:
            raise UserError(
                "only autoencoders of 8x8x4 pixels a latent fit here (Wan 2.1); Wan 2.2's 16x16x4 "
                "is not supported"
            )
        # As tuples: buffers on the meta device would lose them.
        self._scale = tuple(config.latents_mean), tuple(config.latents_std)

    def scale(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the latents, ``[1, C, 1, 1, 1]``."""
        return tuple(
            torch.tensor(values, device=like.device, dtype=like.dtype).view(1, -1, 1, 1, 1)
            for values in self._scale
        )

    def open_stream(self) -> WanStream:
        return WanStream(self, self)

    def place(self, device: torch.device, dtype: torch.dtype) -> WanAutoencoder:
        """Move to ``device`` in ``dtype``."""
        return self.to(device, dtype)


class WanStream:
    """An :class:`AutoencoderStream` of Wan's autoencoder.

    frame_by_frame: decode one latent frame at a time, as diffusers does: less memory, more calls.
    """

    stateful = True

    def __init__(
        self, encoder: WanAutoencoder, decoder: WanAutoencoder, frame_by_frame: bool = False
    ) -> None:
        self._encoder, self._decoder = encoder, decoder
        self._frame_by_frame = frame_by_frame
        self._seen: list = []
        self._made: list = []

    def encode(self, pixels: Tensor, first: bool) -> Coded:
        wan = self._encoder.wan
        x = pixels.transpose(0, 1)[None]  # [1, 3, n, H, W]
        if first:
            self._seen = [None] * wan._cached_conv_counts["encoder"]
        parts = [x[:, :, :1], x[:, :, 1:]] if first else [x]
        coded = [
            wan.encoder(part, feat_cache=self._seen, feat_idx=[0]) for part in parts if part.numel()
        ]
        z = wan.quant_conv(torch.cat(coded, dim=2)).chunk(2, dim=1)[0]  # the mode
        mean, std = self._encoder.scale(z)
        return Coded(((z - mean) / std)[0].transpose(0, 1), first)

    def decode(self, latents: Tensor, source: Coded) -> tuple[Tensor, None]:
        wan = self._decoder.wan
        z = latents.transpose(0, 1)[None]
        mean, std = self._decoder.scale(z)
        z = wan.post_quant_conv(z * std + mean)
        if source.first:
            self._made = [None] * wan._cached_conv_counts["decoder"]
        if self._frame_by_frame:
            parts = list(z.split(1, dim=2))
        else:
            parts = [z[:, :, :1], z[:, :, 1:]] if source.first else [z]
        frames = [
            wan.decoder(
                part, feat_cache=self._made, feat_idx=[0], first_chunk=source.first and i == 0
            )
            for i, part in enumerate(parts)
            if part.numel()
        ]
        return torch.cat(frames, dim=2)[0].transpose(0, 1).clamp(-1, 1), None

    def memory_bytes(self) -> int:
        kept = (*self._seen, *self._made)
        return sum(t.nbytes for t in kept if isinstance(t, Tensor))


class MixedAutoencoder(nn.Module):
    """One autoencoder's encoder with another's decoder for the same latents."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def open_stream(self) -> MixedStream:
        return MixedStream(self.encoder.open_stream(), self.decoder.open_stream())

    def place(self, device: torch.device, dtype: torch.dtype) -> MixedAutoencoder:
        """Move both to ``device`` in ``dtype``."""
        self.encoder.place(device, dtype)
        self.decoder.place(device, dtype)
        return self


class MixedStream:
    """An :class:`AutoencoderStream` that encodes with one stream and decodes with another."""

    stateful = True

    def __init__(self, encoder: AutoencoderStream, decoder: AutoencoderStream) -> None:
        self._encoder, self._decoder = encoder, decoder

    def encode(self, pixels: Tensor, first: bool) -> Coded:
        return self._encoder.encode(pixels, first)

    def decode(self, latents: Tensor, source: Coded) -> tuple[Tensor, Tensor | None]:
        return self._decoder.decode(latents, source)

    def memory_bytes(self) -> int:
        return self._encoder.memory_bytes() + self._decoder.memory_bytes()


def read_wan_autoencoder(
    folder: Path, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> WanAutoencoder:
    """The autoencoder of a diffusers folder (``.../vae`` or the pipeline around it)."""
    folder = folder / "vae" if (folder / "vae").is_dir() else folder
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{folder} has no config.json; give the vae folder of a diffusers model")
    values = read_json(path)
    if values.get("_class_name") != "AutoencoderKLWan":
        raise UserError(f"{folder} is a {values.get('_class_name')}, not an AutoencoderKLWan")
    options = {k: v for k, v in values.items() if not k.startswith("_")}
    try:
        with torch.device("meta"):
            model = WanAutoencoder(**options)
    except (TypeError, ValueError) as error:
        raise UserError(f"{path} does not fit this version of diffusers: {error}") from None
    file = open_tensors(folder)
    needed = sum(p.numel() for p in model.parameters()) * dtype.itemsize
    require_memory(f"the autoencoder in {folder}", needed, device)
    tensors = {name: file.read(name).to(device, dtype) for name in file.shapes}
    fill(model.wan, tensors, folder, assign=True)
    return model.eval().requires_grad_(False)
