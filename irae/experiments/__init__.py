"""Experiments that test the claims of the published work with this package's own code: `irae experiments NAME`.

An experiment is one function from a set-up to a result, and one line in `EXPERIMENTS`.
"""

from __future__ import annotations

from irae.experiments import blocks, depth, fixed_point, mnist, padding
from irae.experiments.common import Context, Experiment, ExperimentError, Result, rich_table, run_experiment

EXPERIMENTS: dict[str, Experiment] = {
    "fixed-point": fixed_point.EXPERIMENT,
    "mnist": mnist.EXPERIMENT,
    "padding": padding.EXPERIMENT,
    "depth": depth.EXPERIMENT,
    "blocks": blocks.EXPERIMENT,
}


def find_experiment(name: str) -> Experiment:
    """The experiment of that name; raises ExperimentError with the names there are."""
    if name not in EXPERIMENTS:
        raise ExperimentError(f"There is no experiment named {name!r}; choose one of {', '.join(EXPERIMENTS)}.")
    return EXPERIMENTS[name]


__all__ = [
    "EXPERIMENTS",
    "Context",
    "Experiment",
    "ExperimentError",
    "Result",
    "find_experiment",
    "rich_table",
    "run_experiment",
]
