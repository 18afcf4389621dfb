# SPDX-License-Identifier: Apache-2.0
"""``--runtime compile``: one block of the transformer through ``torch.compile``, used for all.

Compiling the whole network took so long on two cores that no run ended: eight blocks, three lengths
of the past and two convolutional networks. Blocks are alike, so one is compiled, once.
"""

from __future__ import annotations

import sys
import time

import torch
import torch.nn.functional as F
from torch import Tensor

from egoedit_ros.errors import UserError
from egoedit_ros.model.transformer import (
    Block,
    Modulation,
    TextContext,
    Transformer,
    rotate,
    split_heads,
)
from egoedit_ros.runtime.steps import STEP, PieceSession, StepPiece, TorchBackend
from egoedit_ros.stream.edit_session import EditModel


def _block_pass(
    block: Block, x: Tensor, modulation: Tensor, text_keys: Tensor, text_values: Tensor,
    past_keys: Tensor, past_values: Tensor, cos: Tensor, sin: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """One block on tokens ``[1, N, S, D]``, all of it in tensors: tokens, keys and values out."""
    own: list[Tensor] = []

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        shape = q.shape
        q, k, v = (split_heads(y, block.attn1.heads) for y in (q, k, v))
        own.extend((k, v))
        k = torch.cat([past_keys, rotate(k, cos, sin)], dim=2)
        v = torch.cat([past_values, v], dim=2)
        seen = F.scaled_dot_product_attention(rotate(q, cos, sin), k, v)
        return seen.transpose(1, 2).reshape(shape)

    text = TextContext([text_keys], [text_values])
    x = block(x, 0, Modulation(modulation, modulation), text, attend)
    return x, own[0], own[1]


class CompiledStepPiece(StepPiece):
    """As StepPiece, its blocks compiled once: all blocks and timesteps share one graph.

    Only for a past of ``past_tokens``, the full window's. The few chunks before it are run as they
    are, so nothing is compiled in the middle of a stream, and never more than one graph.
    """

    def __init__(self, transformer: Transformer, grid: tuple[int, int], past_tokens: int) -> None:
        super().__init__(transformer, grid)
        self.past_tokens = past_tokens
        self._compiled = torch.compile(_block_pass, dynamic=False, fullgraph=True)

    def warm_up(self, chunk_latents: int) -> None:
        """Compile, on nothing: tensors of the kinds that a stream gives, or it is done again."""
        config, weight = self.transformer.config, self.transformer.proj_out.weight
        tokens = chunk_latents * self.grid[0] * self.grid[1]

        def some(*shape: int) -> Tensor:
            return weight.new_zeros(shape)

        latents = (1, chunk_latents, config.out_channels)
        heads = (config.layers, 1, config.heads)
        sides = (self.grid[0] * config.patch[1], self.grid[1] * config.patch[2])
        # The rotation is the cache's, made outside of inference mode; all else is made inside.
        rotation = [some(tokens, config.head_dim) for _ in range(2)]
        with torch.inference_mode():
            self(
                some(*latents, *sides), some(1, chunk_latents, tokens // chunk_latents, config.dim),
                torch.zeros(1, 1, device=weight.device),
                *(some(*heads, config.text_len, config.head_dim) for _ in range(2)),
                *(some(*heads, self.past_tokens, config.head_dim) for _ in range(2)),
                *rotation,
            )  # fmt: skip

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
        given = (text_keys, text_values, past_keys, past_values)
        if past_keys.shape[3] != self.past_tokens:
            return super().forward(noisy, source_tokens, timestep, *given, cos, sin)
        net = self.transformer
        modulation = net.modulation(timestep)
        x, keys, values = net.embed(noisy) + source_tokens, [], []
        for block, *layer in zip(net.blocks, *given, strict=True):
            x, k, v = self._compiled(block, x, modulation.block, *layer, cos, sin)
            keys.append(k)
            values.append(v)
        return net.head(x, modulation, self.grid), torch.stack(keys), torch.stack(values)


class CompiledBackend(TorchBackend):
    """The pieces with the transformer's blocks compiled; the autoencoder stays as it is.

    window_chunks: of the session. Compiling is done here, and said on stderr before it begins.
    Raises UserError where it fails, which on a CPU mostly is for want of a C++ compiler.
    """

    name = "torch.compile"

    def __init__(
        self, model: EditModel, grid: tuple[int, int], chunk_latents: int, window_chunks: int
    ) -> None:
        super().__init__(model, grid)
        past = window_chunks * chunk_latents * grid[0] * grid[1]
        step = CompiledStepPiece(model.transformer, grid, past)
        self.pieces[STEP] = step
        print(
            "compiling one block of the transformer: some 30 s of a free core, more on a busy "
            "machine; the next time it comes from torch's own cache",
            file=sys.stderr,
            flush=True,
        )
        start = time.perf_counter()
        try:
            step.warm_up(chunk_latents)
        except Exception as error:
            line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"torch.compile failed ({line}); use --runtime torch, or install a C++ compiler"
            ) from None
        self.compile_s = time.perf_counter() - start
        print(f"compiled in {self.compile_s:.0f} s", file=sys.stderr, flush=True)


def compiled_backend(session: PieceSession) -> CompiledBackend:
    """For a session's ``make_backend``."""
    window = session.model.config.window_chunks
    return CompiledBackend(session.model, session.grid, session.chunk_latents, window)
