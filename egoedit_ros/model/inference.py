# SPDX-License-Identifier: Apache-2.0
"""The transformer as a stream runs it: the same weights and results, without the waste.

:class:`~egoedit_ros.model.transformer.Transformer` is written for training: several samples, a
timestep to each frame, any attention. A stream has one sample, few fixed timesteps and a cache, so
here a modulation is made once per timestep and goes into the layer norm's own scale and shift, keys
and values are written where attention reads them, and what is done in place stays in the
processor's cache. On a CPU these small passes over memory are a fifth of the time. It also is where
the conditioning on more than one text is (:class:`Blend`).

Letters in shapes: T tokens of the chunk, D width, H heads, L text.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from egoedit_ros.model.cache import KeyValueCache
from egoedit_ros.model.transformer import Attention, TextContext, Transformer

# gelu(x) in its tanh form is x sigmoid(2 sqrt(2/pi) (x + 0.044715 x^3)).
GELU_LINEAR = 1.5957691216057308
GELU_CUBIC = 0.044715 * GELU_LINEAR


@dataclass(frozen=True, slots=True)
class Blend:
    """Several instructions at once: each text's cross-attention, weighted; weights add up to 1.

    Outputs are mixed, not keys and values: those of two texts lie at unrelated places (the third
    token of one has nothing to do with the third of the other), so their mean is no text at all,
    while the mean of what two texts answer is a conditioning half way, and exactly either text's
    at the ends. It costs one small attention per text and layer, while it lasts.
    """

    parts: tuple[tuple[TextContext, float], ...]


Conditioning = TextContext | Blend


@dataclass(frozen=True, slots=True)
class StepModulation:
    """What a timestep does to the network: six vectors [D] for each block, two for the output.

    Scales come with the 1 added: shift1, scale1, gate1, shift2, scale2, gate2; shift, scale.
    """

    blocks: list[tuple[Tensor, ...]]
    out: tuple[Tensor, Tensor]


class StreamTransformer:
    """A :class:`Transformer` for one sample; holds no weights of its own and no state."""

    def __init__(self, transformer: Transformer) -> None:
        self._net = transformer
        config = transformer.config
        self._heads, self._eps, self._width = config.heads, config.eps, (config.dim,)

    def modulation(self, timestep: float) -> StepModulation:
        """What ``timestep`` (0..1000) does; made once for each of a session's timesteps."""
        net = self._net
        given = net.modulation(torch.full((1, 1), timestep, device=net.proj_out.weight.device))
        blocks = []
        for block in net.blocks:
            six = (block.scale_shift_table + given.block)[0, 0, 0].unbind(0)
            shift1, scale1, gate1, shift2, scale2, gate2 = six
            blocks.append((shift1, 1 + scale1, gate1, shift2, 1 + scale2, gate2))
        shift, scale = (net.scale_shift_table + given.out.unsqueeze(-2))[0, 0, 0].unbind(0)
        return StepModulation(blocks, (shift, 1 + scale))

    def output(
        self,
        tokens: Tensor,
        modulation: StepModulation,
        text: Conditioning,
        cache: KeyValueCache,
        grid: tuple[int, int],
    ) -> Tensor:
        """As :meth:`Transformer.forward` for a chunk in sight of its past.

        tokens ``[1, F, S, D]``, which is not changed, to latents ``[1, F, C, h, w]``.
        """
        net, frames = self._net, tokens.shape[1]
        x = tokens.flatten(0, 2).clone()
        for layer in range(len(net.blocks)):
            self._block(x, layer, modulation, text, cache, store=False)
        shift, scale = modulation.out
        x = net.proj_out(F.layer_norm(x, self._width, scale, shift, self._eps))
        _, ph, pw = net.config.patch
        x = x.reshape(1, frames, *grid, ph, pw, -1).permute(0, 1, 6, 2, 4, 3, 5)
        return x.reshape(1, frames, -1, grid[0] * ph, grid[1] * pw)

    def remember(
        self, tokens: Tensor, modulation: StepModulation, text: Conditioning, cache: KeyValueCache
    ) -> None:
        """As :meth:`KeyValueCache.remember`: make clean tokens ``[1, F, S, D]`` the newest past."""
        if not cache.window:
            return
        x = tokens.flatten(0, 2).clone()
        last = len(self._net.blocks) - 1
        for layer in range(last):
            self._block(x, layer, modulation, text, cache, store=True)
        attention = self._net.blocks[last].attn1
        h = self._modulated(x, modulation.blocks[last][:2])
        keys, values = attention.norm_k(attention.to_k(h)), attention.to_v(h)
        cache.store(last, self._split(keys), self._split(values))
        cache.advance()

    def _block(
        self,
        x: Tensor,
        layer: int,
        modulation: StepModulation,
        text: Conditioning,
        cache: KeyValueCache,
        store: bool,
    ) -> None:
        """Block ``layer`` on tokens ``x`` [T, D], in place."""
        block = self._net.blocks[layer]
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation.blocks[layer]
        h = self._modulated(x, (shift1, scale1))
        seen = self._see_past(h, layer, block.attn1, cache, store)
        x.addcmul_(block.attn1.to_out[0](seen), gate1)

        h = block.norm2(x)
        q = self._split(block.attn2.norm_q(block.attn2.to_q(h)))
        x.add_(block.attn2.to_out[0](self._read(q, text, layer)))

        h = self._modulated(x, (shift2, scale2))
        x.addcmul_(block.ffn.net[2](gelu_(block.ffn.net[0].proj(h))), gate2)

    def _modulated(self, x: Tensor, shift_scale: tuple[Tensor, Tensor]) -> Tensor:
        shift, scale = shift_scale
        return F.layer_norm(x, self._width, scale, shift, self._eps)

    def _split(self, x: Tensor) -> Tensor:
        """``[T, D]`` to ``[1, T, H, head_dim]``."""
        return x.view(1, len(x), self._heads, -1)

    def _see_past(
        self, h: Tensor, layer: int, attention: Attention, cache: KeyValueCache, store: bool
    ) -> Tensor:
        """Self-attention of the chunk to itself and the past, ``[T, D]``."""
        q = self._split(attention.norm_q(attention.to_q(h)))
        k = self._split(attention.norm_k(attention.to_k(h)))
        v = self._split(attention.to_v(h))
        sight = cache.sight(layer)
        if store:
            cache.store(layer, k, v)
        cache.turn(k, cache.place, sight.own_keys)
        sight.own_values.copy_(v)
        return _attention(cache.turn(q, cache.place), sight.keys, sight.values).view_as(h)

    def _read(self, q: Tensor, text: Conditioning, layer: int) -> Tensor:
        """Cross-attention of queries ``[1, T, H, head_dim]`` to the text or texts: [T, D]."""
        q = q.transpose(1, 2)
        parts = text.parts if isinstance(text, Blend) else ((text, 1.0),)
        mixed = None
        for part, weight in parts:
            seen = F.scaled_dot_product_attention(q, part.keys[layer], part.values[layer])
            if len(parts) == 1:
                mixed = seen
            else:
                mixed = seen * weight if mixed is None else mixed.add_(seen, alpha=weight)
        return mixed.transpose(1, 2).reshape(q.shape[2], -1)


def _attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """``[B, N, H, head_dim]`` each, and so is the result."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def gelu_(x: Tensor) -> Tensor:
    """gelu(x), approximated by tanh; ``x`` is overwritten. In float32 on a CPU by the logistic
    function, which is quicker there than torch's own (measured: 0.6 of its time)."""
    if x.dtype != torch.float32 or x.device.type != "cpu":
        return F.gelu(x, approximate="tanh")
    gate = (x * x).mul_(GELU_CUBIC).add_(GELU_LINEAR).mul_(x).sigmoid_()
    return x.mul_(gate)
