"""Large images in tiles that give what the whole image would: the margin is the network's measured reach."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from irae.models.irae import IRAE

TILE = 1024

Condition = Callable[[slice, slice], Tensor]
"""The condition (1, K, h, w) or (1, K, 1, 1) of a part of an image, by its rows and columns."""


def restore_tiled(model: IRAE, image: Tensor, cond: Condition, tile: int = TILE) -> Tensor:
    """`model.restore`, tile by tile where the image has more than two tiles' pixels; to rounding the same.

    Args:
        model: the network.
        image: (1, C, H, W).
        cond: its condition, part by part.
        tile: side of the part of the result that one pass makes; rounded up to the network's size multiple.

    Shape: (1, C, H, W).
    """
    step = -(-tile // model.size_multiple) * model.size_multiple
    if image.shape[-2] * image.shape[-1] <= 2 * step**2:
        return model.restore(image, cond(slice(0, image.shape[-2]), slice(0, image.shape[-1])))
    result, margin = torch.empty_like(image), reach(model)
    for rows, outer_rows in _cuts(image.shape[-2], step, margin):
        for columns, outer_columns in _cuts(image.shape[-1], step, margin):
            restored = model.restore(image[..., outer_rows, outer_columns], cond(outer_rows, outer_columns))
            top, left = rows.start - outer_rows.start, columns.start - outer_columns.start
            height, width = rows.stop - rows.start, columns.stop - columns.start
            result[..., rows, columns] = restored[..., top : top + height, left : left + width]
    return result


def _cuts(length: int, step: int, margin: int) -> Iterator[tuple[slice, slice]]:
    """Along one axis: what each tile makes, and what it sees. Both start at multiples of the size multiple."""
    for start in range(0, length, step):
        stop = min(start + step, length)
        yield slice(start, stop), slice(max(0, start - margin), min(length, stop + margin))


@functools.lru_cache(maxsize=8)
def reach(model: IRAE) -> int:
    """How far a pixel's influence reaches in pixels, rounded up to the size multiple: measured, not derived.

    A tile of NaN goes in; where NaN comes out, the network looked at it.

    Raises:
        ValueError: the network looks at the whole image at once, so it cannot work in tiles.
    """
    parameter, unit = next(model.parameters()), model.size_multiple
    blocks = 32
    while blocks * unit <= 4096:
        start = blocks // 2 * unit
        image = torch.zeros(1, model.config.image_channels, blocks * unit, blocks * unit)
        image[..., start : start + unit, start : start + unit] = torch.nan
        cond = torch.zeros(1, model.config.cond, 1, 1)
        with torch.no_grad():
            output = model.restore(image.to(parameter.device), cond.to(parameter.device))
        touched = output.isnan().any(1)[0]
        span = torch.cat([touched.any(axis).nonzero().flatten() for axis in (0, 1)])
        first, last = int(span.min()), int(span.max())
        if first > 0 and last < blocks * unit - 1:
            radius = max(start - first, last - (start + unit - 1))
            return -(-radius // unit) * unit
        blocks *= 2
    raise ValueError("This network looks at the whole image at once: it cannot work in tiles.")
