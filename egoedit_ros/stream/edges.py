# SPDX-License-Identifier: Apache-2.0
"""Edges of an edit: the camera's own where the edit follows them, steeper ones elsewhere.

A thing that only changes its colour keeps its shape, and the camera shows that shape sharply; so
does what was behind a thing that is taken away. In small windows such an edit is a linear function
of the camera's colours. A guided filter (He et al. 2013) finds that function and with it gives the
edit the camera's edges. Where the camera does not explain what was made, a new thing in another's
place, it would only blur: there the filter is believed by as much less as more of the edit's
contrast is left unexplained, and the soft edges that a network makes where it is not sure are drawn
together instead, by moving pixels towards them (Arad and Gotsman 1999).
"""

from __future__ import annotations

from itertools import product

import cv2
import numpy as np

REACH = 4  # pixels from where the mask is full, in which what is faint counts
MARGIN = 12  # pixels around the edit that windows may see
RADII = (8, 4, 2)  # of the windows: a wide one first, narrower ones on what that leaves
DOUBTS = (6.0, 4.0, 2.0)  # the filter counts by 1 - doubt * share of the contrast left unexplained
CONTRAST = 30.0  # squared, of 255: what counts as none
RIDGE = 1e-4  # of squared colours in 0..1: less contrast than that in the camera explains nothing
# Edges are drawn together by taking pixels from down the slope of edge strength, this far at most.
STEEP, FARTHEST, FAINT = 15.0, 2.5, 8.0


def near_sure(mask: np.ndarray) -> np.ndarray:
    """``mask`` (uint8 ``[n, h, w]``) where it is full within ``REACH`` pixels, else 0: what is
    faint and far from any edit is noise. It would cost the camera's pixels, and time."""
    kernel = np.ones((2 * REACH + 1, 2 * REACH + 1), np.uint8)
    return np.stack([np.where(cv2.dilate(m, kernel) == 255, m, 0) for m in mask])


def sharpen(
    source: np.ndarray, edited: np.ndarray, mask: np.ndarray, laid: np.ndarray | None = None
) -> np.ndarray:
    """Edited pictures with better edges where ``mask`` is not 0, else as they are.

    source, edited: uint8 ``[n, h, w, 3]`` rgb; mask: uint8 ``[n, h, w]``; laid: likewise, where a
    body is laid that has its edges.
    """
    own = [None] * len(mask) if laid is None else _wider(laid)
    pictures = zip(source, edited, mask, own, strict=True)
    return np.stack([_sharpened(s, e, m, p) if m.any() else e for s, e, m, p in pictures])


def _wider(mask: np.ndarray) -> np.ndarray:
    """``mask``, uint8 ``[n, h, w]``, and a pixel around it."""
    return np.stack([cv2.dilate(m, np.ones((3, 3), np.uint8)) for m in mask])


def _sharpened(
    source: np.ndarray, edited: np.ndarray, mask: np.ndarray, laid: np.ndarray | None
) -> np.ndarray:
    x, y, width, height = cv2.boundingRect(mask)
    box = (
        slice(max(0, y - MARGIN), y + height + MARGIN),
        slice(max(0, x - MARGIN), x + width + MARGIN),
    )
    made = np.moveaxis(edited[box], -1, 0).astype(np.float32)
    guide = np.moveaxis(source[box], -1, 0).astype(np.float32) / 255
    rest = _steepened(edited[box])
    for radius, doubt in zip(RADII, DOUBTS, strict=True):
        fitted = _guided(guide, made, radius)
        made = rest + _explained(fitted, made, radius, doubt) * (fitted - rest)
        rest = made
    if laid is not None:
        was = np.moveaxis(edited[box], -1, 0).astype(np.float32)
        made = made + (was - made) * (laid[box] / np.float32(255))
    out = edited.copy()
    made = np.clip(np.rint(np.moveaxis(made, 0, -1)), 0, 255).astype(np.uint8)
    np.copyto(out[box], made, where=mask[box][..., None] > 0)
    return out


def _mean(plane: np.ndarray, radius: int) -> np.ndarray:
    size = 2 * radius + 1
    return cv2.blur(plane, (size, size))


def _explained(fitted: np.ndarray, made: np.ndarray, radius: int, doubt: float) -> np.ndarray:
    """How far the fit is believed, 0..1 ``[h, w]``."""
    left = _mean(((fitted - made) ** 2).sum(0), radius)
    contrast = sum(_mean(c * c, radius) - _mean(c, radius) ** 2 for c in made)
    return np.clip(1 - doubt * left / (np.maximum(contrast, 0) + CONTRAST), 0, 1)


def _guided(guide: np.ndarray, made: np.ndarray, radius: int) -> np.ndarray:
    """``made`` as a linear function of ``guide`` in windows; both float32 ``[3, h, w]``. The
    functions are found at half the size (He and Sun 2015): no worse here, and much cheaper."""
    height, width = guide.shape[1:]
    half = (max(1, width // 2), max(1, height // 2))
    seen, wanted = (
        np.stack([cv2.resize(c, half, interpolation=cv2.INTER_AREA) for c in x]).astype(np.float64)
        for x in (guide, made)
    )
    factors, offsets = _fit(seen, wanted, radius // 2)
    planes = [_mean(p, radius // 2).astype(np.float32) for p in (*factors, *offsets)]
    planes = [cv2.resize(p, (width, height), interpolation=cv2.INTER_LINEAR) for p in planes]
    fitted = [planes[9 + c] + sum(planes[3 * k + c] * guide[k] for k in range(3)) for c in range(3)]
    return np.stack(fitted)


def _fit(guide: np.ndarray, made: np.ndarray, radius: int) -> tuple[list, list]:
    """Of each pixel's window the 9 factors (guide's colours by made's) and 3 offsets, as planes.
    float64: what follows takes differences of squares and then of their products."""
    means, wanted = ([_mean(c, radius) for c in x] for x in (guide, made))
    rr, rg, rb, gg, gb, bb = (
        _mean(guide[i] * guide[j], radius) - means[i] * means[j] + RIDGE * (i == j)
        for i, j in ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))
    )
    # The inverse of the colours' covariance, by its adjugate.
    first = (gg * bb - gb * gb, gb * rb - rg * bb, rg * gb - gg * rb)
    second = (first[1], rr * bb - rb * rb, rb * rg - rr * gb)
    third = (first[2], second[2], rr * gg - rg * rg)
    scale = 1 / (rr * first[0] + rg * first[1] + rb * first[2])
    along = [
        [(_mean(guide[k] * made[c], radius) - means[k] * wanted[c]) * scale for k in range(3)]
        for c in range(3)
    ]
    factors = [
        row[0] * along[c][0] + row[1] * along[c][1] + row[2] * along[c][2]
        for row, c in product((first, second, third), range(3))
    ]
    offsets = [wanted[c] - sum(factors[3 * k + c] * means[k] for k in range(3)) for c in range(3)]
    return factors, offsets


def _steepened(picture: np.ndarray) -> np.ndarray:
    """uint8 ``[h, w, 3]`` to float32 ``[3, h, w]`` with its edges drawn together."""
    smooth = cv2.GaussianBlur(picture.astype(np.float32), (0, 0), 1)
    strength = np.sqrt(sum((_slope(smooth, a) ** 2).sum(-1) for a in (0, 1)))
    strength = cv2.GaussianBlur(strength / (strength + FAINT), (0, 0), 1)
    rows, columns = np.indices(strength.shape, np.float32)
    moved = [
        place - np.clip(STEEP * _slope(strength, axis), -FARTHEST, FARTHEST)
        for axis, place in enumerate((columns, rows))
    ]
    made = cv2.remap(picture, *moved, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.moveaxis(made, -1, 0).astype(np.float32)


def _slope(picture: np.ndarray, axis: int) -> np.ndarray:
    """Change by a pixel along the width (axis 0) or the height (1)."""
    return cv2.Scharr(picture, cv2.CV_32F, 1 - axis, axis, scale=1 / 32)
