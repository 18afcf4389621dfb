# SPDX-License-Identifier: Apache-2.0
import torch

from egoedit_ros.model.autoencoder import EdgeAutoencoder, Encoded, composite
from egoedit_ros.model.config import AutoencoderConfig

CONFIG = AutoencoderConfig(latent_channels=8, width=16, deep_width=16)


def _model():
    torch.manual_seed(0)
    return EdgeAutoencoder(CONFIG).eval().requires_grad_(False)


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
    for block in (*model.decoder_coarse, *model.decoder_fine):
        torch.nn.init.normal_(block.conv2.weight, std=0.05)
    source = model.encode(torch.rand(1, 4, 3, 48, 64) * 2 - 1)
    other = model.encode(torch.rand(1, 4, 3, 48, 64) * 2 - 1)
    base, _ = model.decode(source.latents, source)
    assert not torch.allclose(base, model.decode(other.latents, source)[0])
    assert not torch.allclose(base, model.decode(source.latents, other)[0])
    hidden = Encoded(source.latents, torch.zeros_like(source.fine))
    assert not torch.allclose(base, model.decode(source.latents, hidden)[0])


def test_composite_keeps_the_camera_outside_the_mask():
    made, source = torch.rand(2, 1, 4, 3, 8, 8)
    mask = torch.zeros(1, 4, 8, 8)
    mask[..., :4] = 1
    out = composite(made, mask, source)
    assert torch.equal(out[..., 4:], source[..., 4:])
    assert torch.allclose(out[..., :4], made[..., :4])
