"""The self-ensemble: the mean over the eight flips and rotations of an image, restored one by one.

After Timofte, Rothe and Van Gool, Seven Ways to Improve Example-Based Single Image Super Resolution, CVPR 2016.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from irae.conditions import JPEG_PERIOD, turn_jpeg_condition
from irae.jpeg import JpegTables
from irae.restorer import Afterwards, Hints, Pixels, Restorer, as_rgb_image, finish


@dataclass(frozen=True)
class View:
    """One of the eight ways to look at an image: rows and columns swapped first, then each side turned over or not."""

    transposed: bool
    flipped: tuple[bool, bool]

    def of(self, array: Pixels) -> Pixels:
        """An array (H, W) or (H, W, C), seen so."""
        array = array.swapaxes(0, 1) if self.transposed else array
        return np.ascontiguousarray(self._flip(array))

    def back(self, seen: Pixels) -> Pixels:
        """The array that is seen so."""
        array = self._flip(seen)
        return array.swapaxes(0, 1) if self.transposed else array

    def hints(self, hints: Hints, size: tuple[int, int]) -> Hints:
        """What is known of an image of that size (H, W), seen so."""
        mask = None if hints.mask is None else self.of(hints.mask)
        tables, grid = hints.tables, hints.grid
        if self.transposed:
            size, grid = size[::-1], None if grid is None else grid[::-1]
            tables = None if tables is None else _transposed(tables)
        if grid is not None:  # the last pixel comes first, and the grid runs the other way
            row, column = (
                -(at + side) % JPEG_PERIOD if flipped else at
                for at, side, flipped in zip(grid, size, self.flipped, strict=True)
            )
            grid = row, column
        return replace(hints, tables=tables, grid=grid, mask=mask)

    def of_batch(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W), seen so."""
        return (images.mT if self.transposed else images).flip(self._flipped_axes)

    def back_batch(self, seen: Tensor) -> Tensor:
        """The images (N, C, H, W) that are seen so."""
        images = seen.flip(self._flipped_axes)
        return images.mT if self.transposed else images

    def condition(self, cond: Tensor, task: str) -> Tensor:
        """The condition (N, K, H, W) of images of a task, as `irae.conditions` makes them, seen so."""
        seen = self.of_batch(cond)
        return turn_jpeg_condition(seen, self.transposed, self.flipped) if task == "jpeg" else seen

    @property
    def _flipped_axes(self) -> list[int]:
        return [axis for axis, flipped in zip((-2, -1), self.flipped, strict=True) if flipped]

    def _flip(self, array: Pixels) -> Pixels:
        return array[tuple(slice(None, None, -1 if flipped else 1) for flipped in self.flipped)]


VIEWS = tuple(View(first, (up, left)) for first, up, left in product((False, True), repeat=3))


def ensemble(
    restorer: Restorer,
    pixels: Pixels,
    hints: Hints = Hints(),
    strength: float = 1.0,
    afterwards: Afterwards | None = None,
) -> Pixels:
    """As a call of the restorer, in eight times the time: 0.05 to 0.15 dB better on held-out training images."""
    total = np.zeros(pixels.shape, np.float32)
    for view in VIEWS:

        def collect(image: NDArray[np.float32], view: View = view) -> NDArray[np.float32]:
            np.add(total, view.back(image), out=total)
            return image

        restorer(view.of(pixels), view.hints(hints, pixels.shape[:2]), afterwards=collect)
    return finish(as_rgb_image(pixels), as_rgb_image(total / len(VIEWS)), pixels, hints, strength, afterwards)


def _transposed(tables: JpegTables) -> JpegTables:
    chroma = None if tables.chroma is None else tables.chroma.T
    return JpegTables(tables.luma.T, chroma, tables.sampling[::-1])
