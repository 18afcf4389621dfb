# SPDX-License-Identifier: Apache-2.0
"""LoRA: train small additions to the blocks' matrices instead of the matrices (through peft)."""

from __future__ import annotations

from torch import Tensor, nn

from egoedit_ros.errors import UserError

# Of diffusers' names: what lies in the blocks. Projections outside of them are used by weight.
TARGETS = r"blocks\.\d+\.(attn[12]\.(to_[qkv]|to_out\.0)|ffn\.net\.(0\.proj|2))"

# peft freezes all that it does not add, what lies beside the blocks and helps to train, too.
FROZEN_BY_LORA = "with lora the {} would learn nothing; leave out lora or {}"


def add_lora(net: nn.Module, rank: int, alpha: float) -> None:
    """Freeze ``net`` and add trainable low-rank parts of ``rank``, scaled by alpha / rank."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise UserError("peft is not installed; pip install peft, or leave out lora") from None
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, target_modules=TARGETS), net)


def merged(net: nn.Module) -> dict[str, Tensor]:
    """The state of ``net`` under its plain names, the additions put into the matrices."""
    state = net.state_dict()
    layers = {n: m for n, m in net.named_modules() if hasattr(m, "get_delta_weight")}
    if not layers:
        return state
    out = {k: v for k, v in state.items() if ".lora_" not in k and ".base_layer." not in k}
    for name, layer in layers.items():
        for kind in ("weight", "bias"):
            value = state.get(f"{name}.base_layer.{kind}")
            if value is not None:
                added = layer.get_delta_weight("default") if kind == "weight" else 0
                out[f"{name}.{kind}"] = value + added
    return out
