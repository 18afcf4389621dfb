# SPDX-License-Identifier: Apache-2.0
"""Edits of validation clips by a network in training: a video to look at, and figures.

Three ways to sample: ``euler`` (the bidirectional editor: many Euler steps with guidance),
``few`` (a distilled one, the whole clip at once) and ``stream`` (chunk by chunk through a session,
as live).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from egoedit_ros.data.sim.generate import StoredClip, read_clip
from egoedit_ros.errors import UserError
from egoedit_ros.model.checkpoint import fill, read_safetensors
from egoedit_ros.model.config import EditorConfig
from egoedit_ros.model.text import get_text_encoder
from egoedit_ros.model.transformer import Transformer
from egoedit_ros.stream.edit_session import EditModel, EditSession
from egoedit_ros.stream.session import frames_in_chunk
from egoedit_ros.train.denoise import Denoiser, euler, few_steps, guided

WAYS = ("euler", "few", "stream")


@dataclass(frozen=True)
class SampleSettings:
    """clips: folder of simulator clips that training does not see; count: how many of them, one
    edit each. way: see :data:`WAYS`. steps: 0: 40 for euler, else the editor's own; guidance: of
    euler. autoencoder: its weights."""

    clips: Path
    autoencoder: Path
    way: str = "stream"
    count: int = 4
    steps: int = 0
    guidance: float = 1.0
    seed: int = 0

    def check(self) -> None:
        if self.way not in WAYS:
            raise UserError(f"way is {self.way!r}; use one of: {', '.join(WAYS)}")
        if self.count < 1 or self.steps < 0:
            raise UserError("count of samples must be 1 or more, steps 0 or more")


class Sampler:
    """Edits the clips with a network's present weights, writes ``step_NNNNNN.mp4`` (source, edit
    and target side by side, clip after clip) into ``folder`` and gives the mean figures."""

    def __init__(self, settings: SampleSettings, config: EditorConfig, folder: Path) -> None:
        settings.check()
        self.settings, self.config, self.folder = settings, config, folder
        paths = sorted(settings.clips.glob("*.safetensors"))[: settings.count]
        if not paths:
            raise UserError(
                f"no clips in {settings.clips}; make some that training does not see: "
                f"egoedit data sim -o {settings.clips} --seed 1000000 --clips {settings.count}"
            )
        self.clips = [read_clip(path) for path in paths]
        from egoedit_ros.model.autoencoder import build_autoencoder

        network = build_autoencoder(config.autoencoder).eval().requires_grad_(False)
        fill(network, read_safetensors(settings.autoencoder), settings.autoencoder)
        self.autoencoder = network

    def __call__(self, net: nn.Module, step: int) -> dict[str, float]:
        from egoedit_ros.bench.simulator_metrics import mean_of, score_clip

        device = net.proj_out.weight.device
        self.autoencoder.place(device, torch.float32)
        model = EditModel(self.config, net, self.autoencoder, device, torch.float32)
        rows, films = [], []
        for index, clip in enumerate(self.clips):
            source, edited, target = edit_clip(model, clip, index, self.settings)
            hand = clip.hand[: len(source)]
            rows.append(score_clip(source, target, edited, hand))
            films.append(np.concatenate([source, edited, target], axis=2))
        self._film(np.concatenate(films), step)
        return {k: v for k, v in mean_of(rows).items() if v is not None}

    def _film(self, frames: np.ndarray, step: int) -> None:
        from egoedit_ros.data.video import VideoWriter

        size = (frames.shape[2], frames.shape[1])
        fps = self.config.fps
        with VideoWriter(self.folder / f"step_{step:06d}.mp4", size, fps) as video:
            for index, frame in enumerate(frames):
                video.write(round(index * 1e9 / fps), frame)


def edit_clip(
    model: EditModel, clip: StoredClip, index: int, settings: SampleSettings
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """source, edited and target uint8 ``[t, h, w, 3]`` of one edit of a clip (the index-th, round
    about); t is what fills whole chunks."""
    which = index % len(clip.targets)
    streamed = settings.way == "stream"
    latents = (len(clip.source) + 3) // 4
    chunk = model.config.chunk_latents if streamed else latents
    size = (clip.source.shape[2], clip.source.shape[1])
    nfe = settings.steps or model.config.nfe
    session = EditSession(model, size, chunk, nfe if streamed else 1)
    session.set_instruction(clip.instructions[which], settings.seed)
    made, begin = [], 0
    while begin + (need := frames_in_chunk(chunk, begin == 0)) <= len(clip.source):
        work = session.begin(clip.source[begin : begin + need])
        for stage in ("ingest", "encode"):
            work = getattr(session, stage)(work)
        if streamed:
            work = session.denoise(work)
        else:
            work.edited = edit_latents(
                model.transformer, model.config, work.latents, clip.instructions[which], settings
            )[0]
        made.append(session.emit(session.decode(work)).picture)
        begin += need
    if not made:
        raise UserError(f"clips of {len(clip.source)} frames are shorter than a chunk")
    return clip.source[:begin], np.concatenate(made), clip.targets[which][:begin]


@torch.no_grad()
def edit_latents(
    net: Transformer, config: EditorConfig, source: Tensor, text: str, settings: SampleSettings
) -> Tensor:
    """Edited latents of a whole clip, all of it in sight; source ``[1, F, C, h, w]``."""
    encoder = get_text_encoder(
        config.text_encoder, config.transformer.text_len, config.text_folder
    )  # fmt: skip
    rng = torch.Generator(source.device)
    rng.manual_seed(settings.seed)
    shape = (*source.shape[:2], config.transformer.out_channels, *source.shape[3:])

    def draw() -> Tensor:
        return torch.randn(shape, generator=rng, device=source.device)

    def denoiser(words: str) -> Denoiser:
        return Denoiser(net, config, source.clone(), encoder(words)[None].to(source.device))

    told = denoiser(text)
    if settings.way == "few":
        return few_steps(told, shape, draw, settings.steps or config.nfe, config.shift)
    untold = denoiser("") if settings.guidance != 1 else None
    denoise = guided(told, untold, settings.guidance)
    return euler(denoise, draw(), settings.steps or 40, config.shift)
