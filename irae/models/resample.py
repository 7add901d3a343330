"""Bijective resampling and channel mixing: pixel unshuffle, orthonormal Haar, 8x8 block DCT, orthogonal 1x1.

All are orthogonal maps of the pixels, so they lose nothing and amplify no error. And the padding that makes any image's
sides multiples of what they need.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import cast

import numpy as np
import torch
from scipy.fft import dct
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from irae.models.reversible import Invertible, State


class Resample(Invertible):
    """An orthogonal squeeze of each stream by itself: (N, C, H, W) -> (N, C * factor**2, H / factor, W / factor).

    `squeeze` and `unsqueeze` act on one tensor, `forward` and `inverse` on a state. H and W must be multiples of
    `factor`; anything else raises a RuntimeError from torch.
    """

    factor: int

    @abstractmethod
    def squeeze(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C * factor**2, H / factor, W / factor)."""

    @abstractmethod
    def unsqueeze(self, x: Tensor) -> Tensor:
        """The inverse of `squeeze`."""

    def forward(self, state: State, cond: Tensor | None = None) -> State:
        return self.squeeze(state[0]), self.squeeze(state[1])

    def inverse(self, state: State, cond: Tensor | None = None) -> State:
        return self.unsqueeze(state[0]), self.unsqueeze(state[1])


class Unshuffle(Resample):
    """Pixel unshuffle (Shi et al. 2016): each factor x factor tile of pixels becomes channels, nothing is mixed."""

    def __init__(self, factor: int = 2) -> None:
        super().__init__()
        self.factor = factor

    def squeeze(self, x: Tensor) -> Tensor:
        return F.pixel_unshuffle(x, self.factor)

    def unsqueeze(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(x, self.factor)


class BlockTransform(Resample):
    """A separable orthonormal transform of factor x factor blocks, lowest frequency first in the channels.

    Channels come out as (frequency, input channel), so that the first C channels are the means of the input's
    blocks times `factor`.
    """

    basis: Tensor

    def __init__(self, basis: Tensor) -> None:
        super().__init__()
        self.factor = len(basis)
        frequency = torch.arange(self.factor)
        order = torch.argsort((frequency[:, None] + frequency[None, :]).flatten(), stable=True)
        matrix = torch.kron(basis, basis)[order]
        self.register_buffer("basis", matrix, persistent=False)

    def squeeze(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        tiles = F.pixel_unshuffle(x, self.factor).view(n, c, self.factor**2, h // self.factor, w // self.factor)
        return self._transform("fp,ncphw->nfchw", tiles).flatten(1, 2)

    def unsqueeze(self, x: Tensor) -> Tensor:
        tiles = x.unflatten(1, (self.factor**2, -1))
        return F.pixel_shuffle(self._transform("fp,nfchw->ncphw", tiles).flatten(1, 2), self.factor)

    def _transform(self, equation: str, tiles: Tensor) -> Tensor:
        with torch.autocast(tiles.device.type, enabled=False):  # the state keeps its precision
            return torch.einsum(equation, self.basis.to(tiles.dtype), tiles)


class Haar(BlockTransform):
    """Orthonormal 2x2 Haar transform: mean, two differences and the diagonal one of each 2x2 tile."""

    def __init__(self) -> None:
        super().__init__(torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64) / math.sqrt(2))


class BlockDCT(BlockTransform):
    """Orthonormal DCT-II of 8x8 blocks, JPEG's transform on JPEG's grid (ITU-T T.81, A.3.3)."""

    def __init__(self) -> None:
        super().__init__(torch.from_numpy(dct(np.eye(8), axis=0, norm="ortho")))


RESAMPLERS: dict[str, Callable[[], Resample]] = {"unshuffle": Unshuffle, "haar": Haar, "dct": BlockDCT}


def pad_image(image: Tensor, below: int, right: int, task: str) -> Tensor:
    """Rows added below an image, and columns at its right, where a network needs sides that are multiples.

    "denoise" and "photo" have reflection padding, which is as noisy as the image: replicated borders are stripes, and
    denoisers keep them (measured in docs/training.md). The other tasks, and images too small to be reflected, have
    replication padding, as libjpeg fills its blocks.

    Args:
        image: (N, C, H, W), or a condition map, any values.
        below, right: rows and columns to add, in pixels, from 0 on.
        task: of the network, as in `IRAEConfig`.

    Shape: (N, C, H, W) -> (N, C, H + below, W + right).
    """
    for padding, side in (((0, right, 0, 0), image.shape[-1]), ((0, 0, 0, below), image.shape[-2])):
        if any(padding):
            mirrored = task in ("denoise", "photo") and max(padding) < side
            image = F.pad(image, padding, mode="reflect" if mirrored else "replicate")
    return image


class OrthogonalMixing(Invertible):
    """A learned orthogonal 1x1 convolution over the channels of both streams together; starts as the identity.

    Glow's invertible 1x1 convolution (Kingma and Dhariwal 2018, section 3.2) held orthogonal by the matrix
    exponential of an antisymmetric matrix, so that its inverse is its transpose.

    Shape: a and b (N, channels, H, W).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        layer = nn.Linear(2 * channels, 2 * channels, bias=False)
        nn.init.eye_(layer.weight)
        self.layer = parametrizations.orthogonal(layer, orthogonal_map="matrix_exp")

    def forward(self, state: State, cond: Tensor | None = None) -> State:
        return self._mix(state, self.matrix())

    def inverse(self, state: State, cond: Tensor | None = None) -> State:
        return self._mix(state, self.matrix().mT)

    def matrix(self) -> Tensor:
        """The orthogonal matrix, (2 * channels, 2 * channels)."""
        with torch.autocast(next(self.layer.parameters()).device.type, enabled=False):  # or it is not orthogonal
            return cast(Tensor, self.layer.weight)

    def _mix(self, state: State, matrix: Tensor) -> State:
        both = torch.cat(state, dim=1)
        with torch.autocast(both.device.type, enabled=False):  # the state keeps its precision
            a, b = F.conv2d(both, matrix.to(both.dtype)[:, :, None, None]).chunk(2, dim=1)
        return a, b
