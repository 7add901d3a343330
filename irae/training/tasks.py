"""What each task trains on: how a clean patch is damaged, what the network is told, and what is tried in between."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from irae.conditions import fill_holes, jpeg_condition, noise_condition
from irae.degrade import (
    NOISES,
    GaussianNoise,
    as_rgb,
    from_pixels,
    generator_for,
    photographed,
    through_jpeg,
    to_8bit,
    to_pixels,
)
from irae.jpeg import JpegTables, standard_tables
from irae.masks import MASKS, mask_for
from irae.training.recipe import JpegMix, MaskMix, NoiseMix, Recipe

Sample = tuple[Tensor, Tensor, Tensor]  # damaged and clean (3, P, P), condition (K, P, P)
Trial = Callable[[str, Tensor], tuple[Tensor, Tensor]]
"""The damaged image and the condition, (1, 3, H, W) and (1, K, H, W), of a clean image (3, H, W) and its name."""


class Task(ABC):
    """How patches of a task are damaged.

    Attributes:
        margin: how many pixels larger than the patch the clean image must be.
    """

    margin = 0

    @abstractmethod
    def sample(self, clean: Tensor, rng: np.random.Generator, generator: torch.Generator) -> Sample:
        """A damaged patch of a clean one (1 or 3, P + margin, P + margin) in [0, 1]."""

    @abstractmethod
    def trials(self) -> dict[str, Trial]:
        """The cases by name in which the network is measured on held-out images."""


class Denoising(Task):
    """Noise of several models and levels, told or not."""

    LEVELS = (15, 25, 50)

    def __init__(self, mix: NoiseMix) -> None:
        self.mix = mix

    def sample(self, clean: Tensor, rng: np.random.Generator, generator: torch.Generator) -> Sample:
        mix = self.mix
        degraded = NOISES[_drawn(mix.shares, rng)].draw(rng.uniform(*mix.sigma), generator)(clean, generator)
        noisy = to_8bit(degraded.image) if rng.random() < mix.files else degraded.image
        known = rng.random() >= mix.hidden
        cond = noise_condition(degraded.sigma[None] if known else None)[0]
        target = clean if degraded.target is None else degraded.target
        return as_rgb(noisy), as_rgb(target), cond.expand(-1, *clean.shape[-2:])

    def trials(self) -> dict[str, Trial]:
        return {f"psnr_{sigma}": self.trial(sigma) for sigma in self.LEVELS}

    @staticmethod
    def trial(sigma: int) -> Trial:
        """Gaussian noise of a level that the network is told, neither clipped nor rounded."""

        def made(name: str, clean: Tensor) -> tuple[Tensor, Tensor]:
            return GaussianNoise(sigma)(clean, generator_for(name)).image[None], noise_condition(sigma)

        return made


class Developing(Denoising):
    """The same, measured on what cameras make of noise."""

    LEVELS = (5, 15, 30)

    @staticmethod
    def trial(sigma: int) -> Trial:
        """The file of a camera that does not sharpen, of which the network is told nothing."""

        def made(name: str, clean: Tensor) -> tuple[Tensor, Tensor]:
            return photographed(clean, sigma, name).image[None], noise_condition(None)

        return made


class Decompression(Task):
    """JPEG files of the real encoder: tables, subsampling and grid told or not, some compressed twice."""

    margin = 16  # the grid's period: a patch is cut from a compressed image at any phase
    QUALITIES = (10, 20, 40)

    def __init__(self, mix: JpegMix) -> None:
        self.mix = mix

    def sample(self, clean: Tensor, rng: np.random.Generator, generator: torch.Generator) -> Sample:
        mix, size = self.mix, clean.shape[-1] - self.margin
        if rng.random() < mix.noise:
            level = rng.uniform(0, mix.noise_most) / 255
            clean = clean + level * torch.randn(clean.shape, generator=generator)
        pixels = to_pixels(clean)
        damaged = pixels
        if rng.random() < mix.twice:
            top, left = rng.integers(8, size=2)
            damaged = pixels.copy()
            damaged[top:, left:] = self._compress(pixels[top:, left:], rng)[0]
        damaged, tables = self._compress(damaged, rng)
        known = rng.random() >= mix.hidden
        top, left = (int(at) for at in (4 * rng.integers(4, size=2) if known else rng.integers(16, size=2)))
        cond = jpeg_condition(tables, size, size, (top, left)) if known else jpeg_condition(None, size, size, None)
        patch = slice(top, top + size), slice(left, left + size)
        return as_rgb(from_pixels(damaged[patch])), as_rgb(from_pixels(pixels[patch])), cond[0].expand(-1, size, size)

    def _compress(self, pixels: NDArray[np.uint8], rng: np.random.Generator) -> tuple[NDArray[np.uint8], JpegTables]:
        """The pixels of a random JPEG file, and its tables."""
        sampling = (2, 2) if rng.random() < self.mix.subsampled else (1, 1)
        tables = standard_tables(int(rng.integers(*self.mix.quality, endpoint=True)), sampling, pixels.ndim == 2)
        if rng.random() < self.mix.flattened:
            tables = _flattened(tables, rng.uniform())
        return through_jpeg(pixels, tables), tables

    def trials(self) -> dict[str, Trial]:
        return {f"psnr_q{quality}": self.trial(quality) for quality in self.QUALITIES}

    @staticmethod
    def trial(quality: int) -> Trial:
        """A 4:2:0 file of a quality, whose tables and grid the network is told."""
        tables = standard_tables(quality)

        def made(name: str, clean: Tensor) -> tuple[Tensor, Tensor]:
            damaged = through_jpeg(to_pixels(clean), tables)
            return from_pixels(damaged)[None], jpeg_condition(tables, *damaged.shape[:2])

        return made


class Inpainting(Task):
    """Holes of all registered masks, filled before the network sees them."""

    def __init__(self, mix: MaskMix) -> None:
        self.mix = mix

    def sample(self, clean: Tensor, rng: np.random.Generator, generator: torch.Generator) -> Sample:
        mask = MASKS[_drawn(self.mix.shares, rng)](clean.shape[-2], clean.shape[-1], rng)
        clean, known = as_rgb(clean), _known(mask)
        return fill_holes(clean[None], known[None])[0], clean, known

    def trials(self) -> dict[str, Trial]:
        return {f"psnr_{kind}": self.trial(kind) for kind in self.mix.shares}

    @staticmethod
    def trial(kind: str) -> Trial:
        """Holes of a kind, the same for the same name."""

        def made(name: str, clean: Tensor) -> tuple[Tensor, Tensor]:
            known = _known(mask_for(name, kind, clean.shape[-2], clean.shape[-1]))[None]
            return fill_holes(clean[None], known), known

        return made


TASKS: dict[str, Callable[[Recipe], Task]] = {
    "denoise": lambda recipe: Denoising(recipe.noise),
    "photo": lambda recipe: Developing(recipe.noise),
    "jpeg": lambda recipe: Decompression(recipe.jpeg),
    "inpaint": lambda recipe: Inpainting(recipe.masks),
}


def _drawn(shares: dict[str, float], rng: np.random.Generator) -> str:
    """A name, drawn by the shares of all."""
    weights = np.array(list(shares.values()))
    return list(shares)[rng.choice(len(weights), p=weights / weights.sum())]


def _known(mask: NDArray[np.bool_]) -> Tensor:
    """A mask (H, W) of missing pixels as (1, H, W), 1 where a pixel is known."""
    return torch.from_numpy(~mask).float()[None]


def _flattened(tables: JpegTables, share: float) -> JpegTables:
    """Tables between the given ones and flat ones, as cameras and editors use other tables than libjpeg."""

    def flat(table: NDArray[np.int_]) -> NDArray[np.int_]:
        return np.rint((1 - share) * table + share * table.mean()).astype(table.dtype)

    chroma = None if tables.chroma is None else flat(tables.chroma)
    return JpegTables(flat(tables.luma), chroma, tables.sampling)
