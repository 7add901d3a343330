"""What scores over images say: means with bootstrap intervals, and differences to a reference image by image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import ttest_ind

RESAMPLES = 10_000


@dataclass(frozen=True)
class Mean:
    """A mean over n images with its 95 % bootstrap interval (Efron 1979, percentiles of 10,000 resamples).

    Of few images it is too narrow.
    """

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Paired:
    """A method against the reference on the same images.

    Attributes:
        difference: method less reference; 0 where both are infinite.
        wins, images: on how many images the method is better, of how many.
    """

    difference: Mean
    wins: int
    images: int


def mean(values: Sequence[float]) -> Mean:
    """The mean and its interval; images are drawn with replacement."""
    scores = np.asarray(values, np.float64)
    random, n = np.random.default_rng(0), len(scores)
    means = [scores[random.integers(n, size=(RESAMPLES // 100, n))].mean(1) for _ in range(100)]
    low, high = np.percentile(means, (2.5, 97.5), method="nearest")  # no interpolation of infinities
    return Mean(float(scores.mean()), float(low), float(high), n)


def paired(values: Sequence[float], reference: Sequence[float]) -> Paired:
    """The differences of two methods' scores on the same images, in the same order."""
    ours, theirs = np.asarray(values, np.float64), np.asarray(reference, np.float64)
    with np.errstate(invalid="ignore"):
        differences = np.where(ours == theirs, 0.0, ours - theirs)
    return Paired(mean(differences.tolist()), int((ours > theirs).sum()), len(ours))


def between_trainings(values: Sequence[float], reference: Sequence[float]) -> Mean:
    """The difference of two means over trainings, at least two of each, with its 95 % interval (Welch 1947)."""
    interval = ttest_ind(values, reference, equal_var=False).confidence_interval(0.95)
    difference = float(np.mean(values) - np.mean(reference))
    return Mean(difference, float(interval.low), float(interval.high), len(values) + len(reference))
