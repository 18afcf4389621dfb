# SPDX-License-Identifier: Apache-2.0
"""What things and a hand look like from any side: outlines, faces and depth along a line of sight.

A light field: of a line through a body's frame (:mod:`egoedit_ros.model.pose`) a small network
tells how far inside of the outline it passes, what face it meets and how deep. So a form that is
known by heart is whole and has its edges, wherever it stands and however small it is seen. How near
it is seen counts too: what stands out towards the camera is seen larger. Its colour and light are
those of the picture (:func:`relit`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from egoedit_ros.model.config import DetailConfig
from egoedit_ros.model.pose import FRAME, sight

WAVES = (0.5, 1.0, 2.0, 4.0, 8.0)  # to a unit; each is twice the one before
USUAL = 26.0  # pixels that a unit is seen as
FAR = 2.6  # units from the origin; of what is farther nothing is learned
OUTLINE = 1.0  # units; farther inside or outside is no more said
TOLD = 6  # of a thing: outline, outline of its second material, face's normal (3), depth
CRISP = 10.0  # outlines are also told as inside (1) or outside (-1), over a tenth of a unit
EDGE = 90.0  # likewise; a pixel is about 0.04 units
SEEN = 2 * (TOLD + 2)
BESIDE = 0.08  # units outside of an outline up to which it is looked at closely
BENT = 0.06  # by how much faces are other than those around, where there is an edge of some


class FormNet(nn.Module):
    """Weights only. code: numbers that tell the form apart from others."""

    def __init__(self, code: int, width: int, layers: int = 4) -> None:
        super().__init__()
        self.inside = nn.Linear(3 + 6 * len(WAVES), width)
        self.whole = nn.ModuleList(nn.Linear(4 + code, 2 * width) for _ in range(layers))
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.out = nn.Linear(width, TOLD)

    def forward(self, points: Tensor, line: Tensor, near: Tensor, code: Tensor) -> Tensor:
        """points: where lines pass nearest to the origin ``[N, P, 3]``; line: their direction
        ``[N, 3]``; near: pixels that a unit is seen as ``[N]``; code: ``[N, C]``. ``[N, P, TOLD]``:
        outlines in units, inside positive; the normal in the body's axes; depth from the origin on,
        in units."""
        x = self.inside(torch.cat([points, *_waves(points)], -1).to(self.inside.weight))
        near = 3 * (near.clamp(min=1)[:, None] / USUAL).log()
        whole = torch.cat([line, near, code], -1).to(x)
        for layer, given in zip(self.layers, self.whole, strict=True):
            scale, shift = given(whole)[:, None].chunk(2, -1)
            x = x + layer(F.silu(x * (1 + scale) + shift))
        return self.out(F.silu(x))


def _waves(points: Tensor) -> list[Tensor]:
    """Sines and cosines of ``WAVES``."""
    first = math.pi * WAVES[0] * points
    out = [torch.sin(first), torch.cos(first)]
    for _ in WAVES[1:]:
        sine, cosine = out[-2:]
        out += [2 * sine * cosine, 1 - 2 * sine * sine]
    return out


class Forms(nn.Module):
    """The things' forms, one for each of ``config.forms``, and the hand's."""

    def __init__(self, config: DetailConfig) -> None:
        super().__init__()
        self.codes = nn.Embedding(config.forms, 16)
        self.thing = FormNet(16, 128)
        self.hand = FormNet(1, 144)  # fingers are fine

    @torch.no_grad()
    def forward(self, pose: Tensor, kinds: Tensor, size: tuple[int, int], step: int) -> Tensor:
        """What cells of ``step`` pixels show of the bodies: ``[N, SEEN, rows, columns]``.

        pose: ``[N, POSE]``; kinds: how likely each form is, and last that there is none,
        ``[N, forms + 1]``. Normals are as the camera sees them (right, down, away).
        """
        kinds = kinds.expand(len(pose), -1)
        there, out = 1 - kinds[:, -1:], []
        for body in (self._thing(pose, kinds), self._hand(pose)):
            points = sight(body.frame, size, step).unflatten(2, size)
            # Far off nothing was learned: outside.
            near = (points.norm(dim=1, keepdim=True) < FAR).float()
            seen = torch.zeros(len(pose), TOLD, *size, device=pose.device)
            if (box := _around(near)) is not None and (out or bool(there.any())):
                seen[:, :, *box] = _told(body, points[:, :, *box])
            seen = seen * near
            seen[:, :2] -= 1 - near
            out.append(seen.flatten(2))
        none = torch.zeros_like(out[0])
        none[:, :2] = -OUTLINE
        out[0] = there[:, None] * out[0] + (1 - there[:, None]) * none
        crisp = [torch.tanh(CRISP * said[:, :2]) for said in out]
        return torch.cat([*out, *crisp], 1).unflatten(2, size)

    @torch.no_grad()
    def thing_closely(self, pose: Tensor, kinds: Tensor, seen: Tensor) -> Tensor:
        """What pixels show of a thing that is there: ``[N, TOLD, H, W]``. seen: what cells of two
        pixels do, of :meth:`forward`; only inside of the outline, and near it, it is looked at
        again, and not where a face is smooth."""
        body = self._thing(pose, kinds.expand(len(pose), -1))
        return _closely(body, doubled(seen[:, :TOLD]), _rough(seen))

    @torch.no_grad()
    def hand_closely(self, pose: Tensor, seen: Tensor, where: Tensor) -> Tensor:
        """Likewise of the hand, and only where ``where`` ``[N, 1, H, W]`` is more than 0."""
        return _closely(self._hand(pose), doubled(seen[:, TOLD : 2 * TOLD]), where[:, 0] > 0)

    def _thing(self, pose: Tensor, kinds: Tensor) -> _Body:
        there = 1 - kinds[:, -1:]
        code = kinds[:, :-1] @ self.codes.weight.to(kinds) / there.clamp(min=0.05)
        return _Body(self.thing, pose[:, :FRAME], code)

    def _hand(self, pose: Tensor) -> _Body:
        return _Body(self.hand, pose[:, FRAME : 2 * FRAME], pose[:, -1:])


@dataclass(frozen=True, slots=True)
class _Body:
    """A network, where it is in pictures ``[N, FRAME]``, and the numbers it is told ``[N, C]``."""

    net: FormNet
    frame: Tensor
    code: Tensor


def _told(body: _Body, points: Tensor) -> Tensor:
    """What is told of points ``[N, 3, h, w]``: ``[N, TOLD, h, w]``."""
    slope = body.frame[:, 2:8].unflatten(1, (2, 3))
    near = slope.flatten(1).norm(dim=1) / math.sqrt(2)
    said = body.net(points.flatten(2).mT, body.frame[:, 8:], near, body.code).float()
    axes = torch.cat([F.normalize(slope, dim=-1), body.frame[:, None, 8:]], 1)
    told = torch.cat([said[..., :2], said[..., 2:5] @ axes.mT, said[..., 5:]], -1)
    return told.mT.clamp(-2, 2).unflatten(2, tuple(points.shape[2:]))


def _rough(seen: Tensor) -> Tensor:
    """Where outlines or edges of faces of a thing are near ``[N, H, W]``, at twice the size of
    ``seen``."""
    faces = F.normalize(seen[:, 2:5], dim=1)
    bent = (faces - F.avg_pool2d(faces, 3, 1, 1, count_include_pad=False)).abs().sum(1) > BENT
    rough = bent | (seen[:, :2].abs() < BESIDE).any(1)
    rough = F.max_pool2d(rough[:, None].float(), 3, 1, 1)
    return F.interpolate(rough, scale_factor=2)[:, 0] > 0


def _closely(body: _Body, fine: Tensor, where: Tensor) -> Tensor:
    """``fine`` ``[N, TOLD, H, W]`` with what is near the outline, and in ``where`` ``[N, H, W]``,
    told pixel by pixel."""
    near = ((fine[:, 0] > -BESIDE) & where).flatten(1)
    most = int(near.sum(1).max())
    if not most:
        return fine
    # As many points of each picture, some of them not near.
    chosen = near.byte().topk(most, 1).indices[:, None]
    points = sight(body.frame, tuple(fine.shape[2:]), 1).gather(2, chosen.expand(-1, 3, -1))
    told = _told(body, points[..., None])[..., 0]
    again = fine.flatten(2).scatter(2, chosen.expand(-1, TOLD, -1), told)
    return torch.where(near[:, None], again, fine.flatten(2)).unflatten(2, fine.shape[2:])


def _around(near: Tensor) -> tuple[slice, slice] | None:
    """Rows and columns that hold all that is near ``[N, 1, rows, columns]``; None: nothing is."""
    some = near.amax((0, 1)) > 0
    found = [some.any(axis).nonzero().flatten() for axis in (1, 0)]
    if not len(found[0]):
        return None
    return tuple(slice(int(i[0]), int(i[-1]) + 1) for i in found)


SHARP = 20.0  # of weights, per unit beside an outline
WITHIN = 0.08  # units: what is nearer to an outline says little of its body's colour


def relit(seen: Tensor, source: Tensor, made: Tensor, mask: Tensor) -> Tensor:
    """The thing and the hand with the light that falls on them, also where neither picture shows
    them: ``[N, 2, 3, H, W]``, colours in 0..1.

    seen: of :class:`Forms`, at half the size; source, made: ``[N, 3, H, W]`` in 0..1; mask: what is
    edited ``[N, 1, H, W]``. A colour is taken to be linear in the face's normal. The thing's is
    from where it was made, by material; the hand's from where the camera sees it.
    """
    first, second, hand = (
        torch.sigmoid(SHARP * (seen[:, i : i + 1] - WITHIN)) for i in (0, 1, TOLD)
    )
    edited = F.avg_pool2d(mask, 2)
    half = [F.avg_pool2d(picture, 2) for picture in (source, made)]
    fine = doubled(seen[:, : 2 * TOLD])
    shown = []
    for normal, weight, picture in (
        (2, first * (1 - second) * edited, half[1]),
        (2, second * edited, half[1]),
        (TOLD + 2, hand * (1 - edited), half[0]),
    ):
        light = _light(_faces(seen, normal), weight, picture)
        shown.append(_lit(light, _faces(fine, normal)))
    share = second_share(fine)
    thing = shown[0] * (1 - share) + shown[1] * share
    return torch.stack([thing, shown[2]], 1).clamp(0, 1)


FITS = 4  # times that colours are fitted anew
LITTLE = 0.03  # of a pixel: how much grey is in what is fitted then; a bottle's cap is few pixels
# Summed over the colours: what is farther from what was fitted counts less.
ODD, ODD_HAND = 0.12, 0.15
FLAT, LIVELY = 0.03, 0.003  # share of what is seen that is taken to be the same on all faces
DRAWN = 0.3  # what counts of a hand's colours that are not the camera's


def relit_again(seen: Tensor, closely: Tensor, shown: Tensor, edited: Tensor) -> Tensor:
    """The thing with the light of what is shown of it ``[N, 3, H, W]``, colours in 0..1.

    As :func:`relit`, but what does not fit (a finger, what is behind it) counts less each time.
    seen: of :class:`Forms`, at half the size; closely: of :meth:`Forms.closely`; shown: ``[N, 3, H,
    W]`` in 0..1; edited: how far that is not the camera's ``[N, 1, H, W]``.
    """
    first = torch.sigmoid(SHARP * (seen[:, :1] - WITHIN))
    second = torch.sigmoid(SHARP * seen[:, 1:2])
    half, edited = F.avg_pool2d(shown, 2), F.avg_pool2d(edited, 2)
    faces, finer = _faces(seen, 2), _faces(closely, 2)
    base = _fitted(faces, first * (1 - second) * edited, half, ODD)
    other = _fitted(faces, second * edited, half, ODD)
    share = inside(closely[:, 1:2])
    return (_lit(base, finer) * (1 - share) + _lit(other, finer) * share).clamp(0, 1)


def hand_relit_again(seen: Tensor, closely: Tensor, shown: Tensor, camera: Tensor) -> Tensor:
    """Likewise the hand with the light of what is shown of it, most of all of what the camera sees.

    camera: how far what is shown is the camera's ``[N, 1, H, W]``.
    """
    hand = torch.sigmoid(SHARP * (seen[:, TOLD : TOLD + 1] - WITHIN))
    known = DRAWN + (1 - DRAWN) * F.avg_pool2d(camera, 2)
    light = _fitted(_faces(seen, TOLD + 2), hand * known, F.avg_pool2d(shown, 2), ODD_HAND)
    return _lit(light, _faces(closely, 2)).clamp(0, 1)


def _fitted(faces: Tensor, inner: Tensor, picture: Tensor, odd: float) -> Tensor:
    """Light ``[N, 4, 3]``, fitted again and again to what fits."""
    weight = inner
    for _ in range(FITS):
        light = _light(faces, weight, picture, LITTLE, LIVELY)
        off = _lit(light, faces) - picture
        weight = inner / (1 + (off.abs().sum(1, keepdim=True) / odd).square())
    return light


def _lit(light: Tensor, faces: Tensor) -> Tensor:
    return torch.einsum("nfc,nfhw->nchw", light, faces)


def inside(outlines: Tensor) -> Tensor:
    """How far inside of outlines ``[N, K, H, W]`` pixels are, 0..1, with soft edges of less than a
    pixel."""
    return 0.5 + 0.5 * torch.tanh(EDGE * outlines)


def outside(seen: Tensor) -> Tensor:
    """How far outside of the thing's outline and the hand's each pixel is, from 0 (inside) to 1:
    ``[N, 2, H, W]`` at twice the size of ``seen``."""
    return 0.5 - 0.5 * torch.tanh(CRISP * doubled(seen[:, (0, TOLD)]))


def second_share(fine: Tensor) -> Tensor:
    """How far pixels are of the thing's second material, 0..1; fine: of :func:`doubled`."""
    return torch.sigmoid(2 * SHARP * fine[:, 1:2])


def doubled(seen: Tensor) -> Tensor:
    """What is seen of forms, at twice the size."""
    return F.interpolate(seen, scale_factor=2, mode="bilinear", align_corners=False)


def _faces(seen: Tensor, begin: int) -> Tensor:
    return torch.cat([torch.ones_like(seen[:, :1]), seen[:, begin : begin + 3]], 1)


def _light(
    faces: Tensor,
    weight: Tensor,
    picture: Tensor,
    grey: float = 1.0,
    flat: float = FLAT,
) -> Tensor:
    """Coefficients ``[N, 4, 3]`` of colours by ``faces`` ``[N, 4, h, w]``, by least squares; beside
    so many pixels of a grey."""
    weighed = faces * weight
    square = torch.einsum("nfhw,nghw->nfg", weighed, faces)
    told = torch.einsum("nfhw,nchw->nfc", weighed, picture)
    # Where little is seen: one grey.
    some = weight.sum((1, 2, 3))[:, None, None]
    known = torch.diag_embed(torch.tensor([0.0, 1, 1, 1], device=faces.device))
    square = square + (flat * some + grey) * known + grey * torch.eye(4, device=faces.device)
    middle = torch.zeros_like(told)
    middle[:, 0] = 0.5 * grey
    return torch.linalg.solve(square, told + middle)
