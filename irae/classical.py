"""Classical restoration by other libraries behind one interface, to compare with: inpainting and denoising.

Inpainting: images are uint8 arrays (H, W) or (H, W, 3); masks are bool arrays (H, W), True where the pixel is missing.
Denoising: images are float32 arrays (H, W) or (H, W, 3), nominally in [0, 1], neither clipped nor rounded.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage.restoration import denoise_nl_means, denoise_tv_chambolle, denoise_wavelet, inpaint_biharmonic

Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Noisy = NDArray[np.float32]

RADIUS = 3  # of the neighbourhood that OpenCV's methods look at, in pixels

# Strengths of the denoisers for each unit of the noise's standard deviation: those of the highest mean PSNR over levels
# 15, 25 and 50 on held-out training images (`python benchmarks/classical.py`).
NLM_STRENGTH = 0.5
TV_STRENGTH = 0.8
OPENCV_STRENGTH, OPENCV_STRENGTH_GREY = 0.6, 0.9


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
    filled = inpaint_biharmonic(image / 255, mask, channel_axis=_channels(image))
    return _known(image, mask, np.rint(filled.clip(0, 1) * 255).astype(np.uint8))


INPAINTERS: dict[str, Callable[[Image, Mask], Image]] = {
    "telea": telea,
    "navier_stokes": navier_stokes,
    "biharmonic": biharmonic,
}


def non_local_means(image: Noisy, sigma: float, strength: float = NLM_STRENGTH) -> Noisy:
    """Means over like patches (Buades et al., "A non-local algorithm for image denoising", CVPR 2005), by scikit-image.

    Args:
        sigma: noise level in 8-bit levels.
        strength: of the smoothing, times sigma.

    Shape: (H, W) or (H, W, 3) -> the same.
    """
    level = sigma / 255
    options = {"patch_size": 5, "patch_distance": 9, "fast_mode": True, "channel_axis": _channels(image)}
    return np.asarray(denoise_nl_means(image, h=strength * level, sigma=level, **options), np.float32)


def total_variation(image: Noisy, sigma: float, strength: float = TV_STRENGTH) -> Noisy:
    """The nearest image of little total variation (Chambolle, "An algorithm for total variation minimization and
    applications", 2004), by scikit-image. Arguments and shape: `non_local_means`.
    """
    return np.asarray(
        denoise_tv_chambolle(image, weight=strength * sigma / 255, channel_axis=_channels(image)), np.float32
    )


def wavelet(image: Noisy, sigma: float) -> Noisy:
    """Wavelet coefficients shrunk by BayesShrink (Chang et al. 2000), colour as YCbCr, by scikit-image with PyWavelets.

    Nothing to choose. Arguments and shape: `non_local_means`.
    """
    options = {"convert2ycbcr": image.ndim == 3, "channel_axis": _channels(image), "rescale_sigma": True}
    clipped = image.clip(0, 1) if image.ndim == 3 else image  # YCbCr takes no other values
    return np.asarray(denoise_wavelet(clipped, sigma=sigma / 255, method="BayesShrink", **options), np.float32)


def opencv_means(image: Noisy, sigma: float, strength: float | None = None) -> Noisy:
    """Non-local means by OpenCV, in colour on CIELAB; it takes 8 bits, so the image is clipped and rounded first.
    Arguments and shape: `non_local_means`; the strength is by default the best for grey or for colour.
    """
    if strength is None:
        strength = OPENCV_STRENGTH_GREY if image.ndim == 2 else OPENCV_STRENGTH
    pixels, h = np.rint(image.clip(0, 1) * 255).astype(np.uint8), strength * sigma
    if image.ndim == 2:
        result = cv2.fastNlMeansDenoising(pixels, None, h, 7, 21)
    else:
        result = cv2.fastNlMeansDenoisingColored(pixels[..., ::-1], None, h, h, 7, 21)[..., ::-1]
    return np.asarray(result, np.float32) / np.float32(255)


def bm3d(image: Noisy, sigma: float) -> Noisy:
    """Like patches filtered together in three dimensions (Dabov et al. 2007), by the package `bm3d` of its authors.
    Arguments and shape: `non_local_means`.
    """
    package = importlib.import_module("bm3d")

    denoise = package.bm3d if image.ndim == 2 else package.bm3d_rgb
    return np.asarray(denoise(image, sigma / 255), np.float32)


DENOISERS: dict[str, Callable[..., Noisy]] = {
    "nlm": non_local_means,
    "tv": total_variation,
    "wavelet": wavelet,
    "opencv": opencv_means,
    "bm3d": bm3d,
}
PACKAGES = {"wavelet": ("pywt", "PyWavelets"), "bm3d": ("bm3d", "bm3d")}  # that are not required: module, name


def missing_package(method: str) -> str:
    """The package that a method needs and that is not installed; empty where nothing is missing."""
    module, package = PACKAGES.get(method, ("", ""))
    return package if module and importlib.util.find_spec(module) is None else ""


def _channels(image: NDArray[Any]) -> int | None:
    return 2 if image.ndim == 3 else None


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
