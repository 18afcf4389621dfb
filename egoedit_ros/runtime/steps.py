# SPDX-License-Identifier: Apache-2.0
"""The network's three pieces as modules of plain tensors, and a session that runs them elsewhere.

This is the form in which they can be written to ONNX, compiled, or captured as a CUDA graph: no
cache object, no lists; the past goes in as tensors and the chunk's own keys and values come out.

Letters: N latent frames, L layers, H heads, P tokens of the past, T tokens of the chunk, E
channels of a head, D width, C latent channels.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from egoedit_ros.errors import UserError
from egoedit_ros.model.autoencoder import EdgeStream, Encoded
from egoedit_ros.model.transformer import TextContext, Transformer, rotate, split_heads
from egoedit_ros.stream.edit_session import EditModel, EditSession

ENCODER, STEP, DECODER = PIECES = ("encoder", "denoise_step", "decoder")
INPUTS = {
    ENCODER: ("frames",),
    STEP: (
        "noisy", "source_tokens", "timestep", "text_keys", "text_values", "past_keys",
        "past_values", "cos", "sin",
    ),
    DECODER: ("latents", "source_latents", "source_fine"),
}  # fmt: skip
OUTPUTS = {
    ENCODER: ("source_latents", "source_fine", "source_tokens"),
    STEP: ("output", "keys", "values"),
    DECODER: ("frames", "mask_logits"),
}


class EncoderPiece(nn.Module):
    """frames ``[N, 4, 3, h, w]`` in -1..1 to source latents ``[N, C, h/8, w/8]``, fine features
    ``[N, W, h/4, w/4]`` and the source's part of the tokens ``[1, N, S, D]``."""

    def __init__(self, model: EditModel) -> None:
        super().__init__()
        self.autoencoder, self.transformer = model.autoencoder, model.transformer

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        encoded = self.autoencoder.encode(frames)
        first = self.transformer.config.out_channels
        latents = encoded.latents.to(frames.dtype)
        tokens = self.transformer.embed(latents.unsqueeze(0), first, bias=False)
        return latents, encoded.fine, tokens


class StepPiece(nn.Module):
    """One pass of the transformer over a chunk.

    noisy ``[1, N, C, h/8, w/8]``; source_tokens ``[1, N, S, D]``; timestep ``[1, 1]`` in 0..1000,
    float32; text_keys, text_values ``[L, 1, H, words, E]``; past_keys (rotated), past_values
    ``[L, 1, H, P, E]``, P may be 0; cos, sin ``[T, E]``: the rotation of the chunk's own place.
    Gives the network's output (as noisy) and the chunk's keys, not rotated, and values
    ``[L, 1, H, T, E]``.
    """

    def __init__(self, transformer: Transformer, grid: tuple[int, int]) -> None:
        super().__init__()
        self.transformer, self.grid = transformer, grid

    def forward(
        self,
        noisy: Tensor,
        source_tokens: Tensor,
        timestep: Tensor,
        text_keys: Tensor,
        text_values: Tensor,
        past_keys: Tensor,
        past_values: Tensor,
        cos: Tensor,
        sin: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        net = self.transformer
        keys: list[Tensor] = []
        values: list[Tensor] = []

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            shape = q.shape
            q, k, v = (split_heads(x, net.config.heads) for x in (q, k, v))
            keys.append(k)
            values.append(v)
            k = torch.cat([past_keys[layer], rotate(k, cos, sin)], dim=2)
            v = torch.cat([past_values[layer], v], dim=2)
            seen = F.scaled_dot_product_attention(rotate(q, cos, sin), k, v)
            return seen.transpose(1, 2).reshape(shape)

        text = TextContext(list(text_keys.unbind(0)), list(text_values.unbind(0)))
        tokens = net.embed(noisy) + source_tokens
        output = net(tokens, net.modulation(timestep), text, attend, self.grid)
        return output, torch.stack(keys), torch.stack(values)


class DecoderPiece(nn.Module):
    """Edited latents ``[N, C, h/8, w/8]`` and what the encoder gave to frames ``[N, 4, 3, h, w]``
    in about -1..1 and mask logits ``[N, 4, h, w]``."""

    def __init__(self, model: EditModel) -> None:
        super().__init__()
        self.autoencoder = model.autoencoder

    def forward(
        self, latents: Tensor, source_latents: Tensor, source_fine: Tensor
    ) -> tuple[Tensor, Tensor]:
        return self.autoencoder.decode(latents, Encoded(source_latents, source_fine))


class Backend(Protocol):
    """Runs the pieces: torch modules, ONNX Runtime, CUDA graphs, TensorRT."""

    name: str

    def run(self, piece: str, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Outputs of a piece, in the order of OUTPUTS; inputs in the order of INPUTS."""


class TorchBackend:
    """The pieces as they are."""

    name = "torch"

    def __init__(self, model: EditModel, grid: tuple[int, int]) -> None:
        self.pieces = make_pieces(model, grid)

    def run(self, piece: str, *inputs: Tensor) -> tuple[Tensor, ...]:
        return self.pieces[piece](*inputs)


def pieces_of(model: EditModel) -> tuple[str, ...]:
    """The pieces that can be made of a model: an autoencoder with a past of its own is none."""
    return PIECES if model.config.autoencoder.kind == "edge" else (STEP,)


def make_pieces(model: EditModel, grid: tuple[int, int]) -> dict[str, nn.Module]:
    """The pieces of a model; grid: rows and columns of tokens of a latent frame."""
    pieces: dict[str, nn.Module] = {STEP: StepPiece(model.transformer, grid)}
    if ENCODER in pieces_of(model):
        pieces |= {ENCODER: EncoderPiece(model), DECODER: DecoderPiece(model)}
    return pieces


class _PieceAutoencoder:
    """The edge autoencoder, its work done by a backend."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def encode(self, frames: Tensor) -> Encoded:
        if frames.shape[1] == 1:  # a single frame stands for four
            frames = frames.expand(-1, 4, -1, -1, -1)
        latents, fine, _ = self._backend.run(ENCODER, frames.contiguous())
        return Encoded(latents, fine)

    def decode(self, latents: Tensor, source: Encoded) -> tuple[Tensor, Tensor]:
        return self._backend.run(DECODER, latents, source.latents, source.fine)


class PieceSession(EditSession):
    """A stream whose network runs in a backend; sampler and cache stay torch's, and so does
    an autoencoder that is no piece."""

    def __init__(self, model: EditModel, make_backend, *args, **options) -> None:
        """make_backend: called with this session once its sizes are known; gives a Backend."""
        super().__init__(model, *args, **options)
        if self.blend_chunks:
            raise UserError("blending instructions needs --runtime torch; others take one text")
        self.backend: Backend = make_backend(self)
        self.runtime = self.backend.name
        if ENCODER in pieces_of(model):
            self._stream = EdgeStream(_PieceAutoencoder(self.backend))
        self._stacked: tuple[object, Tensor, Tensor] = (None, *(torch.empty(0),) * 2)
        self._stacked_past: tuple[object, Tensor, Tensor] = (None, *(torch.empty(0),) * 2)
        config, weight = model.config.transformer, model.transformer.proj_out.weight
        shape = (config.layers, 1, config.heads, 0, config.head_dim)
        self._nothing = torch.zeros(shape, dtype=weight.dtype, device=weight.device)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens of a latent frame."""
        return self._grid

    def _modulation(self, timestep: float) -> Tensor:
        return torch.full((1, 1), timestep, device=self.model.device)

    def reset(self) -> None:
        super().reset()
        self._stacked_past = (None, *(torch.empty(0),) * 2)

    def _forward(
        self, latents: Tensor, source_half: Tensor, modulation: Tensor, context: TextContext
    ) -> Tensor:
        return self._step(latents, source_half, modulation, context)[0]

    def _remember(self, clean: Tensor, source_half: Tensor, context: TextContext) -> None:
        _, keys, values = self._step(clean, source_half, self._clean, context)
        self._cache.write(keys, values)

    def _step(
        self, latents: Tensor, source_half: Tensor, timestep: Tensor, context: TextContext
    ) -> tuple[Tensor, ...]:
        if self._stacked[0] is not context:
            self._stacked = (context, torch.stack(context.keys), torch.stack(context.values))
        past = self._cache.past()
        if self._stacked_past[0] is not past:
            stacked = [torch.stack(side) for side in zip(*past, strict=True)]
            self._stacked_past = (past, *(stacked or (self._nothing, self._nothing)))
        return self.backend.run(
            STEP, latents, source_half, timestep, *self._stacked[1:], *self._stacked_past[1:],
            *self._cache.rotation(),
        )  # fmt: skip
