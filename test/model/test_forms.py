# SPDX-License-Identifier: Apache-2.0
"""What is seen of forms: nothing where there is none, and bodies in the light of the pictures."""

import torch

from egoedit_ros.model.config import DetailConfig
from egoedit_ros.model.forms import (
    BESIDE,
    SEEN,
    TOLD,
    Forms,
    doubled,
    inside,
    outside,
    relit,
    relit_again,
)
from egoedit_ros.model.pose import FRAME, POSE


def test_where_there_is_none_all_is_outside():
    torch.manual_seed(0)
    forms = Forms(DetailConfig(forms=3))
    pose = torch.randn(2, POSE) * 20
    kinds = torch.tensor([[0.0, 0, 0, 1], [0.5, 0, 0, 0.5]])
    none, half = forms(pose, kinds, (6, 8), 2)
    assert none.shape == (SEEN, 6, 8)
    assert (none[:2] == -1).all() and (half[:2] <= 0.5).all()


def test_far_from_a_body_nothing_is_said():
    torch.manual_seed(0)
    forms = Forms(DetailConfig(forms=3))
    pose = torch.zeros(1, POSE)
    pose[:, :2] = pose[:, 11:13] = -200.0  # pixels to the upper left
    pose[:, 2] = pose[:, 6] = pose[:, 13] = pose[:, 17] = 10.0
    seen = forms(pose, torch.tensor([[0.0, 1, 0, 0]]), (6, 8), 2)[0]
    assert (seen[[0, 1, TOLD, TOLD + 1]] == -1).all() and (seen[2:TOLD] == 0).all()


def test_bodies_have_the_light_of_the_pictures():
    """Colours that are linear in the normal are known where neither picture shows the body."""
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, 24)] * 2, indexing="ij")
    normal = torch.stack([x, y, -(1 - (x**2 + y**2) / 2).clamp(min=0)])
    seen = torch.full((1, SEEN, 24, 24), -1.0)
    seen[0, 0], seen[0, 1] = 0.8, 1.2 * y  # a thing whose lower half is of a second material
    seen[0, TOLD] = 0.8
    seen[0, 2:5] = seen[0, TOLD + 2 : TOLD + 5] = normal
    light = {"first": (0.5, 0.2, 0.1), "second": (0.3, -0.1, 0.2), "hand": (0.6, 0.1, -0.1)}
    colors = {}
    for name, (base, right, down) in light.items():
        value = base + right * normal[0] + down * normal[1]
        colors[name] = torch.nn.functional.interpolate(
            value.expand(1, 3, -1, -1), scale_factor=2, mode="bilinear"
        )
    whole = torch.where(torch.arange(48)[:, None] < 24, colors["first"], colors["second"])
    mask = torch.zeros(1, 1, 48, 48)
    mask[..., 8:40, 8:30] = 1  # of the thing only that is made; of the hand all but that is seen
    made = torch.where(mask > 0, whole, 0.0)
    source = torch.where(mask > 0, 1.0, colors["hand"])
    thing, hand = relit(seen, source, made, mask)[0]
    clear = (torch.arange(48) - 23.5).abs()[:, None].expand(48, 48) > 6  # of the materials' border
    assert (thing - whole[0]).abs()[:, clear].mean() < 0.05
    assert (hand - colors["hand"][0]).abs().mean() < 0.02


def test_a_form_is_left_unheard_outside_of_its_outline():
    seen = torch.zeros(1, SEEN, 8, 8)
    seen[:, 0], seen[:, TOLD] = 0.5, -0.5
    thing, hand = outside(seen)[0]
    assert thing.shape == (16, 16) and thing.max() < 0.01 and hand.min() > 0.99


def test_inside_and_outside_are_told_by_the_outline():
    seen = torch.full((1, SEEN, 8, 8), -1.0)
    seen[:, 0, :, 4:] = 1.0
    thing, hand = inside(doubled(seen[:, (0, TOLD)]))[0]
    assert (thing[:, 9:] > 0.95).all() and (thing[:, :7] < 0.05).all() and (hand < 0.05).all()


def test_a_finger_in_front_of_a_thing_does_not_colour_it():
    """Nor is a bottle's cap of a few pixels grey."""
    seen = torch.full((1, SEEN, 24, 24), -1.0)
    seen[0, 0] = 1.0
    seen[0, 1, :3, 10:14] = 1.0
    seen[0, 2:5] = torch.tensor([0.0, 0.0, -1.0])[:, None, None]
    blue, white, skin = (
        torch.tensor(c)[:, None, None] for c in ([0.1, 0.2, 0.8], [0.95] * 3, [0.8, 0.6, 0.5])
    )
    shown = blue.expand(1, 3, 48, 48).clone()
    shown[..., :6, 20:28] = white
    whole = shown.clone()
    shown[..., 20:32, 10:48] = skin
    got = relit_again(seen, doubled(seen[:, :TOLD]), shown, torch.ones(1, 1, 48, 48))
    clear = torch.ones(48, 48, dtype=torch.bool)
    clear[:9, 17:31] = False
    assert (got - whole)[..., clear].abs().max() < 0.06
    assert (got[..., :4, 22:26] - white).abs().max() < 0.06


def test_bodies_are_looked_at_closely_inside_of_their_outlines_and_as_they_were_elsewhere():
    torch.manual_seed(0)
    forms, kinds = Forms(DetailConfig(forms=8)), torch.eye(9)[[3]]
    slope = torch.tensor([[20.0, 0, 0], [0, 0, -20.0]])
    frame = torch.cat([torch.tensor([30.0, 34.0]), slope.flatten(), torch.tensor([0.0, 1, 0])])
    pose = torch.zeros(2, POSE)
    pose[:, :FRAME] = pose[:, FRAME : 2 * FRAME] = frame
    pose[1, 0] = 20.0
    for net in (forms.thing, forms.hand):
        torch.nn.init.normal_(net.out.weight, std=2.0)
    seen, every = forms(pose, kinds, (32, 32), 2), forms(pose, kinds, (64, 64), 1)
    got, blurred = forms.thing_closely(pose, kinds, seen), doubled(seen[:, :TOLD])
    near = (blurred[:, :1] > -BESIDE).expand_as(got)
    assert 0.05 < near.float().mean() < 0.99
    told, kept = (got - every[:, :TOLD]).abs().amax(1) < 1e-4, (got == blurred).all(1)
    assert (told | kept).all() and told[near[:, 0]].float().mean() > 0.9  # all that is not smooth
    assert kept[~near[:, 0]].all()
    smooth = torch.full_like(seen, 0.5)
    assert torch.equal(forms.thing_closely(pose, kinds, smooth), doubled(smooth[:, :TOLD]))
    far = seen.clone()
    far[:, 0] = -1.0
    assert torch.equal(forms.thing_closely(pose, kinds, far), doubled(far[:, :TOLD]))
    where = torch.zeros(2, 1, 64, 64)
    where[..., 40:] = 0.5
    got, blurred = forms.hand_closely(pose, seen, where), doubled(seen[:, TOLD : 2 * TOLD])
    near = ((blurred[:, :1] > -BESIDE) & (where > 0)).expand_as(got)
    torch.testing.assert_close(got[near], every[:, TOLD : 2 * TOLD][near])
    assert near.any() and torch.equal(got[~near], blurred[~near])
