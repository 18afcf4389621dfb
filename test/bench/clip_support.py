# SPDX-License-Identifier: Apache-2.0
"""A CLIP model of random weights, small enough to be made on the spot."""

from __future__ import annotations

import json
from pathlib import Path

CLIP_WORDS = ("make", "the", "mug", "blue", "red", "ball")


def make_clip(folder: Path) -> Path:
    """Write a tiny CLIP model with its tokenizer into ``folder``."""
    import torch
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    letters = sorted(set("".join(CLIP_WORDS)))
    pieces = letters + [f"{letter}</w>" for letter in letters]
    vocabulary = {p: i for i, p in enumerate(["<|startoftext|>", "<|endoftext|>", *pieces])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt"))
    tokenizer.save_pretrained(folder)
    size = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config=size
        | {
            "vocab_size": len(vocabulary),
            "max_position_embeddings": 20,
            "bos_token_id": 0,
            "eos_token_id": 1,
        },
        vision_config=size | {"image_size": 32, "patch_size": 8},
        projection_dim=8,
    )
    CLIPModel(config).save_pretrained(folder)
    return folder
