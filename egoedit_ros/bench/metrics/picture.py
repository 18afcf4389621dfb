# SPDX-License-Identifier: Apache-2.0
"""How much an edit changed, and how well it kept the rest; uint8 ``[n, h, w, 3]`` rgb clips."""

from __future__ import annotations

import cv2
import numpy as np

PSNR_CAP = 60.0
# Colour differences that a video codec makes by itself, in units of CIE 1976 delta E.
UNSEEN = 3.0
BLUR = 1.5
# The half of the picture that changed least is looked for at this scale, so that it consists of
# regions and not of pixels that happen to agree.
REGION_BLUR = 12.0
BACKGROUND_SHARE = 0.5


def colour_difference(source: np.ndarray, edited: np.ndarray) -> np.ndarray:
    """CIE 1976 delta E of each pixel of a frame, after a slight blur: float32 ``[h, w]``."""
    lab = []
    for frame in (source, edited):
        soft = cv2.GaussianBlur(frame.astype(np.float32) / 255, (0, 0), BLUR)
        lab.append(cv2.cvtColor(soft, cv2.COLOR_RGB2LAB))
    return np.sqrt(((lab[0] - lab[1]) ** 2).sum(-1))


def edit_strength(differences: list[np.ndarray]) -> tuple[float, float]:
    """(mean delta E with what is unseen counted as 0, % of pixels that visibly changed)."""
    seen = [np.where(d > UNSEEN, d, 0.0) for d in differences]
    return float(np.mean([s.mean() for s in seen])), float(
        100 * np.mean([(s > 0).mean() for s in seen])
    )


def background(
    source: np.ndarray, edited: np.ndarray, differences: list[np.ndarray]
) -> tuple[float, float]:
    """(PSNR in dB capped at 60, SSIM) over the half of each frame that changed least.

    Where the edit was meant to be is not known; a local one lies outside of the best half, and an
    editor that changes everything has no half that is as it was.
    """
    errors, likeness = [], []
    for s, e, d in zip(source, edited, differences, strict=True):
        spread = cv2.GaussianBlur(d, (0, 0), REGION_BLUR)
        keep = spread <= np.quantile(spread, BACKGROUND_SHARE)
        errors.append(((s[keep].astype(np.float32) - e[keep]) ** 2).mean())
        likeness.append(_ssim(s, e)[keep].mean())
    psnr = 10 * np.log10(255**2 / max(float(np.mean(errors)), 1e-9))
    return float(min(PSNR_CAP, psnr)), float(np.mean(likeness))


def _ssim(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """SSIM of brightness at each pixel (Wang et al. 2004: Gaussian window of sigma 1.5)."""
    a, b = (cv2.cvtColor(p, cv2.COLOR_RGB2GRAY).astype(np.float32) for p in (one, two))

    def blur(picture: np.ndarray) -> np.ndarray:
        return cv2.GaussianBlur(picture, (11, 11), 1.5)

    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    both = blur(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    return ((2 * mean_a * mean_b + c1) * (2 * both + c2)) / (
        (mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)
    )
