"""A small trained rectifier unit, padded on one side and as usual: what can be inverted, and how well conditioned.

After Wang, An, Liu and Li, TNNLS 2024: invertible under weak conditions with certain zero padding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy import sparse
from scipy.sparse.linalg import splu
from torch import Tensor, nn
from torch.nn import functional as F

from irae.experiments.common import Context, Experiment, Result, Row, log_axis, panels
from irae.inverse import SOLVERS
from irae.models.rectifier import RectifierUnit, is_invertible
from irae.training.data import Image, load_training_images
from irae.training.recipe import Data

KERNEL = 3


@dataclass(frozen=True)
class Setup:
    """Each unit is trained to denoise, then inverted on held-out images, in float64.

    Attributes:
        hidden: units of relu; x is a grey image squeezed 2x2, of 4 channels.
        sizes: height and width of x.
        images: held-out images cut to each of the sizes, at most 20.
        steps, batch, patch, lr: of the training; patch is the size of x.
        sigma: noise level, 8-bit levels.
        tol, max_iter: given to the algorithms; tol is a relative residual. Newton's method has `newton_steps`.
        equal: an answer within this of the true input, as a largest difference, is the true input.
        powers: power iterations for each norm in the condition.
        condition_most: largest size whose condition is looked at with usual padding (it takes a sparse LU with fill).
    """

    hidden: int = 16
    sizes: tuple[int, ...] = (8, 16, 32, 64)
    images: tuple[int, ...] = (20, 20, 20, 8)
    steps: int = 1500
    batch: int = 16
    patch: int = 32
    lr: float = 3e-3
    sigma: float = 25.0
    tol: float = 1e-10
    max_iter: int = 1000
    newton_steps: int = 15
    equal: float = 1e-6
    powers: int = 30
    condition_most: int = 64


class OtherTapsFree(RectifierUnit):
    """Only B0 A0 is held, semidefinite, which makes it invertible; the other taps may be as large as they like."""

    def __init__(self, channels: int, hidden: int, kernel: int) -> None:
        super().__init__(channels, hidden, kernel, limit=1e6)
        self.bounded = False

    def _others(self) -> tuple[Tensor, Tensor]:
        elsewhere = 1 - self._at_pixel(torch.ones(1, 1).to(self.bias))
        A, B = super()._others()
        return elsewhere * A, elsewhere * B

    def _off_scale(self, linear: Tensor, quadratic: Tensor) -> Tensor:
        return torch.ones_like(linear)


class RandomTaps(OtherTapsFree):
    """The other taps random as He et al. start them, B0 A0 = 0 nearly; not trained."""

    trained = False

    def __init__(self, channels: int, hidden: int, kernel: int) -> None:
        super().__init__(channels, hidden, kernel)
        nn.init.kaiming_normal_(self.A_taps, nonlinearity="relu")


UNITS: dict[str, Callable[[int, int, int], RectifierUnit]] = {
    "one side, registered": lambda channels, hidden, kernel: RectifierUnit(channels, hidden, kernel),
    "one side, only B0 A0 held": OtherTapsFree,
    "one side, random taps": RandomTaps,
    "one side, free": lambda channels, hidden, kernel: RectifierUnit(channels, hidden, kernel, free=True),
    "usual, free": lambda channels, hidden, kernel: RectifierUnit(channels, hidden, kernel, padding="both", free=True),
}


def run(setup: Setup, context: Context) -> Result:
    """A row for each unit and size: its denoising, the condition of its inverse, and the share that comes back."""
    training, held_out = load_training_images(Data(("bsd400",)), context.root)
    units, rows = dict[str, RectifierUnit](), list[Row]()
    for name in context.track(UNITS, len(UNITS), "padding: training"):
        units[name] = train(UNITS[name], training, setup, context.seed).double()
    cells = list(product(units, zip(setup.sizes, setup.images, strict=True)))
    for name, (size, count) in context.track(cells, len(cells), "padding: inverses"):
        clean = torch.stack([centre(image, size) for image in list(held_out.values())[:count]])
        rows.append({"unit": name, "size": size, "images": count, **invert(units[name], clean, setup)})
    verdicts = [f"{name}: {is_invertible(unit).reason}" for name, unit in units.items()]
    return Result(
        rows, [*NOTES, "What `is_invertible` says after training. " + "; ".join(verdicts) + "."], {"plot": plot(rows)}
    )


def train(make: Callable[..., RectifierUnit], images: list[Image], setup: Setup, seed: int) -> RectifierUnit:
    """One unit, trained to take noise away by mean square error (Adam, a cosine cycle)."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    unit = make(4, setup.hidden, KERNEL)
    optimiser = torch.optim.Adam(unit.parameters(), lr=setup.lr)
    for step in range(setup.steps if getattr(unit, "trained", True) else 0):
        optimiser.param_groups[0]["lr"] = setup.lr * 0.5 * (1 + math.cos(math.pi * step / setup.steps))
        picked = rng.integers(len(images), size=setup.batch)
        clean = torch.stack([random_patch(images[i], setup.patch, rng) for i in picked]).float()
        noisy = clean + setup.sigma / 255 * torch.randn_like(clean)
        optimiser.zero_grad()
        nn.functional.mse_loss(unit(noisy), clean).backward()
        optimiser.step()
    return unit.requires_grad_(False)


def random_patch(image: Image, size: int, rng: np.random.Generator) -> Tensor:
    """x of that size from a random place: (4, size, size)."""
    top, left = (int(rng.integers(side - 2 * size + 1)) for side in image.shape[:2])
    return squeeze(image[top : top + 2 * size, left : left + 2 * size])


def centre(image: Image, size: int) -> Tensor:
    """x of that size from the middle of an image: (4, size, size)."""
    top, left = ((side - 2 * size) // 2 for side in image.shape[:2])
    return squeeze(image[top : top + 2 * size, left : left + 2 * size])


def squeeze(image: Image) -> Tensor:
    """A colour image (2 H, 2 W, 3) as x: grey, in [0, 1], float64, (4, H, W)."""
    return F.pixel_unshuffle(torch.from_numpy(image.mean(2, dtype=np.float64) / 255)[None], 2)


def invert(unit: RectifierUnit, clean: Tensor, setup: Setup) -> Row:
    """The rest of a row, for images (N, 4, size, size)."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(clean.shape, generator=generator, dtype=clean.dtype) * setup.sigma / 255
    x = clean + noise
    y = unit(x)
    row: Row = {
        "denoised (dB)": -10 * math.log10(float((y - clean).square().mean())),
        "condition": condition(unit, x[0], setup),
    }
    for name in SOLVERS:
        if name == "substitution" and unit.padding == "both":
            row |= {f"{name} (%)": None, f"{name} error": None}
            continue
        limit = setup.newton_steps if name == "newton" else setup.max_iter
        found = unit.invert(y, solver=name, tol=setup.tol, max_iter=limit, condition=False).x
        error = (found - x).abs().flatten(1).amax(1).nan_to_num(math.inf)
        row |= {f"{name} (%)": 100 * float((error <= setup.equal).double().mean())}
        row |= {f"{name} error": float(error.median())}
    return row


def condition(unit: RectifierUnit, x: Tensor, setup: Setup) -> float | None:
    """||J|| ||J^-1|| of the Jacobian J = I + A D B at x (4, size, size), by power iterations on sparse matrices.

    The kernels are local, so J is sparse; in raster order and padded on one side it is block triangular, and its LU
    factors have no more non-zeros than J.
    """
    size, one_side = x.shape[-1], unit.padding == "before"
    if not one_side and size > setup.condition_most:
        return None
    A, B = (convolution_matrix(kernel.numpy(), size, one_side) for kernel in unit.weights())
    active = (B @ raster(x) + np.tile(unit.bias.numpy(), size * size)) > 0
    J = (sparse.identity(x.numel()) + A @ sparse.diags(active.astype(np.float64)) @ B).tocsc()
    order = {"permc_spec": "NATURAL", "diag_pivot_thresh": 0.0} if one_side else {}
    lu = splu(J, **order)
    largest = norm(lambda v: J.T @ (J @ v), x.numel(), setup.powers)
    smallest = norm(lambda v: lu.solve(lu.solve(v), trans="T"), x.numel(), setup.powers)
    return math.sqrt(largest * smallest)


def convolution_matrix(kernel: np.ndarray, size: int, one_side: bool) -> Any:
    """The convolution (out, in, k, k) of images size x size as a matrix; vectors are in raster order, channels last."""
    k = kernel.shape[-1]
    before = k - 1 if one_side else k // 2
    shift = [sparse.eye(size, k=tap - before) for tap in range(k)]
    taps = product(range(k), range(k))
    return sum(
        (sparse.kron(sparse.kron(shift[i], shift[j]), kernel[:, :, i, j]) for i, j in taps),
        start=sparse.csc_matrix((len(kernel) * size**2, kernel.shape[1] * size**2)),
    ).tocsc()


def raster(x: Tensor) -> np.ndarray:
    """An image (C, H, W) as a vector in raster order, channels last."""
    return x.permute(1, 2, 0).reshape(-1).numpy()


def norm(gram: Callable[[np.ndarray], np.ndarray], size: int, powers: int) -> float:
    """The largest eigenvalue of a symmetric positive operator, by power iterations: a lower bound, nearly reached."""
    v = np.random.default_rng(0).standard_normal(size)
    growth = 0.0
    for _ in range(powers):
        v = gram(v / np.linalg.norm(v))
        growth = float(np.linalg.norm(v))
        if not math.isfinite(growth):
            return math.inf
    return growth


NOTES = [
    "One unit y = x + A relu(B x + c), 3x3 kernels, trained to denoise grey images squeezed 2x2 (4 channels), then "
    "asked for its input: the share of the held-out noisy images that come back, and the median over them of the "
    "largest error. Condition: ||J|| ||J^-1|| of the Jacobian J at the first image, as a 2-norm.",
    "One side: both convolutions padded with zeros above and left only; registered: as the block `rectifier` holds "
    "its taps in training; only B0 A0 held: the product of the taps at the pixel itself is positive semidefinite, "
    "which makes the unit invertible at every size, and the other taps are free; random taps: the same, not trained, "
    "the other taps as He et al. start them; free: no constraint at all. Usual: padded on all sides.",
]


def plot(rows: list[Row]) -> Figure:
    """Condition against size, and the share that comes back by each algorithm at the largest size."""
    figure, (left, right) = panels(2, width=5.5)
    largest = [row for row in rows if row["size"] == max(row["size"] for row in rows)]
    for name in UNITS:
        mine = [row for row in rows if row["unit"] == name and row["condition"] is not None]
        left.plot([row["size"] for row in mine], [row["condition"] for row in mine], "o-", label=name)
    left.set(yscale="log", xlabel="height and width", ylabel="condition of the inverse")
    log_axis(left, (row["size"] for row in rows))
    left.legend(fontsize="small")
    places = np.arange(len(largest))
    for offset, name in zip((-0.3, -0.1, 0.1, 0.3), SOLVERS, strict=True):
        right.bar(places + offset, [row[f"{name} (%)"] or 0 for row in largest], width=0.2, label=name)
    right.set_xticks(places, [row["unit"].replace(", ", ",\n") for row in largest], fontsize="small")
    right.set(ylim=(0, 118), ylabel="inputs recovered (%)", title=f"{largest[0]['size']} x {largest[0]['size']}")
    right.legend(fontsize="small", loc="upper center", ncols=len(SOLVERS))
    return figure


EXPERIMENT = Experiment(
    title="A trained rectifier unit with one-side and with usual padding",
    run=run,
    full=Setup(),
    quick=Setup(sizes=(8, 16), images=(3, 3), steps=100, max_iter=300),
    minutes=55,
)
