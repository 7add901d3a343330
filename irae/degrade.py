"""What makes a clean image a damaged one: the same code for training, evaluation and `irae degrade`.

Images are float tensors (C, H, W) in [0, 1]; noise levels are standard deviations in 8-bit levels. All randomness
comes from the generator that is passed in.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Degraded:
    """A damaged image and how badly it is damaged.

    Attributes:
        image: (C, H, W), neither clipped nor rounded.
        sigma: (1, H, W) or (1, 1, 1), standard deviation of the noise in 8-bit levels.
    """

    image: Tensor
    sigma: Tensor


class Noise(ABC):
    """A noise model: `noise(clean, generator)` gives a `Degraded` of a clean image (C, H, W) in [0, 1]."""

    @classmethod
    @abstractmethod
    def draw(cls, sigma: float, generator: torch.Generator) -> Noise:
        """A random member of the family whose typical noise level is sigma 8-bit levels."""

    @abstractmethod
    def __call__(self, clean: Tensor, generator: torch.Generator) -> Degraded: ...


@dataclass(frozen=True)
class GaussianNoise(Noise):
    """White Gaussian noise of standard deviation `sigma` 8-bit levels, the same everywhere."""

    sigma: float

    @classmethod
    def draw(cls, sigma: float, generator: torch.Generator) -> GaussianNoise:
        return cls(sigma)

    def __call__(self, clean: Tensor, generator: torch.Generator) -> Degraded:
        sigma = torch.full((1, 1, 1), self.sigma)
        return Degraded(clean + sigma / 255 * torch.randn(clean.shape, generator=generator), sigma)


@dataclass(frozen=True)
class VaryingNoise(Noise):
    """White Gaussian noise whose level varies smoothly over the image, from `low` to `high` 8-bit levels."""

    low: float
    high: float

    @classmethod
    def draw(cls, sigma: float, generator: torch.Generator) -> VaryingNoise:
        spread = sigma * float(torch.rand((), generator=generator))
        return cls(sigma - spread, sigma + spread)

    def __call__(self, clean: Tensor, generator: torch.Generator) -> Degraded:
        coarse = torch.rand((1, 1, 4, 4), generator=generator)
        level = F.interpolate(coarse, clean.shape[-2:], mode="bilinear", align_corners=True)[0]
        sigma = self.low + (self.high - self.low) * level
        return Degraded(clean + sigma / 255 * torch.randn(clean.shape, generator=generator), sigma)


@dataclass(frozen=True)
class PoissonGaussianNoise(Noise):
    """Shot and read noise of a sensor: variance `gain` * value + `read`**2, all in 8-bit levels (Foi et al. 2008).

    The level that is reported is one number, the root mean square over the image.
    """

    gain: float
    read: float

    @classmethod
    def draw(cls, sigma: float, generator: torch.Generator) -> PoissonGaussianNoise:
        share = float(torch.rand((), generator=generator))  # of the variance at mid grey that is shot noise
        return cls(gain=share * sigma**2 / 127.5, read=(1 - share) ** 0.5 * sigma)

    def __call__(self, clean: Tensor, generator: torch.Generator) -> Degraded:
        noisy = clean
        if self.gain > 0:
            photons = clean.clamp_min(0) * 255 / self.gain
            noisy = torch.poisson(photons, generator=generator) * self.gain / 255
        noisy = noisy + self.read / 255 * torch.randn(clean.shape, generator=generator)
        mean = float(clean.mean().clamp_min(0)) * 255
        return Degraded(noisy, torch.full((1, 1, 1), (self.gain * mean + self.read**2) ** 0.5))


NOISES: dict[str, type[Noise]] = {
    "gaussian": GaussianNoise,
    "varying": VaryingNoise,
    "poisson": PoissonGaussianNoise,
}


def to_8bit(image: Tensor) -> Tensor:
    """Clipped to [0, 1] and rounded to the levels of an 8-bit file, still float."""
    return (image.clamp(0, 1) * 255).round() / 255


def as_rgb(image: Tensor) -> Tensor:
    """A grey image (..., 1, H, W) in three equal channels; a colour image as it is."""
    return image.expand(*image.shape[:-3], 3, *image.shape[-2:])


def generator_for(name: str, seed: int = 0) -> torch.Generator:
    """The random generator that belongs to an image's name, so that every model sees the same noise on it."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
