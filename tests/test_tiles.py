"""Tiles: the same image as in one piece, with a margin that was measured."""

from __future__ import annotations

import pytest
import torch

from irae.models.irae import IRAEConfig
from irae.tiles import reach, restore_tiled
from tests.conftest import SMALL, random_model


@pytest.mark.parametrize(
    "config", [SMALL, IRAEConfig(channels=(12, 16), blocks=(1, 1), block_options={"hidden": 8})], ids=["one level", "U"]
)
def test_tiled_equals_untiled(config: IRAEConfig) -> None:
    model = random_model(config, scale=0.08)
    image = torch.rand(1, 3, 203, 171, generator=torch.Generator().manual_seed(0))
    constant, varying = torch.tensor([[[[0.1]], [[1.0]]]]), torch.rand(1, 2, 203, 171)
    for cond, part in ((constant, lambda *_: constant), (varying, lambda *at: varying[(..., *at)])):
        with torch.no_grad():
            whole = model.restore(image, cond)
            tiled = restore_tiled(model, image, part, tile=48)
        torch.testing.assert_close(tiled, whole, atol=1e-5, rtol=0)


def test_reach_is_the_receptive_field() -> None:
    # Four half-steps of two 3x3 convolutions each, at half resolution: 16 pixels to each side.
    model = random_model(IRAEConfig(channels=(12,), block_options={"depth": 2, "hidden": 4}))
    assert reach(model) == 16
    model = random_model(IRAEConfig(channels=(12,), block_options={"depth": 3, "hidden": 4}))
    assert reach(model) == 24
