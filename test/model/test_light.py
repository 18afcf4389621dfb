# SPDX-License-Identifier: Apache-2.0
"""Things are painted in the light of the room, in the colour that a text says."""

import math

import pytest
import torch
import torch.nn.functional as F

from egoedit_ros.model.light import (
    LIGHT,
    SEEN_SIZE,
    ColorReader,
    LightNet,
    Lights,
    Paint,
    painted,
    shade,
    shine,
)

SIDE = 32
COLORS = torch.tensor([[0.85, 0.08, 0.08], [0.1, 0.22, 0.85], [0.95, 0.95, 0.95]])
RED, BLUE, WHITE = range(3)


def _light(rest=0.3, key=0.6, fill=0.0, camera=0.0, to_key=(0.0, -1.0, 0.0)):
    return torch.tensor([[*[rest] * 3, *[key] * 3, fill, camera, *to_key, 0.0, 0.0, -1.0]])


def test_a_face_is_lit_as_far_as_it_is_turned_to_each_light():
    up, half, away = (0.0, -1.0, 0.0), (0.0, -math.cos(1.0), -math.sin(1.0)), (0.0, 1.0, 0.0)
    faces = torch.tensor([up, half, away]).T[None]
    rest, key = shade(_light(fill=0.2, camera=0.1), faces)
    torch.testing.assert_close(key[0, 0], 0.6 * torch.tensor([1.0, math.cos(1.0), 0.0]))
    lit = 0.3 + (0.2 + 0.1) * torch.tensor([0.0, math.sin(1.0), 0.0])
    torch.testing.assert_close(rest[0, 0], lit)


def test_a_highlight_is_where_a_face_looks_between_the_key_and_the_camera():
    between = F.normalize(torch.tensor([0.0, -1.0, -1.0]), dim=0)
    faces = torch.stack([between, torch.tensor([0.0, -1.0, 0.0]), -between], 1)[None]
    got = shine(_light(), faces)
    assert got.shape == (1, 1, 3) and abs(float(got[0, 0, 0]) - 1) < 1e-4
    assert got[0, 0, 1:].max() < 1e-3


def _ball():
    """Faces of a ball as the camera sees it, and where it is."""
    y, x = torch.meshgrid(*[(torch.arange(SIDE) + 0.5) / SIDE * 2.2 - 1.1] * 2, indexing="ij")
    inside = (x**2 + y**2 < 1).float()[None, None]
    depth = (1 - x**2 - y**2).clamp(min=1e-3).sqrt()
    return F.normalize(torch.stack([x, y, -depth])[None], dim=1), inside


def _shown(color, light, faces, in_light=1.0):
    rest, key = shade(light, faces)
    return (color[:, None, None] * (rest + in_light * key)).clamp(0, 1)


def _painted(shown, light, likely, second=None):
    faces, inside = _ball()
    second = torch.zeros_like(inside) if second is None else second
    paint = Paint(light, torch.tensor(likely), COLORS, COLORS[WHITE])
    return painted(faces, second, shown, inside, paint)


def _off(got, wanted):
    return float(((got - wanted).abs() * _ball()[1]).max())


def test_a_thing_has_the_colour_that_the_text_says_in_the_light_that_falls():
    """What is decoded is a blur, and greyer."""
    faces, inside = _ball()
    wanted = _shown(COLORS[RED], _light(), faces)
    blurred = F.avg_pool2d(F.pad(0.8 * wanted + 0.05, [4] * 4, mode="replicate"), 9, 1)
    got = _painted(blurred, _light(), (6.0, 0.0, 0.0))
    assert _off(got, wanted) < 0.15
    hue = (got * inside).sum((2, 3))
    assert hue[0, 0] > 4 * hue[0, 1]


def test_where_a_text_says_no_colour_it_is_that_of_what_is_decoded():
    faces, _ = _ball()
    for color in COLORS:
        wanted = _shown(color, _light(), faces)
        assert _off(_painted(wanted, _light(), (0.0, 0.0, 0.0)), wanted) < 0.1


def test_a_shadow_that_is_decoded_falls_on_it():
    faces, _ = _ball()
    lit, dark = (_shown(COLORS[BLUE], _light(), faces, x) for x in (1.0, 0.0))
    half = lit.clone()
    half[..., SIDE // 2 :] = dark[..., SIDE // 2 :]
    got = _painted(half, _light(), (0.0, 6.0, 0.0))
    row = slice(2, SIDE // 2)
    assert (got - lit)[..., row, 4:10].abs().mean() < 0.03
    assert (got - dark)[..., row, -10:-4].abs().mean() < 0.06


def test_its_second_material_keeps_its_own_colour():
    faces, inside = _ball()
    second = inside.clone()
    second[..., SIDE // 2 :, :] = 0
    wanted = _shown(COLORS[RED], _light(), faces) * (1 - second)
    wanted = wanted + _shown(COLORS[WHITE], _light(), faces) * second
    assert _off(_painted(wanted, _light(), (6.0, 0.0, 0.0), second), wanted) < 0.1


def test_a_light_has_no_negative_colours_and_directions():
    torch.manual_seed(0)
    net = LightNet()
    torch.nn.init.normal_(net.out.weight)
    said = net(torch.rand(3, 3, *SEEN_SIZE))
    assert said.shape == (3, LIGHT) and (said[:, :8] >= 0).all()
    torch.testing.assert_close(said[:, 8:11].norm(dim=1), torch.ones(3))
    torch.testing.assert_close(said[:, 11:].norm(dim=1), torch.ones(3))


def test_words_beyond_a_texts_end_say_no_colour():
    torch.manual_seed(0)
    reader = ColorReader(16, 3)
    words = torch.randn(1, 5, 16)
    padded = torch.cat([words, torch.zeros(1, 4, 16)], 1)
    torch.testing.assert_close(reader(words), reader(padded))
    assert not torch.allclose(reader(words), reader(words.flip(-1)))


@pytest.mark.parametrize("count", [1, 4])
def test_all_pictures_of_a_chunk_have_one_light(count):
    torch.manual_seed(0)
    lights = Lights(16, 3, 8)
    paint = lights(torch.rand(count, 3, 192, 256), torch.zeros(3), 4)
    assert paint.light.shape == (1, LIGHT) and torch.equal(paint.second, lights.second[4])


def test_a_rooms_light_does_not_jump_from_chunk_to_chunk():
    torch.manual_seed(0)
    lights, picture = Lights(16, 3, 8), torch.rand(1, 3, 192, 256)
    new = lights(picture, torch.zeros(3), 4).light
    before = new + 1
    got = lights(picture, torch.zeros(3), 4, before).light
    assert (got < before).all() and (got > (new + before) / 2).all()


def test_a_colour_that_a_text_rules_out_is_not_painted_though_it_is_decoded():
    light = _light()
    shown = _shown(COLORS[BLUE], light, _ball()[0])
    got = _painted(shown, light, [9.0, 0.0, 0.0])
    assert (got[:, 2] < got[:, 0]).all() and (got[:, 1] < 0.2 * got[:, 0]).all()
