# SPDX-License-Identifier: Apache-2.0
"""A transformer as a denoiser of whole clips, whatever it predicts; guidance; samplers.

Everything is said in clean latents x0: :func:`~egoedit_ros.model.flow.to_clean` makes them of both
kinds of networks, and guidance, DMD's scores and the losses mean the same for both. Where a
velocity is wanted it is (x_sigma - x0) / sigma, which is noise - x0.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from egoedit_ros.model.config import EditorConfig
from egoedit_ros.model.flow import add_noise, step_sigmas, to_clean
from egoedit_ros.model.transformer import Transformer, causal_attend, token_grid

# Clean latents for (noisy latents [B, F, C, h, w], noise levels [B, F] or [B, 1]).
Denoise = Callable[[Tensor, Tensor], Tensor]
LEAST_SIGMA = 0.02


def angles(
    net: Transformer, corners: Tensor | None, frames: int, rows: int, columns: int
) -> tuple[Tensor, Tensor]:
    """Rotations of crops at their true places: ``[B, 1, F*S, head_dim]``; without corners the
    same for all, ``[F*S, head_dim]``."""
    device = net.proj_out.weight.device
    time = torch.arange(frames, device=device)
    if corners is None:
        return net.rope.angles(time, *token_grid(rows, columns, device))
    y, x = token_grid(rows, columns, device)
    top, left = corners.to(device).unsqueeze(-1).unbind(1)
    cos, sin = net.rope.angles(time, y + top, x + left)
    return cos.unsqueeze(1), sin.unsqueeze(1)


class Denoiser:
    """A network on one batch: source, text and places are given once. A :data:`Denoise`.

    source ``[B, F, C, h, w]``; text ``[B, L, text_dim]``; corners: of the crops, in tokens.
    chunk: latent frames that see each other; None: the whole clip (bidirectional), else a chunk
    sees itself and ``window`` chunks before it, as they are given.
    """

    def __init__(
        self,
        net: Transformer,
        config: EditorConfig,
        source: Tensor,
        text: Tensor,
        corners: Tensor | None = None,
        chunk: int | None = None,
        window: int | None = None,
    ) -> None:
        self.net, self.anchored, self.source = net, config.transformer.anchored, source
        frames, (_, ph, pw) = source.shape[1], net.config.patch
        self.grid = (source.shape[-2] // ph, source.shape[-1] // pw)
        self.half = net.embed(source, net.config.out_channels, bias=False)
        self.context = net.text(text)
        cos, sin = angles(net, corners, frames, *self.grid)
        # A clip seen whole is one chunk.
        self.attend = _in_own_type(cos, sin, net.config.heads, chunk or frames, window)

    def __call__(self, noisy: Tensor, sigma: Tensor) -> Tensor:
        net = self.net
        tokens = net.embed(noisy) + self.half
        modulation = net.modulation(1000 * sigma)
        output = net(tokens, modulation, self.context, self.attend, self.grid).float()
        level = sigma[..., None, None, None]
        return to_clean(output, noisy, level, self.source, self.anchored)


def _in_own_type(cos: Tensor, sin: Tensor, heads: int, chunk: int, window: int | None):
    """Block-causal attention whose values follow q and k into the type of mixed precision."""
    inner = causal_attend(cos, sin, heads, chunk, window)
    return lambda layer, q, k, v: inner(layer, q, k, v.to(q.dtype))


def guided(with_text: Denoise, without: Denoise | None, scale: float) -> Denoise:
    """Classifier-free guidance: without + scale (with - without); scale 1 needs no second pass.

    On clean latents it is the same as on velocities: they differ by what both share.
    """
    if without is None or scale == 1:
        return with_text

    def denoise(noisy: Tensor, sigma: Tensor) -> Tensor:
        plain = without(noisy, sigma)
        return plain + scale * (with_text(noisy, sigma) - plain)

    return denoise


@torch.no_grad()
def euler(denoise: Denoise, noise: Tensor, steps: int, shift: float) -> Tensor:
    """The flow's path from ``noise`` to clean latents in Euler steps (EgoEdit: 40, with CFG)."""
    sigmas = [*step_sigmas(steps, shift), 0.0]
    x = noise
    for now, then in zip(sigmas, sigmas[1:], strict=False):
        level = torch.full((len(x), 1), now, device=x.device)
        clean = denoise(x, level)
        x = x + (then - now) * (x - clean) / now
    return x


@torch.no_grad()
def few_steps(
    denoise: Denoise, shape: tuple[int, ...], draw: Callable[[], Tensor], nfe: int, shift: float
) -> Tensor:
    """A distilled network's sampler: to clean, fresh noise on it, again (as a stream does it)."""
    sigmas = step_sigmas(nfe, shift)
    noisy = draw()
    for index, sigma in enumerate(sigmas):
        clean = denoise(noisy, torch.full((shape[0], 1), sigma, device=noisy.device))
        if index + 1 < nfe:
            noisy = add_noise(clean, draw(), sigmas[index + 1])
    return clean


def velocity(clean: Tensor, noisy: Tensor, sigma: Tensor) -> Tensor:
    """The velocity that clean latents stand for; sigma ``[B, F]`` or ``[B, 1]``."""
    level = sigma[..., None, None, None]
    return (noisy - clean) / level.clamp(min=LEAST_SIGMA)
