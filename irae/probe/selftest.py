"""`irae probe --self-test`: every instrument on cases with known answers, estimate beside truth."""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from irae.models.irae import IRAE, IRAEConfig
from irae.models.resample import OrthogonalMixing
from irae.probe.estimators import ESTIMATORS, MutualInformation
from irae.probe.inverse import recovery
from irae.probe.jacobian import Local, grams, local, local_by_trace
from irae.probe.patches import Prior
from irae.probe.reconstruction import reconstruct
from irae.probe.taps import HookedNetwork, TappedIRAE
from irae.probe.truth import Task, channel_bits, czyz_tasks, gaussian_channel, layer_tasks

SIGMA = 0.25  # through which the layers below are read
FINE = 1 / 255  # and that of a probe
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Outcome:
    """An estimate beside the truth.

    Attributes:
        case, instrument: for people.
        estimate, truth: in `unit`.
        tolerance: that they may differ by; of lower bounds, that the estimate may lie above the truth by.
        lower: the instrument falls short here, so that it may lie below, down to a third of the truth.
    """

    case: str
    instrument: str
    estimate: float
    truth: float
    tolerance: float
    lower: bool = False
    unit: str = "bits"

    @property
    def passed(self) -> bool:
        """Within the tolerance; a value that is not a number is not."""
        least = self.truth / 3 if self.lower else self.truth - self.tolerance
        return least <= self.estimate <= self.truth + self.tolerance


@dataclass(frozen=True)
class Check:
    """An instrument on a case; `run` takes the seed."""

    case: str
    instrument: str
    run: Callable[[int], list[Outcome]]


class White(Prior):
    """Independent values of variance 1."""

    def __init__(self, *shape: int) -> None:
        self.shape, self.variances = shape, torch.ones(math.prod(shape), dtype=torch.float64)

    def analyse(self, patches: Tensor) -> Tensor:
        return patches.flatten(1)

    def synthesise(self, coefficients: Tensor) -> Tensor:
        return coefficients.float().unflatten(1, self.shape)


class Mixing(nn.Module):
    """An orthogonal mixing of channels, drawn at random."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.part = OrthogonalMixing(channels // 2)
        with torch.no_grad():
            for parameter in self.part.parameters():
                parameter.normal_()

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, 1)
        return torch.cat(self.part((a, b)), 1)


def linear_layer(matrix: Tensor) -> nn.Conv2d:
    """The 1x1 convolution of a matrix (channels out, channels in)."""
    layer = nn.Conv2d(matrix.shape[1], matrix.shape[0], 1, bias=False)
    layer.weight.data = matrix[:, :, None, None]
    return layer


def deficient(channels: int = 4, rank: int = 2) -> Tensor:
    """A matrix (channels, channels) of this rank."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(channels, rank, generator=generator) @ torch.randn(rank, channels, generator=generator) / rank


def layers(sigma: float = SIGMA) -> dict[str, tuple[nn.Module, float, float]]:
    """Name -> a layer on white patches (4, 4, 4), its local information at (z, -z) in bits, its directions lost."""
    each, matrix = channel_bits(np.ones(1), sigma), deficient()
    values = torch.linalg.svdvals(matrix.double()).square().numpy()
    return {
        "half of the channels dropped": (linear_layer(torch.eye(4)[:2]), 32 * each, 32),
        "1x1 convolution of half rank": (linear_layer(matrix), 16 * channel_bits(values, sigma), 32),
        "2x2 max-pooling": (nn.MaxPool2d(2), 16 * each, 48),
        "ReLU": (nn.ReLU(), 32 * each, 32),
        "orthogonal mixing": (Mixing(4), 64 * each, 0),
    }


def checks() -> Iterator[Check]:
    """All checks, the longest first."""
    for dims in (64, 16, 4, 1):
        yield _sampled(gaussian_channel(dims), "infonce", dims == 64, 0.05)
    for dims in (16, 4, 1):
        yield _sampled(gaussian_channel(dims), "smile", dims == 16, 0.05, spread=True)
    for task in czyz_tasks():
        yield _sampled(task, "infonce", task.name.startswith("spiral"), 0.05, spread=True)
    for task in layer_tasks():
        learned = not task.name.startswith("ReLU")  # the sharpest: a learned critic cannot follow in a short training
        yield _sampled(task, "infonce", not learned, 0.05, spread=True)
    for task in (gaussian_channel(1), gaussian_channel(4), *czyz_tasks(), *layer_tasks()):
        x, t = task.sample(2, np.random.default_rng(0))
        yield _sampled(task, "ksg", x.shape[1] + t.shape[1] > 2, 0.05, spread=True)  # too low in more dimensions
    for name in ("half of the channels dropped", "orthogonal mixing", "1x1 convolution of half rank"):
        yield Check(name, "reconstruction", partial(_decoder, name, SIGMA))
    yield Check("orthogonal mixing, 1/255", "reconstruction", partial(_decoder, "orthogonal mixing", FINE))
    for name in layers():
        yield Check(name, "jacobian", partial(_jacobian, name))
    yield Check("IRAE, each layer", "inverse", _inverse)


def _sampled(task: Task, instrument: str, lower: bool, share: float, spread: bool = False) -> Check:
    """Within this share of the truth, with `spread` and half of the estimate's own interval."""
    wide = task.name.startswith("Gaussian") and task.sample(1, np.random.default_rng(0))[0].shape[1] >= 16
    samples = 4000 if instrument == "ksg" else 80_000 if wide else 20_000

    def run(seed: int) -> list[Outcome]:
        x, t = task.sample(samples, np.random.default_rng(seed))
        found: MutualInformation = ESTIMATORS[instrument](x, t, seed)
        assert found.interval is not None
        width = (found.interval[1] - found.interval[0]) / 2 if spread else 0.0
        return [Outcome(task.name, instrument, found.bits, task.bits, share * task.bits + width, lower)]

    return Check(task.name, instrument, run)


def _jacobian(name: str, seed: int) -> list[Outcome]:
    layer, bits, lost = layers()[name]
    network = HookedNetwork(layer, layer, ())
    half = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(seed))
    point, prior = torch.cat((half, -half)), White(4, 4, 4)
    exact = local(grams(network, point, prior, ["output"])["output"][1], prior.variances, 0.0, SIGMA)
    points = point.expand(16, -1, -1, -1).contiguous()
    traced = local_by_trace(network, points, prior, "output", False, 0.0, SIGMA, 24, seed)
    rough = Local(
        *(float(np.mean([getattr(one, key) for one in traced])) for key in ("input_bits", "clean_bits", "lost"))
    )
    soft = SIGMA**2 / (1 + SIGMA**2) * 64  # the largest that directions which are read can add to the soft count
    return [
        Outcome(name, "Jacobian, exact", exact.input_bits, bits, 1e-3 * bits),
        Outcome(name, "Jacobian, exact", exact.lost, lost, 0, unit="lost"),
        Outcome(name, "Jacobian, matrix-free", rough.input_bits, bits, 0.05 * bits),
        Outcome(name, "Jacobian, matrix-free", rough.lost, lost, soft + 0.05 * 64, unit="lost"),
    ]


def _decoder(name: str, sigma: float, seed: int) -> list[Outcome]:
    layer, bits, _ = layers(sigma)[name]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        x = torch.randn(4096, 4, 4, 4)
        t = layer(x)
    made = reconstruct([t], x, x, np.arange(len(x)), White(4, 4, 4), sigma, seed, steps=250)
    lower = name.startswith("1x1")  # errors are correlated between components, which the sum over them leaves out
    case = name if sigma == SIGMA else f"{name}, 1/{1 / sigma:g}"
    return [Outcome(case, "reconstruction", made.clean.bits, bits, 0.05 * bits, lower)]


def _inverse(seed: int) -> list[Outcome]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = IRAE(IRAEConfig(channels=(12, 24), blocks=(1, 1), stem=True, mixing=True))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
        y = (torch.rand(2, 3, 16, 16) * 255).round() / 255
    network = TappedIRAE(model.eval(), torch.zeros(1, 2, 1, 1))
    worst = max(found.levels for _, found in recovery(network, y))
    return [Outcome("IRAE, each layer", "inverse", float(worst), 0.0, 0.0, unit="levels")]


def run_check(number: int, seed: int) -> list[Outcome]:
    """The outcomes of one of the checks."""
    return list(checks())[number].run(seed)


def self_test(seed: int = 0, progress: Progress = lambda *_: None) -> list[Outcome]:
    """All outcomes; checks run two at a time, each in a process of its own on one thread.

    Args:
        seed: of samples and training.
        progress: called with checks done, all checks, and "self-test".
    """
    numbers = range(len(list(checks())))
    outcomes = list[Outcome]()
    spawn = multiprocessing.get_context("spawn")  # a forked process would share this one's threads
    with ProcessPoolExecutor(2, mp_context=spawn, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for number, found in enumerate(pool.map(partial(run_check, seed=seed), numbers)):
            outcomes += found
            progress(number + 1, len(numbers), "self-test")
    return outcomes
