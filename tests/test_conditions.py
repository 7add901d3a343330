"""What networks are told: parts fit the whole, unknown is zero, and holes are filled from what is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from irae.conditions import JPEG_CONDITION, fill_holes, jpeg_condition, noise_condition
from irae.jpeg import JpegTables, standard_tables


def test_noise_level_is_scaled_and_zero_where_unknown() -> None:
    assert noise_condition(51.0).flatten().tolist() == pytest.approx([0.2, 1])
    assert noise_condition(None).flatten().tolist() == [0, 0]
    level = noise_condition(torch.full((1, 1, 4, 6), 25.5))
    assert level.shape == (1, 2, 4, 6) and float(level[0, 0].mean()) == pytest.approx(0.1)


def test_a_part_of_a_jpeg_is_told_what_the_whole_is() -> None:
    tables = standard_tables(30)
    whole = jpeg_condition(tables, 50, 70)
    assert whole.shape == (1, JPEG_CONDITION, 50, 70)
    assert torch.allclose(jpeg_condition(tables, 20, 30, (24, 7)), whole[..., 24:44, 7:37], atol=1e-5)
    assert torch.allclose(whole[..., 16:48, :], whole[..., :32, :], atol=1e-5)  # the period of the grid
    assert not torch.allclose(whole[..., 8:40, :], whole[..., :32, :], atol=0.1)


def test_every_fact_of_a_jpeg_is_told() -> None:
    luma, chroma = standard_tables(50).luma, standard_tables(50).chroma
    kinds = [
        None,
        JpegTables(luma, None, (1, 1)),
        JpegTables(luma, chroma, (1, 1)),
        JpegTables(luma, chroma, (2, 1)),
        JpegTables(luma, chroma, (2, 2)),
        JpegTables(2 * luma, chroma, (2, 2)),
        JpegTables(luma.T, luma, (2, 2)),
    ]
    told = [jpeg_condition(kind, 8, 8, None).flatten() for kind in kinds]
    assert not told[0].any()
    for i in range(len(told)):
        for j in range(i):
            assert (told[i] - told[j]).abs().max() > 0.05
    assert max(float(values.abs().max()) for values in told) <= 1


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (17, 23), (64, 64)])
def test_holes_take_the_values_around(size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(2, 3, *size, generator=generator)
    known = (torch.rand(2, 1, *size, generator=generator) < 0.4).float()
    known[..., 0, 0] = 1
    filled = fill_holes(image, known)
    assert torch.equal(filled[known.expand_as(image) == 1], image[known.expand_as(image) == 1])
    assert filled.min() >= image.min() - 1e-6 and filled.max() <= image.max() + 1e-6
    assert torch.allclose(fill_holes(torch.full_like(image, 0.3), known), torch.full_like(image, 0.3))
    garbage = torch.where(known == 1, image, torch.full_like(image, 9.0))
    assert torch.equal(fill_holes(garbage, known), filled)  # what stands in a hole does not count


def test_holes_in_a_smooth_image_are_filled_smoothly() -> None:
    rows, columns = np.mgrid[:96, :128]
    image = torch.from_numpy(0.2 + 0.003 * rows + 0.002 * columns).float()[None, None]
    known = (torch.rand(1, 1, 96, 128, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    mean = (image * known).sum() / known.sum()
    errors = [
        ((filled - image) ** 2).mean().sqrt()
        for filled in (fill_holes(image, known), torch.where(known > 0, image, mean))
    ]
    assert errors[0] < errors[1] / 20
