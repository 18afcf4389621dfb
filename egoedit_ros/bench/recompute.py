# SPDX-License-Identifier: Apache-2.0
"""What the cache saves: our denoising of a chunk against recomputing the window in every step.

The straightforward way to stream with a video transformer is to run diffusers'
``WanTransformer3DModel`` over all latents in sight, past and current, in each denoising step. Here
it gets the same weights, window, dtype and threads. It also is what ours is checked against: made
block-causal by a mask, with the past at timestep 0, it has to give what ours gives.
"""

from __future__ import annotations

import copy
import time
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from egoedit_ros.errors import UserError
from egoedit_ros.model.flow import add_noise, to_clean
from egoedit_ros.model.transformer import Transformer
from egoedit_ros.stream.edit_session import EditModel, EditSession

NFE = 4
CHUNK_LATENTS = 3
WINDOW = 5  # chunks in sight, the current one included
TOLERANCE = 1e-4


def diffusers_transformer(ours: Transformer) -> torch.nn.Module:
    """diffusers' transformer with our sizes and a copy of our weights, in our dtype."""
    try:
        from diffusers import WanTransformer3DModel
    except ImportError:
        raise UserError("diffusers is missing: pip install diffusers") from None
    config = ours.config
    theirs = WanTransformer3DModel(
        patch_size=config.patch,
        num_attention_heads=config.heads,
        attention_head_dim=config.head_dim,
        in_channels=config.in_channels,
        out_channels=config.out_channels + config.gates,
        text_dim=config.text_dim,
        freq_dim=config.freq_dim,
        ffn_dim=config.ffn_dim,
        num_layers=config.layers,
        cross_attn_norm=config.cross_attn_norm,
        eps=config.eps,
    )
    theirs.load_state_dict(ours.state_dict())
    theirs = theirs.to(ours.proj_out.weight.device).eval().requires_grad_(False)
    # As from_pretrained does it: the parts that it names stay float32.
    exact = set(theirs._keep_in_fp32_modules or ())
    for name, tensor in theirs.named_parameters():
        if not exact & set(name.split(".")):
            tensor.data = tensor.data.to(ours.proj_out.weight.dtype)
    return theirs


class _Denoising:
    """Latents of a window of noise, and a session whose past they are."""

    def __init__(self, model: EditModel, size: tuple[int, int], seed: int = 0) -> None:
        config = replace(
            model.config, chunk_latents=CHUNK_LATENTS, window_chunks=WINDOW - 1, sink_chunks=0
        )
        self.session = EditSession(replace(model, config=config), size, nfe=NFE)
        self.session.set_instruction("turn the red ball blue", 0)
        channels = config.transformer.out_channels
        rng = torch.Generator().manual_seed(seed)
        shape = (WINDOW, 1, CHUNK_LATENTS, channels, size[1] // 8, size[0] // 8)
        self.source, self.clean = (
            torch.randn(shape, generator=rng).to(model.device, model.dtype) for _ in range(2)
        )
        embedded = self.session._encode_text("turn the red ball blue")
        self.text = embedded[None].to(model.device, model.dtype)
        self.net = model.transformer
        self.channels = channels

    def source_half(self, chunk: int) -> Tensor:
        return self.net.embed(self.source[chunk], self.channels, bias=False)

    def fill(self) -> None:
        """Make all chunks but the last the session's past."""
        session = self.session
        session.reset()
        for chunk in range(WINDOW - 1):
            session._remember(self.clean[chunk], self.source_half(chunk), session._context)

    def ours(self) -> None:
        """One chunk: its steps and the pass that makes it past."""
        session = self.session
        session._denoise(self.source[-1], WINDOW, 0, session._context)
        session.settle()

    def theirs(self, network: torch.nn.Module) -> Tensor:
        """One chunk, the whole window in every step."""
        noisy, anchored = self.clean[-1], self.net.config.anchored
        past = torch.cat([self.clean[:-1], self.source[:-1]], dim=3).flatten(0, 2)
        for step, sigma in enumerate(self.session._sigmas):
            now = torch.cat([noisy, self.source[-1]], dim=2)[0]
            latents = torch.cat([past, now]).transpose(0, 1)[None]
            timestep = torch.tensor([1000 * sigma], device=latents.device)
            output = network(latents, timestep, self.text, return_dict=False)[0]
            output = output[:, :, -CHUNK_LATENTS:].transpose(1, 2)
            clean = to_clean(output, noisy, sigma, self.source[-1], anchored)
            if step + 1 < NFE:
                noise = torch.randn_like(clean)
                noisy = add_noise(clean, noise, self.session._sigmas[step + 1])
        return clean


def _block_causal(network: torch.nn.Module, tokens: int) -> None:
    """Mask the self-attention of diffusers' transformer; ``tokens``: of a chunk."""
    from diffusers.models.transformers.transformer_wan import WanAttnProcessor

    chunk = torch.arange(WINDOW * tokens) // tokens
    mask = (chunk[:, None] >= chunk[None, :])[None, None]

    class Masked(WanAttnProcessor):
        def __call__(self, attn, hidden, encoder=None, attention_mask=None, rotary_emb=None):
            if encoder is None:
                attention_mask = mask
            return super().__call__(attn, hidden, encoder, attention_mask, rotary_emb)

    for block in network.blocks:
        block.attn1.set_processor(Masked())


@torch.inference_mode()
def agreement(model: EditModel, size: tuple[int, int] = (128, 96)) -> float:
    """Greatest difference between ours with its cache and diffusers' masked, in float32.

    Relative to the greatest output where that is above 1. A full window and the last chunk noisy,
    with the weights of ``model``.
    """
    exact = replace(
        model,
        transformer=copy.deepcopy(model.transformer).float().cpu(),
        device=torch.device("cpu"),
        dtype=torch.float32,
    )
    work = _Denoising(exact, size)
    session = work.session
    work.fill()
    got = session._forward(
        work.clean[-1], work.source_half(-1), session._steps[1], session._context
    )
    theirs = diffusers_transformer(exact.transformer)
    tokens = CHUNK_LATENTS * session._grid[0] * session._grid[1]
    _block_causal(theirs, tokens)
    timestep = torch.zeros(1, WINDOW * tokens)
    timestep[:, -tokens:] = 1000 * session._sigmas[1]
    latents = torch.cat([work.clean, work.source], dim=3).flatten(0, 2).transpose(0, 1)[None]
    wanted = theirs(latents, timestep, work.text, return_dict=False)[0]
    wanted = wanted[:, :, -CHUNK_LATENTS:].transpose(1, 2)
    return float((got - wanted).abs().max() / max(1.0, float(wanted.abs().max())))


@torch.inference_mode()
def measure_speedup(
    model: EditModel, size: tuple[int, int] | None = None, rounds: int = 5
) -> dict[str, object]:
    """Time per chunk of both ways, medians of ``rounds`` taken in turn, and their quotient.

    4 NFE, a window of 5 chunks of 3 latents. Ours writes the cache as well. Neither includes the
    autoencoder, which both need.
    """
    work = _Denoising(model, size or model.config.size)
    theirs = diffusers_transformer(model.transformer)
    times: dict[str, list[float]] = {"cached": [], "recompute": []}
    for round_ in range(rounds + 1):
        work.fill()
        for name, run in (("cached", work.ours), ("recompute", lambda: work.theirs(theirs))):
            _finish(model)
            start = time.perf_counter()
            run()
            _finish(model)
            if round_:  # the first warms up
                times[name].append(time.perf_counter() - start)
    cached, recompute = (float(np.median(times[n])) for n in ("cached", "recompute"))
    return {
        "speedup": recompute / cached,
        "cached_ms": 1e3 * cached,
        "recompute_ms": 1e3 * recompute,
        "difference": agreement(model),
        "tolerance": TOLERANCE,
        "nfe": NFE,
        "window_chunks": WINDOW,
        "chunk_latents": CHUNK_LATENTS,
        "dtype": str(model.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
    }


def _finish(model: EditModel) -> None:
    """Wait for what a GPU has been given."""
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
