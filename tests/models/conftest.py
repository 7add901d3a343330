"""What every invertible part is tested on: all blocks of the registry, all resampling parts, with random parameters."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from irae.models.blocks import BLOCKS, build_block
from irae.models.resample import RESAMPLERS, OrthogonalMixing
from irae.models.reversible import Chain, Invertible

CHANNELS = 6

PARTS: dict[str, Callable[[], Invertible]] = {
    **{name: (lambda name=name: build_block(name, CHANNELS)) for name in BLOCKS},
    **{f"{name} with condition": (lambda name=name: build_block(name, CHANNELS, cond=2)) for name in BLOCKS},
    "additive, small U": lambda: build_block("additive", CHANNELS, cond=2, subnet="u"),
    **RESAMPLERS,
    "orthogonal mixing": lambda: OrthogonalMixing(CHANNELS),
    "chain": lambda: Chain(
        [build_block("additive", CHANNELS), OrthogonalMixing(CHANNELS), build_block("affine", CHANNELS)]
    ),
}


@pytest.fixture(params=PARTS)
def part(request: pytest.FixtureRequest) -> Invertible:
    """An invertible part in float64 with every parameter drawn anew: a zero-initialised block proves nothing."""
    torch.manual_seed(0)
    made = PARTS[request.param]()
    randomise(made)
    return made.double()


def randomise(module: torch.nn.Module, scale: float = 0.1) -> None:
    """Draw every parameter from a normal distribution."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, scale)


def random_state(height: int, width: int, batch: int = 2, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A state of two random streams in float64."""
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, batch, CHANNELS, height, width, dtype=torch.float64, generator=generator)
    return a, b


def random_condition(height: int, width: int, batch: int = 2) -> torch.Tensor:
    """A condition map of two channels in float64."""
    generator = torch.Generator().manual_seed(1)
    return torch.rand(batch, 2, height, width, dtype=torch.float64, generator=generator)
