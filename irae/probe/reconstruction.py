"""Reconstruction: a small decoder trained from a layer back to the noisy and to the clean patch.

The same body and budget for every layer. What it finds of the input is a low estimate: a larger decoder may find more.
Of the clean image it is the decoder's error in bits, 1/2 log2 of variance over error along each component: the
information where patches are normal, and as they are not, possibly more.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from irae.models.blocks import conv3x3
from irae.probe.estimators import LEAST_GROUPS, EstimatorError, Groups, MutualInformation
from irae.probe.patches import Prior

WIDTH = 24
REFITTED = 65_536  # pixels, far more than there are weights
RESAMPLES = 200


class Decoder(nn.Module):
    """Each part of a cut is brought to the size of the patch by a 1x1 convolution and a pixel shuffle; their sum goes
    through one linear convolution beside two with ReLU.

    Args:
        parts: examples of the parts as read, (n, C, h, w) each; their means by channel and the largest deviation of any
            channel scale the inputs, so that channels which hold nothing but reading noise stay small.
        side: of the patch, a multiple of every part's.
        out: channels of the result.

    Shape: parts (N, C, h, w) -> (N, out, side, side); sides as large as the parts' and the factor allow.
    """

    def __init__(self, parts: Sequence[Tensor], side: int, out: int) -> None:
        super().__init__()
        self.factors = [side // part.shape[-1] for part in parts]
        self.means = [part.mean((0, 2, 3), keepdim=True) for part in parts]
        self.scale = 1 / max(1e-6, *(float(part.std((0, 2, 3)).max()) for part in parts))
        self.readers = nn.ModuleList(
            nn.Conv2d(part.shape[1], WIDTH * factor**2, 1) for part, factor in zip(parts, self.factors, strict=True)
        )
        self.linear = conv3x3(WIDTH, out)
        self.curved = nn.Sequential(
            conv3x3(WIDTH, WIDTH), nn.ReLU(), conv3x3(WIDTH, WIDTH), nn.ReLU(), conv3x3(WIDTH, out, zero=True)
        )

    def forward(self, parts: Sequence[Tensor]) -> Tensor:
        x = self.joined(parts)
        return self.linear(x) + self.curved(x)

    def joined(self, parts: Sequence[Tensor]) -> Tensor:
        """All parts at the size of the patch, (N, WIDTH, side, side)."""
        x: Tensor | float = 0.0
        for part, mean, read, factor in zip(parts, self.means, self.readers, self.factors, strict=True):
            x = x + F.pixel_shuffle(read((part - mean) * self.scale), factor)
        assert isinstance(x, Tensor)
        return x

    @torch.no_grad()
    def refit(self, examples: Iterable[tuple[Sequence[Tensor], Tensor]]) -> None:
        """Set the last convolutions, linear in what comes before them, to the least squares over examples of parts and
        targets (n, out, side, side). So fine a layer is read that a short training alone ends far from it.
        """
        gram: Tensor | float = 0.0
        right: Tensor | float = 0.0
        for parts, target in examples:
            x = self.joined(parts)
            columns = [F.unfold(z, 3, padding=1).transpose(1, 2).flatten(0, 1) for z in (x, self.curved[:-1](x))]
            features = torch.cat((*columns, torch.ones(len(columns[0]), 1)), 1).double()
            gram = gram + features.T @ features
            right = right + features.T @ target.permute(0, 2, 3, 1).flatten(0, 2).double()
        assert isinstance(gram, Tensor) and isinstance(right, Tensor)
        scale = gram.diagonal().sqrt().clamp_min(1e-12)  # features differ in size by orders, and some are dead
        ridge = 1e-9 * torch.eye(len(gram), dtype=gram.dtype)
        weights = (torch.linalg.solve(gram / scale[:, None] / scale + ridge, right / scale[:, None]) / scale[:, None]).T
        weights = weights.float()
        last = self.curved[-1]
        assert isinstance(last, nn.Conv2d) and last.bias is not None and self.linear.bias is not None
        half = (weights.shape[1] - 1) // 2
        self.linear.weight.data = weights[:, :half].unflatten(1, (WIDTH, 3, 3)).contiguous()
        last.weight.data = weights[:, half:-1].unflatten(1, (WIDTH, 3, 3)).contiguous()
        self.linear.bias.data, last.bias.data = weights[:, -1].contiguous(), torch.zeros(len(weights))


@dataclass(frozen=True)
class Reconstruction:
    """What a decoder finds in a layer.

    Attributes:
        input, clean: information on the noisy and on the clean patch, in bits.
        psnr: of the clean patch, in dB.
        decoder: to decode with, from the cut to both, 3 channels each.
    """

    input: MutualInformation
    clean: MutualInformation
    psnr: float
    decoder: Decoder


def reconstruct(
    parts: Sequence[Tensor],
    noisy: Tensor,
    clean: Tensor,
    groups: Groups,
    prior: Prior,
    sigma: float,
    seed: int = 0,
    steps: int = 200,
    batch: int = 32,
) -> Reconstruction:
    """Train a decoder on the first half of the samples and report on the other.

    Args:
        parts: of the cut, (n, C, h, w) each.
        noisy, clean: (n, 3, side, side), what went into the network, and that without noise.
        groups: (n,), the image of each patch, for the bootstrap.
        prior: whose components the information is counted in.
        sigma: sigma_T, the noise through which the layer is read.
        seed: of training, noise and bootstrap.
        steps, batch: of the training.

    Raises:
        EstimatorError: a part whose side does not divide that of the patch, or values that are not finite.
    """
    half, target = len(clean) // 2, torch.cat((noisy, clean), 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)

        def read(chosen: Tensor | slice) -> list[Tensor]:
            return [part[chosen] + sigma * torch.randn_like(part[chosen]) for part in parts]

        if any(clean.shape[-1] % part.shape[-1] for part in parts):
            raise EstimatorError("The decoder reads layers whose side divides that of the patch: leave it out.")
        decoder = Decoder(read(slice(0, half)), clean.shape[-1], target.shape[1])
        optimiser = torch.optim.AdamW(decoder.parameters(), lr=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-2, steps, pct_start=0.1)
        for _ in range(steps):
            chosen = torch.randint(half, (batch,))
            optimiser.zero_grad()
            F.mse_loss(decoder(read(chosen)), target[chosen]).backward()
            optimiser.step()
            schedule.step()
        decoder.eval().requires_grad_(False)
        spread = torch.arange(0, half, max(1, half * clean.shape[-1] ** 2 // REFITTED))
        decoder.refit((read(piece), target[piece]) for piece in spread.split(64))
        pieces = [slice(start, start + 256) for start in range(half, len(clean), 256)]
        found = torch.cat([decoder(read(piece)) for piece in pieces])
    channels = clean.shape[1]
    error = F.mse_loss(found[:, channels:], clean[half:])
    return Reconstruction(
        component_information(noisy[half:], found[:, :channels], prior, groups[half:], seed),
        component_information(clean[half:], found[:, channels:], prior, groups[half:], seed),
        float(-10 * error.log10()),
        decoder,
    )


def component_information(
    x: Tensor, found: Tensor, prior: Prior, groups: Groups | None = None, seed: int = 0
) -> MutualInformation:
    """Sum over components of 1/2 log2(variance / error), those with more error than variance left out.

    For normal X a lower bound (rate distortion; Cover and Thomas 2006, section 10.3.3), for photographs an estimate.

    Args:
        x, found: patches and reconstructions, (n, C, H, W).
        groups: (n,), which belong together, for the bootstrap.
    """
    if not torch.isfinite(found).all():
        raise EstimatorError("The reconstruction holds values that are not finite: no information can be told of them.")
    wanted, errors = (prior.analyse(z).double().numpy() for z in (x, found - x))
    members = np.unique(np.arange(len(x)) if groups is None else groups, return_inverse=True)[1]
    one = np.zeros((members.max() + 1, len(x)))
    one[members, np.arange(len(x))] = 1
    sums = [one @ z for z in (np.ones((len(x), 1)), wanted, wanted**2, errors**2)]

    def bits(weights: np.ndarray) -> np.ndarray:
        count, first, second, error = (weights @ z for z in sums)
        variance = second / count - (first / count) ** 2
        ratio = np.maximum(variance, 1e-12) / np.maximum(error / count, 1e-12)
        return np.maximum(np.log2(ratio), 0).sum(-1) / 2

    interval: tuple[float, float] | None = None
    if len(one) >= LEAST_GROUPS:
        random = np.random.default_rng(seed)
        drawn = random.multinomial(len(one), np.full(len(one), 1 / len(one)), RESAMPLES)
        low, high = np.percentile(bits(drawn.astype(float)), [2.5, 97.5])
        interval = float(low), float(high)
    return MutualInformation(float(bits(np.ones((1, len(one))))[0]), interval, math.inf, len(x))
