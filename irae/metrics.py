"""PSNR, SSIM (both through scikit-image) and PSNR-B with their exact definitions."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

Image = NDArray[np.uint8]


def psnr(image: Image, reference: Image) -> float:
    """Peak signal-to-noise ratio in dB over all channels and pixels, data range 255; infinite where they are equal.

    Shape: (H, W) or (H, W, C), uint8, both the same.
    """
    if np.array_equal(image, reference):
        return float("inf")
    return float(peak_signal_noise_ratio(reference, image, data_range=255))


def ssim(image: Image, reference: Image) -> float:
    """Structural similarity (Wang et al. 2004): Gaussian window 11 x 11, sigma 1.5, no sample covariance, data range
    255; in colour the mean over channels.

    Shape: (H, W) or (H, W, C), uint8, both the same; sides of at least 11 pixels.
    """
    return float(
        structural_similarity(
            reference,
            image,
            data_range=255,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            channel_axis=2 if image.ndim == 3 else None,
        )
    )


def psnr_b(image: Image, reference: Image) -> float:
    """PSNR in dB with a penalty for blocks (PSNR-B; Yim and Bovik 2011, eq. 4 to 9), in colour the mean over channels.

    The mean squared error grows by the blocking effect factor of `image`: how much larger the mean squared step across
    the borders of its 8 x 8 blocks is than elsewhere, times log2(8) / log2(shorter side).

    Shape: (H, W) or (H, W, C), uint8, both the same; sides of at least 16 pixels.
    """
    levels, true = (np.atleast_3d(picture).astype(np.float64) for picture in (image, reference))
    error = ((levels - true) ** 2).mean((0, 1))
    total = error + [_blocking_effect(levels[..., channel]) for channel in range(levels.shape[2])]
    with np.errstate(divide="ignore"):
        return float(np.mean(10 * np.log10(255**2 / total)))


def _blocking_effect(plane: NDArray[np.float64], block: int = 8) -> float:
    """The blocking effect factor of a plane (H, W), squared levels."""
    across, down = np.diff(plane, axis=1) ** 2, np.diff(plane, axis=0) ** 2
    at_border = np.concatenate((across[:, block - 1 :: block].ravel(), down[block - 1 :: block].ravel()))
    inside = across.sum() + down.sum() - at_border.sum()
    excess = at_border.mean() - inside / (across.size + down.size - at_border.size)
    return float(max(0.0, excess) * np.log2(block) / np.log2(min(plane.shape)))
