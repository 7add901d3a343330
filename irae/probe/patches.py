"""Patches of photographs, and what is known of natural patches: their principal components and variances."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.fft import dct
from torch import Tensor

from irae.datasets import image_paths
from irae.images import read_image
from irae.probe.estimators import Groups
from irae.probe.taps import ProbeError
from irae.restorer import as_rgb_image

EXACT = 768  # dimensions up to which a patch gets its own principal components: 16 x 16 pixels in RGB


class Prior(ABC):
    """An orthonormal basis of patches, and the variance of natural patches along it.

    Attributes:
        shape: (C, H, W) of a patch.
        variances: (d,) with d = C H W, in units of squared pixel values in [0, 1].
    """

    shape: tuple[int, ...]
    variances: Tensor

    @abstractmethod
    def analyse(self, patches: Tensor) -> Tensor:
        """(n, C, H, W) -> coefficients (n, d)."""

    @abstractmethod
    def synthesise(self, coefficients: Tensor) -> Tensor:
        """(n, d) -> patches (n, C, H, W); the inverse of `analyse`."""


class PrincipalComponents(Prior):
    """The principal components of patches, largest variance first."""

    def __init__(self, patches: Tensor) -> None:
        self.shape = tuple(patches.shape[1:])
        values, vectors = torch.linalg.eigh(patches.flatten(1).T.double().cov())
        self.variances, self.basis = values.flip(0).clamp_min(0), vectors.T.flip(0).float()

    def analyse(self, patches: Tensor) -> Tensor:
        return patches.flatten(1) @ self.basis.T

    def synthesise(self, coefficients: Tensor) -> Tensor:
        return (coefficients.to(self.basis) @ self.basis).unflatten(1, self.shape)


class Cosines(Prior):
    """Cosines (DCT-II) of the principal colours: near the principal components of large patches.

    For the covariance of a first-order Markov process they are so in the limit (Ahmed, Natarajan and Rao 1974).
    """

    def __init__(self, patches: Tensor) -> None:
        self.shape = tuple(patches.shape[1:])
        side = self.shape[-1]
        self.dct = torch.from_numpy(dct(np.eye(side), axis=0, norm="ortho")).float()
        self.colours = torch.linalg.eigh(patches.transpose(0, 1).flatten(1).cov())[1].T
        self.variances = self.analyse(patches).double().var(0)

    def analyse(self, patches: Tensor) -> Tensor:
        return torch.einsum("dc,ncij,ui,vj->nduv", self.colours, patches, self.dct, self.dct).flatten(1)

    def synthesise(self, coefficients: Tensor) -> Tensor:
        planes = coefficients.to(self.dct).unflatten(1, self.shape)
        return torch.einsum("dc,nduv,ui,vj->ncij", self.colours, planes, self.dct, self.dct)


@dataclass(frozen=True)
class Patches:
    """Square parts of images, image after image, so that two halves share no image (but at most one).

    Attributes:
        clean: (n, 3, side, side), in [0, 1].
        groups: (n,) the image that each is of.
    """

    clean: Tensor
    groups: Groups

    def noisy(self, sigma: float, seed: int) -> Tensor:
        """With white noise of `sigma` 8-bit levels."""
        generator = torch.Generator().manual_seed(seed)
        return self.clean + sigma / 255 * torch.randn(self.clean.shape, generator=generator)

    def prior(self) -> Prior:
        """The basis of patches like these."""
        exact = self.clean[0].numel() <= EXACT
        return PrincipalComponents(self.clean) if exact else Cosines(self.clean)


def load_images(data: str, root: Path | None = None, most: int = 0) -> list[Tensor]:
    """The images of a set by name, or of a folder, (3, H, W) in [0, 1]; at most so many where it is not 0."""
    return [as_rgb_image(read_image(path).pixels)[0] for path in image_paths(data, root)[: most or None]]


def large_enough(images: list[Tensor], side: int) -> list[Tensor]:
    """The images that hold a patch; raises ProbeError where none does."""
    large = [image for image in images if min(image.shape[-2:]) >= side]
    if not large:
        raise ProbeError(f"No image has {side} x {side} pixels: choose smaller patches or other images.")
    return large


def cut_patches(images: list[Tensor], side: int, count: int, seed: int) -> Patches:
    """Patches at random places, equally many of each image.

    Raises:
        ProbeError: no image is large enough.
    """
    large = large_enough(images, side)
    random = np.random.default_rng(seed)
    patches, groups = [], []
    for i in range(count):
        number = i * len(large) // count
        image = large[number]
        top, left = (int(random.integers(length - side + 1)) for length in image.shape[-2:])
        patches.append(image[:, top : top + side, left : left + side])
        groups.append(number)
    return Patches(torch.stack(patches), np.array(groups))
