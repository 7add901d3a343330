"""The shipped denoiser on CBSD68: its quality, and every noisy image back bit for bit. Needs the images."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

from irae.conditions import noise_condition
from irae.datasets import image_paths, load_dataset
from irae.degrade import GaussianNoise, generator_for
from irae.images import read_image
from irae.metrics import psnr
from irae.restorer import Hints, Restorer, as_pixels, as_tensor

pytestmark = pytest.mark.skipif("IRAE_DATA" not in os.environ, reason="IRAE_DATA does not say where the images are")


@pytest.fixture(scope="module")
def noisy_files() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Clean and noisy image (sigma 25, rounded to 8 bits) by name."""
    pairs = {}
    for path in image_paths("cbsd68"):
        clean = read_image(path).pixels
        noisy = GaussianNoise(25)(as_tensor(clean)[0], generator_for(path.stem)).image
        pairs[path.stem] = clean, as_pixels(noisy[None], clean)
    return pairs


def test_the_files_are_those_of_the_manifest() -> None:
    load_dataset("cbsd68").verify()
    assert len(image_paths("cbsd68")) == 68


@pytest.mark.parametrize("sigma", [25.0, None])
def test_quality(noisy_files: dict[str, tuple[np.ndarray, np.ndarray]], sigma: float | None) -> None:
    restorer = Restorer()
    scores = [psnr(restorer(noisy, Hints(sigma)), clean) for clean, noisy in noisy_files.values()]
    assert np.mean(scores) > 30.9  # files are clipped and rounded; in float the denoiser reaches more


@torch.no_grad()
def test_every_noisy_image_comes_back_bit_for_bit(noisy_files: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    restorer = Restorer(precision="fp32")
    for name, (_, noisy) in noisy_files.items():
        image, cond = as_tensor(noisy), noise_condition(25.0)
        x, rest = restorer.model.restore_with_rest(image, cond)
        recovered = restorer.model.recover(x, rest, cond)
        assert np.array_equal(as_pixels(recovered, noisy), noisy), name
