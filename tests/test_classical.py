"""Classical methods: each fills the holes, from the known pixels alone, and leaves those as they were."""

from __future__ import annotations

import numpy as np
import pytest

from irae.classical import INPAINTERS, Image
from irae.masks import MASKS, Mask, mask_for


def ramp(colour: bool) -> Image:
    """A plane (48, 64) of whole levels, other slopes in every channel."""
    y, x = np.mgrid[:48, :64]
    channels = [2 * x + y, 255 - x - 3 * y, 40 + 3 * x]
    return np.stack(channels, 2).astype(np.uint8) if colour else channels[0].astype(np.uint8)


@pytest.fixture
def holes() -> Mask:
    """Squares and single pixels, none in the two rows and columns at the image's edges."""
    mask = np.zeros((48, 64), np.bool_)
    mask[8:24, 8:24] = mask[28:38, 30:50] = True
    mask[2:-2, 2:-2] |= mask_for("holes", "random50", 44, 60)
    return mask


@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("name", INPAINTERS)
def test_only_holes_are_filled_and_only_from_known_pixels(name: str, kind: str, colour: bool) -> None:
    image, mask = ramp(colour), mask_for("image", kind, 48, 64)
    filled = INPAINTERS[name](image, mask)
    assert filled.dtype == np.uint8 and filled.shape == image.shape
    assert np.array_equal(filled[~mask], image[~mask])
    other = image.copy()
    other[mask] ^= 0xFF
    assert np.array_equal(INPAINTERS[name](other, mask), filled)


@pytest.mark.parametrize("colour", [False, True])
def test_biharmonic_restores_a_ramp(colour: bool, holes: Mask) -> None:
    assert np.array_equal(INPAINTERS["biharmonic"](ramp(colour), holes), ramp(colour))


@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize("name", INPAINTERS)
def test_a_ramp_is_filled_far_better_than_by_its_mean(name: str, colour: bool, holes: Mask) -> None:
    image = ramp(colour).astype(float)
    error = np.abs(INPAINTERS[name](ramp(colour), holes) - image)[holes].mean()
    assert error < np.abs(image[~holes].mean(0) - image)[holes].mean() / 5


@pytest.mark.parametrize("name", INPAINTERS)
def test_nothing_missing_changes_nothing(name: str) -> None:
    image = ramp(colour=True)
    assert np.array_equal(INPAINTERS[name](image, np.zeros((48, 64), np.bool_)), image)
