"""Estimators of mutual information against truth, and what they refuse."""

from __future__ import annotations

import math

import numpy as np
import pytest

from irae.probe.estimators import ESTIMATORS, EstimatorError, _bootstrap, info_nce, ksg, smile
from irae.probe.truth import (
    Task,
    channel_bits,
    czyz_tasks,
    gaussian_channel,
    layer_tasks,
    max_bits,
    relu_bits,
)

TASKS = {task.name: task for task in czyz_tasks()}


def test_known_values() -> None:
    """The figures of the published benchmark, in nats there, and those of docs and theory."""
    assert TASKS["bivariate normal"].bits == pytest.approx(0.4133 / math.log(2), abs=1e-3)
    assert relu_bits(0.01) == pytest.approx(3.759, abs=1e-3)
    assert channel_bits(np.ones(1), 0.01) == pytest.approx(6.644, abs=1e-3)
    assert max_bits(0.01, count=1) == pytest.approx(6.644, abs=1e-3)  # of one value the maximum is the value


@pytest.mark.parametrize("name", ["half-cube of bivariate", "asinh of Student-t, 2 + 2 dim."])
def test_ksg_sees_through_marginals(name: str) -> None:
    task = TASKS[name]
    found = ksg(*task.sample(4000, np.random.default_rng(0)))
    assert found.bits == pytest.approx(task.bits, abs=0.08)
    assert found.interval[0] < found.bits < found.interval[1]


@pytest.mark.parametrize("task", [gaussian_channel(1), layer_tasks()[3]], ids=lambda task: task.name)
def test_ksg_within_5_percent(task: Task) -> None:
    found = ksg(*task.sample(4000, np.random.default_rng(0)))
    assert found.bits == pytest.approx(task.bits, rel=0.05)


@pytest.mark.parametrize("learned", [info_nce, smile])
def test_learned_within_5_percent(learned) -> None:
    task = gaussian_channel(4)
    found = learned(*task.sample(20_000, np.random.default_rng(0)), steps=200)
    assert found.bits == pytest.approx(task.bits, rel=0.05)
    assert found.n <= 10_000  # reported on the half that it was not trained on


def test_nothing_shared_is_nothing_found() -> None:
    random = np.random.default_rng(0)
    x, t = random.standard_normal((2, 1000, 2))
    for name, estimate in ESTIMATORS.items():
        options = {} if name == "ksg" else {"steps": 50}
        assert abs(estimate(x, t, **options).bits) < 0.1, name


def test_limits_are_stated_and_kept() -> None:
    x = np.random.default_rng(0).standard_normal((1000, 1))
    for estimate in (ksg, info_nce):
        found = estimate(x, x, **({} if estimate is ksg else {"steps": 50}))  # infinite information
        assert found.bits <= found.limit + 1e-6 < 11


def test_groups_widen_the_interval() -> None:
    """Four copies of each sample hold no more than one: the interval is twice as wide as without groups."""
    random = np.random.default_rng(0)
    terms = np.repeat(random.standard_normal((500, 1)), 4, 0)
    alone, together = (_bootstrap(terms, np.mean, g, random) for g in (np.arange(2000), np.repeat(np.arange(500), 4)))
    assert np.diff(together) == pytest.approx(2 * np.diff(alone), rel=0.2)


@pytest.mark.parametrize("estimate", ESTIMATORS.values())
def test_bad_samples(estimate) -> None:
    x = np.random.default_rng(0).standard_normal((300, 2))
    broken = x.copy()
    broken[3, 1] = np.nan
    with pytest.raises(EstimatorError, match="too few"):
        estimate(x[:50], x[:50])
    with pytest.raises(EstimatorError, match="not finite"):
        estimate(x, broken)
    with pytest.raises(EstimatorError, match="t is constant"):
        estimate(x, np.ones((300, 3)))
    with pytest.raises(EstimatorError, match="one length"):
        estimate(x, x[:-1])
