"""Tiles: the same image as in one piece, with a margin that was measured."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from irae.models.irae import IRAEConfig
from irae.runner import Runner, Shape, Workers
from irae.tiles import cut, reach, restore_tiled
from tests.conftest import SMALL, random_model

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "config",
    [
        SMALL,
        IRAEConfig(channels=(12, 16), blocks=(1, 1), block_options={"hidden": 8}),
        dataclasses.replace(SMALL, task="jpeg"),
    ],
    ids=["one level", "U", "another task"],
)
def test_tiled_equals_untiled(config: IRAEConfig) -> None:
    model = random_model(config, scale=0.08)
    image = torch.rand(1, 3, 203, 171, generator=torch.Generator().manual_seed(0))
    constant, varying = torch.tensor([[[[0.1]], [[1.0]]]]), torch.rand(1, 2, 203, 171)
    for cond, part in ((constant, lambda *_: constant), (varying, lambda *at: varying[(..., *at)])):
        with torch.no_grad():
            whole = model.restore(image, cond)
            tiled = restore_tiled(model, image, part, Runner(CPU, Shape(48)))
        torch.testing.assert_close(tiled, whole, atol=1e-5, rtol=0)


def test_tiles_that_nobody_wants_stay_as_they_are() -> None:
    model, image = random_model(scale=0.08), torch.rand(1, 3, 400, 60)
    cond, end = torch.tensor([[[[0.1]], [[1.0]]]]), next(cut(model, (400, 60), Shape(50))).rows.stop
    with torch.no_grad():
        runner = Runner(CPU, Shape(50))
        found = restore_tiled(model, image, lambda *_: cond, runner, lambda rows, columns: rows.start == 0)
        whole = model.restore(image, cond)
    torch.testing.assert_close(found[..., :end, :], whole[..., :end, :], atol=1e-5, rtol=0)
    assert end < 400 and torch.equal(found[..., end:, :], image[..., end:, :])


@pytest.mark.parametrize("batch", [1, 3])
def test_tiles_of_two_images_share_batches(batch: int) -> None:
    model = random_model(scale=0.08)
    images = [torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0)) for size in ((203, 171), (150, 222))]
    conds = [torch.rand(1, 2, *image.shape[-2:]) for image in images]
    with torch.no_grad(), Workers([CPU] * 2, Shape(40, batch)) as workers, ThreadPoolExecutor() as pool:
        part = [lambda *at, c=cond: c[(..., *at)] for cond in conds]
        found = list(pool.map(lambda image, cond: restore_tiled(model, image, cond, workers), images, part))
        for tiled, image, cond in zip(found, images, conds, strict=True):
            torch.testing.assert_close(tiled, model.restore(image, cond), atol=1e-5, rtol=0)


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("size", [(1, 1), (40, 41), (97, 300), (211, 53), (333, 222)])
def test_tiles_cover_the_image_once(size: tuple[int, int], batch: int) -> None:
    model = random_model()
    unit, margin, count = model.size_multiple, reach(model), torch.zeros(size)
    for tile in cut(model, size, Shape(40, batch)):
        count[tile.rows, tile.columns] += 1
        for part, window, length in zip((tile.rows, tile.columns), tile.window, size, strict=True):
            assert window.start % unit == 0 and (window.stop - window.start) % unit == 0
            assert window.start == 0 or window.start <= part.start - margin
            assert window.stop >= length or window.stop >= part.stop + margin
            assert window.stop < length + unit
        assert not tile.full or all(w.stop - w.start == 40 + 2 * margin for w in tile.window)
    assert (count == 1).all()


def test_reach_is_the_receptive_field() -> None:
    # Four half-steps of two 3x3 convolutions each, at half resolution: 16 pixels to each side.
    model = random_model(IRAEConfig(channels=(12,), block_options={"depth": 2, "hidden": 4}))
    assert reach(model) == 16
    model = random_model(IRAEConfig(channels=(12,), block_options={"depth": 3, "hidden": 4}))
    assert reach(model) == 24
