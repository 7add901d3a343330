"""What a network is told beside the image: noise level, JPEG tables and grid, the mask of known pixels."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from irae.jpeg import JpegTables

JPEG_PERIOD = 16  # of the grid where chroma is halved: a block of 8 x 8 chroma samples covers 16 x 16 pixels
JPEG_HARMONICS = 4
JPEG_BANDS = (0, 1, 2, 3, 4, 5, 7, 10, 15)  # borders, in row + column frequency
JPEG_CONDITION = 4 + 2 * (len(JPEG_BANDS) - 1) + 4 * JPEG_HARMONICS
CONDITION_CHANNELS = {"denoise": 2, "photo": 2, "jpeg": JPEG_CONDITION, "inpaint": 1}  # by task
_BAND_OF = (np.digitize(np.add.outer(np.arange(8), np.arange(8)), JPEG_BANDS) - 1).ravel()


def noise_condition(sigma: Tensor | float | None) -> Tensor:
    """The condition channels of a denoiser: noise level / 255, and 1; both 0 where the level is not known.

    Args:
        sigma: noise level in 8-bit levels: a number, a map (N, 1, H, W), or None for blind denoising.

    Shape: (N, 2, H, W) for a map, (1, 2, 1, 1) otherwise.
    """
    if sigma is None:
        return torch.zeros(1, 2, 1, 1)
    level = torch.as_tensor(sigma, dtype=torch.float32) / 255
    level = level if level.ndim == 4 else level.reshape(1, 1, 1, 1)
    return torch.cat((level, torch.ones_like(level)), 1)


def jpeg_condition(
    tables: JpegTables | None, height: int, width: int, origin: tuple[int, int] | None = (0, 0)
) -> Tensor:
    """The condition channels of a JPEG decompressor: how coarsely the file was quantised, and where its grid lies.

    Constant: 1 where the tables are known, 1 for colour, 1 for chroma halved across, 1 for chroma halved down, and for
    luminance and chrominance the mean of log2(step) / 8 over eight bands of frequency. Then cosine and sine of the
    phase of each row and each column on the grid of 16 x 16 pixels, four harmonics. What is not known is 0.

    Args:
        tables: of the file, None where they are not known.
        height, width: of the image.
        origin: row and column of the first pixel on the grid, None where it is not known.

    Shape: (1, JPEG_CONDITION, height, width); (1, JPEG_CONDITION, 1, 1) without an origin.
    """
    constant = torch.zeros(JPEG_CONDITION - 4 * JPEG_HARMONICS)
    if tables is not None:
        across, down = tables.sampling
        chroma = [0.0] * (len(JPEG_BANDS) - 1) if tables.chroma is None else _bands(tables.chroma)
        colour = float(tables.chroma is not None)
        constant = torch.tensor([1, colour, float(across > 1), float(down > 1), *_bands(tables.luma), *chroma])
    if origin is None:
        return F.pad(constant, (0, 4 * JPEG_HARMONICS)).view(1, -1, 1, 1)
    rows, columns = (_phases(start, length) for start, length in zip(origin, (height, width), strict=True))
    maps = (constant.view(-1, 1, 1), rows[:, :, None], columns[:, None, :])
    return torch.cat([part.expand(-1, height, width) for part in maps])[None]


def turn_jpeg_condition(cond: Tensor, transposed: bool, flipped: tuple[bool, bool]) -> Tensor:
    """The condition of a JPEG that is turned: rows and columns swapped first, then each side turned over or not.

    Args:
        cond: of the image as it was, its maps turned already: what they say is brought in line with that.
        transposed: whether rows and columns are swapped.
        flipped: whether the rows and the columns are turned over.

    Shape: (N, JPEG_CONDITION, H, W) -> the same.
    """
    constant, *phases = cond.split([JPEG_CONDITION - 4 * JPEG_HARMONICS, 2 * JPEG_HARMONICS, 2 * JPEG_HARMONICS], 1)
    if transposed:  # the bands are the same along rows and columns
        constant = torch.cat((constant[:, :2], constant[:, 2:4].flip(1), constant[:, 4:]), 1)
        phases.reverse()
    sign = torch.ones(2, 2 * JPEG_HARMONICS, 1, 1).to(cond)
    for axis, turned in enumerate(flipped):
        sign[axis, JPEG_HARMONICS:] = -1 if turned else 1  # the cosine of a phase is that of the opposite one
    return torch.cat((constant, *(phase * s for phase, s in zip(phases, sign, strict=True))), 1)


def fill_holes(image: Tensor, known: Tensor) -> Tensor:
    """The image with its unknown pixels filled from the known ones around.

    Pull-push (Gortler et al. 1996, section 3.3): means of the known pixels of ever larger tiles are
    interpolated into the holes, from coarse to fine.

    Shape: image (N, C, H, W), known (N, 1, H, W), 1 known and 0 missing -> (N, C, H, W); 0 where nothing is known.
    """
    if max(image.shape[-2:]) == 1:
        return image * known
    height, width = image.shape[-2:]
    padding = (0, width % 2, 0, height % 2)
    values, weights = (F.avg_pool2d(F.pad(part, padding), 2) for part in (image * known, known))
    coarse = fill_holes(values / weights.clamp_min(1e-6), (weights > 0).to(known.dtype))
    spread = F.interpolate(coarse, scale_factor=2, mode="bilinear")[..., :height, :width]
    return torch.where(known > 0, image, spread)


def _bands(table: NDArray[np.integer[Any]]) -> list[float]:
    """The mean of log2(step) / 8 over each band of frequency of a table (8, 8)."""
    level = np.log2(table).ravel() / 8
    return (np.bincount(_BAND_OF, level) / np.bincount(_BAND_OF)).tolist()


def _phases(start: int, length: int) -> Tensor:
    """Cosine and sine of pixel positions on the grid, (2 * JPEG_HARMONICS, length)."""
    position = torch.arange(start, start + length) + 0.5
    angles = 2 * math.pi / JPEG_PERIOD * torch.arange(1, JPEG_HARMONICS + 1)[:, None] * position
    return torch.cat((angles.cos(), angles.sin()))
