# SPDX-License-Identifier: Apache-2.0
"""The paper's figures that come from CLIP models; without the weights there is no figure.

Weights are taken from a local folder or the hub's local cache; from the hub itself only where that
is asked for. Everything raises :class:`Unavailable` with the reason where they are not there.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

CLIP = "openai/clip-vit-large-patch14"
PICKSCORE = "yuvalkirstain/PickScore_v1"
VICLIP = "OpenGVLab/ViCLIP (InternVid-10M-FLT)"
NO_VICLIP = (
    "not available: transformers has no class for ViCLIP, and code that comes with weights is not "
    "run here"
)
# What CLIP was trained with; a folder's preprocessor_config.json goes before it.
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)
_BATCH = 16


class Unavailable(Exception):
    """The weights are not there, or are not what they should be. The message says so."""


@dataclass(frozen=True, slots=True)
class Weights:
    """place: folder, or name on the hub. download: may be fetched from there."""

    place: str
    download: bool = False


@dataclass(slots=True)
class ClipModel:
    """A CLIP model ready to use."""

    net: object
    tokenizer: object
    size: int
    mean: np.ndarray
    std: np.ndarray
    device: str


@lru_cache(maxsize=2)
def load_clip(weights: Weights, tokenizer: bool, device: str = "auto") -> ClipModel:
    """Load a CLIP model of transformers. Raises Unavailable."""
    local = Path(weights.place).is_dir()
    only_here = local or not weights.download
    try:
        import torch
        from transformers import AutoTokenizer, CLIPModel
        from transformers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        net, said = CLIPModel.from_pretrained(
            weights.place, local_files_only=only_here, output_loading_info=True
        )
        if said["missing_keys"]:
            # Random numbers in their place would still give a figure.
            few = ", ".join(sorted(said["missing_keys"])[:3])
            raise Unavailable(f"not available: {weights.place} lacks weights of CLIP ({few}, ...)")
        words = (
            AutoTokenizer.from_pretrained(weights.place, local_files_only=only_here)
            if tokenizer
            else None
        )
        mean, std = _normalisation(weights.place, only_here)
    except Unavailable:
        raise
    except Exception as error:  # no file, no network, a broken file: each fails in its own way
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        mend = "" if local or weights.download else "; give a folder, or allow --download"
        raise Unavailable(f"not available: {weights.place}: {reason}{mend}") from None
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    net = net.to(device).eval()
    return ClipModel(net, words, net.config.vision_config.image_size, mean, std, device)


def _normalisation(place: str, only_here: bool) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the colours, from the weights' own preprocessor file."""
    from transformers.utils import cached_file

    config: dict = {}
    path = cached_file(
        place,
        "preprocessor_config.json",
        local_files_only=only_here,
        _raise_exceptions_for_missing_entries=False,
    )
    if path and os.path.exists(path):
        config = json.loads(Path(path).read_text(encoding="utf-8"))
    values = config.get("image_mean", _MEAN), config.get("image_std", _STD)
    return tuple(np.array(v, np.float32) for v in values)


def _pixels(model: ClipModel, frames: np.ndarray):
    """uint8 ``[n, h, w, 3]`` to CLIP's input: short side to size, centre, normalised."""
    import torch

    size, out = model.size, []
    for frame in frames:
        height, width = frame.shape[:2]
        scale = size / min(height, width)
        whole = max(size, round(width * scale)), max(size, round(height * scale))
        shrinks = scale < 1
        frame = cv2.resize(
            frame, whole, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
        )
        x, y = (whole[0] - size) // 2, (whole[1] - size) // 2
        part = frame[y : y + size, x : x + size].astype(np.float32) / 255
        out.append(((part - model.mean) / model.std).transpose(2, 0, 1))
    return torch.from_numpy(np.stack(out)).to(model.device)


def image_features(model: ClipModel, frames: np.ndarray) -> np.ndarray:
    """float32 ``[n, d]`` of length 1, in the space shared with text."""
    import torch

    rows = []
    with torch.inference_mode():
        for begin in range(0, len(frames), _BATCH):
            pixels = _pixels(model, frames[begin : begin + _BATCH])
            pooled = model.net.vision_model(pixel_values=pixels).pooler_output
            rows.append(model.net.visual_projection(pooled).float().cpu().numpy())
    return _unit(np.concatenate(rows))


def text_features(model: ClipModel, text: str) -> np.ndarray:
    """float32 ``[d]`` of length 1; a text longer than the model takes is cut."""
    import torch

    longest = model.net.config.text_config.max_position_embeddings
    tokens = model.tokenizer([text], truncation=True, max_length=longest, return_tensors="pt").to(
        model.device
    )
    with torch.inference_mode():
        pooled = model.net.text_model(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
        ).pooler_output
        found = model.net.text_projection(pooled).float().cpu().numpy()
    return _unit(found)[0]


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-9)


def temporal_consistency(model: ClipModel, frames: np.ndarray) -> float:
    """Mean cosine of the features of neighbouring frames x 100."""
    features = image_features(model, frames)
    return float(100 * (features[1:] * features[:-1]).sum(-1).mean())


def pick_score(model: ClipModel, frames: np.ndarray, text: str) -> float:
    """PickScore of each frame and the text (scaled cosine), mean over frames."""
    scale = float(model.net.logit_scale.detach().exp())
    return float(scale * (image_features(model, frames) @ text_features(model, text)).mean())
