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
from egoedit_ros.model.answers import Before
from egoedit_ros.model.autoencoder import Coded
from egoedit_ros.model.cache import KeyValueCache
from egoedit_ros.model.checkpoint import load_editor
from egoedit_ros.model.config import CONFIGS, EditorConfig
from egoedit_ros.model.detail import DetailNet
from egoedit_ros.model.device import no_cuda_because
from egoedit_ros.model.flow import add_noise, step_sigmas, to_clean
from egoedit_ros.model.inference import Blend, Conditioning, StepModulation, StreamTransformer
from egoedit_ros.model.own import load_own, own_description
from egoedit_ros.model.precision import best_dtype
from egoedit_ros.model.text import get_text_encoder
from egoedit_ros.model.transformer import Transformer
from egoedit_ros.stream.conditioning import TextSwitch
from egoedit_ros.stream.detail import Told, draw, tell
from egoedit_ros.stream.edges import near_sure, sharpen
from egoedit_ros.stream.session import ChunkResult, frames_in_chunk
from egoedit_ros.stream.steady import Steadier

# How sure a decoder is of an edit where it begins to count, and where it counts in full. Less is
# "no": untouched pixels are then the camera's to the bit. That it is shown where it is not sure
# takes more of the old thing away; edges are made good later.
NO, YES = 0.02, 0.15
BUNDLED = Path(__file__).resolve().parent.parent / "weights"


@dataclass(frozen=True, slots=True)
class EditModel:
    """Networks of one editor on one device, shared by all sessions; nothing in it changes."""

    config: EditorConfig
    transformer: Transformer
    autoencoder: torch.nn.Module
    device: torch.device
    dtype: torch.dtype
    detail: DetailNet | None = None


@dataclass(slots=True)
class ChunkWork:
    """A chunk on its way through a session's stages; each adds what the next ones take.

    first, index: its place in the stream; seed, context: of the instruction it is edited by.
    before: the frames just before it, where they were passed by a stateful autoencoder unseen.
    joins: the chunk before shows the same edit. told: the instruction as the detail network has it.
    """

    frames: np.ndarray
    first: bool
    index: int
    seed: int
    context: Conditioning
    before: np.ndarray | None = None
    joins: bool = False
    told: Told | None = None
    pixels: Tensor | None = None
    source: Coded | None = None
    source_before: Coded | None = None
    latents: Tensor | None = None
    edited: Tensor | None = None
    picture: Tensor | np.ndarray | None = None
    mask: Tensor | np.ndarray | None = None


def pick_device(device: str) -> torch.device:
    """``auto``, ``cpu`` or ``cuda``. CUDA asked for where there is none is an error."""
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"no device called {device!r}; use auto, cpu or cuda")
    there = torch.cuda.is_available()
    if device == "cuda" and not there:
        raise UserError(f"no CUDA device here: {no_cuda_because()}; or use --device cpu")
    return torch.device("cuda" if there and device != "cpu" else "cpu")


@lru_cache(maxsize=2)
def load_model(model: str, device: str = "auto", dtype: torch.dtype | None = None) -> EditModel:
    """Load a bundled editor by name, or one from a folder or an editor.json. Raises UserError.

    dtype: of the networks; None: what is fast on the device.
    """
    place = pick_device(device)
    folder = BUNDLED / model if (BUNDLED / model / "config.json").is_file() else Path(model)
    dtype = dtype or best_dtype(place)
    if own_description(folder) is not None:
        config, transformer, autoencoder = load_own(folder, place, dtype)
        return EditModel(config, transformer, autoencoder.place(place, dtype), place, dtype)
    if model in CONFIGS and not folder.exists():
        raise UserError(
            f"no weights of {model} come with the package; give the folder that holds yours "
            "(docs/own_weights.md)"
        )
    config, transformer, autoencoder, detail = load_editor(folder)
    transformer = transformer.to(place, dtype)
    autoencoder = autoencoder.place(place, dtype)
    if detail is not None:
        detail = detail.to(place, dtype, memory_format=torch.channels_last)
    return EditModel(config, transformer, autoencoder, place, dtype, detail)


class EditSession:
    """One stream through one :class:`EditModel` (see :class:`ChunkSession`).

    recache: at a new instruction the past in sight is made anew under it, as LongLive does, at the
    cost of one pass of the transformer for each chunk in sight; otherwise the past keeps the text
    that it was made under. blend_chunks: chunks between the old instruction and the new one, see
    :class:`~egoedit_ros.stream.conditioning.TextSwitch`; the past is made anew after the last.
    """

    def __init__(
        self,
        model: EditModel,
        size: tuple[int, int] | None = None,
        chunk_latents: int | None = None,
        nfe: int | None = None,
        preserve: bool = True,
        recache: bool = False,
        blend_chunks: int = 0,
    ) -> None:
        config = model.config
        self.model = model
        self._stream = model.autoencoder.open_stream()
        self.name = config.name
        self.device = str(model.device)
        self.size = size or config.size
        self.chunk_latents = chunk_latents or config.chunk_latents
        self.nfe = nfe or config.nfe
        self.preserve = preserve
        self.recache = recache
        self.blend_chunks = blend_chunks
        if any(side % 16 or side < 32 for side in self.size):
            raise UserError(
                f"size {self.size[0]}x{self.size[1]} does not fit the model; both sides must be "
                "multiples of 16, for example 256x192"
            )
        if not 1 <= self.chunk_latents <= 32 or not 1 <= self.nfe <= 100:
            raise UserError("chunk_latents must be 1 to 32 and nfe 1 to 100")
        if not 0 <= blend_chunks <= 1000:
            raise UserError(f"blend_chunks is {blend_chunks}; it goes from 0 to 1000")
        self._grid = (self.size[1] // 16, self.size[0] // 16)
        self._encode_text = get_text_encoder(
            config.text_encoder, config.transformer.text_len, config.text_folder
        )
        self._net = StreamTransformer(model.transformer)
        self._sigmas = step_sigmas(self.nfe, config.shift, config.strength)
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
        self._steady = Steadier(config.steady) if config.steady else None
        # Drawn for one size, as nothing else here: things of another size it has never seen.
        self._detail = model.detail if self.size == config.size else None
        self._before = Before()  # what the last chunk drawn once more tells the next one
        self._text, self._context, self._told, self._seed = None, None, None, 0
        self._texts = TextSwitch(blend_chunks)
        self.reset()

    def _modulation(self, timestep: float) -> StepModulation:
        return self._net.modulation(timestep)

    @property
    def frames_needed(self) -> int:
        return frames_in_chunk(self.chunk_latents, self._first)

    def reset(self) -> None:
        self._first = True
        self._chunk = 0
        self._skipped: np.ndarray | None = None
        self._forget_past()

    def _forget_past(self) -> None:
        self._cache.reset()
        self._unsettled: tuple[Tensor, Tensor, Conditioning] | None = None
        # For recache: clean latents and source tokens of the chunks in sight, and their text.
        self._kept: list[tuple[Tensor, Tensor]] = []
        self._kept_under: Conditioning | None = None
        self._has_past = False
        self._shown: Conditioning | None = None  # what the last chunk was edited by

    def memory_bytes(self) -> int:
        kept = sum(tensor.nbytes for chunk in self._kept for tensor in chunk)
        return self._cache.memory_bytes() + self._stream.memory_bytes() + kept

    def set_instruction(self, text: str, seed: int) -> None:
        self._seed = seed
        if text == self._text:
            return
        with torch.inference_mode():
            embedded = self._encode_text(text).to(self.model.device)
            self._context = self.model.transformer.text(embedded[None])
            if self._detail is not None:
                self._told = tell(self._detail, embedded)
        self._texts.switch(self._context)
        self._text = text

    def skip(self, frames: np.ndarray) -> None:
        """A chunk passed through: what was generated before it is no past of what comes next."""
        self._first = False
        self._chunk += 1
        self._forget_past()
        if self._stream.stateful:
            # Enough for the autoencoder to begin anew: 1 frame, then 4 (Wan's framing).
            seen = frames if self._skipped is None else np.concatenate([self._skipped, frames])
            self._skipped = seen[-5 if len(seen) >= 5 else -1 :].copy()

    def run(self, frames: np.ndarray) -> ChunkResult:
        work = self.begin(frames)
        times = [self._now()]
        for stages in (("ingest", "encode"), ("denoise",), ("decode", "emit")):
            for stage in stages:
                work = getattr(self, stage)(work)
            times.append(self._now())
        encode, denoise, decode = (1e3 * (b - a) for a, b in zip(times, times[1:], strict=False))
        return ChunkResult(work.picture, work.mask, encode, denoise, decode)

    def _now(self) -> float:
        """Seconds, once the device has done what it was told: a GPU is told long before."""
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)
        return time.perf_counter()

    # A chunk goes through these in this order. Only begin() and denoise() touch the stream's state,
    # and emit() what was shown last, so runtime/ may have each in a thread or CUDA stream of its
    # own, three chunks at a time.

    def begin(self, frames: np.ndarray) -> ChunkWork:
        """Give a chunk its place in the stream; it keeps the instruction that is in force now."""
        if self._context is None:
            raise UserError("no instruction was given; call set_instruction first")
        if not self._has_past:
            self._texts.finish()  # a blend goes on from something
        context = self._texts.next()
        work = ChunkWork(frames, self._first, self._chunk, self._seed, context, self._skipped)
        work.joins, self._shown = context is self._shown, context
        work.told = self._told
        self._skipped, self._has_past = None, True
        self._first = False
        self._chunk += 1
        return work

    @torch.inference_mode()
    def ingest(self, work: ChunkWork) -> ChunkWork:
        """Frames to the device."""
        pixels = torch.from_numpy(work.frames).to(self.model.device)
        work.pixels = pixels.permute(0, 3, 1, 2)
        return work

    @torch.inference_mode()
    def encode(self, work: ChunkWork) -> ChunkWork:
        """Source latents and fine features of the chunk."""
        if work.before is not None:
            before = torch.from_numpy(work.before).to(self.model.device).permute(0, 3, 1, 2)
            work.source_before = self._stream.encode(self._signed(before), first=True)
        work.source = self._stream.encode(self._signed(work.pixels), work.first)
        work.latents = work.source.latents.unsqueeze(0).to(self.model.dtype)
        return work

    def _signed(self, pixels: Tensor) -> Tensor:
        """0..255 to -1..1 in the model's type."""
        return pixels.to(self.model.dtype) / 127.5 - 1

    @torch.inference_mode()
    def denoise(self, work: ChunkWork) -> ChunkWork:
        """Edited latents; settles the chunk before, if that was not done yet."""
        if self.recache and not isinstance(work.context, Blend):
            self._recache(work.context)
        self.settle()
        work.edited = self._denoise(work.latents, work.index, work.seed, work.context)
        return work

    def _denoise(self, source: Tensor, index: int, seed: int, context: Conditioning) -> Tensor:
        """Source latents ``[1, F, C, h, w]`` to edited ones, in ``nfe`` steps from noise."""
        net, config = self.model.transformer, self.model.config.transformer
        rng = torch.Generator(device=self.model.device)
        rng.manual_seed((seed * 1_000_003 + index) % 2**63)
        shape = (*source.shape[:2], config.out_channels, *source.shape[3:])

        def noise() -> Tensor:
            return torch.randn(shape, generator=rng, device=source.device).to(source.dtype)

        source_half = net.embed(source, config.out_channels, bias=False)
        noisy = noise()
        if self.model.config.strength < 1:
            noisy = add_noise(source, noisy, self._sigmas[0])
        for step, (sigma, modulation) in enumerate(zip(self._sigmas, self._steps, strict=True)):
            output = self._forward(noisy, source_half, modulation, context)
            clean = to_clean(output, noisy, sigma, source, config.anchored)
            if step + 1 < self.nfe:
                noisy = add_noise(clean, noise(), self._sigmas[step + 1])
        self._unsettled = (clean, source_half, context)
        return clean[0]

    def _forward(
        self,
        latents: Tensor,
        source_half: Tensor,
        modulation: StepModulation,
        context: Conditioning,
    ) -> Tensor:
        """The transformer on a chunk, in sight of its past.

        latents ``[1, F, C, h, w]``, source_half: the source's part of the tokens ``[1, F, S, D]``.
        """
        tokens = self.model.transformer.embed(latents) + source_half
        return self._net.output(tokens, modulation, context, self._cache, self._grid)

    def _remember(self, clean: Tensor, source_half: Tensor, context: Conditioning) -> None:
        """Make a chunk, given as its clean latents, the newest of the past."""
        tokens = self.model.transformer.embed(clean) + source_half
        self._net.remember(tokens, self._clean, context, self._cache)

    @torch.inference_mode()
    def settle(self) -> None:
        """Write the last chunk's clean keys and values into the cache.

        Done by the next :meth:`run` if not before; called once a chunk's frames are out, it takes
        one forward off the latency of every chunk.
        """
        if self._unsettled is None:
            return
        (clean, source_half, context), self._unsettled = self._unsettled, None
        self._remember(clean, source_half, context)
        if self.recache:
            self._keep(clean, source_half)
            self._kept_under = context

    def _keep(self, clean: Tensor, source_half: Tensor) -> None:
        """Keep a chunk for as long as the cache has it in sight."""
        self._kept.append((clean, source_half))
        if len(self._kept) > self._cache.window:
            del self._kept[self._cache.sink]

    def _recache(self, context: Conditioning) -> None:
        """Make the past in sight anew under ``context``, unless it was made under it."""
        if self._unsettled is not None:
            under = self._unsettled[2]
            if under is context:
                return
            self._keep(*self._unsettled[:2])
            self._unsettled = None
        elif self._kept_under is context:
            return
        self._cache.reset()
        for clean, source_half in self._kept:
            self._remember(clean, source_half, context)
        self._kept_under = context

    @torch.inference_mode()
    def decode(self, work: ChunkWork) -> ChunkWork:
        """uint8 frames and masks of the chunk, on the device."""
        if work.source_before is not None:
            self._stream.decode(work.source_before.latents, work.source_before)
        frames, logits = self._stream.decode(work.edited, work.source)
        frames = frames.float().add(1).mul_(127.5).clamp_(0, 255)
        if logits is None:  # a decoder that cannot tell: the whole picture is its own
            mask = torch.ones_like(frames[:, 0])
        else:
            mask = torch.sigmoid(logits.float()).sub_(NO).div_(YES - NO).clamp_(0, 1)
        if self.preserve and logits is not None:
            source = work.pixels.contiguous().float()
            frames = frames.sub_(source).mul_(mask.unsqueeze(1)).add_(source)
        work.picture = frames.round_().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
        work.mask = mask.mul_(255).round_().to(torch.uint8)
        return work

    def emit(self, work: ChunkWork) -> ChunkWork:
        """Frames and masks to numpy, flicker taken out and edges made better."""
        work.picture, work.mask = work.picture.cpu().numpy(), work.mask.cpu().numpy()
        return self._finished(work)

    def _finished(self, work: ChunkWork) -> ChunkWork:
        weights, laid = (), None
        if self._detail is not None and self.preserve:
            if max(self._detail.heeded(work.told.text)) > 0.5:
                weights = self.model.config.steady_forms
            latents = torch.cat([work.edited, work.latents[0]], 1)
            drawn = draw(
                self._detail, work.told, work.frames, work.picture, work.mask, latents, work.first,
                self._before if work.joins else None,
            )  # fmt: skip
            work.picture, work.mask, laid = drawn.picture, drawn.mask, drawn.laid
            self._before = drawn.before
        mask = near_sure(work.mask)
        dropped = mask != work.mask
        if self.preserve and dropped.any():
            work.picture = np.where(dropped[..., None], work.frames, work.picture)
        work.mask = mask
        if self._steady is not None:
            work.picture, work.mask = self._steady(
                work.frames, work.picture, work.mask, work.first, work.joins, weights
            )
        if self.model.config.sharpen:
            work.picture = sharpen(work.frames, work.picture, work.mask, laid)
        return work
