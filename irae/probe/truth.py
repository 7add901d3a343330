"""Tasks whose mutual information is known, for the tests of the estimators.

Tasks of Czyz et al., "Beyond Normal", NeurIPS 2023, by their definitions there; layers by closed forms or quadrature.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.integrate import trapezoid
from scipy.special import digamma, gammaln
from scipy.stats import norm

Array = NDArray[Any]
Sampler = Callable[[int, np.random.Generator], tuple[Array, Array]]


@dataclass(frozen=True)
class Task:
    """Samples whose mutual information is known.

    Attributes:
        name: for people.
        bits: the truth.
        sample: (n, generator) -> x and t, (n, dims) each.
    """

    name: str
    bits: float
    sample: Sampler


def gaussian_channel(dims: int, bits: float = 2.0) -> Task:
    """T = X + s N with X normal in `dims` dimensions and s such that dims / 2 log2(1 + 1 / s^2) is `bits`."""
    noise = (2 ** (2 * bits / dims) - 1) ** -0.5

    def sample(n: int, random: np.random.Generator) -> tuple[Array, Array]:
        x = random.standard_normal((n, dims))
        return x, x + noise * random.standard_normal((n, dims))

    return Task(f"Gaussian channel, {dims} dim.", bits, sample)


def multivariate_normal(name: str, covariance: Array, x_dims: int) -> Task:
    """Jointly normal x (the first coordinates) and t: 1/2 log2(det S_x det S_t / det S)."""
    root = np.linalg.cholesky(covariance)
    dets = (np.linalg.slogdet(c)[1] for c in (covariance[:x_dims, :x_dims], covariance[x_dims:, x_dims:]))
    bits = (sum(dets) - np.linalg.slogdet(covariance)[1]) / 2 / math.log(2)

    def sample(n: int, random: np.random.Generator) -> tuple[Array, Array]:
        z = random.standard_normal((n, len(root))) @ root.T
        return z[:, :x_dims], z[:, x_dims:]

    return Task(name, bits, sample)


def student_t(dims: int, freedom: int) -> Task:
    """Multivariate Student-t with the identity as dispersion, `dims` coordinates each: all is in the tails."""

    def entropy(p: int) -> float:  # in nats; Kotz and Nadarajah 2004, section 1.7
        half = (freedom + p) / 2
        beta = gammaln(p / 2) + gammaln(freedom / 2) - gammaln(half)
        scale = p / 2 * math.log(freedom * math.pi) - gammaln(p / 2) + beta
        return float(scale + half * (digamma(half) - digamma(freedom / 2)))

    def sample(n: int, random: np.random.Generator) -> tuple[Array, Array]:
        z = random.standard_normal((n, 2 * dims)) * np.sqrt(freedom / random.chisquare(freedom, (n, 1)))
        return z[:, :dims], z[:, dims:]

    return Task(f"Student-t, {dims} + {dims} dim.", (2 * entropy(dims) - entropy(2 * dims)) / math.log(2), sample)


def transformed(name: str, task: Task, change: Callable[[Array], Array]) -> Task:
    """A task whose x and t are both mapped one to one, which changes no information."""

    def sample(n: int, random: np.random.Generator) -> tuple[Array, Array]:
        x, t = task.sample(n, random)
        return change(x), change(t)

    return Task(name, task.bits, sample)


def half_cube(z: Array) -> Array:
    """sign(z) |z|^(3/2), which makes tails heavier."""
    return np.sign(z) * np.abs(z) ** 1.5


def spiral(z: Array) -> Array:
    """Turns the first two coordinates by a third of the squared length: volume and length stay."""
    angle = (z**2).sum(1) / 3
    turned = z.copy()
    turned[:, 0] = np.cos(angle) * z[:, 0] - np.sin(angle) * z[:, 1]
    turned[:, 1] = np.sin(angle) * z[:, 0] + np.cos(angle) * z[:, 1]
    return turned


def czyz_tasks() -> list[Task]:
    """Six tasks of the benchmark."""
    bivariate = multivariate_normal("bivariate normal", np.array([[1, 0.75], [0.75, 1]]), 1)
    dense = multivariate_normal("dense normal, 5 + 5 dim.", np.full((10, 10), 0.5) + 0.5 * np.eye(10), 5)
    pairs = np.eye(6)
    pairs[[0, 1, 3, 4], [3, 4, 0, 1]] = 0.8
    tails = student_t(2, 2)
    return [
        bivariate,
        dense,
        student_t(2, 3),
        transformed("half-cube of bivariate", bivariate, half_cube),
        transformed("asinh of Student-t, 2 + 2 dim.", tails, np.arcsinh),
        transformed("spiral of normal, 3 + 3 dim.", multivariate_normal("", pairs, 3), spiral),
    ]


def channel_bits(variances: Array, sigma: float) -> float:
    """Independent normal channels of these variances through noise sigma: sum of 1/2 log2(1 + variance / sigma^2)."""
    return float(np.log2(1 + np.asarray(variances) / sigma**2).sum() / 2)


def relu_bits(sigma: float) -> float:
    """I(X; relu(X) + sigma N) of a standard normal X, by quadrature."""
    return _read_bits(sigma, lambda z: norm.pdf(z) * (z >= 0), atom=0.5)


def max_bits(sigma: float, count: int = 4) -> float:
    """I(X; max(X) + sigma N) of `count` standard normal values, by quadrature."""
    return _read_bits(sigma, lambda z: count * norm.pdf(z) * norm.cdf(z) ** (count - 1))


def _read_bits(sigma: float, density: Callable[[Array], Array], atom: float = 0.0) -> float:
    """I(X; f(X) + sigma N) = h(f(X) + sigma N) - h(sigma N), f(X) of this density and with an atom at 0."""
    step = sigma / 20
    z = (np.arange(-round(9 / step), round(9 / step)) + 0.5) * step  # the jump of a ReLU lies between two points
    kernel: Array = norm.pdf(np.arange(-200, 201) * step, scale=sigma) * step
    mixed: Array = np.convolve(density(z), kernel, mode="same") + atom * norm.pdf(z, scale=sigma)
    logs = np.log2(mixed, out=np.zeros_like(mixed), where=mixed > 0)
    return float(-trapezoid(mixed * logs, z) - norm(scale=sigma).entropy() / math.log(2))


def layer_tasks() -> list[Task]:
    """Layers on normal values, read through noise: what they hold of their input."""
    random = np.random.default_rng(1)
    rotation = np.linalg.qr(random.standard_normal((4, 4)))[0]
    deficient = random.standard_normal((6, 2)) @ random.standard_normal((2, 6)) / 2
    powers = np.linalg.svd(deficient)[1] ** 2

    def task(name: str, bits: float, dims: int, layer: Callable[[Array], Array], sigma: float) -> Task:
        def sample(n: int, random: np.random.Generator) -> tuple[Array, Array]:
            x = random.standard_normal((n, dims))
            t = layer(x)
            return x, t + sigma * random.standard_normal(t.shape)

        return Task(name, bits, sample)

    return [
        task("half of 4 channels dropped", channel_bits(np.ones(2), 0.5), 4, lambda x: x[:, :2], 0.5),
        task("1x1 convolution, rank 2 of 6", channel_bits(powers, 1.0), 6, lambda x: x @ deficient.T, 1.0),
        task("2x2 max-pooling", max_bits(0.25), 4, lambda x: x.max(1, keepdims=True), 0.25),
        task("ReLU, sigma 0.01", relu_bits(0.01), 1, lambda x: np.maximum(x, 0), 0.01),
        task("orthogonal mixing of 4", channel_bits(np.ones(4), 1.0), 4, lambda x: x @ rotation.T, 1.0),
    ]
