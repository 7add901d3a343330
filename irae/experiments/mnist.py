"""A classifier of MNIST digits whose hidden layers are all invertible, and the digits recovered from the last of them.

After Wang, An, Liu and Li, MFC 2021.
"""

from __future__ import annotations

import math
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from irae.datasets import DatasetError, data_root
from irae.experiments.common import Context, Experiment, Result, Row
from irae.inverse import SOLVERS
from irae.models.rectifier import RectifierUnit
from irae.training.recipe import learning_rate_scale

CLASSES = 10
PICTURED = ("absolute_value", "picard")


@dataclass(frozen=True)
class Design:
    """A constraint on the units: `limit` bounds ||A|| ||B||, `pull` is what the tied weight s starts from."""

    limit: float = 4.0
    pull: float = -3.0


# The second is trained if Picard's iteration inverts the first as well: there the theory lets it fail.
DESIGNS = {"registered": Design(), "weaker bound": Design(limit=32.0, pull=0.5)}


@dataclass(frozen=True)
class Setup:
    """The classifier and its training, and what is recovered.

    Attributes:
        channels: after the first squeeze and the lift; four times as many after the second.
        units: rectifier units at 14 x 14 and at 7 x 7.
        hidden: units of relu at the two.
        images: training images, at most 60,000; `test` of at most 10,000.
        epochs, batch, lr: of the training.
        samples: test images of each class that are recovered, in float64.
        tol, max_iter: given to the algorithms; tol is a relative residual.
        equal: recovered means that the largest difference is at most this: half an 8-bit level.
    """

    channels: int = 8
    units: tuple[int, int] = (2, 2)
    hidden: tuple[int, int] = (16, 32)
    images: int = 60_000
    test: int = 10_000
    epochs: int = 8
    batch: int = 100
    lr: float = 1e-2
    samples: int = 100
    tol: float = 1e-10
    max_iter: int = 300
    equal: float = 0.5 / 255


class Digits(nn.Module):
    """MNIST to ten scores; every layer before the linear readout has an inverse.

    Unshuffle 2x2, orthogonal lift to more channels, rectifier units, unshuffle 2x2, rectifier units; padding on one
    side, the corner changing from unit to unit.

    Shape: (N, 1, 28, 28) -> (N, 10).
    """

    def __init__(self, setup: Setup, design: Design) -> None:
        super().__init__()
        width = setup.channels
        mixing = nn.Linear(width, width, bias=False)  # its first four columns are the lift
        self.mixing = parametrizations.orthogonal(mixing, orthogonal_map="matrix_exp")
        self.fine = nn.ModuleList(make_units(width, setup.units[0], setup.hidden[0], design))
        self.coarse = nn.ModuleList(make_units(4 * width, setup.units[1], setup.hidden[1], design))
        self.readout = nn.Linear(4 * width * 49, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(self.hidden(x).flatten(1))

    def lift(self) -> Tensor:
        """An injective 1x1 convolution that keeps all lengths, (channels, 4, 1, 1)."""
        return cast(Tensor, self.mixing.weight)[:, :4, None, None]

    def hidden(self, x: Tensor) -> Tensor:
        """The last hidden layer, (N, 4 * channels, 7, 7)."""
        x = F.conv2d(F.pixel_unshuffle(x, 2), self.lift())
        for unit in self.fine:
            x = unit(x)
        x = F.pixel_unshuffle(x, 2)
        for unit in self.coarse:
            x = unit(x)
        return x

    def recover(self, hidden: Tensor, solver: str, setup: Setup) -> Tensor:
        """The images of a last hidden layer, as a solver of `irae.inverse` finds them."""
        x = self._back(hidden, self.coarse, solver, setup)
        x = self._back(F.pixel_shuffle(x, 2), self.fine, solver, setup)
        down = torch.linalg.pinv(self.lift()[:, :, 0, 0])  # the transpose, but for the rounding in training
        return F.pixel_shuffle(F.conv2d(x, down[:, :, None, None]), 2)

    def _back(self, x: Tensor, units: nn.ModuleList, solver: str, setup: Setup) -> Tensor:
        for unit in reversed(units):
            assert isinstance(unit, RectifierUnit)
            limit = 30 if solver == "newton" else setup.max_iter
            x = unit.invert(x, solver=solver, tol=setup.tol, max_iter=limit).x
        return x


def make_units(channels: int, count: int, hidden: int, design: Design) -> list[RectifierUnit]:
    """Units as the block `rectifier` has them, two to a block, but for what `pull` starts from."""
    units = [
        RectifierUnit(channels, hidden, 3, padding=("before", "after")[place % 2], limit=design.limit)
        for place in range(count)
    ]
    for unit in units:
        nn.init.constant_(unit.pull, design.pull)
    return units


def run(setup: Setup, context: Context) -> Result:
    """Train, test, and recover the digits: a row for each class and all together."""
    data = load_mnist(context.root)
    rows, notes, figures = list[Row](), list(NOTES), dict[str, Figure]()
    for name, design in DESIGNS.items():
        torch.manual_seed(context.seed)
        network = Digits(setup, design)
        train(network, data, setup, context, name)
        accuracy = test(network, data, setup)
        network.double().requires_grad_(False)
        x, labels = pick(data, setup.samples)
        hidden = network.hidden(x)
        found = {solver: network.recover(hidden, solver, setup) for solver in SOLVERS}
        mine = summarise(name, x, labels, found, setup)
        rows += mine
        notes.append(f"{name}: {accuracy:.2f} % of the test images classified correctly; {pull_and_norm(network)}.")
        figures["plot" if name == "registered" else "plot-weaker"] = picture(x, labels, found)
        if mine[-1]["picard (%)"] < 50:
            break
        notes.append(f"{name}: here Picard's iteration inverts as well; the units' bound is that tight.")
    return Result(rows, notes, {**figures, "errors": plot(rows)})


def load_mnist(root: Path | None) -> dict[str, Tensor]:
    """x_train, x_test (N, 1, 28, 28) in [0, 1] and y_train, y_test (N,); raises DatasetError."""
    path = data_root(root) / "mnist" / "mnist.npz"
    try:
        with np.load(path) as file:
            arrays = {key: torch.from_numpy(file[key]) for key in ("x_train", "y_train", "x_test", "y_test")}
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise DatasetError(f"MNIST is expected in {path}: {error}.") from error
    return {key: a[:, None].float() / 255 if key.startswith("x") else a.long() for key, a in arrays.items()}


def train(network: Digits, data: dict[str, Tensor], setup: Setup, context: Context, name: str) -> None:
    """AdamW (weight decay 0.01) on the cross entropy, a cosine cycle, images shifted by up to a pixel."""
    generator = torch.Generator().manual_seed(context.seed)
    some = torch.randperm(len(data["x_train"]), generator=generator)[: setup.images]  # the file is sorted by class
    x, labels = data["x_train"][some], data["y_train"][some]
    optimiser = torch.optim.AdamW(network.parameters(), lr=setup.lr, weight_decay=0.01)
    steps = setup.epochs * (len(x) // setup.batch)
    order = torch.cat([torch.randperm(len(x), generator=generator) for _ in range(setup.epochs)])
    for step in context.track(range(steps), steps, f"mnist, {name}"):
        optimiser.param_groups[0]["lr"] = setup.lr * learning_rate_scale(step, steps, 100)
        chosen = order[step * setup.batch : (step + 1) * setup.batch]
        shift = torch.randint(-1, 2, (2,), generator=generator).tolist()
        optimiser.zero_grad(set_to_none=True)
        F.cross_entropy(network(x[chosen].roll(shift, (2, 3))), labels[chosen]).backward()
        optimiser.step()


@torch.no_grad()
def test(network: Digits, data: dict[str, Tensor], setup: Setup) -> float:
    """Per cent of the test images classified correctly."""
    some = torch.randperm(len(data["x_test"]), generator=torch.Generator().manual_seed(0))[: setup.test]
    x, labels = data["x_test"][some], data["y_test"][some]
    right = [network(part).argmax(1) == label for part, label in zip(x.split(500), labels.split(500), strict=True)]
    return 100 * float(torch.cat(right).double().mean())


def pick(data: dict[str, Tensor], samples: int) -> tuple[Tensor, Tensor]:
    """The first test images of each class, float64, and their labels."""
    chosen = torch.cat([(data["y_test"] == label).nonzero()[:samples, 0] for label in range(CLASSES)])
    return data["x_test"][chosen].double(), data["y_test"][chosen]


def summarise(name: str, x: Tensor, labels: Tensor, found: dict[str, Tensor], setup: Setup) -> list[Row]:
    """Relative error (median) and share recovered by class, and over all."""
    rows = list[Row]()
    for label in [*range(CLASSES), "all"]:
        which = torch.ones_like(labels, dtype=torch.bool) if label == "all" else labels == label
        row: Row = {"classifier": name, "class": str(label)}
        for solver, answer in found.items():
            difference = (answer - x)[which].flatten(1).nan_to_num(math.inf)
            relative = difference.norm(dim=1) / x[which].flatten(1).norm(dim=1)
            row[f"{solver} error"] = float(relative.median())
            row[f"{solver} (%)"] = 100 * float((difference.abs().amax(1) <= setup.equal).double().mean())
        rows.append(row)
    return rows


@torch.no_grad()
def pull_and_norm(network: Digits) -> str:
    """What decides whether Picard's iteration converges: the norms of the units' M0 = B0 A0, in words."""
    norms = []
    for unit in [*network.fine, *network.coarse]:
        assert isinstance(unit, RectifierUnit)
        norms.append(float(torch.linalg.matrix_norm(unit.diagonal(*unit.weights()), 2)))
    return f"||B0 A0|| of its units is {min(norms):.2f} to {max(norms):.2f}"


NOTES = [
    "Every layer before the linear readout has an inverse: unshuffle, orthogonal lift, rectifier units with 3x3 "
    "kernels padded on one side. Digits of the test set are recovered from the last hidden layer in float64. Error: "
    "median of ||found - x|| / ||x||; share: those that are the same 8-bit image after rounding. Where an algorithm "
    "does not converge in a layer, the layer before goes on from the best it saw.",
]


def picture(x: Tensor, labels: Tensor, found: dict[str, Tensor]) -> Figure:
    """A digit of each class: original, recovered by the new algorithm, recovered by Picard's."""
    rows = {"original": x, **{name: found[name] for name in PICTURED}}
    first = [int((labels == label).nonzero()[0]) for label in range(CLASSES)]
    page = torch.cat([torch.cat(list(images[first, 0].clamp(0, 1)), 1) for images in rows.values()])
    figure = Figure(figsize=(CLASSES, 0.4 + len(rows)), layout="constrained")
    axes = figure.subplots()
    axes.imshow(page.numpy(), cmap="gray", vmin=0, vmax=1)
    axes.set_yticks([14 + 28 * line for line in range(len(rows))], list(rows))
    axes.set_xticks([])
    return figure


def plot(rows: list[Row]) -> Figure:
    """Relative error by class, a curve for each algorithm, a panel for each classifier."""
    names = list(dict.fromkeys(row["classifier"] for row in rows))
    figure = Figure(figsize=(5 * len(names), 3.4), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        mine = [row for row in rows if row["classifier"] == name and row["class"] != "all"]
        for solver, style in zip(SOLVERS, ("o-", "s-", "^--", "d:"), strict=True):
            axes.plot([row["class"] for row in mine], [row[f"{solver} error"] for row in mine], style, label=solver)
        axes.set(title=name, xlabel="class", ylabel="relative error (median)", yscale="log", ylim=(1e-16, 10))
        axes.legend(fontsize="small")
    return figure


EXPERIMENT = Experiment(
    title="MNIST with invertible hidden layers, and the digits recovered from the last one",
    run=run,
    full=Setup(),
    quick=Setup(hidden=(8, 16), images=6_000, test=1_000, epochs=1, samples=2, max_iter=60),
    minutes=40,
)
