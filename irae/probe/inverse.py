"""The exact inverse: how well the input comes back from one layer alone. A certificate and not an estimate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from irae.probe.taps import TappedIRAE


@dataclass(frozen=True)
class Recovery:
    """The error of the input recovered from a layer.

    Attributes:
        largest: in 8-bit levels, before rounding.
        levels: after rounding; 0: nothing is lost.
        n: values compared.
    """

    largest: float
    levels: int
    n: int


@torch.no_grad()
def recovery(network: TappedIRAE, y: Tensor) -> Iterator[tuple[str, Recovery]]:
    """Each layer but the output, where the rest is dropped, and the error of running all before it backwards.

    Args:
        y: images (N, C, H, W) on 8-bit levels, in [0, 1].
    """
    for name, stack in network.stacks(y):
        back = network.recover(stack, name)
        rounded = (back * 255).round() - (y * 255).round()
        yield name, Recovery(float((back - y).abs().max()) * 255, int(rounded.abs().max()), y.numel())
