"""Classical restoration by other libraries behind one interface, to compare with: inpainting.

Images are uint8 arrays (H, W) or (H, W, 3); masks are bool arrays (H, W), True where the pixel is missing.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage.restoration import inpaint_biharmonic

Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]

RADIUS = 3  # of the neighbourhood that OpenCV's methods look at, in pixels


def telea(image: Image, mask: Mask) -> Image:
    """Fast marching from the border inward (Telea, "An image inpainting technique based on the fast marching method",
    Journal of Graphics Tools 2004), by OpenCV.

    Shape: image (H, W) or (H, W, 3), mask (H, W) -> as the image; known pixels as they were.
    """
    return _by_opencv(image, mask, cv2.INPAINT_TELEA)


def navier_stokes(image: Image, mask: Mask) -> Image:
    """Level lines continued as a fluid's stream lines (Bertalmio et al., "Navier-Stokes, fluid dynamics, and image and
    video inpainting", CVPR 2001), by OpenCV.

    Shape: image (H, W) or (H, W, 3), mask (H, W) -> as the image; known pixels as they were.
    """
    return _by_opencv(image, mask, cv2.INPAINT_NS)


def biharmonic(image: Image, mask: Mask) -> Image:
    """The surface of least bending through the known pixels (Damelin and Hoang, "On surface completion and image
    inpainting by biharmonic functions", 2018), by scikit-image: one sparse linear system.

    Shape: image (H, W) or (H, W, 3), mask (H, W) -> as the image; known pixels as they were.
    """
    filled = inpaint_biharmonic(image / 255, mask, channel_axis=2 if image.ndim == 3 else None)
    return _known(image, mask, np.rint(filled.clip(0, 1) * 255).astype(np.uint8))


INPAINTERS: dict[str, Callable[[Image, Mask], Image]] = {
    "telea": telea,
    "navier_stokes": navier_stokes,
    "biharmonic": biharmonic,
}


def _by_opencv(image: Image, mask: Mask, method: int) -> Image:
    """OpenCV's inpainting with a frame of missing pixels around the image: it takes what stands in a hole at the
    image's edge for known, and the frame keeps that outside.
    """
    frame, inside = RADIUS + 1, slice(RADIUS + 1, -RADIUS - 1)
    framed = np.pad(image, [(frame, frame)] * 2 + [(0, 0)] * (image.ndim - 2))
    holes = np.pad(mask, frame, constant_values=True).astype(np.uint8)
    filled = cv2.inpaint(framed, holes, RADIUS, method)[inside, inside]
    return _known(image, mask, filled.astype(np.uint8, copy=False))


def _known(image: Image, mask: Mask, filled: Image) -> Image:
    """What was filled in where pixels are missing, the image everywhere else."""
    return np.where(mask if image.ndim == 2 else mask[..., None], filled, image)
