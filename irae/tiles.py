"""Large images in tiles that give what the whole image would: the margin is the network's measured reach."""

from __future__ import annotations

import functools
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass

import torch
from torch import Tensor

from irae.errors import IraeError
from irae.models.baselines import Network
from irae.models.resample import pad_image
from irae.runner import Runner, Shape, TileTooLarge

_MEASURING = threading.Lock()
Part = Callable[[slice, slice], Tensor]
"""A part of an image, (1, C, h, w), by its rows and columns."""
Condition = Part
"""The condition (1, K, h, w) or (1, K, 1, 1) of a part of an image, by its rows and columns."""
Wanted = Callable[[slice, slice], bool]
"""Whether anything changes in a part of an image, by its rows and columns."""
Put = Callable[[slice, slice, Tensor], None]
"""Takes a part of a result, (1, C, h, w), with its rows and columns."""


@dataclass(frozen=True)
class Tile:
    """A part of a result, and the window of the image that it is made from.

    Attributes:
        rows, columns: of the part.
        window: rows and columns of the window, which may end beyond the image by less than a size multiple.
        full: the window has the largest size.
    """

    rows: slice
    columns: slice
    window: tuple[slice, slice]
    full: bool


def restore_tiled(
    model: Network, image: Tensor, cond: Condition, runner: Runner, wanted: Wanted | None = None
) -> Tensor:
    """The restored image, tile by tile where the image is larger than a tile; to rounding the same.

    Args:
        model: the network.
        image: (1, C, H, W).
        cond: its condition, part by part.
        runner: runs the network.
        wanted: tiles of which it says no stay as they are; by default all are restored.

    Shape: (1, C, H, W).
    """
    result = torch.empty_like(image) if wanted is None else image.clone()

    def put(rows: slice, columns: slice, part: Tensor) -> None:
        result[..., rows, columns] = part

    size = (image.shape[-2], image.shape[-1])
    restore_parts(model, size, lambda *at: image[(..., *at)], cond, put, runner, wanted)
    return result


def restore_parts(
    model: Network,
    size: tuple[int, int],
    image: Part,
    cond: Condition,
    put: Put,
    runner: Runner,
    wanted: Wanted | None = None,
) -> None:
    """Restore an image of which never more than some windows are held here.

    Args:
        model: the network.
        size: (H, W) of the image.
        image, cond: give its parts and those of its condition.
        put: takes the parts of the result; some of them twice where memory did not suffice and the image was cut anew.
        runner: runs the network.
        wanted: tiles of which it says no are left out; by default none is.

    Raises:
        IraeError: the image is larger than a tile, and the network does not work in tiles.
        MemoryError: not even the smallest tile fits in memory.
    """
    while True:
        try:
            return _restore_parts(model, size, image, cond, put, runner, runner.shape, wanted)
        except TileTooLarge:
            continue


def _restore_parts(
    model: Network,
    size: tuple[int, int],
    image: Part,
    cond: Condition,
    put: Put,
    runner: Runner,
    shape: Shape,
    wanted: Wanted | None,
) -> None:
    pending: deque[tuple[Tile, Future[Tensor]]] = deque()

    def finish() -> None:
        tile, result = pending.popleft()
        top, left = tile.rows.start - tile.window[0].start, tile.columns.start - tile.window[1].start
        height, width = tile.rows.stop - tile.rows.start, tile.columns.stop - tile.columns.start
        put(tile.rows, tile.columns, result.result()[..., top : top + height, left : left + width])

    try:
        for tile in cut(model, size, shape):
            if wanted is not None and not wanted(tile.rows, tile.columns):
                continue
            if len(pending) >= runner.ahead:
                finish()
            window, known = (_padded(part, tile.window, size, model.config.task) for part in (image, cond))
            pending.append((tile, runner.submit(model, window, known, shape, tile.full)))
        while pending:
            finish()
    finally:
        for _, result in pending:
            result.cancel()


def cut(model: Network, size: tuple[int, int], shape: Shape) -> Iterator[Tile]:
    """The tiles of an image (H, W), row by row; one where it is no larger than a tile.

    For batches all windows along a side have one size, else they are as small as their number allows.
    """
    unit = model.size_multiple
    margin = 0 if max(size) <= shape.tile else reach(model)
    step = _up(shape.step(margin), unit)
    rows, columns = (_cuts(length, step, margin, unit, shape.batch > 1) for length in size)
    largest = step + 2 * margin
    for row, outer_row in rows:
        for column, outer_column in columns:
            full = all(outer.stop - outer.start == largest for outer in (outer_row, outer_column))
            yield Tile(row, column, (outer_row, outer_column), full)


def _cuts(length: int, step: int, margin: int, unit: int, even: bool) -> list[tuple[slice, slice]]:
    """Along one side: what each tile makes, and its window. Windows start and end at multiples of `unit`.

    At the image's ends windows need no margin, so `count` of them make count * step + 2 * margin pixels.
    """
    padded, window = _up(length, unit), step + 2 * margin
    if padded <= window:
        return [(slice(0, length), slice(0, padded))]
    count = -(-(padded - 2 * margin) // step)
    if not even:
        window = _up(-(-(padded + 2 * margin * (count - 1)) // count), unit)
    starts = [index * (padded - window) // (count - 1) // unit * unit for index in range(count)]
    edges = [0, *(start + margin for start in starts[1:]), length]
    return [(slice(*edges[index : index + 2]), slice(start, start + window)) for index, start in enumerate(starts)]


def _up(length: int, unit: int) -> int:
    return -(-length // unit) * unit


def _padded(part: Part, window: tuple[slice, slice], size: tuple[int, int], task: str) -> Tensor:
    """A window, padded as the network would pad the image; a condition (1, K, 1, 1) as it is."""
    inside = tuple(slice(outer.start, min(outer.stop, length)) for outer, length in zip(window, size, strict=True))
    found = part(*inside)
    height, width = (one.stop - one.start for one in inside)
    if found.shape[-2:] != (height, width):
        return found
    below, right = (outer.stop - one.stop for outer, one in zip(window, inside, strict=True))
    return pad_image(found, below, right, task)


def reach(model: Network) -> int:
    """How far a pixel's influence reaches in pixels, rounded up to the size multiple: measured, not derived.

    A tile of NaN goes in, in the middle of a strip across and of one down; where NaN comes out, the network looked at
    it.

    Raises:
        IraeError: the network looks at the whole image at once, so it cannot work in tiles.
    """
    with _MEASURING:  # once for all threads
        return _reach(model)


@functools.lru_cache(maxsize=8)
def _reach(model: Network) -> int:
    return max(_reach_along(model, axis) for axis in (-2, -1))


def _reach_along(model: Network, axis: int) -> int:
    parameter, unit = next(model.parameters()), model.size_multiple
    cond = torch.zeros(1, model.config.cond, 1, 1, device=parameter.device)
    blocks = 32
    while blocks * unit <= 4096:
        start, size = blocks // 2 * unit, [2 * unit, 2 * unit]
        size[axis] = blocks * unit
        image = torch.zeros(1, model.config.image_channels, *size, device=parameter.device)
        image.narrow(axis, start, unit).fill_(torch.nan)
        with torch.no_grad():
            touched = model(image, cond).isnan().any(1)[0].any(-1 if axis == -2 else -2).nonzero().flatten()
        first, last = int(touched[0]), int(touched[-1])
        if first > 0 and last < blocks * unit - 1:
            radius = max(start - first, last - (start + unit - 1))
            return -(-radius // unit) * unit
        blocks *= 2
    raise IraeError("This network looks at the whole image at once: it cannot work in tiles, only on smaller images.")
