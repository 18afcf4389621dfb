# SPDX-License-Identifier: Apache-2.0
"""A stream's past: clean keys and values of the last chunks, allocated once, used as a ring."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

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


@dataclass(slots=True)
class Sight:
    """What a chunk's attention sees in one layer: buffers ``[B, N, H, head_dim]``, past first.

    keys are rotated. own_keys, own_values: the last T tokens of both, the chunk's own place, which
    whoever attends fills in.
    """

    keys: Tensor
    values: Tensor
    own_keys: Tensor
    own_values: Tensor


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
        count = chunk_latents * self.tokens
        shape = (window_chunks, batch, count, config.heads, config.head_dim)
        sight = (batch, (window_chunks + 1) * count, config.heads, config.head_dim)
        if not weight.is_meta:
            elements = math.prod(shape) + math.prod(sight)
            size = 2 * config.layers * elements * weight.element_size()
            require_memory(f"a past of {window_chunks} chunks", size, weight.device)

        def buffers(shape: tuple[int, ...]) -> list[Tensor]:
            made = (weight.new_zeros(shape) for _ in range(config.layers))
            return [tensor.requires_grad_(False) for tensor in made]

        self._keys, self._values = buffers(shape), buffers(shape)
        self._sight = list(zip(buffers(sight), buffers(sight), strict=True))
        # Rotations of every place that can be in sight, the current chunk's included.
        t = torch.arange((window_chunks + 1) * chunk_latents, device=weight.device)
        cos, sin = transformer.rope.angles(t, *token_grid(*grid, weight.device))
        self._cos, self._sin = cos.to(weight.dtype), sin.to(weight.dtype)
        # The same as complex numbers, by which float32 is rotated in one pass.
        self._turn = None
        if weight.dtype == torch.float32:
            self._turn = torch.complex(cos[:, ::2], sin[:, ::2]).unsqueeze(1)
        self.reset()

    def reset(self) -> None:
        """Forget the past."""
        self._order: list[int] = []  # slots in sight, oldest first
        self._past: list[tuple[Tensor, Tensor]] | None = None

    def memory_bytes(self) -> int:
        """Bytes of the ring and of what a chunk sees (the past rotated, and room for its own)."""
        sight = (tensor for pair in self._sight for tensor in pair)
        return sum(t.nbytes for t in (*self._keys, *self._values, *sight))

    def turn(self, x: Tensor, chunk: int, out: Tensor | None = None) -> Tensor:
        """Rotate queries or keys ``[B, T, H, head_dim]`` of one or more chunks' tokens to the place
        that is ``chunk`` chunks after the oldest in sight."""
        begin = chunk * self.chunk * self.tokens
        place = slice(begin, begin + x.shape[1])
        if self._turn is not None:
            pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
            to = None if out is None else torch.view_as_complex(out.unflatten(-1, (-1, 2)))
            return torch.view_as_real(torch.mul(pairs, self._turn[place], out=to)).flatten(-2)
        first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
        turned = torch.stack((-second, first), dim=-1).flatten(-2)
        cos, sin = self._cos[place].unsqueeze(1), self._sin[place].unsqueeze(1)
        return torch.add(x * cos, turned * sin, out=out)

    def _gather(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """Rotated keys and values of the past, ``[B, H, N, head_dim]``; made once per chunk."""
        if not self._order:
            return None
        if self._past is None:
            count = self.chunk * self.tokens
            for ring_k, ring_v, (keys, values) in zip(
                self._keys, self._values, self._sight, strict=True
            ):
                for place, slots in self._runs():
                    k, v = (r[slots].transpose(0, 1).flatten(1, 2) for r in (ring_k, ring_v))
                    here = slice(place * count, place * count + k.shape[1])
                    self.turn(k, place, keys[:, here])
                    values[:, here].copy_(v)
            end = len(self._order) * count
            self._past = [
                (k[:, :end].transpose(1, 2), v[:, :end].transpose(1, 2)) for k, v in self._sight
            ]
        return self._past[layer]

    def _runs(self) -> list[tuple[int, slice]]:
        """The slots in sight as few slices of the ring, each with its place in the order."""
        runs: list[tuple[int, slice]] = []
        for place, slot in enumerate(self._order):
            if runs and runs[-1][1].stop == slot:
                runs[-1] = (runs[-1][0], slice(runs[-1][1].start, slot + 1))
            else:
                runs.append((place, slice(slot, slot + 1)))
        return runs

    @property
    def place(self) -> int:
        """Chunks of past in sight: the current chunk's place for :meth:`turn`."""
        return len(self._order)

    def sight(self, layer: int) -> Sight:
        """What the current chunk sees in a layer; see :class:`Sight`."""
        self._gather(layer)
        count, begin = self.chunk * self.tokens, self.place * self.chunk * self.tokens
        keys, values = self._sight[layer]
        own = slice(begin, begin + count)
        return Sight(
            keys[:, : own.stop], values[:, : own.stop], keys[:, own], values[:, own]
        )  # fmt: skip

    def attend(self, store: bool) -> Attend:
        """Attention of the current chunk to itself and the past.

        store: also keep this chunk's keys and values (the clean pass, timestep 0); call
        :meth:`advance` after it.
        """
        cos, sin = self.rotation()

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            shape = q.shape
            past = self._gather(layer)  # before the oldest slot is written over
            q, k, v = (split_heads(x, self.heads) for x in (q, k, v))
            if store:
                self.store(layer, k.transpose(1, 2), v.transpose(1, 2))
            k = rotate(k, cos, sin)
            if past is not None:
                k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
            seen = F.scaled_dot_product_attention(rotate(q, cos, sin), k, v)
            return seen.transpose(1, 2).reshape(shape)

        return attend

    def store(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Keep a layer's keys, before rotation, and values ``[B, T, H, head_dim]`` of the current
        chunk. Once all layers are stored, :meth:`advance`. What is in sight must be gathered
        before: the oldest slot is written over."""
        if self.window:
            slot = self._free_slot()
            self._keys[layer][slot].copy_(keys)
            self._values[layer][slot].copy_(values)

    def remember(self, tokens: Tensor, modulation: Modulation, text: TextContext) -> None:
        """Make a chunk, given as clean tokens ``[B, F, S, D]``, the newest of the past.

        The same as a pass with ``attend(store=True)``, less what would only make its output.
        """
        if not self.window:
            return
        k, v = self._transformer.last_keys(tokens, modulation, text, self.attend(store=True))
        k, v = (x.reshape(len(x), -1, self.heads, x.shape[-1] // self.heads) for x in (k, v))
        self.store(len(self._keys) - 1, k, v)
        self.advance()

    # What a runtime takes that has the network in a file or a graph, with the past as tensors.

    def past(self) -> list[tuple[Tensor, Tensor]]:
        """Rotated keys and values in sight, per layer ``[B, H, N, head_dim]``; [] at the start.

        The list is the same object until :meth:`advance` or :meth:`reset`; the tensors are views
        of buffers that the next chunk's past is written to.
        """
        if self._order:
            self._gather(0)
        return self._past or []

    def rotation(self) -> tuple[Tensor, Tensor]:
        """cos, sin ``[chunk tokens, head_dim]`` of the current chunk's place."""
        count = self.chunk * self.tokens
        place = slice(self.place * count, (self.place + 1) * count)
        return self._cos[place], self._sin[place]

    def write(self, keys: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        """Make a chunk the newest of the past: keys before rotation, per layer
        ``[B, H, T, head_dim]``."""
        for layer, (k, v) in enumerate(zip(keys, values, strict=True)):
            self.store(layer, k.transpose(1, 2), v.transpose(1, 2))
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
