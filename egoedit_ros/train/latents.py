# SPDX-License-Identifier: Apache-2.0
"""Clips to latents, once: what the transformer's stages read."""

from __future__ import annotations

import json
import multiprocessing as mp
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from queue import Empty

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from egoedit_ros.data.sim.generate import StoredClip, read_clip
from egoedit_ros.data.sim.vocabulary import EVALUATION_SEED
from egoedit_ros.errors import UserError
from egoedit_ros.model.autoencoder import EdgeAutoencoder
from egoedit_ros.model.checkpoint import fill, read_safetensors
from egoedit_ros.model.config import EditorConfig
from egoedit_ros.model.precision import best_dtype
from egoedit_ros.model.text import get_text_encoder


@dataclass(slots=True)
class LatentClip:
    """One clip, both ways round (the second mirrored).

    latents: fp16 ``[2, 1 + E, F, C, h, w]``: the source, then E targets; edited: bool
    ``[2, E, F, h, w]``, latent cells in which a pixel of the target differs; text fp16
    ``[E, L, text_dim]``.
    """

    latents: Tensor
    edited: Tensor
    text: Tensor


def latent_frames(frames: np.ndarray) -> list[np.ndarray]:
    """Wan's framing of ``[t, ...]``: the first frame alone, then fours; a rest is left out."""
    return [frames[:1]] + [frames[i : i + 4] for i in range(1, len(frames) - 3, 4)]


def to_pixels(frames: np.ndarray) -> Tensor:
    """uint8 ``[t, h, w, 3]`` to float ``[1, t, 3, h, w]`` in -1..1."""
    picture = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)[None]
    return picture.float() / 127.5 - 1


@torch.inference_mode()
def encode_clip(model: EdgeAutoencoder, clip: StoredClip, config: EditorConfig) -> LatentClip:
    """Encode a stored clip and its mirror image; the autoencoder is channels-last."""
    latents, edited, dtype = [], [], model.encoder_in.weight.dtype
    for mirrored in (False, True):
        videos = [v[:, :, ::-1] if mirrored else v for v in (clip.source, *clip.targets)]
        groups = [latent_frames(v) for v in videos]
        first = torch.cat([to_pixels(g[0]) for g in groups])
        rest = torch.cat([to_pixels(f) for g in groups for f in g[1:]])
        rest = model.encode(rest.to(dtype)).latents.unflatten(0, (len(groups), -1))
        first = model.encode(first.to(dtype)).latents.unsqueeze(1)
        latents.append(torch.cat([first, rest], dim=1).half())
        edited.append(torch.stack([edited_cells(videos[0], target) for target in videos[1:]]))
    encoder = get_text_encoder(
        config.text_encoder, config.transformer.text_len, config.text_folder
    )  # fmt: skip
    text = torch.stack([encoder(t) for t in clip.instructions]).half()
    return LatentClip(torch.stack(latents), torch.stack(edited), text)


def edited_cells(source: np.ndarray, target: np.ndarray, cell: int = 8) -> Tensor:
    """Which 8x8 cells of each latent frame hold an edited pixel: bool ``[F, h, w]``."""
    changed = np.abs(source.astype(np.int16) - target).max(-1) > 12
    frames = np.stack([f.any(0) for f in latent_frames(changed)])
    f, h, w = frames.shape
    return torch.from_numpy(frames.reshape(f, h // cell, cell, w // cell, cell).any((2, 4)))


def load_frozen(path: Path, config: EditorConfig) -> EdgeAutoencoder:
    """The trained autoencoder, channels-last, in what the CPU is fast at."""
    model = EdgeAutoencoder(config.autoencoder).eval().requires_grad_(False)
    fill(model, read_safetensors(path), path)
    return model.place(torch.device("cpu"), best_dtype())


def _encode(checkpoint: Path, config: EditorConfig, paths: list[Path], output: Path, done) -> None:
    torch.set_num_threads(1)
    model = load_frozen(checkpoint, config)
    for path in paths:
        clip = read_clip(path)
        item = encode_clip(model, clip, config)
        part = (output / path.name).with_suffix(".part")
        save_file(
            {"latents": item.latents, "edited": item.edited, "text": item.text},
            part,
            metadata={"instructions": json.dumps(clip.instructions)},
        )
        part.replace(output / path.name)
        done.put(path.name)


def cache_latents(
    checkpoint: Path, config: EditorConfig, clips: Path, output: Path, workers: int | None = None
) -> Iterator[tuple[int, int]]:
    """Encode every training clip that is not in ``output`` yet, on all cores; yields (done, of)."""
    output.mkdir(parents=True, exist_ok=True)
    paths = [p for p in sorted(clips.glob("*.safetensors")) if int(p.stem) < EVALUATION_SEED]
    if not paths:
        raise UserError(f"no clips in {clips}; make some: egoedit data sim -o {clips}")
    missing = [p for p in paths if not (output / p.name).exists()]
    context = mp.get_context("spawn")
    queue, count = context.Queue(), workers or os.cpu_count() or 1
    crew = [
        context.Process(
            target=_encode, args=(checkpoint, config, missing[i::count], output, queue), daemon=True
        )
        for i in range(min(count, len(missing)))
    ]
    for process in crew:
        process.start()
    made = len(paths) - len(missing)
    yield made, len(paths)
    while made < len(paths):
        try:
            queue.get(timeout=1.0)
        except Empty:
            if any(p.exitcode not in (None, 0) for p in crew):
                raise UserError(
                    "an encoding process died; what it wrote is kept: run the same command again"
                ) from None
            continue
        made += 1
        yield made, len(paths)
    for process in crew:
        process.join()


def load_latents(folder: Path) -> list[LatentClip]:
    """All cached clips, in the order of their seeds, in memory."""
    clips = []
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            clips.append(LatentClip(*(file.get_tensor(k) for k in ("latents", "edited", "text"))))
    if not clips:
        raise UserError(f"no latents in {folder}; run: egoedit train latents")
    return clips
