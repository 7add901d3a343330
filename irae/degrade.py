"""What makes a clean image a damaged one: the same code for training, evaluation and `irae degrade`.

Images are float tensors (C, H, W) in [0, 1]; noise levels are standard deviations in 8-bit levels. All randomness
comes from the generator that is passed in.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from irae.jpeg import JpegTables, encode_jpeg, standard_tables


@dataclass(frozen=True)
class Degraded:
    """A damaged image and how badly it is damaged.

    Attributes:
        image: (C, H, W), neither clipped nor rounded, but where a camera did that.
        sigma: (1, H, W) or (1, 1, 1), standard deviation of the noise in 8-bit levels.
        target: (C, H, W), what the image would be without the damage, where that is not the clean image.
    """

    image: Tensor
    sigma: Tensor
    target: Tensor | None = None


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


@dataclass(frozen=True)
class CameraNoise(Noise):
    """What a camera makes of its sensor's noise, so that it is correlated between pixels and between channels.

    The image goes back to linear light before white balance (Brooks et al., Unprocessing Images for Learned Raw
    Denoising, CVPR 2019); then come shot and read noise, one colour a pixel (Bayer), demosaicing, white balance, gamma,
    sharpening, clipping and a JPEG file. The level that is reported is the root mean square of the whole damage. What
    is wanted back is the sharpened image.

    Attributes:
        gain, read: variance of the raw noise is gain * value + read**2, value in [0, 1] of linear light.
        balance: what red and blue are multiplied by.
        phase: row and column of the image's first pixel on the grid of the JPEG file, 0 to 15; odd and even is where it
            lies on the pattern red, green / green, blue.
        edges: demosaicing goes along edges; otherwise it is bilinear.
        sharpening: weight of the unsharp mask.
        quality: of the JPEG file, 1 to 100; 4:2:0.
    """

    gain: float
    read: float
    balance: tuple[float, float]
    phase: tuple[int, int]
    edges: bool
    sharpening: float
    quality: int

    BORDER = 6  # pixels more on each side, which the filters reach
    SLOPE = 0.925  # of linear light against the file's values, at mid grey

    @classmethod
    def draw(cls, sigma: float, generator: torch.Generator) -> CameraNoise:
        share, red, blue, up, left, edges, sharpening, quality = torch.rand(8, generator=generator).tolist()
        level = cls.SLOPE * sigma / 255
        shot = 0.5 + share / 2  # of the variance at mid grey, which is 0.214 in linear light
        return cls(
            gain=shot * level**2 / 0.214,
            read=(1 - shot) ** 0.5 * level,
            balance=(1.5 + 0.9 * red, 1.4 + 0.7 * blue),
            phase=(int(16 * up), int(16 * left)),
            edges=edges < 0.5,
            sharpening=0.6 * sharpening,
            quality=70 + int(29 * quality),
        )

    def __call__(self, clean: Tensor, generator: torch.Generator) -> Degraded:
        above, before = (self.BORDER + (at - self.BORDER) % 16 for at in self.phase)
        rows, columns = slice(above, above + clean.shape[1]), slice(before, before + clean.shape[2])
        image = as_rgb(clean).permute(1, 2, 0).numpy()
        image = np.pad(image, ((above, self.BORDER), (before, self.BORDER), (0, 0)), "symmetric")
        target = _unsharp(image, self.sharpening)
        balance = np.array((self.balance[0], 1, self.balance[1]), np.float32)
        raw = _bayer(_linear(image) / balance)
        deviation = np.sqrt(self.gain * raw + self.read**2)
        raw += deviation * torch.randn(raw.shape, generator=generator).numpy()
        shown = _unsharp(_encoded(self._demosaiced(raw) * balance), self.sharpening)
        pixels = np.rint(shown.clip(0, 1) * 255).astype(np.uint8)
        damaged = through_jpeg(pixels, standard_tables(self.quality)).astype(np.float32) / 255
        found, wanted = (
            torch.from_numpy(part[rows, columns].copy()).permute(2, 0, 1) for part in (damaged, target.clip(0, 1))
        )
        if clean.shape[0] == 1:
            found, wanted = (part.mean(0, keepdim=True) for part in (found, wanted))
        sigma = 255 * (found - wanted).square().mean().sqrt()
        return Degraded(found, sigma.view(1, 1, 1), wanted)

    def _demosaiced(self, raw: NDArray[np.float32]) -> NDArray[np.float32]:
        """(H, W) -> (H, W, 3), through 16 bits, of which a twentieth lies below black."""
        code = cv2.COLOR_BayerRGGB2RGB_EA if self.edges else cv2.COLOR_BayerRGGB2RGB
        codes = np.rint((0.9 * raw + 0.05).clip(0, 1) * 65535).astype(np.uint16)
        return (cv2.cvtColor(codes, code).astype(np.float32) / 65535 - 0.05) / 0.9


NOISES: dict[str, type[Noise]] = {
    "gaussian": GaussianNoise,
    "varying": VaryingNoise,
    "poisson": PoissonGaussianNoise,
    "camera": CameraNoise,
}


def photographed(clean: Tensor, level: float, name: str) -> Degraded:
    """A clean image as a camera that does not sharpen writes it, the same every time for an image's name."""
    generator = generator_for(name)
    return replace(CameraNoise.draw(level, generator), sharpening=0.0)(clean, generator)


def to_8bit(image: Tensor) -> Tensor:
    """Clipped to [0, 1] and rounded to the levels of an 8-bit file, still float."""
    return (image.clamp(0, 1) * 255).round() / 255


def as_rgb(image: Tensor) -> Tensor:
    """A grey image (..., 1, H, W) in three equal channels; a colour image as it is."""
    return image.expand(*image.shape[:-3], 3, *image.shape[-2:])


def generator_for(name: str, seed: int = 0) -> torch.Generator:
    """The random generator that belongs to an image's name, so that every model sees the same noise on it."""
    digest = hashlib.sha256(f"{seed}:{name}".encode(errors="surrogateescape")).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def through_jpeg(pixels: NDArray[np.uint8], tables: JpegTables) -> NDArray[np.uint8]:
    """The pixels of a JPEG file of these pixels, through OpenCV, which is quicker at it than Pillow."""
    mode = cv2.IMREAD_GRAYSCALE if pixels.ndim == 2 else cv2.IMREAD_COLOR_RGB
    return np.asarray(cv2.imdecode(np.frombuffer(encode_jpeg(pixels, tables), np.uint8), mode), dtype=np.uint8)


def to_pixels(image: Tensor) -> NDArray[np.uint8]:
    """An image (1 or 3, H, W) in [0, 1] as pixels (H, W) or (H, W, 3)."""
    pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    return pixels[..., 0] if pixels.shape[2] == 1 else pixels


def from_pixels(pixels: NDArray[np.uint8]) -> Tensor:
    """Pixels (H, W) or (H, W, 3) as an image (1 or 3, H, W) in [0, 1]."""
    image = torch.from_numpy(np.ascontiguousarray(pixels)).float() / 255
    return image[None] if image.ndim == 2 else image.permute(2, 0, 1)


def _linear(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Linear light of sRGB values (IEC 61966-2-1)."""
    return np.where(image <= 0.04045, image / 12.92, ((image.clip(0) + 0.055) / 1.055) ** 2.4)


def _encoded(light: NDArray[np.float32]) -> NDArray[np.float32]:
    """sRGB values of linear light, clipped to [0, 1]."""
    light = light.clip(0, 1)
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def _bayer(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """(H, W, 3) -> (H, W): one colour a pixel, red, green / green, blue."""
    raw = image[..., 1].copy()
    raw[::2, ::2], raw[1::2, 1::2] = image[::2, ::2, 0], image[1::2, 1::2, 2]
    return raw


def _unsharp(image: NDArray[np.float32], weight: float) -> NDArray[np.float32]:
    """(H, W, 3), with `weight` times its difference to its blurred self more."""
    return image if weight == 0 else image + weight * (image - cv2.GaussianBlur(image, (0, 0), 1.0))
