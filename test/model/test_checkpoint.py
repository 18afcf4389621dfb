# SPDX-License-Identifier: Apache-2.0
import dataclasses

import pytest
import torch

from egoedit_ros.errors import UserError
from egoedit_ros.model.autoencoder import EdgeAutoencoder
from egoedit_ros.model.checkpoint import load_editor, save_editor
from egoedit_ros.model.config import (
    AutoencoderConfig,
    DetailConfig,
    EditorConfig,
    TransformerConfig,
)
from egoedit_ros.model.detail import DetailNet
from egoedit_ros.model.transformer import Transformer

CONFIG = EditorConfig(
    name="tiny",
    size=(64, 48),
    transformer=TransformerConfig(
        layers=1, heads=1, head_dim=16, ffn_dim=16, in_channels=16, out_channels=8
    ),
    autoencoder=AutoencoderConfig(latent_channels=8, width=16, deep_width=16),
)


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    networks = Transformer(CONFIG.transformer), EdgeAutoencoder(CONFIG.autoencoder)
    save_editor(tmp_path / "tiny", CONFIG, *networks)
    return tmp_path / "tiny"


def test_a_detail_network_comes_back_with_its_editor(tmp_path):
    config = dataclasses.replace(CONFIG, detail=DetailConfig(widths=(8, 8, 8), blocks=(1, 1)))
    networks = Transformer(CONFIG.transformer), EdgeAutoencoder(CONFIG.autoencoder)
    detail = DetailNet(config)
    save_editor(tmp_path, config, *networks, detail)
    again, _, _, loaded = load_editor(tmp_path)
    assert again == config
    for mine, theirs in zip(detail.parameters(), loaded.parameters(), strict=True):
        # Stored in float16, convolutions in steps of a 127th of the largest weight.
        step = float(mine.detach().abs().max()) / 254 if mine.dim() == 4 else 0.0
        torch.testing.assert_close(mine, theirs, atol=1e-3 + step, rtol=1e-3)
    (tmp_path / "detail.safetensors").unlink()
    with pytest.raises(UserError, match="detail"):
        load_editor(tmp_path)


def test_an_editor_comes_back_as_it_was_saved(folder):
    config, transformer, autoencoder, detail = load_editor(folder)
    assert config == CONFIG and detail is None
    assert not transformer.training and not autoencoder.training
    again = folder.parent / "again"
    save_editor(again, config, transformer, autoencoder)
    for name in ("transformer", "autoencoder"):
        file = f"{name}.safetensors"
        assert (again / file).read_bytes() == (folder / file).read_bytes()


def test_missing_folder(tmp_path):
    with pytest.raises(UserError, match="no model at"):
        load_editor(tmp_path / "nothing")


def test_missing_weights(folder):
    (folder / "transformer.safetensors").unlink()
    with pytest.raises(UserError, match="no weights at"):
        load_editor(folder)


@pytest.mark.parametrize("damage", ["truncate", "text"])
def test_a_file_that_is_no_whole_safetensors(folder, damage):
    path = folder / "transformer.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] if damage == "truncate" else b"hello" * 100)
    with pytest.raises(UserError, match="safetensors"):
        load_editor(folder)


def test_a_pickle_is_not_run(folder):
    torch.save({"weights": torch.zeros(2)}, folder / "transformer.safetensors")
    with pytest.raises(UserError, match="safetensors"):
        load_editor(folder)


@pytest.mark.parametrize("name", ["steady", "steady_forms"])
@pytest.mark.parametrize("steady", [0.5, [0.5], ["a"] * 4, [0.5, 0.5, 0.5, 1.0]])
def test_a_filter_that_cannot_be_is_one_line(folder, name, steady):
    values = CONFIG.to_dict() | {name: steady}
    (folder / "config.json").write_text(__import__("json").dumps(values))
    with pytest.raises(UserError, match=f"{name} must be 4 numbers"):
        load_editor(folder)


def test_another_model_is_named_with_what_differs(folder):
    other = dataclasses.replace(CONFIG.transformer, layers=2)
    config = dataclasses.replace(CONFIG, transformer=other)
    (folder / "config.json").write_text(__import__("json").dumps(config.to_dict()))
    with pytest.raises(UserError, match=r"missing \d+ \(blocks\.1"):
        load_editor(folder)


def test_nan_weights_are_refused(folder):
    _, transformer, autoencoder, _ = load_editor(folder)
    transformer.proj_out.weight.data[0, 0] = float("nan")
    save_editor(folder, CONFIG, transformer, autoencoder)
    with pytest.raises(UserError, match="NaN"):
        load_editor(folder)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"transformer": {"wings": 2}}'])
def test_a_config_that_is_none(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(UserError):
        load_editor(folder)
