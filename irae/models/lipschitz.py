"""Lipschitz residual blocks (i-ResNet), and the bound on the norm of a convolution that they rest on.

The bound holds at every image size: a block that is invertible on patches is invertible on whole images.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from irae.inverse import InverseError, fixed_point
from irae.models.reversible import Invertible, State, match_size, required


def conv_norm_bound(weight: Tensor, grid: int = 16, gram_steps: int = 5) -> Tensor:
    """An upper bound on ||conv2d(., weight)||_2 with zero padding, at every image size. Differentiable.

    Zero padding cuts the image out of the infinite plane, where the norm is the supremum over frequencies of the
    largest singular value of the kernel's Fourier transform (Sedghi et al. 2019 for circular padding). An FFT has
    grid**2 frequencies; between them a trigonometric polynomial of degree r is larger by at most
    1 / cos(pi r / grid) for each axis (Ehlich and Zeller 1964). Singular values by Gram iteration (Delattre et al.
    2023): the Schatten norm of order 2**(gram_steps + 1), never below the largest and at most a factor
    rank**(2**-(gram_steps + 1)) above.

    Args:
        weight: (out, in, kh, kw).
        grid: frequencies an axis; more make it tighter (3x3: 4 % at 16, 1 % at 32).
        gram_steps: squarings.

    Raises:
        ValueError: the grid is too coarse for the kernel.
    """
    return NormBound(grid, gram_steps)(weight)


class NormBound:
    """`conv_norm_bound` for a kernel that changes little from call to call, as in training: the same bound, sooner.

    Looking at all frequencies is the costly part. At each of them no norm moves by more than the Frobenius norm of the
    change, which is cheap, so after a small change few frequencies can have become the worst one; only these are looked
    at again. The kernel is compared in full.
    """

    def __init__(self, grid: int = 16, gram_steps: int = 5) -> None:
        self.grid, self.gram_steps = grid, gram_steps
        self._surveyed: tuple[Tensor, Tensor] | None = None  # a kernel, and its norm at each frequency
        self._last: tuple[Tensor, int] | None = None  # a kernel, and its worst frequency

    def __call__(self, weight: Tensor) -> Tensor:
        sizes = (weight.shape[2], weight.shape[3])
        if self.grid <= 2 * max(sizes):
            raise ValueError(f"A kernel of {max(sizes)} needs a grid of more than {2 * max(sizes)} frequencies.")
        grids = (1 if sizes[0] == 1 else self.grid, 1 if sizes[1] == 1 else self.grid)
        with torch.autocast(weight.device.type, enabled=False):
            weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
            worst = self._worst_frequency(weight.detach(), grids)
            at = torch.tensor([worst], device=weight.device)
            largest = _schatten_norm(_spectrum(weight, at, grids), self.gram_steps)[0]
        between = math.prod(math.cos(math.pi * (size // 2) / n) for size, n in zip(sizes, grids, strict=True))
        return largest * (1 + 32 * torch.finfo(largest.dtype).eps) / between  # above in floating point too

    def _worst_frequency(self, weight: Tensor, grids: tuple[int, int]) -> int:
        if self._last is not None and _same(self._last[0], weight):
            return self._last[1]
        rivals = self._rivals(weight, grids)
        norms = _schatten_norm(_spectrum(weight, rivals, grids), self.gram_steps)
        if len(rivals) == grids[0] * (grids[1] // 2 + 1):
            self._surveyed = weight.clone(), norms
        worst = int(rivals[norms.argmax()])
        self._last = weight.clone(), worst
        return worst

    def _rivals(self, weight: Tensor, grids: tuple[int, int]) -> Tensor:
        """The frequencies that can be the worst one of a kernel; all where the kernel has moved far."""
        everything = torch.arange(grids[0] * (grids[1] // 2 + 1), device=weight.device)
        if self._surveyed is None or not _alike(self._surveyed[0], weight):
            return everything
        surveyed, norms = self._surveyed
        change = (weight - surveyed).permute(2, 3, 0, 1).flatten(0, 1).flatten(1)
        waves = _waves(weight, everything, grids)
        moved = ((waves @ (change @ change.mT).to(waves.dtype)) * waves.conj()).sum(1).real.clamp_min(0).sqrt()
        rivals = everything[norms + moved >= (1 - 1e-5) * (norms - moved).max()]
        return rivals if 0 < 4 * len(rivals) < len(everything) else everything  # none: the kernel is not finite


def _spectrum(weight: Tensor, frequencies: Tensor, grids: tuple[int, int]) -> Tensor:
    """The Fourier transform (F, out, in) of a kernel at F frequencies."""
    waves, taps = _waves(weight, frequencies, grids), weight.permute(2, 3, 0, 1).flatten(0, 1).flatten(1)
    return torch.complex(waves.real @ taps, waves.imag @ taps).view(-1, *weight.shape[:2])


def _waves(weight: Tensor, frequencies: Tensor, grids: tuple[int, int]) -> Tensor:
    """The phases (F, kh * kw) of the taps at F frequencies, counted through (grid, grid // 2 + 1): the others are
    conjugates."""
    row, column = frequencies // (grids[1] // 2 + 1), frequencies % (grids[1] // 2 + 1)
    y, x = (torch.arange(size, device=weight.device, dtype=weight.dtype) for size in weight.shape[2:])
    turns = row[:, None, None] * y[:, None] / grids[0] + column[:, None, None] * x / grids[1]
    angle = -2 * math.pi * turns.flatten(1)
    return torch.polar(torch.ones_like(angle), angle)


def limit_norm(weight: Tensor, norm: Tensor, limit: float) -> Tensor:
    """The weight, scaled down where `norm` (its own, or a product it is part of) exceeds the limit."""
    return weight * (limit / norm.clamp_min(limit))


def _schatten_norm(matrix: Tensor, squarings: int) -> Tensor:
    """The norm of the singular values of order 2**(squarings + 1): (..., m, n) -> (...)."""
    gram = matrix if matrix.shape[-2] >= matrix.shape[-1] else matrix.mT
    log_size = torch.zeros(matrix.shape[:-2], dtype=matrix.real.dtype, device=matrix.device)
    tiny = torch.finfo(log_size.dtype).tiny
    for _ in range(squarings):
        size = _frobenius_norm(gram).clamp_min(tiny)
        gram, log_size = gram * size.reciprocal()[..., None, None], 2 * (log_size + size.log())
        gram = gram.mH @ gram
    return ((log_size + _frobenius_norm(gram).clamp_min(tiny).log()) / 2**squarings).exp()


def _frobenius_norm(matrix: Tensor) -> Tensor:
    """(..., m, n) -> (...); many times quicker on a CPU than `torch.linalg.matrix_norm` of complex matrices."""
    parts = torch.view_as_real(matrix) if matrix.is_complex() else matrix[..., None]
    return torch.linalg.vector_norm(parts, dim=(-3, -2, -1))


def _alike(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and one.device == other.device and one.shape == other.shape


def _same(one: Tensor, other: Tensor) -> bool:
    return _alike(one, other) and torch.equal(one, other)


class LipschitzBlock(Invertible):
    """y = x + g(x) with Lip(g) < 1 on the two streams together, x = [a, b] (i-ResNet, Behrmann et al. 2019, eq. 1).

    g = W2 relu(W1 x + c1 + E cond) + c2 with the convolutions' operator norms held to ||W1|| ||W2|| <= limit at every
    image size. The inverse is an accelerated fixed point; an error grows by at most 1 / (1 - limit) in it.

    Args:
        channels: channels of each stream.
        cond: condition channels, 0 for none.
        hidden: width inside g, `channels` by default.
        limit: bound on Lip(g), in (0, 1).

    Shape: a and b (N, channels, H, W), any H and W.
    """

    iterative = True

    def __init__(self, channels: int, cond: int = 0, hidden: int | None = None, limit: float = 0.9) -> None:
        super().__init__()
        if not 0 < limit < 1:
            raise ValueError("`limit` must be between 0 and 1.")
        self.limit, hidden = limit, hidden or channels
        self.bounds = NormBound(), NormBound()
        self.first = nn.Conv2d(2 * channels, hidden, 3, padding=1)
        self.last = nn.Conv2d(hidden, 2 * channels, 3, padding=1)
        self.embed = nn.Conv2d(cond, hidden, 1, bias=False) if cond else None
        nn.init.kaiming_normal_(self.first.weight, nonlinearity="relu")
        for zero in (self.first.bias, self.last.weight, self.last.bias):
            assert zero is not None
            nn.init.zeros_(zero)

    def forward(self, state: State, cond: Tensor | None = None) -> State:
        x = torch.cat(state, 1)
        with torch.autocast(x.device.type, enabled=False):
            a, b = (x + self.branch(x, cond)(x)).chunk(2, 1)
        return a, b

    def inverse(self, state: State, cond: Tensor | None = None) -> State:
        """The state before this block.

        Raises:
            InverseError: the iteration did not reach the precision of the dtype; values that are not finite do this.
        """
        y = torch.cat(state, 1)
        with torch.autocast(y.device.type, enabled=False):
            found = fixed_point(self.branch(y, cond), y)
        if not bool(found.converged.all()):
            raise InverseError(
                f"The fixed point of a Lipschitz block stopped at a residual of {found.residual.max().item():.2g}: "
                "its input or its parameters are not finite, or too large for this precision."
            )
        a, b = found.x.chunk(2, 1)
        return a, b

    def weights(self) -> tuple[Tensor, Tensor]:
        """The kernels W1 and W2 as they are applied, ||W1|| ||W2|| <= limit."""
        first, last = self.first.weight, self.last.weight
        return first, limit_norm(last, self.bounds[0](first) * self.bounds[1](last), self.limit)

    def branch(self, x: Tensor, cond: Tensor | None) -> Callable[[Tensor], Tensor]:
        """g for inputs shaped like x, its weights and its condition computed once."""
        first, last = self.weights()
        bias = self.first.bias
        assert bias is not None
        shift = bias[:, None, None]
        if self.embed is not None:
            shift = shift + self.embed(match_size(required(cond), x).to(x.dtype))
        return lambda x: F.conv2d((F.conv2d(x, first, padding=1) + shift).relu_(), last, self.last.bias, padding=1)
