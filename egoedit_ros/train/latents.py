# SPDX-License-Identifier: Apache-2.0
"""Clips to latents, once: what the transformer's stages read."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from egoedit_ros.data.clip import StoredClip, cannot_write, read_clip
from egoedit_ros.data.crew import run_crew
from egoedit_ros.data.latents import LatentClip, LatentFolder, stems_in, write_latents
from egoedit_ros.data.sim.vocabulary import EVALUATION_SEED
from egoedit_ros.errors import UserError
from egoedit_ros.model.autoencoder import EdgeAutoencoder
from egoedit_ros.model.checkpoint import fill, read_safetensors
from egoedit_ros.model.config import EditorConfig
from egoedit_ros.model.precision import best_dtype
from egoedit_ros.model.tensor_files import read_json
from egoedit_ros.model.text import get_text_encoder
from egoedit_ros.train.states import differences

MADE_BY = "made_by.json"  # beside latents: what encoded them
SIDES = re.compile(r"\b(left|right|(anti)?clockwise)\b", re.IGNORECASE)


def latent_frames(frames: np.ndarray) -> list[np.ndarray]:
    """Wan's framing of ``[t, ...]``: the first frame alone, then fours; a rest is left out."""
    return [frames[:1]] + [frames[i : i + 4] for i in range(1, len(frames) - 3, 4)]


def to_pixels(frames: np.ndarray) -> Tensor:
    """uint8 ``[t, h, w, 3]`` to float ``[1, t, 3, h, w]`` in -1..1."""
    picture = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)[None]
    return picture.float() / 127.5 - 1


@torch.inference_mode()
def encode_clip(model: nn.Module, clip: StoredClip, config: EditorConfig) -> LatentClip:
    """Encode a stored clip and its mirror image with ``edge`` or any other autoencoder.

    Where an instruction tells left from right its mirror image would be wrong: the second is then
    the clip once more.
    """
    latents, edited = [], []
    encode = _encode_edge if isinstance(model, EdgeAutoencoder) else _encode_stream
    sided = any(SIDES.search(text) for text in clip.instructions)
    for mirrored in (False, not sided):
        videos = [v[:, :, ::-1] if mirrored else v for v in (clip.source, *clip.targets)]
        latents.append(encode(model, videos).half())
        edited.append(torch.stack([edited_cells(videos[0], target) for target in videos[1:]]))
    encoder = get_text_encoder(
        config.text_encoder, config.transformer.text_len, config.text_folder
    )  # fmt: skip
    plain = len(clip.targets)  # a clip's further pairs, between its targets, are left out
    text = torch.stack([encoder(t) for t in clip.instructions[:plain]]).half()
    return LatentClip(torch.stack(latents), torch.stack(edited), text, tuple(clip.tasks[:plain]))


def _encode_edge(model: EdgeAutoencoder, videos: list[np.ndarray]) -> Tensor:
    """``[V, F, C, h, w]``: all latent frames at once, since each is coded by itself."""
    like, groups = model.encoder_in.weight, [latent_frames(v) for v in videos]
    first = torch.cat([to_pixels(g[0]) for g in groups]).to(like.device, like.dtype)
    coded = model.encode(first, fine=False).latents.unsqueeze(1)
    if len(groups[0]) > 1:  # not a picture
        rest = torch.cat([to_pixels(f) for g in groups for f in g[1:]])
        rest = model.encode(rest.to(like.device, like.dtype), fine=False).latents
        coded = torch.cat([coded, rest.unflatten(0, (len(groups), -1))], dim=1)
    return coded.cpu()


def _encode_stream(model: nn.Module, videos: list[np.ndarray]) -> Tensor:
    """``[V, F, C, h, w]``: each video as a stream of its own, as a live one is encoded."""
    like = next(model.parameters())
    coded = []
    for video in videos:
        whole = np.concatenate(latent_frames(video))
        pixels = to_pixels(whole)[0].to(like.device, like.dtype)
        coded.append(model.open_stream().encode(pixels, first=True).latents.float().cpu())
    return torch.stack(coded)


def edited_cells(source: np.ndarray, target: np.ndarray, cell: int = 8) -> Tensor:
    """Which 8x8 cells of each latent frame hold an edited pixel: bool ``[F, h, w]``."""
    changed = np.abs(source.astype(np.int16) - target).max(-1) > 12
    frames = np.stack([f.any(0) for f in latent_frames(changed)])
    f, h, w = frames.shape
    return torch.from_numpy(frames.reshape(f, h // cell, cell, w // cell, cell).any((2, 4)))


def load_frozen(
    path: Path, config: EditorConfig, device: str = "cpu", dtype: torch.dtype | None = None
) -> nn.Module:
    """The trained autoencoder in ``dtype``, if none is given on a CPU in what that is fast at; a
    folder is Wan's, in float32."""
    if config.autoencoder.kind != "edge":
        from egoedit_ros.model.wan_autoencoder import read_wan_autoencoder

        if not path.is_dir():
            raise UserError(f"{config.name} needs Wan's autoencoder; {path} is no vae folder")
        return read_wan_autoencoder(path, device=device)
    model = EdgeAutoencoder(config.autoencoder).eval().requires_grad_(False)
    fill(model, read_safetensors(path), path)
    if dtype is None:
        dtype = best_dtype() if device == "cpu" else torch.float32
    return model.place(torch.device(device), dtype)


def require_same_makers(
    folder: Path, checkpoint: Path, config: EditorConfig, there: set[str]
) -> None:
    """Raise UserError where the latents in ``folder`` (clips ``there``) are of other encoders.

    What encoded them is noted in the folder before its first clip; one without the note was made
    before there were any, and is taken as it is.
    """
    path = folder / MADE_BY
    if there and not path.is_file():
        return
    now = {
        "autoencoder": _code_hash(load_frozen(checkpoint, config)),
        "text_encoder": config.text_encoder,
        "text_len": config.transformer.text_len,
        "size": config.size,
    }
    if there:
        changed = differences(json.dumps(read_json(path)), now)
        if changed:
            raise UserError(
                f"the latents in {folder} were made otherwise ({'; '.join(changed)}); name "
                "another folder, or delete this one to encode all clips anew"
            )
        return
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_text(json.dumps(now, indent=1) + "\n", encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise cannot_write(path, error) from None


def _code_hash(model: nn.Module) -> str:
    """Of what latents depend on: ``edge``'s decoder may learn on, its code is in the buffers."""
    edge = isinstance(model, EdgeAutoencoder)
    tensors = dict(model.named_buffers()) if edge else model.state_dict()
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].detach().float().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _devices() -> list[str]:
    """Where to encode: all GPUs, or else the CPU."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [f"cuda:{i}" for i in range(count)] or ["cpu"]


def _encode(
    setting: tuple[Path, EditorConfig, Path, bool], jobs: list[tuple[list[Path], str]], put
) -> None:
    checkpoint, config, output, sharded = setting
    torch.set_num_threads(1)
    model = load_frozen(checkpoint, config, jobs[0][1])
    for paths, _ in jobs:
        items, texts = {}, {}
        for path in paths:
            clip = read_clip(path)
            items[path.stem] = encode_clip(model, clip, config)
            texts[path.stem] = clip.instructions
        write_latents(output, items, texts, sharded)
        put(len(paths))


def cache_latents(
    checkpoint: Path,
    config: EditorConfig,
    clips: Path,
    output: Path,
    workers: int | None = None,
    shard: int = 1,
) -> Iterator[tuple[int, int]]:
    """Encode every training clip that is not in ``output`` yet; yields (done, of).

    On all GPUs, a process each, or else on all cores; workers: at most so many processes. shard:
    clips to a file; 1 writes a file for each. Raises UserError for an ``output`` that another
    autoencoder or text encoder wrote, and when a process dies; what was written is kept, and the
    same command goes on from there.
    """
    output.mkdir(parents=True, exist_ok=True)
    paths = [p for p in sorted(clips.glob("*.safetensors")) if int(p.stem) < EVALUATION_SEED]
    if not paths:
        raise UserError(f"no clips in {clips}; make some: egoedit data sim -o {clips}")
    if shard < 1:
        raise UserError(f"{shard} clips to a shard; give 1 or more")
    there = stems_in(output)
    require_same_makers(output, checkpoint, config, there)
    missing = [p for p in paths if p.stem not in there]
    made = len(paths) - len(missing)
    yield made, len(paths)
    if not missing:
        return
    devices = _devices()
    if devices != ["cpu"]:
        workers = min(workers or len(devices), len(devices))
    parts = [missing[i : i + shard] for i in range(0, len(missing), shard)]
    # A process takes every workers-th part, so that all of its parts have one device.
    jobs = [(part, devices[i % (workers or 1) % len(devices)]) for i, part in enumerate(parts)]
    setting = (checkpoint, config, output, shard > 1)
    for count in run_crew(_encode, setting, jobs, workers, "encoding"):
        made += count
        yield made, len(paths)


def load_latents(folder: Path) -> list[LatentClip]:
    """All cached clips, in the order of their seeds, in memory."""
    return list(LatentFolder(folder))
