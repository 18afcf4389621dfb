# SPDX-License-Identifier: Apache-2.0
import torch

from egoedit_ros.model.autoencoder import EdgeAutoencoder, Encoded, composite
from egoedit_ros.model.config import AutoencoderConfig

CONFIG = AutoencoderConfig(latent_channels=8, width=16, deep_width=16)


def _model():
    torch.manual_seed(0)
    return EdgeAutoencoder(CONFIG).eval().requires_grad_(False)


def _liven(model):
    """Weights for the layers that begin at zero."""
    layers = [b.conv2 for b in (*model.encoder_fine, *model.decoder_coarse, *model.decoder_fine)]
    for layer in (*layers, model.decoder_out):
        torch.nn.init.normal_(layer.weight, std=0.05)


def test_shapes():
    model = _model()
    source = model.encode(torch.rand(2, 4, 3, 48, 64) * 2 - 1)
    assert source.latents.shape == (2, 8, 6, 8)
    frames, mask = model.decode(source.latents, source)
    assert frames.shape == (2, 4, 3, 48, 64) and mask.shape == (2, 4, 48, 64)


def test_a_single_frame_is_coded_as_one_that_stands_still():
    model = _model()
    frame = torch.rand(1, 1, 3, 48, 64) * 2 - 1
    one, four = model.encode(frame), model.encode(frame.repeat(1, 4, 1, 1, 1))
    assert torch.equal(one.latents, four.latents)


def test_the_source_matters_to_the_decoder_and_the_latent_too():
    model = _model()
    _liven(model)
    source = model.encode(torch.rand(1, 4, 3, 48, 64) * 2 - 1)
    other = model.encode(torch.rand(1, 4, 3, 48, 64) * 2 - 1)
    base, _ = model.decode(source.latents, source)
    assert not torch.allclose(base, model.decode(other.latents, source)[0])
    assert not torch.allclose(base, model.decode(source.latents, other)[0])
    hidden = Encoded(source.latents, torch.zeros_like(source.fine))
    assert not torch.allclose(base, model.decode(source.latents, hidden)[0])


def _smooth(count, generator):
    """Pictures that differ in few directions, as real ones do."""
    coarse = torch.rand(count, 4, 3, 3, 4, generator=generator) * 2 - 1
    return coarse.repeat_interleave(16, -1).repeat_interleave(16, -2)


def test_the_fitted_code_keeps_what_pictures_consist_of():
    rng = torch.Generator().manual_seed(0)
    model = EdgeAutoencoder(AutoencoderConfig(latent_channels=16, width=16, deep_width=16)).eval()
    model.requires_grad_(False)
    model.fit(_smooth(60, rng))
    pictures = _smooth(4, rng)
    coded = model.encode(pictures, fine=False)
    assert coded.fine is None
    made, _ = model.decode(coded.latents, None)
    # Flat squares in 4 frames and 3 colours have 12 directions of 768.
    torch.testing.assert_close(made, pictures, atol=1e-3, rtol=0)
    assert 0.5 < coded.latents.std() < 2


def test_the_code_is_the_same_found_at_once_or_part_by_part():
    rng = torch.Generator().manual_seed(0)
    frames = _smooth(70, rng) + 0.02 * torch.randn(70, 4, 3, 48, 64, generator=rng)
    models = [_model() for _ in range(2)]
    models[0].fit(frames)
    models[1].fit(iter(frames.split(9)))
    cells = models[0]._pack(frames.double(), 8).flatten(0, 2)
    centred = cells - cells.mean(0)
    values = torch.linalg.eigvalsh(centred.T @ centred / len(cells)).flip(0)[:8]
    for model in models:
        spread = (centred @ model.basis.double().T).square().mean(0)
        torch.testing.assert_close(spread, values, rtol=1e-5, atol=0)
        wanted = (values.sqrt() * values.sqrt().mean()).sqrt().float()
        torch.testing.assert_close(model.latents_std, wanted)
        torch.testing.assert_close(model.decoder_linear.bias, cells.mean(0).float())
        mean = model.basis.double() @ cells.mean(0)
        torch.testing.assert_close(model.latents_mean, mean.float())


def test_what_is_decoded_here_does_not_depend_on_what_happens_there():
    """No statistics of the whole picture: a crop trains what a frame runs."""
    model = _model()
    _liven(model)
    source = torch.rand(1, 4, 3, 48, 160) * 2 - 1
    other = source.clone()
    other[..., 152:] = 0.3
    one, two = (model.decode(c.latents, c)[0] for c in (model.encode(source), model.encode(other)))
    assert torch.equal(one[..., :64], two[..., :64])
    assert not torch.equal(one[..., 150:], two[..., 150:])


def test_placing_in_half_precision_keeps_the_code_exact():
    model = _model()
    frames = torch.rand(1, 4, 3, 48, 64) * 2 - 1
    before = model.encode(frames, fine=False).latents
    placed = model.place(torch.device("cpu"), torch.bfloat16)
    assert placed.basis.dtype == torch.float32
    after = placed.encode(frames.bfloat16(), fine=False).latents.float()
    torch.testing.assert_close(after, before, atol=0.05, rtol=0.02)


def test_composite_keeps_the_camera_outside_the_mask():
    made, source = torch.rand(2, 1, 4, 3, 8, 8)
    mask = torch.zeros(1, 4, 8, 8)
    mask[..., :4] = 1
    out = composite(made, mask, source)
    assert torch.equal(out[..., 4:], source[..., 4:])
    assert torch.allclose(out[..., :4], made[..., :4])
