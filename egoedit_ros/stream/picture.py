# SPDX-License-Identifier: Apache-2.0
"""From the model's picture to the one that is sent: size, place and blending."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from egoedit_ros.stream.images import area_resize, crop_box


@dataclass(frozen=True, slots=True)
class Geometry:
    """How camera, model and output pictures lie on one another.

    camera, model: (width, height). box: (x, y, width, height) of what the model sees of the
    camera's picture.
    """

    camera: tuple[int, int]
    model: tuple[int, int]
    fit: str = "stretch"
    output_size: str = "model"

    @property
    def box(self) -> tuple[int, int, int, int]:
        return crop_box(self.camera, self.model, self.fit)

    @property
    def output(self) -> tuple[int, int]:
        """(width, height) of what is sent."""
        return self.camera if self.output_size == "camera" else self.model

    @property
    def scale(self) -> tuple[float, float, float, float]:
        """(sx, sy, x0, y0): output pixel = (camera pixel - (x0, y0)) * (sx, sy)."""
        if self.output_size == "camera":
            return 1.0, 1.0, 0.0, 0.0
        x, y, w, h = self.box
        return self.model[0] / w, self.model[1] / h, float(x), float(y)


def to_model(geometry: Geometry, picture: np.ndarray) -> np.ndarray:
    """The camera's picture at the model's size, by area."""
    return area_resize(picture, geometry.model, geometry.fit)


def untouched(
    geometry: Geometry, picture: np.ndarray, small: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Picture and empty mask of a frame that is passed through."""
    image = picture if geometry.output_size == "camera" else small
    return image, np.zeros(image.shape[:2], np.uint8)


def compose(
    geometry: Geometry, picture: np.ndarray, edited: np.ndarray, mask: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The picture and mask to send for an edit at the model's size.

    At the camera's size the edit is upsampled and laid over the camera's picture through its
    mask: where the mask is 0, pixels are the camera's, bit for bit. Only the rectangle around the
    mask is worked on, so that a small edit of a large picture is cheap.
    """
    if geometry.output_size == "model":
        return edited, mask
    image = np.array(picture)
    full_mask = np.zeros(image.shape[:2], np.uint8)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return image, full_mask
    x, y, w, h = geometry.box
    sx, sy = w / geometry.model[0], h / geometry.model[1]
    # One model pixel more on each side, because interpolation lets the edit's edge reach there.
    left, right = int((columns[0] - 1) * sx), int(np.ceil((columns[-1] + 2) * sx))
    top, bottom = int((rows[0] - 1) * sy), int(np.ceil((rows[-1] + 2) * sy))
    left, right, top, bottom = max(0, left), min(w, right), max(0, top), min(h, bottom)
    # A map of the rectangle's pixel centres into the model's picture.
    columns_map = ((np.arange(left, right, dtype=np.float32) + 0.5) / sx - 0.5)[None]
    rows_map = ((np.arange(top, bottom, dtype=np.float32) + 0.5) / sy - 0.5)[:, None]
    shape = (bottom - top, right - left)
    maps = (np.broadcast_to(columns_map, shape).copy(), np.broadcast_to(rows_map, shape).copy())
    upsampled = cv2.remap(edited, *maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    part_mask = cv2.remap(mask, *maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    target = image[y + top : y + bottom, x + left : x + right]
    alpha = (part_mask.astype(np.float32) / 255.0)[..., None]
    blended = target + (upsampled.astype(np.float32) - target) * alpha
    np.copyto(target, np.rint(blended).astype(np.uint8), where=part_mask[..., None] > 0)
    full_mask[y + top : y + bottom, x + left : x + right] = part_mask
    return image, full_mask
