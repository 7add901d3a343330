"""PSNR and SSIM with their exact definitions, through scikit-image."""

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
