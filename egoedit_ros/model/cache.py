# SPDX-License-Identifier: Apache-2.0
"""A stream's past: clean keys and values of the last chunks, allocated once, used as a ring."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from egoedit_ros.errors import UserError
from egoedit_ros.model.memory import require_memory
from egoedit_ros.model.transformer import (
    Attend,
    Modulation,
    TextContext,
    Transformer,
    rotate,
    split_heads,
    token_grid,
)


class KeyValueCache:
    """Keys before rotation and values of the chunks in sight, per layer.

    Keys are stored unrotated, so positions are given anew for every chunk: the oldest in sight is
    frame 0. Positions never run out and a stream does not depend on how long ago it began.
    """

    def __init__(
        self,
        transformer: Transformer,
        grid: tuple[int, int],
        chunk_latents: int,
        window_chunks: int,
        sink_chunks: int = 0,
        batch: int = 1,
    ) -> None:
        config = transformer.config
        weight = transformer.proj_out.weight
        self._transformer = transformer
        self.chunk = chunk_latents
        self.window = window_chunks
        self.sink = sink_chunks
        if sink_chunks and sink_chunks >= window_chunks:
            raise UserError(
                f"a window of {window_chunks} chunks leaves nothing beside {sink_chunks} sink "
                "chunks; make the window larger"
            )
        self.heads = config.heads
        self.tokens = grid[0] * grid[1]
        shape = (window_chunks, batch, config.heads, chunk_latents * self.tokens, config.head_dim)
        if not weight.is_meta:
            size = 2 * config.layers * math.prod(shape) * weight.element_size()
            require_memory(f"a past of {window_chunks} chunks", size, weight.device)
        self._keys = [torch.zeros(shape, dtype=weight.dtype, device=weight.device)
                      for _ in range(config.layers)]  # fmt: skip
        self._values = [torch.zeros_like(k) for k in self._keys]
        # Rotations for every number of chunks that can be in sight, the current one included.
        y, x = token_grid(*grid, weight.device)
        self._angles = []
        for chunks in range(1, window_chunks + 2):
            t = torch.arange(chunks * chunk_latents, device=weight.device)
            cos, sin = transformer.rope.angles(t, y, x)
            self._angles.append((cos.to(weight.dtype), sin.to(weight.dtype)))
        self.reset()

    def reset(self) -> None:
        """Forget the past."""
        self._order: list[int] = []  # slots in sight, oldest first
        self._past: list[tuple[Tensor, Tensor]] | None = None

    def memory_bytes(self) -> int:
        return sum(t.nbytes for t in (*self._keys, *self._values))

    def _gather(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """Rotated keys and values of the past, ``[B, H, N, head_dim]``; made once per chunk."""
        if not self._order:
            return None
        if self._past is None:
            self._past = []
            cos, sin = self._angles[len(self._order)]
            count = len(self._order) * self.chunk * self.tokens
            for keys, values in zip(self._keys, self._values, strict=True):
                k = torch.cat([keys[s] for s in self._order], dim=2)
                v = torch.cat([values[s] for s in self._order], dim=2)
                self._past.append((rotate(k, cos[:count], sin[:count]), v))
        return self._past[layer]

    def attend(self, store: bool) -> Attend:
        """Attention of the current chunk to itself and the past.

        store: also keep this chunk's keys and values (the clean pass, timestep 0); call
        :meth:`advance` after it.
        """
        cos, sin = self.rotation()
        slot = self._free_slot() if self.window else None

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            shape = q.shape
            q, k, v = (split_heads(x, self.heads) for x in (q, k, v))
            past = self._gather(layer)  # before the oldest slot is written over
            if store and self.window:
                self._keys[layer][slot].copy_(k)
                self._values[layer][slot].copy_(v)
            k = rotate(k, cos, sin)
            if past is not None:
                k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
            seen = F.scaled_dot_product_attention(rotate(q, cos, sin), k, v)
            return seen.transpose(1, 2).reshape(shape)

        return attend

    def remember(self, tokens: Tensor, modulation: Modulation, text: TextContext) -> None:
        """Make a chunk, given as clean tokens ``[B, F, S, D]``, the newest of the past.

        The same as a pass with ``attend(store=True)``, less what would only make its output.
        """
        if not self.window:
            return
        slot = self._free_slot()
        k, v = self._transformer.last_keys(tokens, modulation, text, self.attend(store=True))
        self._keys[-1][slot].copy_(split_heads(k, self.heads))
        self._values[-1][slot].copy_(split_heads(v, self.heads))
        self.advance()

    # What a runtime takes that has the network in a file or a graph, with the past as tensors.

    def past(self) -> list[tuple[Tensor, Tensor]]:
        """Rotated keys and values in sight, per layer ``[B, H, N, head_dim]``; [] at the start.

        The list is the same object until :meth:`advance` or :meth:`reset`.
        """
        if self._order:
            self._gather(0)
        return self._past or []

    def rotation(self) -> tuple[Tensor, Tensor]:
        """cos, sin ``[chunk tokens, head_dim]`` of the current chunk's place."""
        cos, sin = self._angles[len(self._order)]
        count = self.chunk * self.tokens
        return cos[-count:], sin[-count:]

    def write(self, keys: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        """Make a chunk the newest of the past: keys before rotation, per layer."""
        if not self.window:
            return
        slot = self._free_slot()
        for layer, (k, v) in enumerate(zip(keys, values, strict=True)):
            self._keys[layer][slot].copy_(k)
            self._values[layer][slot].copy_(v)
        self.advance()

    def _free_slot(self) -> int:
        return len(self._order) if len(self._order) < self.window else self._order[self.sink]

    def advance(self) -> None:
        """The chunk stored last is past now; the oldest one outside the sink is forgotten."""
        if not self.window:
            return
        slot = self._free_slot()
        if len(self._order) == self.window:
            self._order.remove(slot)
        self._order.append(slot)
        self._past = None
