# SPDX-License-Identifier: Apache-2.0
"""What the detail network answers, the camera's colours to the bit."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from runtime_support import small_config

from egoedit_ros.model.answers import BODIES, choose
from egoedit_ros.model.config import DetailConfig
from egoedit_ros.model.detail import ALONE, PLACES, DetailNet
from egoedit_ros.model.forms import SEEN
from egoedit_ros.model.pose import POSE

SMALL = small_config(detail=DetailConfig(widths=(8, 16, 16), blocks=(1, 1)))


def _inputs(count, seed=0):
    rng = torch.Generator().manual_seed(seed)
    source, made = (torch.rand(count, 3, 32, 32, generator=rng) for _ in range(2))
    mask = torch.rand(count, 1, 32, 32, generator=rng)
    latents = torch.randn(count, 16, 4, 4, generator=rng)
    return source, made, mask, latents, torch.arange(count) % PLACES


def test_a_network_that_has_learnt_nothing_shows_what_the_decoder_made():
    torch.manual_seed(0)
    net = DetailNet(SMALL)
    source, made, *rest = _inputs(2)
    answers = net(source, made, *rest, net.read(torch.randn(2, 8, 384)))
    assert answers.colors.shape == (2, 5, 3, 32, 32) and answers.pose is None
    assert torch.equal(answers.colors[:, 0], source) and torch.equal(answers.colors[:, 1], made)
    shown = (choose(answers)[:, :, None] * answers.colors).sum(1)
    assert (shown - made).abs().mean() < 0.05 < (shown - source).abs().mean()


def test_what_is_beyond_a_text_does_not_count():
    torch.manual_seed(0)
    net = DetailNet(SMALL)
    words = torch.randn(1, 3, 384)
    padded = torch.cat([words, torch.zeros(1, 5, 384)], 1)
    torch.testing.assert_close(net.read(words), net.read(padded))
    assert not torch.allclose(net.read(words), net.read(words.flip(-1)))


def test_each_picture_is_drawn_by_its_own_place_and_text():
    torch.manual_seed(0)
    net = DetailNet(SMALL)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    source, made, mask, latents, _ = _inputs(1)
    told = [net.read(torch.randn(1, 8, 384)) for _ in range(2)]

    def drawn(place, text):
        return net(source, made, mask, latents, torch.tensor([place]), text).logits

    assert not torch.allclose(drawn(0, told[0]), drawn(ALONE, told[0]))
    assert not torch.allclose(drawn(0, told[0]), drawn(0, told[1]))


def test_forms_are_heard_where_they_are():
    """Told that there is a thing, the network has an answer for it inside of its outline alone."""
    torch.manual_seed(0)
    net = DetailNet(small_config(detail=dataclasses.replace(SMALL.detail, forms=8)))
    source, made, mask, latents, place = _inputs(1)
    seen = torch.full((1, SEEN, 16, 16), -1.0)
    seen[:, 0, 4:12, 4:12] = 1.0
    seen[:, 2:5] = torch.tensor([0.0, 0.0, -1.0])[:, None, None]
    net.forms.forward = lambda *_: seen
    answers = net(source, made, mask, latents, place, net.read(torch.randn(1, 8, 384)))
    assert answers.colors.shape == (1, 5 + BODIES, 3, 32, 32)
    thing, hand = answers.logits[0, -BODIES:]
    assert thing[12:20, 12:20].min() > thing[:6].max() + 8 and hand.max() < -8
    inner = F.avg_pool2d(mask, 2)[0, 0, 5:11, 5:11]
    color = (F.avg_pool2d(made, 2)[0, :, 5:11, 5:11] * inner).sum((1, 2)) / inner.sum()
    assert (answers.colors[0, -BODIES, :, 16, 16] - color).abs().max() < 0.1


def test_where_the_text_leaves_the_form_open_the_picture_decides(monkeypatch):
    """The likeliest form is a square's, what is edited is as wide as the second one's."""
    net = DetailNet(small_config(detail=DetailConfig((8, 16, 16), (1, 1), forms=3))).eval()
    widths = {0: 4, 1: 8, 2: 6}  # of a form's outline, in cells of 4 pixels

    def outlines(pose, kinds, size, step):
        assert step == 4
        seen = -torch.ones(len(pose), SEEN, *size)
        seen[:, 0, 2:6, : widths[int(kinds.argmax())]] = 1
        return seen

    monkeypatch.setattr(net.forms, "forward", outlines)
    mask = torch.zeros(2, 1, 32, 32)
    mask[:, :, 8:24] = 1
    pose = torch.zeros(2, POSE)

    def told(*likely):
        return net._told_kind(torch.tensor([likely]), pose, mask)[0].tolist()

    assert told(0.55, 0.41, 0.01, 0.03) == [0, 1, 0, 0]
    assert told(0.97, 0.03, 0.0, 0.0) == pytest.approx([0.97, 0.03, 0, 0])  # sure by the text
    assert told(0.6, 0.01, 0.36, 0.03) == [0, 0, 1, 0]  # the second is not in question
    assert told(0.2, 0.1, 0.0, 0.7) == pytest.approx([0.2, 0.1, 0, 0.7])  # taken away, rather


def test_a_text_says_whose_outlines_are_heeded():
    """Of what is placed the thing's, of what is taken away the hand's, of what is coloured none."""
    net = DetailNet(small_config(detail=DetailConfig((8, 16, 16), (1, 1), forms=3))).eval()
    for layer in (net.anew[-1], net.kinds):
        torch.nn.init.zeros_(layer.weight)
    text = torch.zeros(1, net.config.told)
    net.kinds.bias.data = torch.tensor([5.0, 0, 0, 0])
    for logit, heeded in ((-2.0, 0.0), (2.0, 0.5), (6.0, 1.0)):
        net.anew[-1].bias.data.fill_(logit)
        assert net.heeded(text) == (pytest.approx(heeded), 0.0)
    net.kinds.bias.data = torch.tensor([0.0, 0, 0, 5])
    assert net.heeded(text) == (0.0, 1.0)
    assert DetailNet(SMALL).heeded(torch.zeros(1, SMALL.detail.told)) == (0.0, 0.0)
    outlines = net(*_inputs(1), text).outlines
    assert (outlines.thing, outlines.hand) == (0.0, 1.0)
    # Texts of their own, as in training.
    assert net(*_inputs(2), text.expand(2, -1)).outlines is None
