# SPDX-License-Identifier: Apache-2.0
"""Text encoders from transformers (UMT5, T5, CLIP), from folders on this machine.

Embeddings are kept on disk by model and text, so that an encoder (UMT5-XXL: 11 GB) is loaded only
for a text it has not seen. Weights are read from safetensors only.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

import torch
from torch import Tensor

from egoedit_ros.cache_folder import cache_folder
from egoedit_ros.errors import UserError
from egoedit_ros.model.memory import require_memory
from egoedit_ros.model.tensor_files import read_json

CLIP_LENGTH = 77
KINDS = ("umt5", "t5", "clip")
MODEL_TYPES = {"umt5": ("umt5",), "t5": ("t5",), "clip": ("clip", "clip_text_model")}


def open_text_encoder(name: str, length: int, folder: str) -> HubEncoder | JoinedEncoder:
    """``umt5``, ``t5`` or ``clip`` from ``folder``; ``t5+clip`` from its folders ``t5`` and
    ``clip``. Raises UserError when they are not there."""
    if name not in (*KINDS, "t5+clip"):
        raise UserError(f"no text encoder called {name!r}; use minilm, umt5, t5, clip or t5+clip")
    if not folder:
        raise UserError(
            f"the text encoder {name} needs its weights: name their folder as text_encoder in the "
            "model's editor.json (docs/own_weights.md)"
        )
    if name == "t5+clip":
        t5 = HubEncoder("t5", length - CLIP_LENGTH, Path(folder) / "t5")
        return JoinedEncoder(t5, HubEncoder("clip", CLIP_LENGTH, Path(folder) / "clip"))
    return HubEncoder(name, length, Path(folder))


def encoder_kind(folder: Path) -> str:
    """Which encoder lies in ``folder``. Raises UserError for none of :data:`KINDS`."""
    if (folder / "t5").is_dir() and (folder / "clip").is_dir():
        return "t5+clip"
    kind = read_json(_weights_folder(folder) / "config.json").get("model_type")
    for name, types in MODEL_TYPES.items():
        if kind in types:
            return name
    raise UserError(f"{folder} holds a {kind}, not one of {', '.join(KINDS)}")


def _weights_folder(folder: Path) -> Path:
    """In a diffusers pipeline weights and tokenizer are apart, else together."""
    inner = folder / "text_encoder"
    found = inner if inner.is_dir() else folder
    if not (found / "config.json").is_file():
        raise UserError(f"no text encoder in {folder}: it has no config.json")
    return found


class HubEncoder:
    """Text to ``[length, channels]`` float32, zero beyond the text's end (as Wan wants it)."""

    def __init__(self, kind: str, length: int, folder: Path) -> None:
        self.kind, self.length, self.folder = kind, length, folder
        self._weights = _weights_folder(folder)
        found = encoder_kind(folder)
        if found != kind:
            raise UserError(f"{folder} holds a {found} text encoder; the model wants {kind}")
        files = sorted(self._weights.glob("*.safetensors"))
        if not files:
            raise UserError(
                f"{self._weights} holds no safetensors; take the folder of a diffusers model, or "
                "convert the weights"
            )
        self._identity = _identity([self._weights / "config.json", *files])
        self._loaded = None

    @torch.no_grad()
    def __call__(self, text: str) -> Tensor:
        key = f"{self._identity}\0{self.length}\0{text}".encode()
        name = f"{self.kind}-{hashlib.sha256(key).hexdigest()[:32]}.safetensors"
        path = cache_folder("text") / name
        tokens = _read_cached(path)
        if tokens is None:
            tokens = self._encode(text)
            _write_cached(path, tokens)
        out = torch.zeros(self.length, tokens.shape[1])
        out[: len(tokens)] = tokens
        return out

    def _encode(self, text: str) -> Tensor:
        """Embeddings of the tokens alone, ``[n, channels]``."""
        tokenizer, model = self._loaded = self._loaded or self._load()
        tokens = tokenizer(text, max_length=self.length, truncation=True, return_tensors="pt")
        ids = tokens.input_ids
        if ids.shape[1] == 0:
            raise UserError(f"the tokenizer in {self.folder} makes nothing of {text!r}")
        with torch.autocast("cpu", enabled=False):
            hidden = model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        if not torch.isfinite(hidden).all():
            raise UserError(f"the text encoder in {self.folder} gives NaN; download it again")
        return hidden[0].float()

    def _load(self):
        import transformers

        transformers.utils.logging.disable_progress_bar()
        kinds = {
            "umt5": transformers.UMT5EncoderModel,
            "t5": transformers.T5EncoderModel,
            "clip": transformers.CLIPTextModel,
        }
        files = self._weights.glob("*.safetensors")
        size = sum(f.stat().st_size for f in files)
        require_memory(f"the text encoder in {self.folder}", size, "cpu")
        places = [self.folder / "tokenizer", self._weights, self.folder]
        has = ("tokenizer.json", "spiece.model", "vocab.json")
        tokens = next((p for p in places if any((p / f).is_file() for f in has)), None)
        if tokens is None:
            raise UserError(f"no tokenizer in {self.folder}; copy the whole folder")
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(tokens, local_files_only=True)
            model, info = kinds[self.kind].from_pretrained(
                self._weights,
                local_files_only=True,
                use_safetensors=True,
                dtype="auto",
                output_loading_info=True,
            )
        except Exception as error:  # whatever a damaged folder makes transformers raise
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(f"the text encoder in {self.folder} cannot be read: {first}") from None
        if info["missing_keys"]:
            lost = sorted(info["missing_keys"])
            raise UserError(
                f"the text encoder in {self.folder} lacks {len(lost)} weights "
                f"({', '.join(lost[:2])}); copy it again"
            )
        return tokenizer, model.eval().requires_grad_(False)


class JoinedEncoder:
    """Two encoders' tokens one after the other; the narrower ones are padded with zeros."""

    def __init__(self, first: HubEncoder, second: HubEncoder) -> None:
        self._encoders = (first, second)

    def __call__(self, text: str) -> Tensor:
        parts = [encoder(text) for encoder in self._encoders]
        out = torch.zeros(sum(len(p) for p in parts), max(p.shape[1] for p in parts))
        begin = 0
        for part in parts:
            out[begin : begin + len(part), : part.shape[1]] = part
            begin += len(part)
        return out


def _identity(files: list[Path]) -> str:
    """Tells models apart without reading all of them: names, sizes, and both ends of each file."""
    digest = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            digest.update(file.read(1 << 20))
            file.seek(max(0, size - (1 << 20)))
            digest.update(file.read())
    return digest.hexdigest()


def _read_cached(path: Path) -> Tensor | None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)["tokens"]
    except (OSError, SafetensorError, KeyError):
        return None  # not there, or damaged: made anew


def _write_cached(path: Path, tokens: Tensor) -> None:
    """Written beside and renamed. A cache that cannot be written is only slower."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"tokens": tokens.contiguous()}, part)
        part.replace(path)
    except (OSError, SafetensorError):
        with contextlib.suppress(OSError):
            part.unlink()
