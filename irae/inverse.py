"""Inverses of the rectifier residual y = x + A relu(B x + c), and of y = x + g(x) with a contraction g.

Each says whether it converged, how well conditioned the answer is, and whether it is the input or only a preimage.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from irae.errors import IraeError

Operator = Tensor | Callable[[Tensor], Tensor]
Step = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]  # state -> (x, residual of x, next state)

ACCURACY = 1e-4  # relative error, estimated as condition * residual, up to which an answer is called the input
EXACT_SIZE = 20  # hidden units up to which all principal minors are looked at
EXACT_SIZE_IN_SOLVERS = 12  # the same inside the solvers, whose work it must not dwarf
CERTIFICATES = ("norm", "positive definite", "P", "unknown")


class InverseError(IraeError):
    """A block could not be inverted; the message says what to do."""


@dataclass(frozen=True)
class Inversion:
    """What a solver found. All but `x` are per sample: shape (batch,), or () and one string where y has no batch.

    Attributes:
        x: the answer, of the shape of y: the best one seen, also where it did not converge; NaN where Newton's method
            met a singular system.
        converged: the residual is within the tolerance.
        iterations: until then, or until the solver gave up.
        residual: ||y - x - A relu(B x + c)|| / ||y||.
        certificate: why there is no other preimage: "norm" (||B A|| < 1), "positive definite" (I + (M + M')/2 with
            M = B A), "P" (I + M is a P-matrix), each implying the next, or "unknown".
        condition: the relative error of x is up to about `condition * residual`: ||y|| / ||x|| times the norm of the
            inverse of the Jacobian I + A D B, at x or where a Newton step leads from it, whichever is larger. NaN for
            functions (`sensitivity` estimates it).
        fallback: Newton's method did not settle, and pivoting (matrices) or a line search (functions) took over.
    """

    x: Tensor
    converged: Tensor
    iterations: Tensor
    residual: Tensor
    certificate: str | tuple[str, ...]
    condition: Tensor
    fallback: Tensor

    @property
    def answer(self) -> str | tuple[str, ...]:
        """Of each sample "the input", "a preimage" (there may be others), "ill conditioned", "condition unknown" (there
        is no other, but nobody knows how near it is) or "not found".

        Ill conditioned: the residual is small, and may still be `ACCURACY` or more away from the input.
        """
        error = self.condition * self.residual.clamp_min(torch.finfo(self.residual.dtype).eps)
        if isinstance(self.certificate, str):
            return _answer(bool(self.converged), float(error), self.certificate)
        samples = zip(self.converged.tolist(), error.tolist(), self.certificate, strict=True)
        return tuple(_answer(*sample) for sample in samples)


def picard(
    A: Operator,
    B: Operator,
    c: Tensor,
    y: Tensor,
    *,
    tol: float | None = None,
    max_iter: int = 2000,
    certificate: str | None = None,
) -> Inversion:
    """x <- y - A relu(B x + c): the algorithm of i-ResNet (Behrmann et al. 2019, algorithm 1).

    Converges if ||B A|| < 1, and hardly beyond.

    Args:
        A: (n, m) or (batch, n, m), or a linear function (batch, ...) -> (batch, ...).
        B: (m, n) or (batch, m, n), or a function likewise; both matrices or both functions.
        c: (m,) or (batch, m); for functions anything that can be added to B(y).
        y: (n,) or (batch, n); for functions (batch, ...).
        tol: relative residual to reach; 1e-10 in float64 and 1e-5 in float32 by default.
        max_iter: iterations before it gives up.
        certificate: what the caller knows of uniqueness; by default found from matrices, "unknown" for functions.

    Raises:
        ValueError: shapes or types that do not match, values that are not finite, or options that make no sense.
    """
    problem = _Problem(A, B, c, y, tol, max_iter, certificate)

    def step(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        residual = problem.residual(x)
        return x, residual, x + residual

    return problem.repeat(step, problem.y, max_iter)


def absolute_value(
    A: Operator,
    B: Operator,
    c: Tensor,
    y: Tensor,
    *,
    tol: float | None = None,
    max_iter: int = 2000,
    certificate: str | None = None,
    scale: float | None = None,
    window: int = 5,
) -> Inversion:
    """Inversion through relu(u) = (u + |u|) / 2, which turns one unknown sign a unit into a linear solve.

    With M = B A, q = B y + c, z = relu(v) and z - w = u for w = scale * relu(-v), the equation u + M relu(u) = q is
    (scale + 1 + M) v = 2 q + (scale - 1 - M) |v|. Iterated as it stands it converges for every positive scale
    if I + (M + M')/2 is positive definite; for symmetric positive semidefinite M at the rate (s - 1) / (s + 1) with the
    default scale s = sqrt(1 + ||M||); scale = 1 is u <- (I + M/2)^-1 (q - (M/2) |u|), of rate ||M|| / (2 + ||M||).
    Anderson acceleration makes it several times faster; where it did harm, the plain step is taken. Derived from the
    abstracts of Wang et al. 2021 and 2024 and the modulus iteration for linear complementarity problems (Bai 2010);
    linear solves are LU for matrices and GMRES for functions.

    Args: as `picard`; scale: positive, by default sqrt(1 + ||M||), for functions from an estimate of ||M||;
        window: differences that the acceleration looks back at, 0 for none.

    Raises:
        ValueError: as `picard`, or a scale that is not positive. A singular system is flagged as not converged.
    """
    if scale is not None and not scale > 0:
        raise ValueError("`scale` must be positive.")
    problem = _Problem(A, B, c, y, tol, max_iter, certificate)
    omega = (1 + problem.norm()).sqrt() if scale is None else torch.full_like(problem.size, scale)
    solve, omega, faster = problem.linear(1 + omega), problem.column(omega), _Anderson(window)

    def step(v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = problem.y - problem.A(v.relu())
        moved = solve(2 * problem.q + (omega - 1) * v.abs() - problem.M(v.abs()), v)
        return x, problem.residual(x), faster(v, moved - v)

    return problem.repeat(step, problem.q, max_iter)


def newton(
    A: Operator,
    B: Operator,
    c: Tensor,
    y: Tensor,
    *,
    tol: float | None = None,
    max_iter: int = 50,
    certificate: str | None = None,
) -> Inversion:
    """Newton's method on u + M relu(u) = q: u <- (I + M D(u))^-1 q with D(u) = diag(u > 0), a few steps where it works.

    It can cycle, for P-matrices of order 3 and more too. Then matrices go on with Murty's least-index pivoting,
    which ends for every P-matrix (Murty 1974; given up after 50 + 10 m turns), functions with a line search; `fallback`
    of the result says so.

    Args: as `picard`; max_iter counts Newton's steps.

    Raises:
        ValueError: as `picard`. A singular system is flagged as not converged.
    """
    problem = _Problem(A, B, c, y, tol, max_iter, certificate)
    if problem.matrix is None:
        return _newton_of_functions(problem, max_iter)
    u, iterations, fallback = _complementarity(problem.matrix, problem.q, max_iter)
    return problem.result(problem.y - problem.A(u.relu()), iterations, fallback)


def substitution(
    A: Operator,
    B: Operator,
    c: Tensor,
    y: Tensor,
    *,
    tol: float | None = None,
    max_iter: int = 2000,
    certificate: str | None = None,
    diagonal: Tensor | None = None,
) -> Inversion:
    """Inversion of a block triangular M = B A, one diagonal block after the other, as Gauss would.

    Matrices: the finest block triangular structure, lower or upper, is read off M, and each block is solved by
    Newton's method with pivoting. One block is left if there is none, which makes it `newton`.

    Functions: convolutions padded on one side, whose M is triangular from pixel to pixel with the same block M0 on the
    diagonal. All pixels are swept at once, each with one step of `absolute_value` for M0 and the other pixels'
    values of the sweep before. Pixels settle anti-diagonal by anti-diagonal, so it converges wherever the steps
    for M0 do (I + (M0 + M0')/2 positive definite); with M0 = 0 it ends after H + W - 1 sweeps and each is one of
    `picard`.
    With r = ||M - M0|| < 1 and symmetric positive semidefinite M0 the error shrinks by (s - 1 + 2 r) / (s + 1),
    s = sqrt(1 + ||M0||), in each sweep (derived here), so that far fewer do; that holds for any such M0 at each pixel,
    what is left of the true block counted in r.

    Args: as `picard`, with `max_iter` for functions only; `diagonal`: M0 (m, m), which acts on the first axis after
        the batch, for functions only.

    Raises:
        ValueError: as `picard`, or functions without `diagonal`. A singular system is flagged as not converged.
    """
    problem = _Problem(A, B, c, y, tol, max_iter, certificate)
    if problem.matrix is not None:
        u, iterations, fallback = _block_by_block(problem.matrix, problem.q)
        return problem.result(problem.y - problem.A(u.relu()), iterations, fallback)
    if diagonal is None:
        raise ValueError("`substitution` of functions needs `diagonal`, the block of B A at the pixel itself.")
    eye = torch.eye(len(diagonal), dtype=y.dtype, device=y.device)
    omega = (1 + torch.linalg.matrix_norm(diagonal, 2)).sqrt()
    inverse, singular = torch.linalg.inv_ex((1 + omega) * eye + diagonal)
    inverse = torch.where(singular == 0, inverse, torch.nan)

    def step(v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z = v.relu()
        x = problem.y - problem.A(z)
        u = problem.B(x) + problem.c  # = q - M z
        others = u + _mix(diagonal, z)  # q - (M - M0) z
        moved = _mix(inverse, 2 * others + _mix((omega - 1) * eye - diagonal, v.abs()))
        return x, problem.A(z - u.relu()), moved

    return problem.repeat(step, problem.q, max_iter)


def fixed_point(g: Callable[[Tensor], Tensor], y: Tensor, *, max_iter: int = 500, window: int = 5) -> Inversion:
    """The x with x + g(x) = y for a contraction g: x <- y - g(x), accelerated (Anderson 1965; Walker and Ni 2011).

    A sample whose residual grew takes the plain step from where it was before, which for a contraction shrinks it.

    Args:
        g: (batch, ...) -> (batch, ...) with a Lipschitz constant below 1.
        y: (batch, ...).
        max_iter: evaluations of g before it gives up.
        window: differences that the acceleration looks back at; 0 for the plain iteration.
    """
    anderson = _Anderson(window)

    def step(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        residual = y - x - g(x)
        return x, residual, anderson(x, residual)

    x, error, iterations = _repeat(step, y, _size(y), 2 * torch.finfo(y.dtype).eps, max_iter)
    converged = error <= rounding(x, y)
    unknown = torch.full_like(error, torch.nan)
    return Inversion(x, converged, iterations, error, ("norm",) * len(y), unknown, torch.zeros_like(converged))


def rounding(x: Tensor, y: Tensor) -> Tensor:
    """The residual of x = solver(y), relative to y, that rounding may leave: a little above the last bit of the larger.

    Returns: (batch,).
    """
    return 100 * torch.finfo(y.dtype).eps * (_size(x) / _size(y)).clamp_min(1)


def sensitivity(solver: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    """The relative change of x = solver(y) over that of y, for a small random one: a lower bound of the condition.

    One direction is enough to see errors that grow exponentially over an image.

    Args:
        solver: an inverse, (batch, ...) -> (batch, ...).
        x, y: its answer and its argument.

    Returns: (batch,), infinite where the solver's answer is not finite.
    """
    noise = torch.randn(y.shape, generator=torch.Generator().manual_seed(0), dtype=y.dtype).to(y.device)
    step = torch.finfo(y.dtype).eps ** 0.5
    scale = (step * _size(y) / _size(noise)).view(-1, *(1,) * (y.dim() - 1))
    change = _norm(solver(y + scale * noise) - x) / (step * _size(x))
    return torch.where(change.isfinite(), change, torch.inf)


def smallest_pivot(matrix: Tensor, error: float = 0.0) -> tuple[Tensor, Tensor]:
    """Bounds of the smallest ratio of principal minors det(M[a + i]) / det(M[a]) of a P-matrix M.

    All 2^m minors by repeated Schur complements (Tsatsomeros and Li 2000), with bounds of the rounding errors. M is a
    P-matrix if the lower bound is positive, and none if the upper one is not; between them rounding decides.

    Args:
        matrix: (..., m, m) with m <= 20.
        error: of each of its elements.

    Returns: lower and upper bound, (...), float64.

    Raises:
        ValueError: m is too large, or the matrix is not finite.
    """
    if matrix.shape[-1] > EXACT_SIZE:
        raise ValueError(f"The exact test looks at 2^m minors; m is {matrix.shape[-1]} and at most {EXACT_SIZE}.")
    if not bool(matrix.isfinite().all()):
        raise ValueError("The matrix holds values that are not finite.")
    parts = matrix.double().unsqueeze(-3)
    errors = torch.full_like(parts, error)
    low = torch.full(matrix.shape[:-2], torch.inf, dtype=torch.float64, device=matrix.device)
    high = low.clone()
    while parts.shape[-1]:
        pivot, slack = parts[..., :1, :1], errors[..., :1, :1]
        low = torch.minimum(low, (pivot - slack).amin(dim=(-3, -2, -1)))
        high = torch.minimum(high, (pivot + slack).amin(dim=(-3, -2, -1)))
        if bool((high <= 0).all()):
            break
        safe = torch.where(pivot.abs() > slack, pivot, torch.inf)  # the others have decided already
        row, row_error = parts[..., :1, 1:], errors[..., :1, 1:]
        column, column_error = parts[..., 1:, :1] / safe, errors[..., 1:, :1] / safe.abs()
        rest, product = parts[..., 1:, 1:], column * row
        product_error = (
            column_error * (row.abs() + row_error)
            + column.abs() * row_error
            + product.abs() * slack / (safe.abs() - slack)
            + 4 * torch.finfo(parts.dtype).eps * (rest.abs() + product.abs())
        )
        parts = torch.cat((rest, rest - product), -3)
        errors = torch.cat((errors[..., 1:, 1:], errors[..., 1:, 1:] + product_error), -3)
    return low, high


def is_p_matrix(matrix: Tensor) -> bool | None:
    """Whether all principal minors of a matrix (m, m), m <= 20, are positive; None where rounding decides.

    Raises:
        ValueError: m is too large, or the matrix is not finite.
    """
    low, high = smallest_pivot(matrix)
    return True if float(low) > 0 else False if float(high) <= 0 else None


def certify(M: Tensor) -> tuple[str, ...]:
    """For each M = B A of (batch, m, m) the strongest reason found why u + M relu(u) = q has one solution only.

    "norm", "positive definite", "P" (strictly diagonally dominant, or by its diagonal blocks' minors up to m = 12)
    or "unknown".
    """
    batch, m, _ = M.shape
    if m == 0:
        return ("norm",) * batch
    eye, margin = torch.eye(m, dtype=M.dtype, device=M.device), _rounding(M)
    norm = torch.linalg.matrix_norm(M, 2) < 1 - margin
    definite = torch.linalg.eigvalsh(eye + (M + M.mT) / 2)[:, 0] > margin
    diagonal = (eye + M).diagonal(dim1=1, dim2=2)
    p_matrix = 2 * diagonal > (eye + M).abs().sum(-1) + margin  # row by row
    certain = p_matrix.all(-1) | norm | definite
    if not bool(certain.all()):
        order, ends = _block_structure(M)
        sizes = [end - start for start, end in zip((0, *ends), ends, strict=False)]
        if max(sizes) <= EXACT_SIZE_IN_SOLVERS:
            ordered, open_ = (eye + M)[:, order][:, :, order], (~certain).nonzero().flatten()
            spans = [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]
            pivots = [smallest_pivot(ordered[open_, span, span], margin)[0] for span in spans]
            certain[open_] = torch.stack(pivots).amin(0) > 0
    names = zip(norm.tolist(), definite.tolist(), certain.tolist(), strict=True)
    return tuple(
        "norm" if small else "positive definite" if positive else "P" if p else "unknown"
        for small, positive, p in names
    )


class _Problem:
    """y = x + A relu(B x + c) for a batch of samples, from matrices or from functions."""

    def __init__(
        self,
        A: Operator,
        B: Operator,
        c: Tensor,
        y: Tensor,
        tol: float | None,
        max_iter: int,
        certificate: str | None,
    ) -> None:
        if max_iter < 0 or certificate not in (None, *CERTIFICATES):
            raise ValueError(f"`max_iter` is not negative, and a certificate one of: {', '.join(CERTIFICATES)}.")
        dense = isinstance(A, Tensor) and isinstance(B, Tensor)
        if not dense and (isinstance(A, Tensor) or isinstance(B, Tensor)):
            raise ValueError("Give A and B both as matrices or both as functions.")
        if len({t.dtype for t in (A, B, c, y) if isinstance(t, Tensor)}) > 1 or not y.is_floating_point():
            raise ValueError("A, B, c and y are of one floating point type.")
        if not dense and y.dim() < 2:
            raise ValueError("For functions y has a batch: (batch, ...).")
        self.batched = not dense or y.dim() == 2 or c.dim() == 2 or (isinstance(A, Tensor) and A.dim() == 3)
        self._A, self._B, self.c = A, B, c
        self.y = y if y.dim() > 1 or not dense else y[None]
        for name, value in (("A", A), ("B", B), ("c", c), ("y", y)):
            if isinstance(value, Tensor) and not bool(value.isfinite().all()):
                raise ValueError(f"{name} holds values that are not finite.")
        if isinstance(A, Tensor) and isinstance(B, Tensor):
            self.y = _check_shapes(A, B, c, self.y)
        self.matrix = B @ A if isinstance(A, Tensor) and isinstance(B, Tensor) else None
        self.q = self.B(self.y) + c
        self.size = _size(self.y)
        self.tol = tol if tol is not None else (1e-10 if y.dtype == torch.float64 else 1e-5)
        self._certificate = certificate

    def A(self, r: Tensor) -> Tensor:
        return _times(self._A, r)

    def B(self, x: Tensor) -> Tensor:
        return _times(self._B, x)

    def M(self, r: Tensor) -> Tensor:
        return self.B(self.A(r))

    def residual(self, x: Tensor) -> Tensor:
        return self.y - x - self.A((self.B(x) + self.c).relu())

    def column(self, per_sample: Tensor) -> Tensor:
        """(batch,) -> (batch, 1, ...), to be broadcast over q."""
        return per_sample.view(-1, *(1,) * (self.q.dim() - 1))

    def norm(self) -> Tensor:
        """||M|| of each sample, (batch,); for functions the growth in a few power iterations, an estimate."""
        if self.matrix is not None:
            return torch.linalg.matrix_norm(self.matrix, 2).expand(len(self.y))
        generator = torch.Generator().manual_seed(0)
        v = torch.randn(self.q.shape, generator=generator, dtype=self.q.dtype).to(self.q.device)
        growth = torch.zeros_like(self.size)
        for _ in range(10):
            w = self.M(v / self.column(_size(v)))
            v, growth = w, torch.maximum(growth, _norm(w))
        return growth

    def linear(self, shift: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """The solver of (shift + M) v = rhs, as a function of rhs and a guess."""
        if self.matrix is None:
            column = self.column(shift)
            # Inexact on purpose: the outer iteration corrects what is left.
            return lambda rhs, guess: _gmres(lambda v: column * v + self.M(v), rhs, guess, 0.02, cycle=5, cycles=4)
        eye = torch.eye(self.matrix.shape[-1], dtype=self.q.dtype, device=self.q.device)
        factors, pivots, _ = torch.linalg.lu_factor_ex(shift[:, None, None] * eye + self.matrix)
        return lambda rhs, guess: torch.linalg.lu_solve(factors, pivots, rhs[..., None])[..., 0]

    def repeat(self, step: Step, state: Tensor, max_iter: int) -> Inversion:
        x, _, iterations = _repeat(step, state, self.size, self.tol, max_iter)
        return self.result(x, iterations)

    def result(self, x: Tensor, iterations: Tensor, fallback: Tensor | None = None) -> Inversion:
        """The answer, with its residual measured anew."""
        # A residual smaller than what rounding x does to it says nothing.
        rounding = torch.finfo(x.dtype).eps * _norm(x)
        error = torch.maximum(_norm(self.residual(x)), rounding) / self.size
        error = torch.where(error.isfinite(), error, torch.inf)
        converged = error <= self.tol
        fallback = torch.zeros_like(converged) if fallback is None else fallback
        condition, names = self._condition(x), self._names(len(x))
        if self.batched:
            return Inversion(x, converged, iterations, error, names, condition, fallback)
        return Inversion(x[0], converged[0], iterations[0], error[0], names[0], condition[0], fallback[0])

    def _names(self, batch: int) -> tuple[str, ...]:
        if self._certificate is not None or self.matrix is None:
            return (self._certificate or "unknown",) * batch
        names = certify(self.matrix if self.matrix.dim() == 3 else self.matrix[None])
        return names if len(names) == batch else names * batch

    def _condition(self, x: Tensor) -> Tensor:
        if not isinstance(self._A, Tensor) or not isinstance(self._B, Tensor):
            return torch.full_like(self.size, torch.nan)
        eye = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
        scale, inverse_norm = self.size / _size(x), torch.zeros_like(self.size)
        for _ in range(2):
            active = (self.B(x) + self.c > 0).to(x.dtype)
            jacobian = eye + (self._A * active[:, None, :]) @ self._B
            inverse_norm = torch.maximum(inverse_norm, 1 / torch.linalg.svdvals(jacobian)[:, -1])
            x = x + torch.linalg.solve_ex(jacobian, self.residual(x)[..., None])[0][..., 0]
        return (scale * inverse_norm).nan_to_num(nan=torch.inf)


class _Anderson:
    """Anderson acceleration of x <- x + residual, for each sample of a batch by itself.

    A sample whose residual grew goes back to the last point where it had not, and takes the plain step from there,
    for better or worse: where the map is a contraction the residual then shrinks.
    """

    def __init__(self, window: int) -> None:
        self.window = window
        self.moves, self.changes = list[Tensor](), list[Tensor]()
        self.last: tuple[Tensor, Tensor] | None = None
        self.good: tuple[Tensor, Tensor] | None = None
        self.back: Tensor | None = None  # the samples that went back the last time

    def __call__(self, x: Tensor, residual: Tensor) -> Tensor:
        flat, f = x.flatten(1), residual.flatten(1)
        if not self.window:
            return x + residual
        if self.last is None or self.good is None or self.back is None:
            self.last = self.good = flat, f
            self.back = torch.zeros(len(x), 1, dtype=torch.bool, device=x.device)
            return x + residual
        self.moves = [*self.moves, flat - self.last[0]][-self.window :]
        self.changes = [*self.changes, f - self.last[1]][-self.window :]
        self.last = flat, f
        moves, changes = torch.stack(self.moves, 1), torch.stack(self.changes, 1)
        gram = (changes @ changes.mT).double()
        size = gram.diagonal(dim1=1, dim2=2).sum(-1)[:, None, None].clamp_min(torch.finfo(x.dtype).tiny)
        eye = torch.eye(len(self.moves), dtype=gram.dtype, device=x.device)
        weights, _ = torch.linalg.solve_ex(gram / size + 1e-10 * eye, (changes @ f[..., None]).double() / size)
        faster = f - ((moves + changes).mT @ weights.to(x.dtype))[..., 0]
        self.back = ~self.back & (_norm(f) > _norm(self.good[1]))[:, None]
        ahead = torch.where(self.back, self.good[0] + self.good[1], flat + faster)
        self.good = torch.where(self.back, self.good[0], flat), torch.where(self.back, self.good[1], f)
        return ahead.view_as(x)


def _repeat(step: Step, state: Tensor, size: Tensor, tol: float, max_iter: int) -> tuple[Tensor, Tensor, Tensor]:
    """Step until every sample is within `tol`, is held up by rounding, or is no longer finite.

    Returns each sample's best x, its relative residual, and the iterations it took.
    """
    floor, patience = 100 * torch.finfo(size.dtype).eps, 10
    best, error = torch.empty(0), torch.full_like(size, torch.inf)
    iterations = torch.zeros(len(size), dtype=torch.long, device=size.device)
    idle, open_ = torch.zeros_like(iterations), torch.ones_like(size, dtype=torch.bool)
    for _ in range(max_iter + 1):
        x, residual, state = step(state)
        now = _norm(residual) / size
        better = open_ & (now < error)
        best = torch.where(better.view(-1, *(1,) * (x.dim() - 1)), x, best) if len(best) else x
        idle = torch.where((now < 0.9 * error) | (error > floor), 0, idle + 1)
        error = torch.where(better, now, error)
        open_ = open_ & (error > tol) & now.isfinite() & (idle < patience)
        if not bool(open_.any()):
            break
        iterations += open_
    return best, error, iterations.clamp_max(max_iter)


def _complementarity(M: Tensor, q: Tensor, max_iter: int) -> tuple[Tensor, Tensor, Tensor]:
    """u with u + M relu(u) = q by Newton's method, then Murty's pivoting: u (batch, m), iterations, fallback."""
    batch, m = q.shape
    M = M.expand(batch, m, m)
    active = q > 0
    u = q.clone()
    iterations = torch.zeros(batch, dtype=torch.long, device=q.device)
    open_ = torch.arange(batch, device=q.device)
    fallback = torch.zeros(batch, dtype=torch.bool, device=q.device)
    for step in range(max_iter + 50 + 10 * m):
        u[open_] = _solve_active(M[open_], active[open_], q[open_])
        iterations[open_] += 1
        slack = 4 * torch.finfo(q.dtype).eps * q[open_].abs().amax(1, keepdim=True)
        wrong = torch.where(active[open_], u[open_] < -slack, u[open_] > slack)
        going = wrong.any(1) & u[open_].isfinite().all(1)
        open_, wrong = open_[going], wrong[going]
        if not len(open_):
            break
        if step >= max_iter:  # least index first: only the first wrong sign is turned
            wrong = torch.nn.functional.one_hot(wrong.int().argmax(1), m).bool()
            fallback[open_] = True
        active[open_] ^= wrong
    return u, iterations, fallback


def _solve_active(M: Tensor, active: Tensor, q: Tensor) -> Tensor:
    """(I + M diag(active))^-1 q; NaN where the system is singular."""
    eye = torch.eye(M.shape[-1], dtype=M.dtype, device=M.device)
    u, info = torch.linalg.solve_ex(eye + M * active[:, None, :].to(M.dtype), q[..., None])
    return torch.where((info == 0)[:, None], u[..., 0], torch.nan)


def _block_by_block(M: Tensor, q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """u with u + M relu(u) = q for a block triangular M, diagonal block by diagonal block."""
    order, ends = _block_structure(M if M.dim() == 3 else M[None])
    M, q = M[..., order, :][..., order], q[:, order]
    u, start = torch.zeros_like(q), 0
    iterations = torch.zeros(len(q), dtype=torch.long, device=q.device)
    fallback = torch.zeros(len(q), dtype=torch.bool, device=q.device)
    for end in ends:
        known = _times(M[..., start:end, :start], u[:, :start].relu())
        u[:, start:end], steps, turned = _complementarity(M[..., start:end, start:end], q[:, start:end] - known, 50)
        iterations, fallback, start = iterations + steps, fallback | turned, end
    return u[:, torch.argsort(order)], iterations, fallback


def _block_structure(M: Tensor) -> tuple[Tensor, list[int]]:
    """The order of the units, as they are or reversed, that has the most lower triangular blocks, and their ends."""
    m = M.shape[-1]
    used = (M != 0).any(0)
    choices = []
    for order in (torch.arange(m, device=M.device), torch.arange(m - 1, -1, -1, device=M.device)):
        ordered = used[order][:, order]
        # A block may end before i if no unit before i reads one from i on.
        last = torch.where(ordered, torch.arange(m, device=M.device), -1).amax(1).cummax(0).values
        ends = [i for i in range(1, m + 1) if int(last[i - 1]) < i]
        choices.append((order, ends))
    return max(choices, key=lambda choice: len(choice[1]))


def _newton_of_functions(problem: _Problem, max_iter: int) -> Inversion:
    """Newton's method with GMRES; where the residual grew, half steps until it shrinks (at most 10)."""

    def error(u: Tensor) -> Tensor:
        return u + problem.M(u.relu()) - problem.q

    fallback, steps = torch.zeros_like(problem.size, dtype=torch.bool), 0

    def step(u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        nonlocal fallback, steps
        x = problem.y - problem.A(u.relu())
        active, now = (u > 0).to(u.dtype), _norm(error(u))
        target = _gmres(lambda v: v + problem.M(active * v), problem.q, u, 1e-3 * problem.tol, cycle=30, cycles=10)
        length = torch.ones_like(now)
        # The first steps may overshoot and still end sooner; from the sixth on each must make progress.
        if steps >= 5:
            for _ in range(10):
                grown = ~(_norm(error(u + problem.column(length) * (target - u))) < now) & (now > 0)
                grown &= now > problem.tol * _size(problem.q)
                if not bool(grown.any()):
                    break
                fallback = fallback | grown
                length = torch.where(grown, length / 2, length)
        steps += 1
        return x, problem.residual(x), u + problem.column(length) * (target - u)

    x, _, iterations = _repeat(step, problem.q, problem.size, problem.tol, max_iter)
    return problem.result(x, iterations, fallback)


def _gmres(
    apply: Callable[[Tensor], Tensor], rhs: Tensor, guess: Tensor, reduce: float, cycle: int, cycles: int
) -> Tensor:
    """Restarted GMRES (Saad and Schultz 1986) for each sample of a batch: the guess's residual times `reduce`, or as
    small as rounding lets it become.
    """
    v, column = guess, (-1, *(1,) * (rhs.dim() - 1))
    tiny, goal = torch.finfo(rhs.dtype).tiny, 4 * torch.finfo(rhs.dtype).eps * _norm(rhs)
    for turn in range(cycles):
        residual = rhs - apply(v)
        length = _norm(residual)
        goal = goal if turn else goal.maximum(reduce * length)
        if not bool((length > goal).any()):
            break
        basis = [residual / length.clamp_min(tiny).view(column)]
        hessenberg = rhs.new_zeros(len(rhs), cycle + 1, cycle)
        first = rhs.new_zeros(len(rhs), cycle + 1, 1)
        first[:, 0, 0] = length
        for j in range(cycle):
            w = apply(basis[j])
            for i, u in enumerate(basis):
                hessenberg[:, i, j] = (u * w).flatten(1).sum(1)
                w = w - hessenberg[:, i, j].view(column) * u
            hessenberg[:, j + 1, j] = _norm(w)
            basis.append(w / _norm(w).clamp_min(tiny).view(column))
            small, wanted = hessenberg[:, : j + 2, : j + 1], first[:, : j + 2]
            # One sample that is not finite must not take the others with it.
            finite = (small.flatten(1).isfinite().all(1) & length.isfinite())[:, None, None]
            small, wanted = small.where(finite, 0), wanted.where(finite, 0)
            weights = torch.linalg.lstsq(small, wanted).solution
            if not bool((_norm(small @ weights - wanted) > goal).any()):
                break
        weights = weights.where(finite, torch.nan)[..., 0]
        for w, u in zip(weights.unbind(1), basis, strict=False):
            v = v + w.view(column) * u
    return v


def _check_shapes(A: Tensor, B: Tensor, c: Tensor, y: Tensor) -> Tensor:
    """y with the batch that A, B, c and y have together.

    Raises:
        ValueError: they do not match.
    """
    shapes = f"A {tuple(A.shape)}, B {tuple(B.shape)}, c {tuple(c.shape)} and y {tuple(y.shape)}"
    fits = A.dim() in (2, 3) and B.dim() == A.dim() and c.dim() in (1, 2) and y.dim() == 2
    if not fits or A.shape[-2:] != (y.shape[-1], c.shape[-1]) or B.shape[-2:] != (c.shape[-1], y.shape[-1]):
        raise ValueError(f"Shapes do not match: A is (n, m), B (m, n), c (m,), y (n,) or (batch, n), not {shapes}.")
    batches = {len(t) for t, dim in ((A, 3), (B, 3), (c, 2), (y, 2)) if t.dim() == dim} - {1}
    if len(batches) > 1:
        raise ValueError(f"Batch sizes do not match: {shapes}.")
    return y.expand(max(batches, default=1), -1)


def _times(operator: Operator, vector: Tensor) -> Tensor:
    if not isinstance(operator, Tensor):
        return operator(vector)
    return vector @ operator.mT if operator.dim() == 2 else (operator @ vector[..., None])[..., 0]


def _mix(matrix: Tensor, v: Tensor) -> Tensor:
    """The matrix times the first axis after the batch."""
    return torch.einsum("ij,bj...->bi...", matrix, v)


def _norm(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1)


def _size(x: Tensor) -> Tensor:
    """The norm of each sample, 1 where it is 0."""
    norm = _norm(x)
    return torch.where(norm > 0, norm, 1.0)


def _rounding(matrix: Tensor) -> float:
    """What rounding may make of 0 in sums of products of this size."""
    return (
        float(torch.finfo(matrix.dtype).eps * matrix.shape[-1] * matrix.abs().amax().clamp_min(1))
        if matrix.numel()
        else 0.0
    )


def _answer(converged: bool, error: float, certificate: str) -> str:
    if not converged:
        return "not found"
    if error > ACCURACY:
        return "ill conditioned"
    if certificate == "unknown":
        return "a preimage"
    return "condition unknown" if math.isnan(error) else "the input"


SOLVERS: dict[str, Callable[..., Inversion]] = {
    "picard": picard,
    "absolute_value": absolute_value,
    "newton": newton,
    "substitution": substitution,
}
