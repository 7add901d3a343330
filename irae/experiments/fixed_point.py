"""Which algorithm inverts how many random rectifier units, against the scale of their weights.

After Wang, An, Liu and Li, MFC 2021; the details of its set-up are not public, so this one is ours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import torch
from matplotlib.figure import Figure
from torch import Tensor

from irae.experiments.common import Context, Experiment, Result, Row, log_axis
from irae.inverse import SOLVERS


@dataclass(frozen=True)
class Setup:
    """The cases: y = x + A relu(B x + c) with `units` inputs and hidden units, in float64.

    Attributes:
        cases: random cases for each family and scale, the same for all algorithms.
        scales: s; the weights are drawn from N(0, s**2 / units).
        tol: relative residual that the algorithms are asked for.
        max_iter: of the two fixed-point iterations; Newton's method stops by itself.
        equal: an answer within this of the true input, as a largest difference, is the true input.
    """

    cases: int = 500
    units: int = 20
    scales: tuple[float, ...] = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 5.0, 10.0, 20.0)
    tol: float = 1e-11
    max_iter: int = 2000
    equal: float = 1e-6


@dataclass(frozen=True)
class Cases:
    """A batch of units and inputs: A (batch, n, n), B likewise, c and x (batch, n)."""

    A: Tensor
    B: Tensor
    c: Tensor
    x: Tensor

    @property
    def y(self) -> Tensor:
        """x + A relu(B x + c)."""
        u = (self.B @ self.x[..., None])[..., 0] + self.c
        return self.x + (self.A @ u.relu()[..., None])[..., 0]


def linear_any(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """y = x + A relu(x + c), A random."""
    return first, _identity(first)


def linear_semidefinite(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """y = x + S S' relu(x + c), S random."""
    return first @ first.mT, _identity(first)


def linear_triangular(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """y = x + A relu(x + c), A lower triangular, as one-side padding makes it, with a diagonal >= 0."""
    return first.tril(-1) + torch.diag_embed(first.diagonal(dim1=1, dim2=2).abs()), _identity(first)


def unit_any(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """y = x + A relu(B x + c), A and B random."""
    return first, second


def unit_semidefinite(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """y = x + B' relu(B x + c), B random."""
    return first.mT, first


FAMILIES: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "linear, any": linear_any,
    "linear, semidefinite": linear_semidefinite,
    "linear, triangular": linear_triangular,
    "unit, any": unit_any,
    "unit, semidefinite": unit_semidefinite,
}


def run(setup: Setup, context: Context) -> Result:
    """The share of the cases inverted by each algorithm, for each family and scale."""
    cells = [
        (family, scale, name)
        for family, scale, name in product(FAMILIES, setup.scales, SOLVERS)
        if name != "substitution" or "triangular" in family
    ]
    rows = []
    for family, scale, name in context.track(cells, len(cells), "fixed-point"):
        rows.append(invert_cases(setup, draw_cases(setup, family, scale, context.seed), family, scale, name))
    return Result(rows, NOTES, {"plot": plot(rows)})


def draw_cases(setup: Setup, family: str, scale: float, seed: int) -> Cases:
    """The cases of a family and scale; the same noise for all, so that the scales differ by nothing else."""
    generator = torch.Generator().manual_seed(seed)
    batch, n = setup.cases, setup.units
    first, second = torch.randn(2, batch, n, n, generator=generator, dtype=torch.float64) * scale / n**0.5
    c, x = torch.randn(2, batch, n, generator=generator, dtype=torch.float64)
    return Cases(*FAMILIES[family](first, second), c, x)


def invert_cases(setup: Setup, cases: Cases, family: str, scale: float, name: str) -> Row:
    """How the cases end with one algorithm, in per cent."""
    limit = {} if name == "newton" else {"max_iter": setup.max_iter}
    answer = SOLVERS[name](cases.A, cases.B, cases.c, cases.y, tol=setup.tol, **limit)
    true = (answer.x - cases.x).abs().amax(1) <= setup.equal
    certain = torch.tensor([certificate != "unknown" for certificate in answer.certificate])
    return {
        "family": family,
        "scale": scale,
        "algorithm": name,
        "inverted (%)": _percent(true),
        "another preimage (%)": _percent(answer.converged & ~true),
        "no answer (%)": _percent(~answer.converged & ~true),
        "certified (%)": _percent(certain),
        "iterations (median)": float(answer.iterations.double().median()),
    }


NOTES = [
    "Share of the cases whose input comes back. A case is y = x + A relu(B x + c). Linear: B = I; unit: A and B of "
    "the same size. Any: nothing is asked of the weights; semidefinite: BA = SS' with S drawn like the weights; "
    "triangular: BA is lower triangular, as one-side padding makes it, with a diagonal >= 0, and only there "
    "`substitution` applies. All that is random is normal: x and c with deviation 1, the weights with deviation "
    "scale / sqrt(units).",
    "Another preimage: the algorithm converged to an x that gives the same y and is not the input, because the unit "
    "is not invertible, or because y does not fix x to the accuracy asked. Certified: the solver found a reason why "
    "there is one preimage only.",
]


def plot(rows: list[Row]) -> Figure:
    """Share inverted against scale, a panel for each family and a curve for each algorithm."""
    figure = Figure(figsize=(3.4 * len(FAMILIES), 3.4), layout="constrained")
    for axes, family in zip(figure.subplots(1, len(FAMILIES), sharey=True), FAMILIES, strict=True):
        for name, style in zip(SOLVERS, ("o-", "s-", "^--", "d:"), strict=True):
            mine = [row for row in rows if row["family"] == family and row["algorithm"] == name]
            if mine:
                axes.plot([row["scale"] for row in mine], [row["inverted (%)"] for row in mine], style, label=name)
        axes.set(title=family, xlabel="scale of the weights", ylim=(-4, 104))
        log_axis(axes, (row["scale"] for row in rows))
        axes.legend(fontsize="small")
    figure.axes[0].set_ylabel("inputs recovered (%)")
    return figure


def _identity(like: Tensor) -> Tensor:
    return torch.eye(like.shape[-1], dtype=like.dtype).expand_as(like)


def _percent(which: Tensor) -> float:
    return 100 * float(which.double().mean())


EXPERIMENT = Experiment(
    title="Random rectifier units inverted, against the scale of their weights",
    run=run,
    full=Setup(),
    quick=Setup(cases=100, scales=(0.2, 0.5, 1.0, 2.0, 5.0), max_iter=500),
    minutes=5,
)
