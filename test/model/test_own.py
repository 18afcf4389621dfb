# SPDX-License-Identifier: Apache-2.0
"""An editor from somebody's own weights, from files to edited frames."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from egoedit_ros.errors import UserError
from egoedit_ros.model.flow import step_sigmas
from egoedit_ros.model.taehv import TinyAutoencoder
from egoedit_ros.stream.edit_session import EditSession, load_model

diffusers = pytest.importorskip("diffusers")
from wan_support import original_names, small_wan  # noqa: E402

SIZE = (48, 32)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A diffusers pipeline, a Self Forcing file and a tiny autoencoder, random and small."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    root = tmp_path_factory.mktemp("own")
    wan = small_wan(16)
    wan.save_pretrained(root / "wan" / "transformer")
    small_wan(32).save_pretrained(root / "editor")
    torch.save({"generator_ema": original_names(wan.state_dict())}, root / "self_forcing.pt")
    torch.manual_seed(1)
    diffusers.AutoencoderKLWan(base_dim=8, num_res_blocks=1).save_pretrained(root / "wan" / "vae")
    config = transformers.UMT5Config(
        vocab_size=8, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2
    )
    transformers.UMT5EncoderModel(config).save_pretrained(root / "wan" / "text_encoder")
    words = Tokenizer(
        models.WordLevel({"<unk>": 0, "red": 1, "blue": 2, "mug": 3}, unk_token="<unk>")
    )
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", pad_token="<unk>"
    ).save_pretrained(root / "wan" / "tokenizer")
    (root / "wan" / "model_index.json").write_text('{"_class_name": "WanPipeline"}')
    tiny = TinyAutoencoder().requires_grad_(False)
    tiny.decoder[22].weight.mul_(100)  # random weights fade; differences should be seen
    tiny.decoder[22].bias.fill_(0.5)
    save_file(tiny.state_dict(), root / "taew2_1.safetensors")
    return root


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EGOEDIT_CACHE", str(tmp_path))


def _describe(parts, name, **values):
    path = parts / f"{name}.json"
    described = {"transformer": "editor", "autoencoder": "wan/vae", "text_encoder": "wan"}
    path.write_text(json.dumps(described | values))
    return str(path)


def _load(path):
    return load_model(str(path), "cpu", torch.float32)


def _run(session, count=3, seed=0, text="red mug"):
    rng = np.random.default_rng(seed)
    session.set_instruction(text, 1)
    made = []
    for _ in range(count):
        frames = rng.integers(0, 256, (session.frames_needed, SIZE[1], SIZE[0], 3), dtype=np.uint8)
        result = session.run(frames)
        assert result.frames.shape == frames.shape and result.mask.shape == frames.shape[:3]
        made.append(result.frames)
    return made


@pytest.mark.parametrize("autoencoder", ["wan/vae", "taew2_1.safetensors", "mixed"])
@pytest.mark.parametrize("chunk_latents", [1, 3])
def test_frames_in_frames_out(parts, autoencoder, chunk_latents):
    named = ["wan/vae", "taew2_1.safetensors"] if autoencoder == "mixed" else autoencoder
    model = _load(_describe(parts, f"e{autoencoder[:3]}{chunk_latents}", autoencoder=named))
    assert not model.config.transformer.anchored
    session = EditSession(model, SIZE, chunk_latents, nfe=2)
    made = _run(session)
    assert [len(m) for m in made] == [4 * chunk_latents - 3] + 2 * [4 * chunk_latents]
    session.reset()
    assert all(np.array_equal(a, b) for a, b in zip(made, _run(session), strict=True))
    other = EditSession(model, SIZE, chunk_latents, nfe=2)
    assert not np.array_equal(made[2], _run(other, text="blue")[2])


def test_the_session_is_the_samplers_equation(parts):
    # One chunk of the session against diffusers' own transformer and autoencoder.
    path = _describe(parts, "exact", nfe=3)
    model = _load(path)
    session = EditSession(model, SIZE, chunk_latents=2)
    session.set_instruction("red mug", 7)
    rng = np.random.default_rng(1)
    frames = rng.integers(0, 256, (5, SIZE[1], SIZE[0], 3), dtype=np.uint8)
    got = session.run(frames).frames

    wan = diffusers.WanTransformer3DModel.from_pretrained(parts / "editor")
    vae = diffusers.AutoencoderKLWan.from_pretrained(parts / "wan" / "vae")
    mean, std = (
        torch.tensor(getattr(vae.config, f"latents_{k}")).view(1, -1, 1, 1, 1)
        for k in ("mean", "std")
    )
    with torch.no_grad():
        pixels = torch.from_numpy(frames).permute(3, 0, 1, 2)[None] / 127.5 - 1
        source = (vae.encode(pixels).latent_dist.mode() - mean) / std
        text = session._encode_text("red mug")[None]
        draw = torch.Generator().manual_seed(7 * 1_000_003)
        shape = (1, source.shape[2], 16, *source.shape[3:])
        sigmas = step_sigmas(3, model.config.shift)
        x = torch.randn(shape, generator=draw).transpose(1, 2)
        for step, sigma in enumerate(sigmas):
            velocity = wan(
                torch.cat([x, source], 1), torch.tensor([1000 * sigma]), text, return_dict=False
            )[0]
            clean = x - sigma * velocity
            if step < 2:
                noise = torch.randn(shape, generator=draw).transpose(1, 2)
                x = (1 - sigmas[step + 1]) * clean + sigmas[step + 1] * noise
        wanted = vae.decode(clean * std + mean).sample[0].permute(1, 2, 3, 0)
    wanted = ((wanted + 1) * 127.5).clamp(0, 255).numpy()
    assert np.abs(got - wanted).max() <= 0.5 + 1e-2  # rounding to whole levels


def test_a_diffusers_pipeline_needs_no_description(parts):
    model = _load(parts / "wan")
    assert model.config.transformer.in_channels == 32  # text-to-video, widened
    assert model.config.text_encoder == "umt5" and model.config.autoencoder.kind == "wan"
    _run(EditSession(model, SIZE, 1, nfe=1), 1)


def test_strength_keeps_something_of_the_source(parts):
    made = {}
    for strength in (1.0, 0.3):
        path = _describe(parts, f"s{strength}", transformer="self_forcing.pt", strength=strength)
        session = EditSession(_load(path), SIZE, 1, nfe=1)
        session.set_instruction("red", 0)
        flat = [np.full((1, SIZE[1], SIZE[0], 3), level, np.uint8) for level in (0, 255)]
        outputs = []
        for frames in flat:
            session.reset()
            outputs.append(session.run(frames).frames)
        made[strength] = not np.array_equal(*outputs)
    # A text-to-video model from pure noise does not see the camera; from the noised source it does.
    assert made == {1.0: False, 0.3: True}


def test_after_chunks_passed_through_the_autoencoder_begins_anew(parts):
    model = _load(_describe(parts, "skip"))
    rng = np.random.default_rng(3)
    chunks = [rng.integers(0, 256, (n, SIZE[1], SIZE[0], 3), dtype=np.uint8) for n in (1, 4, 4, 4)]
    long, short = (EditSession(model, SIZE, 1, nfe=1) for _ in range(2))
    for session in (long, short):
        session.set_instruction("red", 0)
    for chunk in chunks[:3]:
        long.skip(chunk)
    # As if the stream had begun five frames before (1 + 4), were it not for the noise's index.
    short.skip(chunks[1][-1:])
    short.skip(chunks[2])
    short._chunk = long._chunk
    assert np.array_equal(long.run(chunks[3]).frames, short.run(chunks[3]).frames)


def test_state_stays_level(parts):
    session = EditSession(_load(_describe(parts, "level")), SIZE, 1, nfe=1)
    _run(session, 3)
    level = session.memory_bytes()
    _run(session, 4)
    assert session.memory_bytes() == level > 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"wings": 2}, "unknown wings"),
        ({"chunk_latents": 0}, "chunk_latents is 0"),
        ({"window_chunks": 0}, "window_chunks is 0"),
        ({"size": [50, 32]}, "multiples of 16"),
        ({"size": 5}, "wrong kind"),
        ({"strength": 0}, "strength is 0"),
        ({"steady": [0.5, 0.5]}, "steady must be 4 numbers"),
        ({"steady": [0.5, 0.5, 0.5, 1.5]}, "steady must be 4 numbers"),
        ({"steady": ["a", 0.5, 0.5, 0.5]}, "steady must be 4 numbers"),
        ({"steady": 0.5}, "steady must be 4 numbers"),
        ({"sharpen": "yes"}, "sharpen is 'yes'; it must be true or false"),
        ({"config": "wan-14b"}, "is of another model: 2 layers 256 wide"),
        ({"config": "wan-7b"}, "no model called"),
        ({"transformer": "nothing.pt"}, "no weights at"),
        ({"transformer": 3}, "must be the path"),
        ({"autoencoder": "nothing"}, "no autoencoder at"),
        ({"autoencoder": ["wan/vae"] * 3}, "must be a path"),
        ({"text_encoder": "nothing"}, "no text encoder in"),
    ],
)
def test_wrong_descriptions(parts, values, message):
    with pytest.raises(UserError, match=message) as error:
        _load(_describe(parts, "wrong", **values))
    assert "\n" not in str(error.value)
    load_model.cache_clear()


def test_a_name_without_weights_says_what_to_do():
    with pytest.raises(UserError, match="docs/own_weights.md"):
        load_model("wan-1.3b", "cpu")
