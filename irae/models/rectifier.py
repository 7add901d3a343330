"""Rectifier residual units y = x + A relu(B x + c) that stay invertible in training, and the test whether one is.

After Wang, An, Liu and Li 2021 and 2024, of which the abstracts were at hand: the parametrisation is derived here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from irae.inverse import (
    ACCURACY,
    EXACT_SIZE,
    SOLVERS,
    InverseError,
    Inversion,
    certify,
    is_p_matrix,
    rounding,
    sensitivity,
)
from irae.models.lipschitz import NormBound, conv_norm_bound, limit_norm
from irae.models.reversible import Chain, Invertible, State, match_size, required

PADDINGS = ("before", "after", "both")


class RectifierUnit(nn.Module):
    """y = x + A relu(B x + c + E cond) on one tensor; fully connected with kernel 1, convolutional with kernel 3.

    Both convolutions are padded with zeros on the same side, above and left ("before") or below and right ("after"),
    so that M = B A is triangular from pixel to pixel. Three constraints hold for every parameter value:

    - a core of taps at the pixel itself makes a coupling, and pulls on what it read: B reads one half of the channels
      through R, A writes F to the other half and s R' to the one that B read, s > 0. Its part of M is s R R', which is
      positive semidefinite. Padding "after" swaps the halves.
    - what is added to the core, all other taps and at the pixel all but F and R, is scaled by g <= 1 so that it changes
      M by an operator norm <= off_limit < 1 at every image size (by g L + g^2 Q, so g is the root of
      g ||L|| + g^2 ||Q|| = off_limit, or 1).
    - A is scaled down to ||A|| ||B|| <= limit.

    Then (z1 - z2)' M (z1 - z2) >= -off_limit |z1 - z2|^2, and as relu is firmly nonexpansive the activations z =
    relu(u) follow q = B y + c with a Lipschitz constant of 1 / (1 - off_limit): there is one input, and an error grows
    at most by 1 + limit / (1 - off_limit) in the inverse, whatever the image size. What is added may pull the
    other way at the pixel: a unit that can only expand there could not take noise away.

    Args:
        channels: of x.
        hidden: of relu.
        kernel: 1 or an odd number.
        cond: condition channels, 0 for none.
        padding: "before" or "after"; "both" (the usual one) only if `free`.
        off_limit, limit: see above.
        free: no constraint at all: A and B as they are, which need not be invertible. For experiments.

    Shape: (N, channels, H, W), any H and W, or with kernel 1 (N, channels).
    """

    def __init__(
        self,
        channels: int,
        hidden: int,
        kernel: int = 1,
        cond: int = 0,
        padding: str = "before",
        off_limit: float = 0.5,
        limit: float = 4.0,
        free: bool = False,
    ) -> None:
        super().__init__()
        if padding not in PADDINGS or (padding == "both" and not free):
            raise ValueError(f'`padding` is one of {", ".join(PADDINGS)}, and "both" needs `free`.')
        if kernel < 1 or kernel % 2 == 0:
            raise ValueError("`kernel` is 1 or an odd number.")
        if not (0 < off_limit < 1 and limit > 0):
            raise ValueError("`off_limit` must be between 0 and 1 and `limit` positive.")
        if channels < 2 and not free:
            raise ValueError("A constrained unit needs two channels: one half is read, the other written.")
        self.channels, self.kernel, self.padding, self.free = channels, kernel, padding, free
        self.off_limit, self.limit = off_limit, limit
        self.at = {"before": kernel - 1, "after": 0, "both": kernel // 2}[padding]  # where a kernel meets the pixel
        self.sides = (self.at, kernel - 1 - self.at) * 2  # zeros before and after, in columns and rows
        self.bounded = not free  # the constraints bound the condition of the inverse
        grid = max(16, 5 * kernel)  # the kernels of B A have 2 kernel - 1 taps a side, and need more than twice that
        self.bounds = [NormBound(grid) for _ in range(4)]
        self.bias = nn.Parameter(torch.zeros(hidden))
        self.embed = nn.Conv2d(cond, hidden, 1, bias=False) if cond else None
        self.A_taps = nn.Parameter(torch.zeros(channels, hidden, kernel, kernel))
        self.B_taps = nn.Parameter(torch.empty(hidden, channels, kernel, kernel))
        nn.init.kaiming_normal_(self.B_taps, nonlinearity="relu")
        if not free:
            half = channels // 2
            self.read = nn.Parameter(torch.empty(hidden, half))
            self.write = nn.Parameter(torch.zeros(channels - half, hidden))
            self.pull = nn.Parameter(torch.tensor(-5.0))  # s = softplus(pull), about 0.007: nearly the identity
            nn.init.kaiming_normal_(self.read, nonlinearity="relu")

    def forward(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        image = x if x.dim() == 4 else x[:, :, None, None]
        with torch.autocast(x.device.type, enabled=False):
            A, B = self.weights()
            return (image + self._convolve((self._convolve(image, B) + self.shift(image, cond)).relu(), A)).view_as(x)

    def inverse(self, y: Tensor, cond: Tensor | None = None) -> Tensor:
        """An input with this output, to the precision of the dtype; the only one where the unit is constrained, and
        where it is not, perhaps one of several (`invert` tells what is certain). No gradient flows through it.

        Raises:
            InverseError: none was found, or an unconstrained unit magnifies rounding errors too much there.
        """
        # Rounding ends the iteration; the goal is out of reach for some samples, and what counts is how near it got.
        eps = torch.finfo(y.dtype).eps
        found = self.invert(y, cond, tol=2 * eps, max_iter=500)
        usable = found.residual <= rounding(found.x, y)
        if not self.bounded:
            usable &= found.condition * eps <= ACCURACY
        if not bool(usable.all()):
            why = (
                "it is not finite"
                if self.bounded
                else "it is unconstrained and has no usable inverse, or is not finite"
            )
            raise InverseError(
                f"A rectifier unit was not inverted (residual {float(found.residual.max()):.2g}, condition "
                f"{float(found.condition.max()):.2g}): {why}."
            )
        return found.x

    def invert(
        self,
        y: Tensor,
        cond: Tensor | None = None,
        solver: str | None = None,
        tol: float | None = None,
        max_iter: int = 2000,
        condition: bool = True,
    ) -> Inversion:
        """An inverse by one of the solvers of `irae.inverse`, matrix-free, with what it says about its answer.

        Its condition is from `growth` where the unit is constrained, and estimated by a second solve where it is not.

        Args:
            y: (N, channels, H, W) or (N, channels).
            solver: "picard", "absolute_value", "newton" or "substitution", which is the default for padding on one
                side and needs it; the default is "newton" for "both".
            tol, max_iter: as for the solvers.
            condition: False leaves it NaN where the unit is not constrained, for half of the work.

        Raises:
            ValueError: there is no such solver, or it does not fit the padding.
        """
        solver = solver or ("newton" if self.padding == "both" else "substitution")
        if solver not in SOLVERS or (solver == "substitution" and self.padding == "both"):
            raise ValueError(f"There is no solver {solver!r} for this padding; choose one of {', '.join(SOLVERS)}.")
        image = y if y.dim() == 4 else y[:, :, None, None]
        with torch.no_grad(), torch.autocast(y.device.type, enabled=False):
            A, B, core = self._kernels()
            shift, certificate = self.shift(image, cond), self._certificate()
            extra = {"diagonal": core} if solver == "substitution" else {}

            def solve(y: Tensor) -> Inversion:
                apply_A, apply_B = (partial(self._convolve, kernel=kernel) for kernel in (A, B))
                options = {"tol": tol, "max_iter": max_iter, "certificate": certificate, **extra}
                return SOLVERS[solver](apply_A, apply_B, shift, y, **options)

            found = solve(image)
            known = found.condition  # NaN
            if self.bounded:
                known = self.growth * image.flatten(1).norm(dim=1) / found.x.flatten(1).norm(dim=1).clamp_min(1e-30)
            elif condition:
                known = sensitivity(lambda y: solve(y).x, found.x, image)
        return replace(found, x=found.x.view_as(y), condition=known)

    @property
    def growth(self) -> float:
        """How much an error can grow in the inverse of a constrained unit, at every image size."""
        return 1 + self.limit / (1 - self.off_limit)

    def weights(self) -> tuple[Tensor, Tensor]:
        """The kernels as they are applied: A (channels, hidden, k, k) and B (hidden, channels, k, k)."""
        A, B, _ = self._kernels()
        return A, B

    def diagonal(self, A: Tensor, B: Tensor) -> Tensor:
        """M0 = B0 A0 (hidden, hidden) of kernels that `weights` gave."""
        return B[:, :, self.at, self.at] @ A[:, :, self.at, self.at]

    def shift(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        """c + E cond, to be added to B x."""
        c = self.bias[None, :, None, None]
        return c if self.embed is None else c + self.embed(match_size(required(cond), x).to(x.dtype))

    def matrices(self, height: int = 1, width: int = 1) -> tuple[Tensor, Tensor]:
        """A (n, m) and B (m, n) as matrices for images of this size, n = channels H W, m = hidden H W."""
        dense = []
        with torch.no_grad():
            for kernel in self.weights():
                columns = kernel.shape[1] * height * width
                basis = torch.eye(columns, dtype=kernel.dtype, device=kernel.device)
                dense.append(self._convolve(basis.view(columns, -1, height, width), kernel).flatten(1).mT)
        return dense[0], dense[1]

    def _kernels(self) -> tuple[Tensor, Tensor, Tensor]:
        """A, B and the core's part of M, (hidden, hidden): all of M at the pixel where the unit is free.

        The rest of M is at most off_limit, so `substitution` with the core has the rate that it promises.
        """
        if self.free:
            return self.A_taps, self.B_taps, self.diagonal(self.A_taps, self.B_taps)
        (A_core, B_core), (A_off, B_off) = self._core(), self._others()
        linear = _compose(B_core, A_off) + _compose(B_off, A_core)
        g = self._off_scale(self.bounds[0](linear), self.bounds[1](_compose(B_off, A_off)))
        A, B = A_core + g * A_off, B_core + g * B_off
        norm = self.bounds[2](A) * self.bounds[3](B)
        return limit_norm(A, norm, self.limit), B, self.diagonal(limit_norm(A_core, norm, self.limit), B_core)

    def _core(self) -> tuple[Tensor, Tensor]:
        """A and B of the core, before the last scaling."""
        tied = F.softplus(self.pull) * self.read.mT
        A = torch.cat((self.write, tied) if self.padding == "before" else (tied, self.write))
        return self._at_pixel(A), self._at_pixel(F.pad(self.read, self._written()))

    def _others(self) -> tuple[Tensor, Tensor]:
        """A and B of what is added to the core, before it is scaled by g: all taps but F and R."""
        written = F.pad(torch.zeros_like(self.read[:1]), self._written(), value=1.0)  # (1, channels)
        return self.A_taps * (1 - self._at_pixel(written.mT)), self.B_taps * (1 - self._at_pixel(1 - written))

    def _written(self) -> tuple[int, int]:
        """The channels that the core writes to, before and after those that it reads."""
        return (len(self.write), 0) if self.padding == "before" else (0, len(self.write))

    def _off_scale(self, linear: Tensor, quadratic: Tensor) -> Tensor:
        """The largest g <= 1 with g * linear + g**2 * quadratic <= off_limit."""
        rho = self.off_limit
        root = (linear**2 + 4 * rho * quadratic).clamp_min(rho**2).sqrt()  # the clamp changes nothing: then g is 1
        return 2 * rho / (linear + root).clamp_min(2 * rho)

    def _at_pixel(self, matrix: Tensor) -> Tensor:
        """A matrix as the tap at the pixel of a k x k kernel."""
        return F.pad(matrix[:, :, None, None], self.sides)

    def _convolve(self, x: Tensor, kernel: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, self.sides) if self.kernel > 1 else x, kernel)

    def _certificate(self) -> str:
        if self.bounded:
            return "positive definite"
        verdict = is_invertible(self)
        return "P" if verdict.answer else "unknown"


class RectifierStep(Invertible):
    """A rectifier unit on the two streams together, x = [a, b]: the core of padding "before" reads b and writes a.

    Args: unit: acts on twice the channels of a stream.
    """

    iterative = True

    def __init__(self, unit: RectifierUnit) -> None:
        super().__init__()
        self.unit = unit

    def forward(self, state: State, cond: Tensor | None = None) -> State:
        a, b = self.unit(torch.cat(state, 1), cond).chunk(2, 1)
        return a, b

    def inverse(self, state: State, cond: Tensor | None = None) -> State:
        """The state before; raises `InverseError` as `RectifierUnit.inverse`."""
        a, b = self.unit.inverse(torch.cat(state, 1), cond).chunk(2, 1)
        return a, b


class RectifierBlock(Chain):
    """Two rectifier units on the streams together, x = [a, b], the second mirrored in its corner and halves.

    The core of a unit is a coupling at the pixel, with what is read also pulled on; what is added mixes all channels,
    within the bounds that keep the inverse well conditioned (see `RectifierUnit`, with the figures of an
    error's growth).

    Args:
        channels: channels of each stream.
        cond: condition channels, 0 for none.
        hidden: width inside, `channels` by default.
        kernel: 3, or 1 for units that see one pixel.
        off_limit, limit: see `RectifierUnit`.

    Shape: a and b (N, channels, H, W), any H and W.
    """

    iterative = True

    def __init__(
        self,
        channels: int,
        cond: int = 0,
        hidden: int | None = None,
        kernel: int = 3,
        off_limit: float = 0.5,
        limit: float = 4.0,
    ) -> None:
        super().__init__(
            RectifierStep(RectifierUnit(2 * channels, hidden or channels, kernel, cond, padding, off_limit, limit))
            for padding in ("before", "after")
        )


@dataclass(frozen=True)
class Verdict:
    """Whether a block is invertible: `answer` True, False or None for "not known", and the reason in words."""

    answer: bool | None
    reason: str


def is_invertible(block: nn.Module | tuple[Tensor, Tensor]) -> Verdict:
    """Whether y = x + A relu(B x + c) has one x for every y and c, at every image size.

    I + B A a P-matrix suffices; it is necessary where B has full row rank. Exact up to 20 hidden units (by principal
    minors); for more the sufficient tests: ||B A|| < 1, I + (M + M')/2 positive definite, strict diagonal dominance.
    Padding on one side asks this of the taps at the pixel, M0 = B0 A0, alone. Says nothing of the condition.

    Args:
        block: a `RectifierUnit`, or a chain of bijections of which all rectifier units are looked at (and nothing
            else), or the matrices A (n, m) and B (m, n).

    Raises:
        ValueError: there is no rectifier unit in it, the matrices do not match, or values are not finite.
    """
    if isinstance(block, tuple):
        return _verdict(*block)
    units = [module for module in block.modules() if isinstance(module, RectifierUnit)]
    if not units:
        raise ValueError("There is no rectifier unit in this block.")
    verdicts = [_unit_verdict(unit) for unit in units]
    # One that is not makes the composition none: a piecewise linear map of R^n that is one to one is onto.
    worst = min(verdicts, key=lambda verdict: {False: 0, None: 1, True: 2}[verdict.answer])
    if worst.answer is False and len(units) > 1:
        return Verdict(False, f"one unit is not: {worst.reason}")
    return worst


@torch.no_grad()
def _unit_verdict(unit: RectifierUnit) -> Verdict:
    A, B = unit.weights()
    if not bool(A.isfinite().all() & B.isfinite().all()):
        raise ValueError("The unit's weights are not finite.")
    bound = float(conv_norm_bound(A) * conv_norm_bound(B))
    if bound < 1:
        return Verdict(True, f"||A|| ||B|| is at most {bound:.3g} < 1 at every image size")
    if unit.padding == "both" and unit.kernel > 1:
        return Verdict(None, f"||A|| ||B|| may be {bound:.3g}, and usual padding leaves no smaller condition to test")
    if unit.bounded:
        return Verdict(True, "its parametrisation keeps I + (M + M')/2 positive definite, M = B A")
    verdict = _verdict(A[:, :, unit.at, unit.at], B[:, :, unit.at, unit.at])
    where = " (taps at the pixel)" if unit.kernel > 1 else ""
    return Verdict(verdict.answer, verdict.reason + where)


def _verdict(A: Tensor, B: Tensor) -> Verdict:
    if A.dim() != 2 or A.shape != B.mT.shape:
        raise ValueError(f"A is (n, m) and B (m, n), not {tuple(A.shape)} and {tuple(B.shape)}.")
    if not bool(A.isfinite().all() & B.isfinite().all()):
        raise ValueError("The matrices hold values that are not finite.")
    M = B.double() @ A.double()
    name = certify(M[None])[0]
    if name != "unknown":
        reasons = {
            "norm": "||B A|| < 1",
            "positive definite": "I + (M + M')/2 is positive definite, M = B A",
            "P": "I + B A is a P-matrix",
        }
        return Verdict(True, reasons[name])
    if len(M) > EXACT_SIZE:
        return Verdict(None, f"no sufficient test holds, and {len(M)} hidden units are too many for the exact one")
    exact = is_p_matrix(torch.eye(len(M), dtype=M.dtype, device=M.device) + M)
    if exact:
        return Verdict(True, "I + B A is a P-matrix")
    if exact is None:
        return Verdict(None, "a principal minor of I + B A is 0 to rounding")
    if int(torch.linalg.matrix_rank(B)) == len(B):
        return Verdict(False, "I + B A is not a P-matrix and B has full row rank, so two inputs have one output")
    return Verdict(None, "I + B A is not a P-matrix, but B has no full row rank, so that it need not be one")


def _compose(B: Tensor, A: Tensor) -> Tensor:
    """The kernel of B after A, both padded on the same side: (m, n, k, k) and (n, m, k, k) -> (m, m, 2k-1, 2k-1)."""
    k = A.shape[-1] - 1
    return F.conv2d(A.transpose(0, 1), B.flip(2, 3), padding=k).transpose(0, 1)
