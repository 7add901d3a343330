"""Masks: of every size, the same every time, with as much missing as they say."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import label

from irae.masks import MASKS, mask_for

MISSING = {  # least and greatest share at 321 x 481
    "random50": (0.49, 0.51),
    "random80": (0.79, 0.81),
    "text": (0.08, 0.20),
    "scratches": (0.015, 0.10),
    "strokes": (0.005, 0.50),
    "rectangles": (0.10, 0.15),
    "centre": (160**2 / (321 * 481),) * 2,
}


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 1), (2, 2), (64, 64), (321, 481)])
def test_a_mask_of_any_size_repeats_and_leaves_something(kind: str, size: tuple[int, int]) -> None:
    for seed in range(10):
        mask = MASKS[kind](*size, np.random.default_rng(seed))
        assert mask.shape == size and mask.dtype == np.bool_
        assert not mask.all() and (mask.any() or mask.size == 1)
        assert np.array_equal(mask, MASKS[kind](*size, np.random.default_rng(seed)))


@pytest.mark.parametrize("kind", MASKS)
def test_as_much_is_missing_as_stated(kind: str) -> None:
    least, greatest = MISSING[kind]
    shares = [MASKS[kind](321, 481, np.random.default_rng(seed)).mean() for seed in range(20)]
    assert least <= min(shares) and max(shares) <= greatest


def test_rectangles_are_whole_and_apart() -> None:
    mask = MASKS["rectangles"](321, 481, np.random.default_rng(0))
    holes, count = label(mask, np.ones((3, 3)))
    assert count == 5
    assert all((holes == hole).sum() == 64 * 64 for hole in range(1, count + 1))


@pytest.mark.parametrize("kind", sorted(set(MASKS) - {"centre"}))
def test_a_name_has_its_own_mask(kind: str) -> None:
    mask = mask_for("image", kind, 64, 96)
    assert np.array_equal(mask, mask_for("image", kind, 64, 96))
    assert not np.array_equal(mask, mask_for("another", kind, 64, 96))
    assert not np.array_equal(mask, mask_for("image", kind, 64, 96, seed=1))
