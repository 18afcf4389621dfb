# SPDX-License-Identifier: Apache-2.0
"""The causal diffusion transformer: one class for ``edge``, Wan 2.1 and EgoEdit's sizes.

Parameter names are those of diffusers' ``WanTransformer3DModel``. The module holds weights only; a
stream's keys and values live in :class:`~egoedit_ros.model.cache.KeyValueCache`.

Letters in shapes: B batch, F latent frames, S tokens of a latent frame, D width, H heads, L text.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from egoedit_ros.model.config import TransformerConfig

# Self-attention as a function of (layer, q, k, v), q and k not yet rotated: the caller decides
# what a token may see (whole clip, block-causal, cache). Tensors are [B, F, S, D].
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]


@dataclass(slots=True)
class TextContext:
    """Keys and values of an instruction, per layer ``[B, H, L, head_dim]``; made once per text."""

    keys: list[Tensor]
    values: list[Tensor]


@dataclass(slots=True)
class Modulation:
    """What a timestep does to the network: ``block`` [B, F, 1, 6, D], ``out`` [B, F, 1, D]."""

    block: Tensor
    out: Tensor


def split_heads(x: Tensor, heads: int) -> Tensor:
    """``[B, ..., D]`` to ``[B, H, N, D/H]``, all middle axes joined to N."""
    return x.reshape(x.shape[0], -1, heads, x.shape[-1] // heads).transpose(1, 2)


class Rotary(nn.Module):
    """Three-axis rotary embedding, as in Wan: time, height and width share the head's channels."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        side = 2 * (config.head_dim // 6)
        self.dims = (config.head_dim - 2 * side, side, side)
        self.theta = config.rope_theta

    def angles(self, t: Tensor, y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """cos, sin ``[..., F*S, head_dim]`` of frame positions t [F] and token positions y, x
        ``[..., S]``."""
        y, x = y.unsqueeze(-2), x.unsqueeze(-2)
        shape = (*y.shape[:-2], len(t), y.shape[-1])
        parts = []
        for dim, place in zip(self.dims, (t[:, None], y, x), strict=True):
            steps = torch.arange(0, dim, 2, device=t.device, dtype=torch.float64) / dim
            frequency = 1.0 / self.theta**steps
            angle = place.expand(shape).flatten(-2).unsqueeze(-1).to(torch.float64) * frequency
            parts.append(angle.repeat_interleave(2, dim=-1))
        angle = torch.cat(parts, dim=-1)
        return angle.cos().float(), angle.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate neighbouring channel pairs of ``x`` [B, H, N, head_dim] by cos/sin [N, head_dim]."""
    first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack((-second, first), dim=-1).flatten(-2)
    return (x * cos + turned * sin).to(x.dtype)


class TimestepEmbedding(nn.Module):
    def __init__(self, freq_dim: int, dim: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(freq_dim, dim)
        self.linear_2 = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(x)))


class TextProjection(nn.Module):
    def __init__(self, text_dim: int, dim: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(text_dim, dim)
        self.linear_2 = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.gelu(self.linear_1(x), approximate="tanh"))


class ConditionEmbedder(nn.Module):
    """Timestep (0..1000) and text to what the blocks take."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.freq_dim = config.freq_dim
        self.time_embedder = TimestepEmbedding(config.freq_dim, config.dim)
        self.time_proj = nn.Linear(config.dim, 6 * config.dim)
        self.text_embedder = TextProjection(config.text_dim, config.dim)

    def time(self, timestep: Tensor) -> Modulation:
        """Modulation for timesteps ``[B, F]`` in 0..1000."""
        half = self.freq_dim // 2
        scale = torch.arange(half, device=timestep.device, dtype=torch.float32) / half
        angle = timestep.float()[..., None] * torch.exp(-math.log(10000.0) * scale)
        wave = torch.cat([angle.cos(), angle.sin()], dim=-1)
        embedded = self.time_embedder(wave.to(self.time_proj.weight.dtype))
        block = self.time_proj(F.silu(embedded)).unflatten(-1, (6, -1))
        return Modulation(block.unsqueeze(2), embedded.unsqueeze(2))


class RMSNorm(nn.RMSNorm):
    """In the input's precision: the fused kernel wants weights of the same type."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class Attention(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        dim = config.dim
        self.heads = config.heads
        self.to_q = nn.Linear(dim, dim)
        self.to_k = nn.Linear(dim, dim)
        self.to_v = nn.Linear(dim, dim)
        self.to_out = nn.ModuleList([nn.Linear(dim, dim)])
        if config.qk_norm:
            self.norm_q = RMSNorm(dim, eps=config.eps)
            self.norm_k = RMSNorm(dim, eps=config.eps)
        else:
            self.norm_q = self.norm_k = nn.Identity()


class GeluProjection(nn.Module):
    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, inner)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.proj(x), approximate="tanh")


class FeedForward(nn.Module):
    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        # Index 1 is dropout in diffusers; the name of the last layer stays net.2.
        self.net = nn.ModuleList([GeluProjection(dim, inner), nn.Identity(), nn.Linear(inner, dim)])

    def forward(self, x: Tensor) -> Tensor:
        return self.net[2](self.net[0](x))


class Block(nn.Module):
    """Self-attention, cross-attention to the text, MLP; PixArt-style timestep modulation."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        dim, eps = config.dim, config.eps
        self.norm1 = nn.LayerNorm(dim, eps, elementwise_affine=False)
        self.attn1 = Attention(config)
        self.attn2 = Attention(config)
        self.norm2 = nn.LayerNorm(dim, eps) if config.cross_attn_norm else nn.Identity()
        self.ffn = FeedForward(dim, config.ffn_dim)
        self.norm3 = nn.LayerNorm(dim, eps, elementwise_affine=False)
        self.scale_shift_table = nn.Parameter(torch.randn(1, 6, dim) / dim**0.5)

    def forward(
        self, x: Tensor, layer: int, modulation: Modulation, text: TextContext, attend: Attend
    ) -> Tensor:
        seen = attend(layer, *self.ask(x, modulation.block))
        return self.answer(x, seen, modulation.block, text.keys[layer], text.values[layer])

    def ask(self, x: Tensor, modulation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of the self-attention."""
        shift, scale = (self.scale_shift_table + modulation).unbind(-2)[:2]
        h = self.norm1(x) * (1 + scale) + shift
        a = self.attn1
        return a.norm_q(a.to_q(h)), a.norm_k(a.to_k(h)), a.to_v(h)

    def answer(
        self, x: Tensor, seen: Tensor, modulation: Tensor, text_keys: Tensor, text_values: Tensor
    ) -> Tensor:
        """What follows the self-attention, which has ``seen`` this much."""
        gate1, shift, scale, gate2 = (self.scale_shift_table + modulation).unbind(-2)[2:]
        x = x + self.attn1.to_out[0](seen) * gate1

        a = self.attn2
        q = split_heads(a.norm_q(a.to_q(self.norm2(x))), a.heads)
        seen = F.scaled_dot_product_attention(q, text_keys, text_values)
        x = x + a.to_out[0](seen.transpose(1, 2).reshape(x.shape))

        h = self.norm3(x) * (1 + scale) + shift
        return x + self.ffn(h) * gate2

    def keys(self, x: Tensor, modulation: Modulation) -> tuple[Tensor, Tensor]:
        """Self-attention's keys, not rotated, and values of this block's input: [B, F, S, D]."""
        shift, scale = (self.scale_shift_table + modulation.block).unbind(-2)[:2]
        h = self.norm1(x) * (1 + scale) + shift
        return self.attn1.norm_k(self.attn1.to_k(h)), self.attn1.to_v(h)


class Transformer(nn.Module):
    """Tokens in, tokens out; what is attended to is the caller's (see :data:`Attend`)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.rope = Rotary(config)
        self.patch_embedding = nn.Conv3d(
            config.in_channels, config.dim, config.patch, stride=config.patch
        )
        self.condition_embedder = ConditionEmbedder(config)
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.layers)])
        self.norm_out = nn.LayerNorm(config.dim, config.eps, elementwise_affine=False)
        made = config.out_channels + config.gates
        self.proj_out = nn.Linear(config.dim, made * math.prod(config.patch))
        self.scale_shift_table = nn.Parameter(torch.randn(1, 2, config.dim) / config.dim**0.5)

    def embed(self, latents: Tensor, first_channel: int = 0, bias: bool = True) -> Tensor:
        """Patchify ``[B, F, C, h, w]`` to tokens ``[B, F, S, D]``.

        The convolution over noise and source together is the sum of one over each, so the source
        half (``first_channel`` = noise channels, ``bias=False``) is done once per chunk.
        """
        patch = self.config.patch
        weight = self.patch_embedding.weight
        weight = weight[:, first_channel : first_channel + latents.shape[2]].flatten(1)
        b, f, c, h, w = latents.shape
        cells = latents.reshape(b, f, c, h // patch[1], patch[1], w // patch[2], patch[2])
        cells = cells.permute(0, 1, 3, 5, 2, 4, 6).reshape(b, f, -1, weight.shape[1])
        return F.linear(cells.to(weight.dtype), weight, self.patch_embedding.bias if bias else None)

    def text(self, embedded: Tensor) -> TextContext:
        """Cross-attention keys and values of text embeddings ``[B, L, text_dim]``."""
        context = self.condition_embedder.text_embedder(embedded.to(self.proj_out.weight.dtype))
        keys, values = [], []
        for block in self.blocks:
            a = block.attn2
            keys.append(split_heads(a.norm_k(a.to_k(context)), a.heads))
            values.append(split_heads(a.to_v(context), a.heads))
        return TextContext(keys, values)

    def modulation(self, timestep: Tensor) -> Modulation:
        """What timesteps ``[B, F]`` (0..1000) do to the network."""
        return self.condition_embedder.time(timestep)

    def forward(
        self,
        tokens: Tensor,
        modulation: Modulation,
        text: TextContext,
        attend: Attend,
        grid: tuple[int, int],
    ) -> Tensor:
        """``tokens`` [B, F, S, D] to latents, and gates behind them, ``[B, F, C, h, w]``; ``grid``:
        token rows, columns."""
        x = tokens
        for layer, block in enumerate(self.blocks):
            x = block(x, layer, modulation, text, attend)
        return self.head(x, modulation, grid)

    def head(self, x: Tensor, modulation: Modulation, grid: tuple[int, int]) -> Tensor:
        """What :meth:`forward` does after the last block."""
        shift, scale = (self.scale_shift_table + modulation.out.unsqueeze(-2)).unbind(-2)
        x = self.proj_out(self.norm_out(x) * (1 + scale) + shift)
        rows, columns = grid
        _, ph, pw = self.config.patch
        b, f = x.shape[:2]
        x = x.reshape(b, f, rows, columns, ph, pw, -1).permute(0, 1, 6, 2, 4, 3, 5)
        return x.reshape(b, f, -1, rows * ph, columns * pw)

    def last_keys(
        self, tokens: Tensor, modulation: Modulation, text: TextContext, attend: Attend
    ) -> tuple[Tensor, Tensor]:
        """:meth:`forward` for a cache's sake: keys and values of the last block, where it ends.

        ``attend`` sees those of the blocks before.
        """
        x = tokens
        for layer, block in enumerate(self.blocks[:-1]):
            x = block(x, layer, modulation, text, attend)
        return self.blocks[-1].keys(x, modulation)


def token_grid(
    rows: int, columns: int, device: torch.device, top: int = 0, left: int = 0
) -> tuple[Tensor, Tensor]:
    """Row and column positions ``[S]`` of a grid of tokens, counted from (top, left)."""
    y, x = torch.meshgrid(
        torch.arange(top, top + rows, device=device),
        torch.arange(left, left + columns, device=device),
        indexing="ij",
    )
    return y.flatten(), x.flatten()


def causal_attend(
    cos: Tensor, sin: Tensor, heads: int, chunk: int, window: int | None = None
) -> Attend:
    """Block-causal attention over a whole clip, chunk by chunk, without a dense mask.

    cos, sin: ``[F*S, head_dim]``, or ``[B, 1, F*S, head_dim]`` where samples differ in position.
    chunk: latent frames a chunk, bidirectional inside; ``chunk >= F`` is whole-clip attention.
    window: past chunks in sight; None: all.
    """

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        frames, tokens = q.shape[1], q.shape[2]
        shape = q.shape
        q = rotate(split_heads(q, heads), cos, sin)
        k = rotate(split_heads(k, heads), cos, sin)
        v = split_heads(v, heads)
        outputs = []
        for start in range(0, frames, chunk):
            here = slice(start * tokens, min(start + chunk, frames) * tokens)
            begin = 0 if window is None else max(0, start - window * chunk)
            seen = slice(begin * tokens, here.stop)
            outputs.append(
                F.scaled_dot_product_attention(q[:, :, here], k[:, :, seen], v[:, :, seen])
            )
        return torch.cat(outputs, dim=2).transpose(1, 2).reshape(shape)

    return attend
