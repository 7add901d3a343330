"""Blocks that are steps of a stable differential equation (Chang et al. 2018): Hamiltonian, midpoint, leapfrog.

Their inverse is exact; tied convolutions, whose norms are bounded, keep deep chains from blowing up.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from irae.models.lipschitz import NormBound, limit_norm
from irae.models.reversible import AdditiveHalfStep, Chain, HalfStep, match_size, required

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": torch.relu, "tanh": torch.tanh}

# Of h^2 ||K||^2, the theory's bound for equal blocks being 4. Chains whose K differ from block to block have no such
# theory, and 64 leapfrog steps with ReLU and random K at the limit grew 80,000-fold at 3, 50-fold at 1.
NORM_LIMIT = 1.0


class TiedConvolution(nn.Module):
    """K' f(K x + c + E cond): a 3x3 convolution K and its adjoint K', which shares the weight; ||K|| <= limit.

    The norm is that of the operator at every image size (`irae.models.lipschitz.conv_norm_bound`). K starts random
    with a norm of about `start`: from K = 0 and c = 0 the gradient would be 0.

    Args:
        channels, hidden: width of x, and inside.
        cond: condition channels, 0 for none.
        activation: f, "relu" or "tanh".
        limit: bound on ||K||.
        start: norm of K to start with.

    Shape: (N, channels, H, W) -> the same.
    """

    def __init__(self, channels: int, hidden: int, cond: int, activation: str, limit: float, start: float) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"There is no activation named {activation!r}; choose one of {', '.join(ACTIVATIONS)}.")
        self.limit, self.activation, self.bound = limit, ACTIVATIONS[activation], NormBound()
        self.weight = nn.Parameter(torch.empty(hidden, channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(hidden))
        self.embed = nn.Conv2d(cond, hidden, 1, bias=False) if cond else None
        # The largest singular value of a random matrix is about (sqrt(rows) + sqrt(columns)) deviations.
        nn.init.normal_(self.weight, std=start / (3 * (math.sqrt(channels) + math.sqrt(hidden))))

    def kernel(self) -> Tensor:
        """The kernel as it is applied, within the bound."""
        return limit_norm(self.weight, self.bound(self.weight), self.limit)

    def forward(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        kernel = self.kernel()
        return F.conv_transpose2d(self.respond(x, kernel, cond), kernel, padding=1)

    def respond(self, x: Tensor, kernel: Tensor, cond: Tensor | None) -> Tensor:
        """f(kernel x + c + E cond)."""
        x = F.conv2d(x, kernel, self.bias, padding=1)
        if self.embed is not None:
            x = x + self.embed(match_size(required(cond), x))
        return self.activation(x)


class AntisymmetricConvolution(TiedConvolution):
    """f((K - K') x + c + E cond) with ||K - K'|| <= limit; K - K' is one convolution, as wide as x.

    Args and shape: `TiedConvolution`, with hidden = channels.
    """

    def kernel(self) -> Tensor:
        """The kernel of K - K', within the bound."""
        difference = self.weight - self.weight.transpose(0, 1).flip(2, 3)
        return limit_norm(difference, self.bound(difference), self.limit)

    def forward(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.respond(x, self.kernel(), cond)


class _Kick(AdditiveHalfStep):
    """moving + scale * net(fixed); added in the precision of the state."""

    def __init__(self, net: nn.Module, scale: float, moves: int, swap: bool = False) -> None:
        super().__init__(net, moves, swap)
        self.scale = scale

    def message(self, fixed: Tensor, cond: Tensor | None) -> Tensor:
        return self.scale * self.net(fixed, cond).to(fixed.dtype)


class HamiltonianBlock(Chain):
    """a' = a + h K1' f(K1 b + c1); b' = b - h K2' f(K2 a' + c2) (Chang et al. 2018, the two-layer Hamiltonian).

    A symplectic Euler step of two oscillating streams. Linearised with the same K in every block it is stable for
    h^2 ||K1||^2 ||K2||^2 < 4; held to 1 (`NORM_LIMIT`) by h ||Ki||^2 <= 1.

    Args:
        channels: channels of each stream.
        cond: condition channels, 0 for none.
        hidden: width inside the convolutions, `channels` by default.
        step: h.
        activation: f, "relu" or "tanh".

    Shape: a and b (N, channels, H, W), any H and W.
    """

    two_step = True

    def __init__(
        self, channels: int, cond: int = 0, hidden: int | None = None, step: float = 0.25, activation: str = "relu"
    ) -> None:
        limit, start = math.sqrt(math.sqrt(NORM_LIMIT) / _positive(step)), 1.0
        nets = [TiedConvolution(channels, hidden or channels, cond, activation, limit, start) for _ in range(2)]
        super().__init__([_Kick(nets[0], step, moves=0), _Kick(nets[1], -step, moves=1)])


class MidpointBlock(_Kick):
    """(a, b) -> (b, a + 2h f((K - K') b + c)) (Chang et al. 2018), with h ||K - K'|| <= 1.

    Its linear part turns the state and neither grows nor shrinks. A chain starts from a = b.

    Args:
        channels: channels of each stream.
        cond: condition channels, 0 for none.
        hidden: must be `channels` if given: K - K' is square.
        step: h.
        activation: f, "tanh" or "relu" (with which a step can only raise values).

    Shape: a and b (N, channels, H, W), any H and W.
    """

    two_step = True

    def __init__(
        self, channels: int, cond: int = 0, hidden: int | None = None, step: float = 0.25, activation: str = "tanh"
    ) -> None:
        if hidden not in (None, channels):
            raise ValueError("A midpoint block is as wide inside as its streams: leave `hidden` out.")
        net = AntisymmetricConvolution(channels, channels, cond, activation, 1 / _positive(step), start=1.0)
        super().__init__(net, 2 * step, moves=0, swap=True)


class LeapfrogBlock(HalfStep):
    """(a, b) -> (b, 2b - a - h^2 K' f(K b + c)) (Chang et al. 2018): a wave. A chain starts from a = b.

    Linearised with the same K in every block it is stable for h^2 ||K||^2 < 4; held to 1 (`NORM_LIMIT`). The map is
    its own inverse but for the order of the streams.

    Args:
        channels: channels of each stream.
        cond: condition channels, 0 for none.
        hidden: width inside the convolution, `channels` by default.
        step: h.
        activation: f, "tanh" or "relu" (with which deep chains of differing K grow more).

    Shape: a and b (N, channels, H, W), any H and W.
    """

    two_step = True

    def __init__(
        self, channels: int, cond: int = 0, hidden: int | None = None, step: float = 0.5, activation: str = "tanh"
    ) -> None:
        super().__init__(moves=0, swap=True)
        limit = math.sqrt(NORM_LIMIT) / _positive(step)
        self.step, self.net = step, TiedConvolution(channels, hidden or channels, cond, activation, limit, start=1.0)

    def message(self, fixed: Tensor, cond: Tensor | None) -> Tensor:
        return 2 * fixed - self.step**2 * self.net(fixed, cond).to(fixed.dtype)

    def apply_message(self, moving: Tensor, message: Tensor) -> Tensor:
        return message - moving

    def undo_message(self, moved: Tensor, message: Tensor) -> Tensor:
        return message - moved


def _positive(step: float) -> float:
    if not step > 0:
        raise ValueError("`step` must be positive.")
    return step
