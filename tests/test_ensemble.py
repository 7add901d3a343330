"""The self-ensemble: each view undoes itself, JPEG grids and tables turn with the image, known pixels stay."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import irae
from irae.conditions import jpeg_condition
from irae.engine import Engine, Wishes
from irae.ensemble import VIEWS, View, ensemble
from irae.images import Picture
from irae.jpeg import JpegTables, standard_tables
from irae.metrics import psnr
from irae.restorer import Hints, OptionError, Restorer
from tests.test_restorer import Pixels, noisy


@pytest.mark.parametrize("shape", [(5, 9), (5, 9, 3)])
def test_views_are_the_eight_and_go_back(shape: tuple[int, ...]) -> None:
    image = np.random.default_rng(0).random(shape)
    seen = [view.of(image) for view in VIEWS]
    assert len({array.tobytes() for array in seen}) == 8
    assert all(np.array_equal(view.back(array), image) for view, array in zip(VIEWS, seen, strict=True))


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("grid", [(0, 0), (3, 14)])
def test_jpeg_grids_turn_with_the_image(view: View, grid: tuple[int, int]) -> None:
    size = (37, 50)
    block = [(np.arange(side) + at) // 16 for side, at in zip(size, grid, strict=True)]
    seen = view.of(block[0][:, None] * 100 + block[1])
    found = view.hints(Hints(tables=standard_tables(50), grid=grid), size)
    assert found.grid is not None
    for axis, at in enumerate(found.grid):
        edges = np.nonzero(np.diff(seen, axis=axis).any(1 - axis))[0] + 1
        assert np.array_equal(edges, [i for i in range(1, seen.shape[axis]) if (i + at) % 16 == 0])


def test_jpeg_tables_turn_with_the_image() -> None:
    luma = np.arange(1, 65).reshape(8, 8)
    hints = Hints(tables=JpegTables(luma, None, (2, 1)))
    turned = View(True, (False, False)).hints(hints, (16, 32)).tables
    assert turned is not None and np.array_equal(turned.luma, luma.T) and turned.sampling == (1, 2)
    assert View(False, (True, True)).hints(hints, (16, 32)).tables is hints.tables


@pytest.mark.parametrize("view", VIEWS)
def test_conditions_turn_with_the_batch(view: View) -> None:
    batch = torch.arange(2 * 3 * 5 * 9).view(2, 3, 5, 9)
    assert torch.equal(view.back_batch(view.of_batch(batch)), batch)
    assert np.array_equal(view.of_batch(batch)[1].permute(1, 2, 0), view.of(batch[1].permute(1, 2, 0).numpy()))
    tables = replace(standard_tables(30), sampling=(2, 1))
    for known, grid in ((tables, (3, 14)), (tables, None), (None, (3, 14))):
        hints = view.hints(Hints(tables=known, grid=grid), (12, 20))
        turned = view.condition(jpeg_condition(known, 12, 20, grid), "jpeg")
        height, width = view.of(np.zeros((12, 20))).shape
        torch.testing.assert_close(turned, jpeg_condition(hints.tables, height, width, hints.grid), rtol=0, atol=1e-5)


@pytest.mark.parametrize("task", ["denoise", "jpeg", "inpaint"])
def test_the_ensemble_turns_with_the_image(photo: Pixels, task: str) -> None:
    image = photo[:48, :37]
    hints = {
        "denoise": Hints(sigma=25),
        "jpeg": Hints(tables=standard_tables(30), grid=(2, 5)),
        "inpaint": Hints(mask=np.random.default_rng(0).random(image.shape[:2]) < 0.3),
    }[task]
    restorer, view = Restorer(task, precision="fp32"), View(True, (True, False))
    one = ensemble(restorer, image, hints).astype(int)
    other = view.back(ensemble(restorer, view.of(image), view.hints(hints, image.shape[:2])))
    assert np.abs(one - other).max() <= 1
    if hints.mask is not None:
        assert np.array_equal(one[~hints.mask], image[~hints.mask])


def test_the_ensemble_is_better(photo: Pixels) -> None:
    damaged = noisy(photo)
    assert psnr(irae.restore(damaged, sigma=25, ensemble=True), photo) > psnr(irae.restore(damaged, sigma=25), photo)


def test_an_ensemble_has_no_rest(photo: Pixels, weights_file: Path) -> None:
    engine, wishes = Engine(weights_file), Wishes("denoise", ensemble=True)
    with pytest.raises(OptionError, match="eight"):
        engine.run_with_rest(engine.plan(Picture(photo), wishes), wishes)
