# SPDX-License-Identifier: Apache-2.0
"""A trained detail network with fewer numbers to tell its text by, to train on from."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from egoedit_ros.model.detail import DetailNet


@torch.inference_mode()
def narrow_text(wide: DetailNet, narrow: DetailNet, embedded: Iterable[Tensor]) -> None:
    """Fill ``narrow``, whose configuration differs in a smaller ``told`` alone, from ``wide``.

    It keeps the numbers that the blocks heed most, and of the others what these tell over the
    given texts, by least squares. embedded: texts in batches ``[N, L, text_dim]``, in all well more
    than are kept.
    """
    told = torch.cat([wide.read(texts) for texts in embedded])
    layers = _text_layers(wide)
    heeded = [layer(told) - layer.bias for layer in layers.values()]
    weights = torch.stack([
        layer.weight.square().sum(0) / said.var().clamp(min=1e-12)
        for layer, said in zip(layers.values(), heeded, strict=True)
    ]).sum(0)  # fmt: skip
    count = narrow.config.told
    picked = (weights * told.var(0)).topk(count).indices.sort().values
    kept = torch.cat([told[:, picked], torch.ones(len(told), 1)], 1)
    state = wide.state_dict()
    for name, said in zip(layers, heeded, strict=True):
        # In float64: numbers that hardly differ from each other would lose all digits.
        found = torch.linalg.lstsq(kept.double(), said.double(), driver="gelsd").solution.float()
        state[f"{name}.weight"] = found[:-1].T.contiguous()
        state[f"{name}.bias"] = state[f"{name}.bias"] + found[-1]
    for part in ("weight", "bias"):
        state[f"text.0.{part}"] = state[f"text.0.{part}"][picked]
    narrow.load_state_dict(state)


def _text_layers(net: DetailNet) -> dict[str, nn.Linear]:
    """The layers by which the text is heeded, by name."""
    return {
        name: layer
        for name, layer in net.named_modules()
        if name.endswith((".text", "kinds", "anew.0")) and isinstance(layer, nn.Linear)
    }
