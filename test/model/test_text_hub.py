# SPDX-License-Identifier: Apache-2.0
"""Text encoders of others, tiny and random, made on the spot."""

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from egoedit_ros.cache_folder import cache_folder
from egoedit_ros.errors import UserError
from egoedit_ros.model import text_hub
from egoedit_ros.model.text import get_text_encoder
from egoedit_ros.model.text_hub import encoder_kind, open_text_encoder

WORDS = "<pad> </s> <unk> turn the red ball blue remove mug".split()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EGOEDIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "text"


def _tokenizer(folder):
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)


def _t5(folder, kind="umt5", width=16):
    torch.manual_seed(0)
    config_class, model_class = {
        "umt5": (transformers.UMT5Config, transformers.UMT5EncoderModel),
        "t5": (transformers.T5Config, transformers.T5EncoderModel),
    }[kind]
    config = config_class(
        vocab_size=len(WORDS), d_model=width, d_kv=8, d_ff=16, num_layers=2, num_heads=2
    )
    model_class(config).save_pretrained(folder)


def _clip(folder):
    torch.manual_seed(0)
    config = transformers.CLIPTextConfig(
        vocab_size=len(WORDS), hidden_size=8, intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=77,
    )  # fmt: skip
    transformers.CLIPTextModel(config).save_pretrained(folder)


@pytest.fixture
def pipeline(tmp_path):
    """The layout of a diffusers pipeline."""
    _t5(tmp_path / "wan" / "text_encoder")
    _tokenizer(tmp_path / "wan" / "tokenizer")
    return tmp_path / "wan"


def test_umt5_gives_what_transformers_gives(pipeline):
    assert encoder_kind(pipeline) == "umt5"
    got = open_text_encoder("umt5", 12, str(pipeline))("turn the red ball blue")
    model = transformers.UMT5EncoderModel.from_pretrained(pipeline / "text_encoder")
    ids = torch.tensor([[3, 4, 5, 6, 7]])
    with torch.no_grad():
        wanted = model(input_ids=ids).last_hidden_state[0]
    assert got.shape == (12, 16) and got.dtype == torch.float32
    assert torch.allclose(got[:5], wanted, atol=1e-5) and not got[5:].any()


def test_long_texts_are_cut(pipeline):
    assert open_text_encoder("umt5", 3, str(pipeline))("red " * 50)[-1].any()


def test_embeddings_are_kept_and_the_encoder_is_not_loaded_again(pipeline, cache, monkeypatch):
    first = open_text_encoder("umt5", 12, str(pipeline))("remove the mug")
    assert [p.suffix for p in cache.iterdir()] == [".safetensors"]
    monkeypatch.setattr(text_hub.HubEncoder, "_load", lambda self: pytest.fail("loaded again"))
    again = open_text_encoder("umt5", 12, str(pipeline))
    assert torch.equal(again("remove the mug"), first)


def test_another_model_text_or_length_is_another_entry(pipeline, cache, tmp_path):
    _t5(tmp_path / "other" / "text_encoder", width=24)
    _tokenizer(tmp_path / "other" / "tokenizer")
    open_text_encoder("umt5", 12, str(pipeline))("remove the mug")
    open_text_encoder("umt5", 12, str(pipeline))("remove the ball")
    open_text_encoder("umt5", 9, str(pipeline))("remove the mug")
    assert open_text_encoder("umt5", 12, str(tmp_path / "other"))("remove the mug").shape[1] == 24
    assert len(list(cache.iterdir())) == 4


def test_a_damaged_entry_is_made_anew(pipeline, cache):
    first = open_text_encoder("umt5", 12, str(pipeline))("remove the mug")
    next(cache.iterdir()).write_bytes(b"half")
    assert torch.equal(open_text_encoder("umt5", 12, str(pipeline))("remove the mug"), first)


def test_a_cache_that_cannot_be_written_is_only_slower(pipeline, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EGOEDIT_CACHE", str(tmp_path / "file"))
    assert open_text_encoder("umt5", 12, str(pipeline))("red").any()


def test_t5_and_clip_together(tmp_path):
    for name, make in (("t5", lambda f: _t5(f, "t5")), ("clip", _clip)):
        make(tmp_path / name)
        _tokenizer(tmp_path / name)
    assert encoder_kind(tmp_path) == "t5+clip"
    got = get_text_encoder("t5+clip", 77 + 10, str(tmp_path))("turn the mug blue")
    assert got.shape == (87, 16)
    assert got[:4].any(1).all() and not got[4:10].any()
    assert got[10:14, :8].any(1).all() and not got[10:, 8:].any()  # CLIP is narrower


def test_what_is_not_there_or_another_is_said(pipeline, tmp_path):
    with pytest.raises(UserError, match="no text encoder called"):
        open_text_encoder("bert", 12, str(pipeline))
    with pytest.raises(UserError, match="needs its weights"):
        open_text_encoder("umt5", 12, "")
    with pytest.raises(UserError, match="no config.json"):
        open_text_encoder("umt5", 12, str(tmp_path / "nothing"))
    with pytest.raises(UserError, match="holds a umt5 text encoder"):
        open_text_encoder("t5", 12, str(pipeline))


def test_pickled_weights_are_not_read(pipeline):
    weights = pipeline / "text_encoder" / "model.safetensors"
    torch.save({"x": torch.zeros(1)}, weights.with_name("pytorch_model.bin"))
    weights.unlink()
    with pytest.raises(UserError, match="no safetensors"):
        open_text_encoder("umt5", 12, str(pipeline))


def test_a_truncated_encoder_is_one_line(pipeline):
    weights = pipeline / "text_encoder" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    with pytest.raises(UserError, match="cannot be read") as error:
        open_text_encoder("umt5", 12, str(pipeline))("red")
    assert "\n" not in str(error.value)


def test_by_default_the_package_keeps_all_in_one_folder_of_the_users_cache(
    pipeline, monkeypatch, tmp_path
):
    monkeypatch.delenv("EGOEDIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert open_text_encoder("umt5", 12, str(pipeline))("red").any()
    (kept,) = (tmp_path / "xdg").rglob("*.safetensors")
    assert kept.parent == tmp_path / "xdg" / "egoedit_ros" / "text"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder("onnx") == tmp_path / ".cache" / "egoedit_ros" / "onnx"
