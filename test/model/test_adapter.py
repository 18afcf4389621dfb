# SPDX-License-Identifier: Apache-2.0
"""Checkpoints in every naming that people bring give what diffusers gives; others are refused."""

import json
import sys

import pytest
import torch
from safetensors.torch import save_file

from egoedit_ros.errors import UserError
from egoedit_ros.model import adapter
from egoedit_ros.model.adapter import read_transformer, widen
from egoedit_ros.model.transformer import causal_attend, token_grid

pytest.importorskip("diffusers")
from wan_support import original_names, small_wan  # noqa: E402


@pytest.fixture(scope="module")
def wan():
    return small_wan(32)


@pytest.fixture(scope="module")
def inputs():
    torch.manual_seed(5)
    return torch.randn(1, 3, 32, 6, 8), torch.randn(1, 7, 16)


def _ours(model, latents, text, timestep=637.0):
    y, x = token_grid(3, 4, latents.device)
    cos, sin = model.rope.angles(torch.arange(3), y, x)
    attend = causal_attend(cos, sin, model.config.heads, 3)
    modulation = model.modulation(torch.full((1, 1), timestep))
    return model(model.embed(latents), modulation, model.text(text), attend, (3, 4))


@torch.no_grad()
def _theirs(model, latents, text, timestep=637.0):
    out = model(latents.transpose(1, 2), torch.tensor([timestep]), text, return_dict=False)[0]
    return out.transpose(1, 2)


def _diffusers_folder(path, wan):
    wan.save_pretrained(path)
    return path


def _diffusers_sharded(path, wan):
    wan.save_pretrained(path, max_shard_size="1MB")
    assert len(list(path.glob("*.safetensors"))) > 1
    return path


def _diffusers_pipeline(path, wan):
    wan.save_pretrained(path / "transformer")
    return path


def _original(path, wan):
    path.mkdir()
    save_file(original_names(wan.state_dict()), path / "diffusion_pytorch_model.safetensors")
    (path / "config.json").write_text(json.dumps({"dim": 256, "num_heads": 2}))
    return path


def _original_pth(path, wan):
    torch.save(original_names(wan.state_dict()), path.with_suffix(".pth"))
    return path.with_suffix(".pth")


def _self_forcing(path, wan):
    good = {f"model.{k}": v for k, v in original_names(wan.state_dict()).items()}
    zeros = {k: torch.zeros_like(v) for k, v in good.items()}
    file = path.with_suffix(".pt")
    torch.save({"generator": zeros, "generator_ema": good, "critic": zeros}, file)
    return file


def _self_forcing_wrapped(path, wan):
    ema = {
        "model._fsdp_wrapped_module." + k.replace(".self_attn", "._checkpoint_wrapped_module"
        "._orig_mod.self_attn"): v
        for k, v in original_names(wan.state_dict()).items()
    }  # fmt: skip
    torch.save({"generator_ema": ema}, path.with_suffix(".pt"))
    return path.with_suffix(".pt")


def _self_forcing_generator_only(path, wan):
    state = {f"model.{k}": v for k, v in original_names(wan.state_dict()).items()}
    torch.save({"generator": state, "step": 600}, path.with_suffix(".pt"))
    return path.with_suffix(".pt")


def _comfy(path, wan):
    state = original_names(wan.state_dict())
    tensors = {f"model.diffusion_model.{k}": v for k, v in state.items()}
    tensors["first_stage_model.conv1.weight"] = torch.zeros(2)
    save_file(tensors, path.with_suffix(".safetensors"))
    return path.with_suffix(".safetensors")


WRITERS = [
    _diffusers_folder, _diffusers_sharded, _diffusers_pipeline, _original, _original_pth,
    _self_forcing, _self_forcing_wrapped, _self_forcing_generator_only, _comfy,
]  # fmt: skip


@pytest.mark.parametrize("write", WRITERS, ids=lambda w: w.__name__.strip("_"))
def test_every_naming_gives_what_diffusers_gives(write, wan, inputs, tmp_path):
    model = read_transformer(write(tmp_path / "wan", wan))
    assert (model.config.layers, model.config.heads, model.config.ffn_dim) == (2, 2, 64)
    assert not any(p.is_meta or p.requires_grad for p in model.parameters())
    assert (_ours(model, *inputs) - _theirs(wan, *inputs)).abs().max() <= 1e-4


def test_a_text_to_video_model_is_widened_and_stays_what_it_was(inputs, tmp_path):
    wan = small_wan(16)
    wan.save_pretrained(tmp_path)
    model = read_transformer(tmp_path)
    assert model.config.in_channels == 32
    noise, text = inputs[0][:, :, :16], inputs[1]
    wanted = _theirs(wan, noise, text)
    for source in (torch.zeros_like(noise), 5 * torch.randn_like(noise)):
        got = _ours(model, torch.cat([noise, source], dim=2), text)
        assert (got - wanted).abs().max() <= 1e-4
    # Without the source's half it is the same to the bit.
    assert torch.equal(model.patch_embedding.weight[:, :16], wan.patch_embedding.weight)
    assert not model.patch_embedding.weight[:, 16:].any()
    assert widen(torch.ones(2, 3, 1, 2, 2), 5).shape == (2, 5, 1, 2, 2)


def test_bfloat16_is_loaded_as_asked(wan, tmp_path):
    wan.save_pretrained(tmp_path)
    model = read_transformer(tmp_path, torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def _state(wan):
    return original_names(wan.state_dict())


def test_missing_and_left_over_are_listed(wan, tmp_path):
    state = _state(wan)
    del state["blocks.1.cross_attn.q.weight"]
    state["blocks.0.lora_a.weight"] = torch.zeros(2)
    save_file(state, tmp_path / "x.safetensors")
    with pytest.raises(UserError) as error:
        read_transformer(tmp_path / "x.safetensors")
    assert "missing 1 (blocks.1.attn2.to_q.weight)" in str(error.value)
    assert "left over 1 (blocks.0.lora_a.weight)" in str(error.value)
    assert "\n" not in str(error.value)


def test_another_size_inside_is_named(wan, tmp_path):
    state = _state(wan)
    state["blocks.1.ffn.0.weight"] = torch.zeros(32, 256)
    save_file(state, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=r"other size 1 \(blocks.1.ffn.net.0.proj.weight\)"):
        read_transformer(tmp_path / "x.safetensors")


def test_another_model_altogether(tmp_path):
    save_file({"conv_in.weight": torch.zeros(4, 4)}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="no Wan-type transformer"):
        read_transformer(tmp_path / "x.safetensors")


def test_an_image_to_video_model_is_no_editor(tmp_path):
    small_wan(36).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="takes 36 channels"):
        read_transformer(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_is_refused(wan, tmp_path, value):
    state = {k: v.clone() for k, v in _state(wan).items()}
    state["head.head.bias"][3] = value
    save_file(state, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="NaN or infinity in proj_out.bias"):
        read_transformer(tmp_path / "x.safetensors")


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_quantised_weights_are_refused(wan, tmp_path, dtype):
    state = _state(wan)
    state["blocks.0.ffn.0.weight"] = state["blocks.0.ffn.0.weight"].to(dtype)
    save_file(state, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="use a checkpoint in bfloat16"):
        read_transformer(tmp_path / "x.safetensors")


@pytest.mark.parametrize("kind", ["safetensors", "pt"])
def test_a_truncated_file(wan, tmp_path, kind):
    path = tmp_path / f"x.{kind}"
    if kind == "pt":
        torch.save({"generator_ema": _state(wan)}, path)
    else:
        save_file(_state(wan), path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(UserError, match="copy it again") as error:
        read_transformer(path)
    assert "\n" not in str(error.value)


def test_a_lost_shard(wan, tmp_path):
    wan.save_pretrained(tmp_path, max_shard_size="1MB")
    next(iter(tmp_path.glob("*.safetensors"))).unlink()
    with pytest.raises(UserError, match="copy the whole folder"):
        read_transformer(tmp_path)


class _Bomb:
    def __reduce__(self):
        return sys.exit, (99,)


def test_code_in_a_pickle_is_not_run(tmp_path):
    torch.save({"generator_ema": _Bomb()}, tmp_path / "x.pt")
    with pytest.raises(UserError, match="might be code"):
        read_transformer(tmp_path / "x.pt")


def test_too_little_memory_is_said_before_loading(wan, tmp_path, monkeypatch):
    wan.save_pretrained(tmp_path)
    monkeypatch.setattr("egoedit_ros.model.memory.free_memory", lambda device: 1_000_000)
    monkeypatch.setattr(adapter, "fill", lambda *a, **k: pytest.fail("it was loaded"))
    with pytest.raises(UserError, match=r"needs 0\.\d GB on cpu and 0\.0 GB are free"):
        read_transformer(tmp_path)


def test_nothing_there(tmp_path):
    with pytest.raises(UserError, match="no weights at"):
        read_transformer(tmp_path / "nothing.pt")
    with pytest.raises(UserError, match="no weights in"):
        read_transformer(tmp_path)
