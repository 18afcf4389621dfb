# SPDX-License-Identifier: Apache-2.0
"""Small random Wan models, and their weights under the names that others use."""

import torch

SIZES = dict(
    num_attention_heads=2, attention_head_dim=128, text_dim=16, freq_dim=32, ffn_dim=64,
    num_layers=2, cross_attn_norm=True, rope_max_seq_len=32,
)  # fmt: skip


def small_wan(in_channels=16, out_channels=16, seed=0):
    import diffusers

    torch.manual_seed(seed)
    model = diffusers.WanTransformer3DModel(
        in_channels=in_channels, out_channels=out_channels, **SIZES
    ).eval()
    for tensor in model.state_dict().values():  # so that no bias or norm is the neutral one
        tensor.add_(0.02 * torch.randn_like(tensor))
    return model


def original_names(state):
    """A diffusers state dict as original Wan names it."""
    top = {
        "condition_embedder.text_embedder.linear_1": "text_embedding.0",
        "condition_embedder.text_embedder.linear_2": "text_embedding.2",
        "condition_embedder.time_embedder.linear_1": "time_embedding.0",
        "condition_embedder.time_embedder.linear_2": "time_embedding.2",
        "condition_embedder.time_proj": "time_projection.1",
        "proj_out": "head.head",
    }
    inner = {
        "attn1.to_q": "self_attn.q", "attn1.to_k": "self_attn.k", "attn1.to_v": "self_attn.v",
        "attn1.to_out.0": "self_attn.o", "attn1.norm_q": "self_attn.norm_q",
        "attn1.norm_k": "self_attn.norm_k", "attn2.to_q": "cross_attn.q",
        "attn2.to_k": "cross_attn.k", "attn2.to_v": "cross_attn.v",
        "attn2.to_out.0": "cross_attn.o", "attn2.norm_q": "cross_attn.norm_q",
        "attn2.norm_k": "cross_attn.norm_k", "norm2": "norm3", "ffn.net.0.proj": "ffn.0",
        "ffn.net.2": "ffn.2",
    }  # fmt: skip
    out = {}
    for name, tensor in state.items():
        stem, _, kind = name.rpartition(".")
        if name == "scale_shift_table":
            out["head.modulation"] = tensor
        elif name.endswith("scale_shift_table"):
            out[f"{stem}.modulation"] = tensor
        elif name.startswith("blocks."):
            _, number, rest = stem.split(".", 2)
            out[f"blocks.{number}.{inner[rest]}.{kind}"] = tensor
        else:
            out[f"{top.get(stem, stem)}.{kind}"] = tensor
    return out
