"""What a picture needs: finds noise and traces of JPEG compression in its pixels, and decides the steps of restoration.

Levels are 8-bit levels whatever the dtype. Large pictures are judged by samples, the same ones every time.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dctn
from scipy.ndimage import correlate1d, maximum_filter, uniform_filter
from scipy.special import bdtrc, ndtr

from irae.images import Picture
from irae.jpeg import JpegTables, standard_tables

Pixels = NDArray[Any]
Floats = NDArray[np.float64]

LUMA_WEIGHTS = np.array([0.299, 0.587, 0.114])  # of JPEG, ITU-R BT.601
WHITE_IN_LUMA = float(np.sqrt((LUMA_WEIGHTS**2).sum()))  # of the same noise in R, G and B, each on its own: 0.669

# All chosen on training images (BSD400 and an ImageNet sample, also shrunk by area averaging), never on test images.
LEAST_NOISE = 3.0  # clean ones read 2.9 at most, those with noise of level 5 at least 4.6
LEAST_NOISE_GREY = 5.0  # without colour, fine texture passes for noise: clean ones read 2 on average, some up to 11
LEAST_NOISE_IN_LUMA = 10.0  # clean ones read 9.6 at most, as WebP of quality 90 8.5; level 10 there reads 10.5
LEAST_NOISE_IN_JPEG = 9.0  # one in 20 clean ones, shrunk to half, reads more; level 10 reads 10 on average from 75 on
LEAST_GRID = 8.0  # those without a grid score 2.9 at most, quality 98 with noise below at least 16
LIGHT_QUALITY = 95  # what the training photographs have themselves
MOST_MISFIT = 0.6  # nats a coefficient: libjpeg's tables rarely lack more than 0.5, flatter ones mostly 0.7 to 4
LEAST_CAMERA = 1.75  # level times correlation; docs/auto.md counts how often it errs
LEAST_CORRELATION = 0.4  # camera noise has mostly more, white noise under a JPEG of 75 or better mostly less
LEAST_CAMERA_QUALITY = 65  # cameras write finer JPEGs
LEAST_DETAIL = 1.5  # of a DCT coefficient, beyond what rounding pixels makes of 0
LEAST_DETAILS = 0.02  # a block: quality 1 leaves 0.25, a picture enlarged 8 times without interpolation none
FEW_COLOURS, FEW_GREYS = 64, 16  # noise of level 3 alone makes 20 greys, photographs and noise thousands of colours
LEAST_VALUES = 50  # of a frequency, to tell its step
DETAIL_DECAY = 4.0  # of its variance with frequency; 6 is no better

# The mean reading of training images with noise of known levels, clipped and rounded.
TRUE_LEVELS = (0.0, 10.0, 15.0, 25.0, 50.0, 75.0)
READINGS = (0.0, 9.7, 14.4, 23.5, 44.3, 56.1)
READINGS_GREY = (0.0, 10.0, 15.0, 25.0, 46.7, 60.4)

PATCH = 5
LEAST_SIDE = 16  # pixels; white noise of level 30 reads 6 there already, and 0 in 12
PATCHES = 40_000
PARTS = 20  # that patches are cut in, by variance
WINDOW, WINDOWS = 128, 4  # side in pixels and number of the parts that the photo network tries
CROP = 512  # pixels a side in which the grid is looked for


@dataclass(frozen=True)
class Need:
    """One restoration that a picture needs.

    Attributes:
        task: "denoise", "photo" or "jpeg".
        sigma: noise level in 8-bit levels, of "denoise" and "photo"; None where it is not known.
        offset: row and column, 0 to 7, where the first whole JPEG block begins; of "jpeg".
        quality: libjpeg's quality factor, None where it is not known or the tables are others; of "jpeg".
    """

    task: str
    sigma: float | None = None
    offset: tuple[int, int] | None = None
    quality: int | None = None


@dataclass(frozen=True)
class Compression:
    """How a picture was compressed.

    Attributes:
        quality: libjpeg's quality factor, 1 to 100, that is most like it.
        libjpeg: its tables are libjpeg's of that quality.
    """

    quality: int
    libjpeg: bool


@dataclass(frozen=True)
class Decision:
    """The steps, in their order, none for a picture that needs nothing; and what was found, a sentence a line."""

    steps: tuple[Need, ...]
    found: str


@dataclass(frozen=True)
class Grid:
    """The most likely grid of JPEG blocks.

    Attributes:
        offset: row and column, 0 to 7, where the first whole block begins.
        score: -log10 of the number of grids at least as clear that a picture without any is expected to show.
    """

    offset: tuple[int, int]
    score: float


@dataclass(frozen=True)
class Residue:
    """What a network takes out of the smooth parts of a picture.

    Attributes:
        level: root mean square in 8-bit levels, in the block of 8 x 8 pixels that nine in ten exceed.
        correlation: between neighbouring pixels, in the quieter half of the blocks.
    """

    level: float
    correlation: float


def decide(
    picture: Picture,
    tables: JpegTables | None = None,
    photo: Callable[[Pixels], Pixels] | None = None,
) -> Decision:
    """What to do with a picture.

    Args:
        picture: as it was read.
        tables: of the JPEG file that it was read from, None for other files.
        photo: takes camera noise out of pixels, blind; without it nothing is taken for a photograph.
    """
    if tables is None and has_few_colours(picture.pixels):
        return Decision((), f"Few colours found in the {picture.format}, as drawings have them: nothing to do.")
    found_grid = (0, 0) if tables is not None else find_grid(picture)
    if tables is not None:
        like = Compression(equal_quality(tables.luma), libjpeg=True)
        luma, place = tables.luma, "the tables of the JPEG file"
    elif found_grid is not None:
        like = estimate_compression(picture.pixels, found_grid)
        row, column = found_grid
        luma = luma_table(like.quality)
        place = f"the {picture.format}, which was a JPEG once (blocks begin at row {row}, column {column})"
    if photo is not None and (found_grid is None or like.quality >= LEAST_CAMERA_QUALITY):
        left = residue(picture.pixels, photo)
        if left.level * left.correlation >= LEAST_CAMERA and left.correlation >= LEAST_CORRELATION:
            noise = f"level {left.level:.1f} or more, correlation of neighbours {left.correlation:.2f}"
            return Decision((Need("photo"),), f"Noise as a camera makes it found ({noise}): restoring a photograph.")
    if found_grid is not None:
        return _decide_jpeg(picture.pixels, luma, like, found_grid, place)
    if min(picture.pixels.shape[:2]) < LEAST_SIDE:
        return Decision((), f"Too small to measure noise in, under {LEAST_SIDE} pixels: nothing to do.")
    level, grey = estimate_noise(picture.pixels), is_grey(picture.pixels)
    least = LEAST_NOISE_GREY if grey else LEAST_NOISE
    if not grey and level < least and (in_luma := estimate_luma_noise(picture.pixels)) >= LEAST_NOISE_IN_LUMA:
        found = f"Noise level {in_luma:.1f} found in the luminance of the {picture.format}, whose colours are smooth"
        return Decision((Need("denoise", sigma=in_luma),), f"{found}, no trace of JPEG: denoising.")
    found = f"Noise level {level:.1f} found in the {picture.format}"
    if level < least:
        return Decision((), f"{found}, under {least:g}, and no trace of JPEG: nothing to do.")
    return Decision((Need("denoise", sigma=level),), f"{found}, no trace of JPEG: denoising.")


def find_grid(picture: Picture) -> tuple[int, int] | None:
    """Row and column, 0 to 7, where the first whole JPEG block begins; None for a picture that never was a JPEG."""
    if picture.lossy:  # lossy WebP has blocks of its own
        return None
    grid = blockiness(picture.pixels)
    if grid.score < LEAST_GRID:
        return None
    details = np.abs(_coefficients(picture.pixels, grid.offset).reshape(-1, 64)[:, 1:]) > LEAST_DETAIL
    return grid.offset if details.sum() >= LEAST_DETAILS * len(details) else None


def _decide_jpeg(pixels: Pixels, luma: Pixels, like: Compression, offset: tuple[int, int], place: str) -> Decision:
    own = "" if like.libjpeg else ", with tables that are not libjpeg's"
    steps, found = [], f"Quality {like.quality} found in {place}{own}"
    if like.quality < LIGHT_QUALITY:
        steps.append(Need("jpeg", offset=offset, quality=like.quality if like.libjpeg else None))
        found += ": JPEG decompression."
    else:
        found += f", at least {LIGHT_QUALITY}: no JPEG decompression."
    level = estimate_jpeg_noise(pixels, luma, offset)
    if level >= LEAST_NOISE_IN_JPEG:
        steps.append(Need("denoise", sigma=level))
        return Decision(tuple(steps), f"{found}\nNoise level {level:.1f} found below the compression: denoising.")
    return Decision(tuple(steps), f"{found}\nNo noise of level {LEAST_NOISE_IN_JPEG:g} or more below the compression.")


# --------------------------------------------------------------------------------------------- noise


def residue(pixels: Pixels, restore: Callable[[Pixels], Pixels]) -> Residue:
    """What `restore` takes out of the smoothest windows of a picture that are not clipped.

    Texture that it takes for noise fills some blocks, noise fills all of them.
    """
    size = [min(WINDOW, side // 8 * 8) for side in pixels.shape[:2]]
    if min(size) < 16:
        return Residue(0.0, 0.0)
    starts = (
        np.linspace(0, side - window, min(8, side // window)).astype(int)
        for side, window in zip(pixels.shape[:2], size, strict=True)
    )
    windows = [(slice(top, top + size[0]), slice(left, left + size[1])) for top, left in product(*starts)]

    def roughness(window: tuple[slice, slice]) -> tuple[bool, float]:
        levels = _scaled(pixels[window])
        clipped = float(((levels <= 1) | (levels >= 254)).mean())
        return clipped > 0.2, float(np.median(_blocks(_luminance(levels)).var((1, 2))))

    taken = []
    for window in sorted(windows, key=roughness)[:WINDOWS]:
        part = np.ascontiguousarray(pixels[window])
        change = np.atleast_3d(_scaled(part) - _scaled(restore(part)))
        taken.append(np.stack([_blocks(change[..., channel]) for channel in range(change.shape[2])], 1))
    blocks = np.concatenate(taken)
    power = (blocks**2).mean((1, 2, 3))
    quiet = blocks[power <= np.median(power)]
    neighbours = (quiet[..., 1:] * quiet[..., :-1]).mean() + (quiet[..., 1:, :] * quiet[..., :-1, :]).mean()
    level = float(np.quantile(power, 0.1)) ** 0.5
    return Residue(level, float(neighbours / 2 / max((quiet**2).mean(), 1e-9)))


def estimate_noise(pixels: Pixels) -> float:
    """Standard deviation of white noise, in 8-bit levels, 0 to 75.

    Read from all channels together, as what no other pixel or channel foretells. So noise that is correlated between
    pixels or channels is not seen; a picture whose channels are all the same is taken for the grey one that it is.

    Args:
        pixels: (H, W) or (H, W, 3), uint8, uint16 or float32 (1 is white).
    """
    readings = READINGS_GREY if is_grey(pixels) else READINGS
    return float(np.interp(_weakest_direction(pixels), readings, TRUE_LEVELS))


def estimate_luma_noise(pixels: Pixels) -> float:
    """Standard deviation of the white noise in R, G and B that makes the noise of the luminance, in 8-bit levels.

    For pictures whose colours were stored at half the resolution, as in WebP and video: there they are smooth, and
    `estimate_noise` finds none.

    Args:
        pixels: (H, W, 3), uint8, uint16 or float32 (1 is white).
    """
    luma = _luminance(_scaled(pixels)).astype(np.float32) / 255
    return min(estimate_noise(luma) / WHITE_IN_LUMA, 75.0)


def _weakest_direction(pixels: Pixels) -> float:
    """Standard deviation along the direction of least variance among 5 x 5 patches, of all channels, in 8-bit levels.

    Detail is redundant, noise is not: in some direction of the space of patches only noise varies. Textured patches
    are dropped, most variance first, until the least variances are alike, as those of noise alone would be (Pyatykh,
    Hesser, Zheng: Image Noise Level Estimation by Principal Component Analysis, IEEE TIP 2013).
    """
    if min(pixels.shape[:2]) < 2 * PATCH:
        return 0.0
    planes = np.atleast_3d(pixels)[..., : 1 if is_grey(pixels) else 3]
    windows = np.lib.stride_tricks.sliding_window_view(planes, (PATCH, PATCH), (0, 1))
    count = windows.shape[0] * windows.shape[1]
    at = np.arange(count) if count <= PATCHES else np.random.default_rng(0).integers(0, count, PATCHES)
    patches: Pixels = _scaled(windows[at // windows.shape[1], at % windows.shape[1]]).reshape(
        len(at), planes.shape[2], -1
    )
    clipped = ((patches <= 0) | (patches >= 255)).mean((1, 2))
    order = np.argsort(clipped, kind="stable")
    patches = patches[order[: max((clipped <= 0.1).sum(), len(order) // PARTS)]]
    patches = patches[np.argsort(patches.var(2).mean(1), kind="stable")].reshape(len(patches), -1).astype(np.float64)
    patches -= patches.mean(0)

    parts = np.array_split(patches, PARTS)
    counts = np.cumsum([len(part) for part in parts])
    means = np.cumsum([part.sum(0) for part in parts], 0) / counts[:, None]
    squares = np.cumsum([part.T @ part for part in parts], 0) / counts[:, None, None]
    for n, mean, square in list(zip(counts, means, squares, strict=True))[::-1]:
        variances = np.linalg.eigvalsh(square - np.outer(mean, mean))
        least = max(float(variances[0]), 0.0)
        if variances[6] - least < 49 * least / np.sqrt(n):  # the paper's 7 variances and its factor
            break
    return float(np.sqrt(least))


# --------------------------------------------------------------------------------------------- JPEG


def blockiness(pixels: Pixels) -> Grid:
    """The grid of 8 x 8 blocks that JPEG compression left, at any of 64 offsets, in the middle of the picture.

    Compression makes many DCT coefficients zero, and only blocks of its own grid show them all. Every block that has
    more zeros than each of those that begin within 7 pixels of it votes for its offset; without compression all
    offsets are equally likely (after Nikoukhah et al.: ZERO, a Local JPEG Grid Origin Detector Based on the Number of
    DCT Zeros, IPOL 2021).

    Args:
        pixels: (H, W) or (H, W, 3), uint8, uint16 or float32.
    """
    top, left = (max(0, (side - CROP) // 16 * 8) for side in pixels.shape[:2])  # a multiple of 8: offsets stay
    luma = _luminance(_scaled(pixels[top : top + CROP, left : left + CROP]))
    if min(luma.shape) < 24:
        return Grid((0, 0), 0.0)
    zeros = np.zeros(luma.shape, np.int16)
    for row in _cosines():
        along = correlate1d(luma, row, axis=1)
        for column in _cosines():
            zeros += np.abs(correlate1d(along, column, axis=0)) < 0.5  # rounding to 8 bits makes 0.3 of a zero
    zeros = zeros[4:-3, 4:-3]  # the filters' centre is 4: now the block that begins here
    highest = zeros == maximum_filter(zeros, 15)
    alone = np.rint(uniform_filter(highest.astype(np.float64), 15) * 225) == 1
    rows, columns = np.nonzero(highest & alone)
    votes = np.bincount(rows % 8 * 8 + columns % 8, minlength=64)
    best = int(votes.argmax())
    chance = 64 * bdtrc(votes[best] - 1.0, votes.sum(), 1 / 64)  # that some offset has as many votes
    return Grid((best // 8, best % 8), float(-np.log10(max(chance, 1e-300))))


@functools.cache
def luma_table(quality: int) -> NDArray[Any]:
    """(8, 8), libjpeg's luminance steps at a quality factor of 1 to 100."""
    return standard_tables(quality).luma


def equal_quality(luma: NDArray[Any]) -> int:
    """The quality factor, 1 to 100, whose luminance steps (8, 8) are the most alike, by the mean of logarithms."""
    means = [np.log(luma_table(quality)).mean() for quality in range(1, 101)]
    return 1 + int(np.abs(np.array(means) - np.log(luma).mean()).argmin())


def estimate_compression(pixels: Pixels, offset: tuple[int, int]) -> Compression:
    """The quality of libjpeg whose tables make the DCT coefficients of a grid the most likely, and whether they do.

    A coefficient is a multiple of its step, give or take the rounding to 8 bits; with a probability of 2 % it is not.
    Where steps chosen for each frequency alone explain the coefficients far better, the tables are not libjpeg's, and
    the quality is the one whose steps are as coarse on average.
    """
    coefficients = _coefficients(pixels, offset).reshape(-1, 64)[:, 1:]
    blocks, frequencies = np.nonzero(np.abs(coefficients) > LEAST_DETAIL)
    values = coefficients[blocks, frequencies]
    thin = slice(None, None, 1 + len(values) // 20_000)
    values, frequencies = values[thin], frequencies[thin]
    steps, likelihoods = np.arange(1, 256), np.zeros((63, 255))  # of every step for each frequency
    for frequency in np.unique(frequencies):
        mine = values[frequencies == frequency, None]
        density = np.exp(-0.5 * ((mine - steps * np.rint(mine / steps)) / 0.5) ** 2) / (0.5 * np.sqrt(2 * np.pi))
        likelihoods[frequency] = np.log(0.98 * steps * density + 0.02).sum(0)
    tables = np.array([luma_table(quality).reshape(-1)[1:] for quality in range(1, 101)])
    by_table = likelihoods[np.arange(63), tables - 1]  # (qualities, frequencies)
    quality = 1 + int(by_table.sum(1).argmax())
    counts = np.bincount(frequencies, minlength=63)
    counts[counts < LEAST_VALUES] = 0
    lacking = (likelihoods.max(1) - by_table[quality - 1])[counts > 0].sum() / max(1, counts.sum())
    if lacking <= MOST_MISFIT:
        return Compression(quality, libjpeg=True)
    coarseness = (np.log(tables) - np.log(1 + likelihoods.argmax(1))) @ counts
    return Compression(1 + int(np.abs(coarseness).argmin()), libjpeg=False)


def estimate_jpeg_noise(pixels: Pixels, luma: NDArray[Any], offset: tuple[int, int] = (0, 0)) -> float:
    """Standard deviation of the white noise that a picture had before its JPEG compression, in 8-bit levels.

    The level that makes the quantised high frequencies of the smoothest tenth of the blocks the most likely, beside
    detail that fades with frequency, while noise does not. 0 where the steps are so coarse that no noise is left.

    Args:
        pixels: (H, W) or (H, W, 3), decompressed.
        luma: (8, 8), quantisation steps of the luminance.
        offset: row and column where the first whole block begins.
    """
    coefficients = _coefficients(pixels, offset)
    if len(coefficients) < 32:
        return 0.0
    order = np.add.outer(np.arange(8), np.arange(8))
    roughness = (coefficients[:, (order > 0) & (order < 8)] ** 2).sum(1)  # noise is no less where this is low
    smooth = np.argsort(roughness, kind="stable")[: max(32, len(roughness) // 10)]
    high, steps = coefficients[smooth][:, order >= 8], luma[order >= 8]
    bins = np.minimum(np.abs(np.rint(high / steps)), 8)
    counts = (bins == np.arange(9)[:, None, None]).sum(1)  # (9, frequencies)
    borders = (np.arange(8)[:, None] + 0.5) * steps
    fading = (8 / order[order >= 8]) ** DETAIL_DECAY
    levels = np.concatenate(([0.0], np.geomspace(0.5, 75, 80)))

    def likelihood(noise: float, detail: float) -> float:
        deviation = np.sqrt(noise**2 + detail**2 * fading + 0.1)  # 0.1: the rounding of pixels
        below = np.pad(2 * ndtr(borders / deviation) - 1, ((1, 1), (0, 0)), constant_values=((0, 1), (0, 0)))
        return float((counts * np.log(np.maximum(np.diff(below, axis=0), 1e-6))).sum())

    profile = np.array([max(likelihood(noise, detail) for detail in levels[::4]) for noise in levels])
    best = levels[profile.argmax()] if profile.max() > profile[0] + 5 else 0.0  # 5: e**5 times as likely as no noise
    return float(best if is_grey(pixels) else min(best / WHITE_IN_LUMA, 75.0))


def _coefficients(pixels: Pixels, offset: tuple[int, int]) -> Floats:
    """(N, 8, 8), DCT of whole luminance blocks in the middle of a picture, of those with the fewest clipped pixels."""
    top, left = (
        first + max(0, (side - 2 * CROP) // 16 * 8) for first, side in zip(offset, pixels.shape[:2], strict=True)
    )
    levels = _scaled(pixels[top : top + 2 * CROP, left : left + 2 * CROP])
    clipped: Pixels = np.any(np.atleast_3d((levels <= 0) | (levels >= 255)), axis=2)
    share = _blocks(clipped).mean((1, 2))
    kept = np.argsort(share, kind="stable")[: max((share == 0).sum(), len(share) // 10)]
    return dctn(_blocks(_luminance(levels))[kept], axes=(1, 2), norm="ortho")


def _blocks(plane: NDArray[Any]) -> NDArray[Any]:
    """(N, 8, 8) of (H, W), what is left over at the right and the bottom cut off."""
    height, width = (side // 8 * 8 for side in plane.shape)
    return plane[:height, :width].reshape(height // 8, 8, width // 8, 8).swapaxes(1, 2).reshape(-1, 8, 8)


@functools.cache
def _cosines() -> Floats:
    """(8, 8), the orthonormal DCT: a frequency a row."""
    return dctn(np.eye(8), axes=[0], norm="ortho")


def has_few_colours(pixels: Pixels) -> bool:
    """Whether a picture (H, W) or (H, W, 3) of integers has no more colours than a drawing, screen or dither."""
    if pixels.dtype.kind == "f":
        return False
    most = FEW_GREYS if is_grey(pixels) else FEW_COLOURS
    colours = pixels.reshape(-1, 1 if pixels.ndim == 2 else pixels.shape[2])
    weights = np.array([1, 1 << 16, 1 << 32][: colours.shape[1]], np.uint64)
    thin = colours[:: 1 + len(colours) // PATCHES]  # which tells of nearly every photograph
    return all(len(np.unique(some.astype(np.uint64) @ weights)) <= most for some in (thin, colours))


def is_grey(pixels: Pixels) -> bool:
    """Whether the channels of (H, W) or (H, W, 3) are all the same."""
    return pixels.ndim == 2 or bool((pixels == pixels[..., :1]).all())


def _scaled(pixels: Pixels) -> Pixels:
    """uint8, uint16 or float32 (1 is white) as float32 8-bit levels."""
    top = 1.0 if pixels.dtype.kind == "f" else np.iinfo(pixels.dtype).max
    return pixels.astype(np.float32) * np.float32(255 / top)


def _luminance(levels: Pixels) -> Pixels:
    """(H, W) of (H, W) or (H, W, 3)."""
    return levels if levels.ndim == 2 else levels @ LUMA_WEIGHTS
