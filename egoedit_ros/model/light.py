# SPDX-License-Identifier: Apache-2.0
"""What light falls in a picture, and of what colour a text wants a thing: forms are painted so.

What is decoded of a new thing is soft, and so would be colours that are fitted to it. But its faces
are known by heart (:mod:`egoedit_ros.model.forms`), its colour is what the text says, and the light
is that of the room, which the camera sees on all else. So it is painted like a thing of that colour
in that light. What is decoded says only what the rest leaves open: a colour that is not named, and
where a shadow falls.

A light is :data:`LIGHT` numbers: colours that come from everywhere (3), from the key (3) and, of
one brightness each, from a fill and from the camera (2), and where the key (3) and the fill (3)
are, unit vectors towards them as the camera sees them (right, down, away). A face's colour is its
own times the sum of these lights, as far as it is turned towards each (Lambert).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from egoedit_ros.model.autoencoder import NormedBlock

LIGHT = 14
CHANGE = 0.3  # of a light that is seen anew, how much is believed: a room's hardly changes
SEEN_SIZE = (48, 64)  # rows and columns of what LightNet sees
# The key, the fill and the camera of a room as most are; where training begins.
USUAL = (-1.05, -1.05, -1.05, -0.36, -0.36, -0.36, -2.0, -1.05, 0, -0.8, -0.3, 0, -0.3, -0.8)


def shade(light: Tensor, faces: Tensor) -> tuple[Tensor, Tensor]:
    """What falls on faces beside the key ``[N, 3, ...]``, and what the key adds where it is seen.

    light: ``[N, LIGHT]``; faces: unit normals as the camera sees them ``[N, 3, ...]``.
    """
    everywhere, key, fill, camera, to_key, to_fill = (
        part.reshape(*part.shape, *(1,) * (faces.dim() - 2))
        for part in light.split([3, 3, 1, 1, 3, 3], 1)
    )

    def towards(where: Tensor) -> Tensor:
        return (faces * where).sum(1, keepdim=True).clamp(min=0)

    rest = everywhere + fill * towards(to_fill) + camera * (-faces[:, 2:3]).clamp(min=0)
    return rest, key * towards(to_key)


def shine(light: Tensor, faces: Tensor) -> Tensor:
    """How far faces show the key as in a mirror that is not quite one (Blinn 1977): 0..1, of the
    form of ``faces``'s first channel."""
    middle = F.normalize(light[:, 8:11] + light.new_tensor([0.0, 0.0, -1.0]), dim=1)
    along = (faces * middle.reshape(*middle.shape, *(1,) * (faces.dim() - 2))).sum(1, keepdim=True)
    return along.clamp(min=0) ** SMOOTH


class LightNet(nn.Module):
    """Weights only: the light of small pictures."""

    def __init__(self, widths: tuple[int, int, int] = (48, 80, 96)) -> None:
        super().__init__()
        fine, middle, deep = widths
        self.inside = nn.Conv2d(3 * 4, fine, 3, padding=1)
        self.fine_blocks = nn.Sequential(NormedBlock(fine))
        self.down1 = nn.Conv2d(4 * fine, middle, 1)
        self.middle_blocks = nn.Sequential(NormedBlock(middle), NormedBlock(middle))
        self.down2 = nn.Conv2d(4 * middle, deep, 1)
        self.deep_blocks = nn.Sequential(NormedBlock(deep), NormedBlock(deep))
        self.few = nn.Conv2d(deep, 16, 1)
        self.hidden = nn.Linear(16 * (SEEN_SIZE[0] // 8) * (SEEN_SIZE[1] // 8), 160)
        self.out = nn.Linear(160, LIGHT)
        nn.init.normal_(self.out.weight, std=1e-3)
        with torch.no_grad():
            self.out.bias.copy_(torch.tensor(USUAL))

    def forward(self, pictures: Tensor) -> Tensor:
        """Pictures ``[N, 3, *SEEN_SIZE]`` in 0..1 to lights ``[N, LIGHT]``, float32."""
        x = F.pixel_unshuffle(pictures - 0.5, 2).to(self.inside.weight)
        x = self.fine_blocks(self.inside(x.contiguous(memory_format=torch.channels_last)))
        x = self.middle_blocks(self.down1(F.pixel_unshuffle(F.silu(x), 2)))
        x = self.deep_blocks(self.down2(F.pixel_unshuffle(F.silu(x), 2)))
        said = self.out(F.silu(self.hidden(F.silu(self.few(x)).flatten(1)))).float()
        falls, to_key, to_fill = said.split([8, 3, 3], 1)
        return torch.cat([F.softplus(falls), F.normalize(to_key), F.normalize(to_fill)], 1)


def heard(embedded: Tensor, queries: Tensor, keys: nn.Linear, values: nn.Linear) -> Tensor:
    """What queries ``[Q, D]`` hear of token embeddings ``[N, L, words]``, zeros beyond the text, by
    attention: ``[N, Q * V]``."""
    there = embedded.abs().amax(-1) > 0
    weights = torch.einsum("qd,nld->nql", queries, keys(embedded))
    weights = weights.masked_fill(~there[:, None], -1e4).softmax(-1)
    return (weights @ values(embedded)).flatten(1)


class ColorReader(nn.Module):
    """Weights only: which of some colours a text wants a thing to have."""

    def __init__(self, words: int, colors: int, queries: int = 4) -> None:
        super().__init__()
        self.keys = nn.Linear(words, 32)
        self.values = nn.Linear(words, 48)
        self.queries = nn.Parameter(torch.randn(queries, 32) / 4)
        self.out = nn.Sequential(nn.Linear(48 * queries, 64), nn.SiLU(), nn.Linear(64, colors))

    def forward(self, embedded: Tensor) -> Tensor:
        """Token embeddings ``[N, L, words]`` (zeros beyond the text) to logits ``[N, colors]``."""
        return self.out(heard(embedded, self.queries, self.keys, self.values)).float()


@dataclass(frozen=True, slots=True)
class Paint:
    """light: that falls ``[1, LIGHT]``; likely: how likely each of ``colors`` ``[C, 3]`` is a
    thing's by the text ``[C]``, logits; second: its second material's colour ``[3]``."""

    light: Tensor
    likely: Tensor
    colors: Tensor
    second: Tensor


class Lights(nn.Module):
    """Light, colours by name, and the colour of each form's second material."""

    def __init__(self, words: int, colors: int, forms: int) -> None:
        super().__init__()
        self.net = LightNet()
        self.reader = ColorReader(words, colors)
        self.register_buffer("colors", torch.zeros(colors, 3))
        self.register_buffer("second", torch.zeros(forms, 3))

    def forward(
        self, pictures: Tensor, likely: Tensor, kind: int, before: Tensor | None = None
    ) -> Paint:
        """Of the pictures of a chunk ``[N, 3, H, W]`` in 0..1, one light, the first's; likely: of
        the reader ``[C]``; kind: of the thing; before: light of the chunk before ``[1, LIGHT]``,
        which it does not leave at once."""
        light = self.net(F.adaptive_avg_pool2d(pictures[:1], SEEN_SIZE))
        if before is not None:
            light = before + CHANGE * (light - before)
        return Paint(light, likely, self.colors.float(), self.second[kind].float())


UNLIKELY = 5.0  # nats: a colour that the text makes so much less likely is none
ODD = 0.08  # summed over the colours: a colour that is farther off by so much is less likely by e
AROUND = 9  # pixels a side over which it is seen whether a shadow falls
GLOSS, SMOOTH = 0.09, 51  # of paint: how bright a highlight is, and how small
OPEN, OPEN_COUNTS = 0.8, 0.02  # how far faces are in the key's light, where little is seen of it


def painted(faces: Tensor, second: Tensor, shown: Tensor, weight: Tensor, paint: Paint) -> Tensor:
    """A thing painted ``[N, 3, H, W]``, colours in 0..1.

    faces: normals, of any length ``[N, 3, H, W]``; second: how far a pixel is of the second
    material ``[N, 1, H, W]``; shown: what is decoded of it ``[N, 3, H, W]``; weight: where that is
    of it ``[N, 1, H, W]``.
    """
    light, faces = paint.light.expand(len(faces), -1), F.normalize(faces, dim=1)
    rest, key = shade(light, faces)
    half = [F.avg_pool2d(x, 2) for x in (rest, key, shown, weight * (1 - second))]
    possible = paint.likely > paint.likely.max() - UNLIKELY
    colors = paint.colors[possible]
    unlike = torch.stack([_unlike(color, *half) for color in colors])
    chances = (paint.likely[possible] - unlike / ODD).softmax(0)
    first = (chances[:, None] * colors).sum(0)
    color = first[:, None, None] * (1 - second) + paint.second[:, None, None] * second
    dark, more = color * rest, color * key
    told = (weight * more * (shown - dark)).sum(1, keepdim=True)
    known = (weight * more.square()).sum(1, keepdim=True)
    told, known = (mean_around(x, AROUND) for x in (told, known))
    in_light = ((told + OPEN_COUNTS * OPEN) / (known + OPEN_COUNTS)).clamp(0, 1)
    return (dark + in_light * (more + GLOSS * shine(light, faces))).clamp(0, 1)


def _unlike(color: Tensor, rest: Tensor, key: Tensor, shown: Tensor, weight: Tensor) -> Tensor:
    """How far what is shown is, on average, from a thing of that colour, in the key's light as far
    as fits best."""
    color = color[:, None, None]
    off, more = shown - color * rest, color * key
    share = (weight * more * off).sum() / (weight * more.square()).sum().clamp(min=1e-4)
    off = (off - share.clamp(0, 1) * more).abs().sum(1, keepdim=True)
    return (weight * off).sum() / weight.sum().clamp(min=1.0)


def mean_around(x: Tensor, size: int) -> Tensor:
    """Means over squares of so many pixels a side, an odd number."""
    x = F.pad(x, [size // 2] * 4, mode="replicate")
    for axis in (2, 3):  # faster than pooling
        length = x.shape[axis] - size + 1
        x = sum(x.narrow(axis, begin, length) for begin in range(size)) / size
    return x


def most_around(x: Tensor, far: int) -> Tensor:
    """The most of squares that reach so many pixels far."""
    x = F.max_pool2d(x, (2 * far + 1, 1), 1, (far, 0))  # faster than both ways at once
    return F.max_pool2d(x, (1, 2 * far + 1), 1, (0, far))
