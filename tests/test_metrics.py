"""Metrics against what can be worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from irae.metrics import psnr, psnr_b, ssim


def test_psnr_of_a_known_error() -> None:
    reference = np.full((32, 40, 3), 100, np.uint8)
    assert psnr(reference + np.uint8(5), reference) == pytest.approx(10 * np.log10(255**2 / 25))
    assert psnr(reference, reference) == psnr_b(reference, reference) == float("inf")
    assert ssim(reference, reference) == pytest.approx(1)


def test_psnr_b_takes_off_for_steps_at_block_borders_alone() -> None:
    reference = np.full((64, 64), 100, np.uint8)
    blocks = reference + np.kron(np.indices((8, 8)).sum(0) % 2, np.full((8, 8), 4)).astype(np.uint8)
    shifted = np.roll(blocks, (4, 4), (0, 1))
    # Half of the pixels are off by 4, every border pair is 4 apart: 10 log10(255^2 / (8 + 16 log 8 / log 64)).
    assert psnr_b(blocks, reference) == pytest.approx(10 * np.log10(255**2 / (8 + 16 / 2)))
    assert psnr_b(shifted, reference) == pytest.approx(psnr(shifted, reference))
    colour = np.stack([blocks, shifted, shifted], 2)
    three = [psnr_b(colour[..., c], reference) for c in range(3)]
    assert psnr_b(colour, np.stack([reference] * 3, 2)) == pytest.approx(np.mean(three))
