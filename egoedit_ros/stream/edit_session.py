# SPDX-License-Identifier: Apache-2.0
"""A stream through a trained editor: the key/value cache, the instruction and the noise."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from egoedit_ros.errors import UserError
from egoedit_ros.model.autoencoder import Encoded, composite
from egoedit_ros.model.cache import KeyValueCache
from egoedit_ros.model.checkpoint import load_editor
from egoedit_ros.model.config import EditorConfig
from egoedit_ros.model.flow import add_noise, step_sigmas, to_clean
from egoedit_ros.model.text import get_text_encoder
from egoedit_ros.model.transformer import Transformer
from egoedit_ros.stream.session import ChunkResult, frames_in_chunk

BUNDLED = Path(__file__).resolve().parent.parent / "weights"


@dataclass(frozen=True, slots=True)
class EditModel:
    """Networks of one editor on one device, shared by all sessions; nothing in it changes."""

    config: EditorConfig
    transformer: Transformer
    autoencoder: torch.nn.Module
    device: torch.device
    dtype: torch.dtype


def pick_device(device: str) -> torch.device:
    """``auto``, ``cpu`` or ``cuda``. CUDA asked for where there is none is an error."""
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"no device called {device!r}; use auto, cpu or cuda")
    there = torch.cuda.is_available()
    if device == "cuda" and not there:
        raise UserError("no CUDA device here; use --device cpu, or install a CUDA build of torch")
    return torch.device("cuda" if there and device != "cpu" else "cpu")


def best_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where it is fast: on GPUs, and on CPUs with AVX512_BF16 or AMX."""
    fast = device.type == "cuda" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if fast else torch.float32


@lru_cache(maxsize=2)
def load_model(model: str, device: str = "auto") -> EditModel:
    """Load a bundled editor by name, or one from a folder. Raises UserError."""
    place = pick_device(device)
    folder = BUNDLED / model if (BUNDLED / model / "config.json").is_file() else Path(model)
    config, transformer, autoencoder = load_editor(folder)
    dtype = best_dtype(place)
    transformer = transformer.to(place, dtype)
    means = autoencoder.latents_mean, autoencoder.latents_std
    autoencoder = autoencoder.to(place, dtype, memory_format=torch.channels_last)
    autoencoder.latents_mean, autoencoder.latents_std = (m.to(place) for m in means)
    return EditModel(config, transformer, autoencoder, place, dtype)


class EditSession:
    """One stream through one :class:`EditModel` (see :class:`ChunkSession`)."""

    def __init__(
        self,
        model: EditModel,
        size: tuple[int, int] | None = None,
        chunk_latents: int | None = None,
        nfe: int | None = None,
        preserve: bool = True,
    ) -> None:
        config = model.config
        self.model = model
        self.name = config.name
        self.device = str(model.device)
        self.size = size or config.size
        self.chunk_latents = chunk_latents or config.chunk_latents
        self.nfe = nfe or config.nfe
        self.preserve = preserve
        if any(side % 16 or side < 32 for side in self.size):
            raise UserError(
                f"size {self.size[0]}x{self.size[1]} does not fit the model; both sides must be "
                "multiples of 16, for example 256x192"
            )
        if not 1 <= self.chunk_latents <= 32 or not 1 <= self.nfe <= 100:
            raise UserError("chunk_latents must be 1 to 32 and nfe 1 to 100")
        self._grid = (self.size[1] // 16, self.size[0] // 16)
        self._encode_text = get_text_encoder(config.text_encoder, config.transformer.text_len)
        self._sigmas = step_sigmas(self.nfe, config.shift)
        with torch.inference_mode():
            self._steps = [self._modulation(1000 * s) for s in self._sigmas]
            self._clean = self._modulation(0.0)
        self._cache = KeyValueCache(
            model.transformer,
            self._grid,
            self.chunk_latents,
            config.window_chunks,
            config.sink_chunks,
        )
        self._text, self._context, self._seed = None, None, 0
        self.reset()

    def _modulation(self, timestep: float):
        return self.model.transformer.modulation(
            torch.full((1, 1), timestep, device=self.model.device)
        )

    @property
    def frames_needed(self) -> int:
        return frames_in_chunk(self.chunk_latents, self._first)

    def reset(self) -> None:
        self._first = True
        self._chunk = 0
        self._unsettled: tuple[Tensor, Tensor] | None = None
        self._cache.reset()

    def memory_bytes(self) -> int:
        return self._cache.memory_bytes()

    def set_instruction(self, text: str, seed: int) -> None:
        self._seed = seed
        if text == self._text:
            return
        self.settle()  # the last chunk belongs to the old text
        with torch.inference_mode():
            embedded = self._encode_text(text).to(self.model.device)
            self._context = self.model.transformer.text(embedded[None])
        self._text = text

    def skip(self, frames: np.ndarray) -> None:
        """A chunk passed through: what was generated before it is no past of what comes next."""
        self._first = False
        self._chunk += 1
        self._unsettled = None
        self._cache.reset()

    @torch.inference_mode()
    def run(self, frames: np.ndarray) -> ChunkResult:
        self.settle()
        if self._context is None:
            raise UserError("no instruction was given; call set_instruction first")
        start = time.perf_counter()
        pixels = torch.from_numpy(frames).to(self.model.device).permute(0, 3, 1, 2)
        groups = self._groups(pixels.to(self.model.dtype) / 127.5 - 1)
        source = [self.model.autoencoder.encode(g) for g in groups]
        latents = torch.cat([s.latents for s in source]).unsqueeze(0).to(self.model.dtype)
        encoded = time.perf_counter()
        edited = self._denoise(latents)
        denoised = time.perf_counter()
        picture, mask = self._decode(edited, source, pixels)
        decoded = time.perf_counter()
        self._first = False
        self._chunk += 1
        return ChunkResult(
            picture,
            mask,
            1e3 * (encoded - start),
            1e3 * (denoised - encoded),
            1e3 * (decoded - denoised),
        )

    def _groups(self, pixels: Tensor) -> list[Tensor]:
        """``[n, 3, h, w]`` to the frames of each latent ``[N, 1 or 4, 3, h, w]``."""
        if not self._first:
            return [pixels.unflatten(0, (-1, 4))]
        groups = [pixels[None, :1]]
        return groups + ([pixels[1:].unflatten(0, (-1, 4))] if len(pixels) > 1 else [])

    def _denoise(self, source: Tensor) -> Tensor:
        """Source latents ``[1, F, C, h, w]`` to edited ones, in ``nfe`` steps from noise."""
        net, config = self.model.transformer, self.model.config.transformer
        rng = torch.Generator(device=self.model.device)
        rng.manual_seed((self._seed * 1_000_003 + self._chunk) % 2**63)
        shape = (*source.shape[:2], config.out_channels, *source.shape[3:])

        def noise() -> Tensor:
            return torch.randn(shape, generator=rng, device=source.device).to(source.dtype)

        source_half = net.embed(source, config.out_channels, bias=False)
        noisy = noise()
        attend = self._cache.attend(store=False)
        for index, (sigma, modulation) in enumerate(zip(self._sigmas, self._steps, strict=True)):
            tokens = net.embed(noisy) + source_half
            output = net(tokens, modulation, self._context, attend, self._grid)
            clean = to_clean(output, noisy, sigma, source, config.anchored)
            if index + 1 < self.nfe:
                noisy = add_noise(clean, noise(), self._sigmas[index + 1])
        self._unsettled = (clean, source_half)
        return clean[0]

    @torch.inference_mode()
    def settle(self) -> None:
        """Write the last chunk's clean keys and values into the cache.

        Done by the next :meth:`run` if not before; called once a chunk's frames are out, it takes
        one forward off the latency of every chunk.
        """
        if self._unsettled is None:
            return
        clean, source_half = self._unsettled
        self._unsettled = None
        net = self.model.transformer
        tokens = net.embed(clean) + source_half
        net(tokens, self._clean, self._context, self._cache.attend(store=True), self._grid)
        self._cache.advance()

    def _decode(
        self, latents: Tensor, source: list[Encoded], pixels: Tensor
    ) -> tuple[np.ndarray, np.ndarray]:
        """Latents ``[F, C, h, w]`` to uint8 frames and masks of the chunk."""
        made, masks, begin = [], [], 0
        for group in source:
            count = len(group.latents)
            frames, logits = self.model.autoencoder.decode(latents[begin : begin + count], group)
            if self._first and begin == 0:  # one pixel frame: the four decoded agree
                frames, logits = frames[:, :1], logits[:, :1]
            made.append(frames.flatten(0, 1))
            masks.append(logits.flatten(0, 1))
            begin += count
        frames, logits = torch.cat(made).float(), torch.cat(masks).float()
        # A little below one half is "no": untouched pixels are then the camera's to the bit.
        mask = ((torch.sigmoid(logits) - 0.15) / 0.6).clamp(0, 1)
        frames = ((frames + 1) * 127.5).clamp(0, 255)
        if self.preserve:
            frames = composite(frames[None], mask[None], pixels[None].float())[0]
        frames = frames.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
        return frames.cpu().numpy(), (mask * 255).round().to(torch.uint8).cpu().numpy()
