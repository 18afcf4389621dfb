# SPDX-License-Identifier: Apache-2.0
"""Stage ``self_forcing``: the generator learns on streams it has made itself (Huang et al. 2025).

A clip is generated chunk by chunk with the cache that a session uses, and the loss (DMD) is on the
whole of it. One exit step is drawn for all chunks: the steps before it go without gradient, its
clean latents are the chunk, and a pass without gradient at t = 0 writes them into the cache. While
the last chunk, of three or more, is generated the first is hidden (EgoEdit App. B): in a long
stream it would have left the window.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor

from egoedit_ros.errors import UserError
from egoedit_ros.model.cache import KeyValueCache
from egoedit_ros.model.config import EditorConfig
from egoedit_ros.model.flow import add_noise, step_sigmas, to_clean
from egoedit_ros.model.transformer import Attend, Transformer, rotate, split_heads
from egoedit_ros.train.batches import FlowData, Resident
from egoedit_ros.train.dmd import DistillData, Rollout, distill
from egoedit_ros.train.loop import TrainSettings


class RolloutCache(KeyValueCache):
    """The inference cache, for a few chunks, with two things that training wants of it."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self._written: dict[int, tuple[Tensor, Tensor]] = {}  # of the chunk in work, by layer
        self._kept: dict[int, dict[int, tuple[Tensor, Tensor]]] = {}  # the same by slot

    def store(self, layer: int, keys: Tensor, values: Tensor) -> None:
        super().store(layer, keys, values)
        self._written[layer] = (keys.detach(), values.detach())

    def advance(self) -> None:
        super().advance()
        self._kept[self._order[-1]], self._written = self._written, {}

    def hide_first(self) -> None:
        """Leave the oldest chunk out of what the last one sees. No chunk may follow."""
        self._order = self._order[1:]
        self._past = None

    def attend_later_too(self) -> Attend:
        """As ``attend(store=False)``, but of the past as it is now.

        The backward pass comes when the cache is further on and has written over its buffers; with
        gradient checkpointing it runs the network once more. So the past is taken from what was
        written, once for all chunks that see it, and turned to its place here.
        """
        past = [self._kept[slot] for slot in self._order]
        cos, sin = self.rotation()

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            shape = q.shape
            q, k, v = (split_heads(x, self.heads) for x in (q, k, v))
            keys, values = [], []
            for place, chunk in enumerate(past):
                keys.append(self.turn(chunk[layer][0].float(), place).transpose(1, 2).to(k.dtype))
                values.append(chunk[layer][1].transpose(1, 2).to(k.dtype))
            k = torch.cat([*keys, rotate(k, cos, sin)], dim=2)
            v = torch.cat([*values, v.to(k.dtype)], dim=2)
            seen = F.scaled_dot_product_attention(rotate(q, cos, sin), k, v)
            return seen.transpose(1, 2).reshape(shape)

        return attend


def hides_first(config: EditorConfig, frames: int) -> bool:
    """Whether a stream of so many latent frames is to hide its first chunk from its last: with two
    chunks it is all the past there is, and nothing would learn to use one."""
    return frames > 2 * config.chunk_latents


def rollout_stream(
    net: Transformer,
    config: EditorConfig,
    source: Tensor,
    text: Tensor,
    exit_step: int,
    nfe: int,
    draw: Callable[[tuple[int, ...], int], Tensor],
    hide_first: bool = True,
) -> Tensor:
    """Edited latents ``[B, F, C, h, w]`` of a stream from its start, as a session makes them.

    source ``[B, F, C, h, w]`` with F a whole number of chunks; draw: unit noise of a shape for the
    chunk of an index, first the start, then what each step adds. exit_step: the step whose clean
    latents are the chunk; nfe - 1 is what a session does.
    """
    chunk, channels = config.chunk_latents, config.transformer.out_channels
    count = source.shape[1] // chunk
    _, ph, pw = config.transformer.patch
    grid = (source.shape[-2] // ph, source.shape[-1] // pw)
    cache = RolloutCache(
        _as_seen_whole(net), grid, chunk, config.window_chunks, config.sink_chunks, len(source)
    )
    sigmas = step_sigmas(nfe, config.shift)
    context = net.text(text)
    made = []
    for index in range(count):
        # A longer clip's first chunk has left the window by itself; a sink never leaves it.
        in_sight = index <= config.window_chunks and not config.sink_chunks
        if hide_first and index == count - 1 and in_sight:
            cache.hide_first()
        part = source[:, index * chunk : (index + 1) * chunk]
        half = net.embed(part, channels, bias=False)

        def forward(noisy, sigma, attend, part=part, half=half):
            modulation = net.modulation(torch.full((1, 1), 1000 * sigma, device=part.device))
            output = net(net.embed(noisy) + half, modulation, context, attend, grid).float()
            return to_clean(output, noisy, sigma, part, config.transformer.anchored)

        shape = (len(part), chunk, channels, *part.shape[3:])
        noisy = draw(shape, index)
        with torch.no_grad():
            for step in range(exit_step):
                clean = forward(noisy, sigmas[step], cache.attend(store=False))
                noisy = add_noise(clean, draw(shape, index), sigmas[step + 1])
        clean = forward(noisy, sigmas[exit_step], cache.attend_later_too())
        made.append(clean)
        if index + 1 < count:
            with torch.no_grad():
                tokens = net.embed(clean.detach()) + half.detach()
                cache.remember(tokens, net.modulation(_zero(part)), context)
    return torch.cat(made, dim=1)


def _as_seen_whole(net: Transformer) -> SimpleNamespace:
    """What the cache takes of a network; its weights may be spread over processes, the cache's
    tensors must not be."""
    weight = net.proj_out.weight
    like = torch.empty(0, dtype=weight.dtype, device=weight.device)
    return SimpleNamespace(
        config=net.config,
        rope=net.rope,
        proj_out=SimpleNamespace(weight=like),
        last_keys=net.last_keys,
    )


def _zero(like: Tensor) -> Tensor:
    return torch.zeros((1, 1), device=like.device)


def stream_rollout(config: EditorConfig, nfe: int, view: FlowData) -> Rollout:
    """:func:`rollout_stream` for :class:`~egoedit_ros.train.dmd.Distiller`."""
    if view.crop:
        raise UserError("self_forcing generates whole frames, as a session does; set crop: 0")
    if view.frames % config.chunk_latents or view.frames < 2 * config.chunk_latents:
        raise UserError(
            f"self_forcing needs two or more whole chunks of {config.chunk_latents} latent "
            f"frames; {view.frames} frames are not that"
        )

    def rollout(net, batch, exit_step, draw):
        return rollout_stream(
            net, config, batch.source, batch.text, exit_step, nfe, lambda shape, _: draw(shape),
            hide_first=hides_first(config, view.frames),
        )  # fmt: skip

    return rollout


def train_self_forcing(
    settings: TrainSettings,
    data: FlowData,
    given: DistillData,
    start: Path | None = None,
    sampler=None,
    resident: Resident | None = None,
) -> Path:
    """Run the stage; start: the generator's first weights (EgoEdit: those of ``dmd``)."""
    for view in data.each_view():
        stream_rollout(settings.editor, 1, view)  # refuse before anything is loaded
    return distill(settings, data, given, start, stream_rollout, sampler, resident)
