"""Every experiment runs with a tiny set-up and writes table and plot; the facts that must hold at any size hold."""

from __future__ import annotations

import csv
import os
from functools import lru_cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from irae.cli import app
from irae.datasets import DatasetError
from irae.experiments import EXPERIMENTS, Context, Result, find_experiment, fixed_point, run_experiment
from irae.experiments import blocks as blocks_experiment
from irae.experiments.blocks import PLAIN, build, count, fit_width
from irae.experiments.common import ExperimentError, csv_text, in_processes, show
from irae.experiments.depth import Allocations
from irae.experiments.mnist import load_mnist
from irae.experiments.padding import UNITS, condition, convolution_matrix, raster
from irae.inverse import SOLVERS
from irae.models.blocks import BLOCKS

TINY: dict[str, dict[str, Any]] = {
    "fixed-point": {"cases": 20, "scales": (0.2, 2.0), "max_iter": 300},
    "mnist": {
        "channels": 8,
        "units": (1, 2),
        "hidden": (8, 8),
        "images": 200,
        "test": 100,
        "batch": 100,
        "samples": 1,
        "max_iter": 60,
    },
    "padding": {"hidden": 4, "sizes": (4, 6), "images": (2, 2), "steps": 4, "batch": 2, "patch": 8, "max_iter": 100},
    "depth": {"depths": (4, 8), "channels": 4, "size": 8, "batch": 1, "repeats": 1},
    "blocks": {
        "parameters": 10_000,
        "seeds": 2,
        "shares": (1.0,),
        "batch": 2,
        "patch": 16,
        "held_out": 1,
        "processes": 0,
        "most_steps": 2,
    },
}
NEED_DATA = ("mnist", "padding", "blocks")
needs_data = pytest.mark.skipif("IRAE_DATA" not in os.environ, reason="needs the image sets (IRAE_DATA)")


def tiny(name: str) -> Any:
    experiment = EXPERIMENTS[name]
    return type(experiment.full)(**TINY[name])


@lru_cache
def run_tiny(name: str) -> tuple[Result, Path]:
    """The result of an experiment, run once for all tests, and its folder."""
    folder = Path(mkdtemp()) / name
    return run_experiment(EXPERIMENTS[name], tiny(name), Context(folder)), folder


def rows_of(name: str, **having: Any) -> list[dict[str, Any]]:
    rows = [row for row in run_tiny(name)[0].rows if all(row[key] == value for key, value in having.items())]
    assert rows
    return rows


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[needs_data] if name in NEED_DATA else []) for name in EXPERIMENTS]
)
def test_experiment_writes_table_and_plot(name: str) -> None:
    result, folder = run_tiny(name)
    rows = list(csv.DictReader((folder / "table.csv").read_text().splitlines()))
    assert len(rows) == len(result.rows) > 1
    text = (folder / "table.md").read_text()
    assert all(word in text for word in ("seed: 0", "torch", "cores", *result.rows[0]))
    assert "plot" in result.figures
    for stem in result.figures:
        assert (folder / f"{stem}.png").read_bytes().startswith(b"\x89PNG")


def test_absolute_value_inverts_semidefinite_cases_that_picard_does_not() -> None:
    for family in ("linear, semidefinite", "unit, semidefinite"):
        share = {row["algorithm"]: row["inverted (%)"] for row in rows_of("fixed-point", family=family, scale=2.0)}
        assert share["picard"] == 0
        assert share["absolute_value"] == share["newton"] == 100


def test_every_algorithm_inverts_cases_with_small_weights() -> None:
    assert {row["inverted (%)"] for row in rows_of("fixed-point", scale=0.2)} == {100.0}


@pytest.mark.parametrize("family", fixed_point.FAMILIES)
def test_a_case_certified_to_have_one_preimage_gives_it(family: str) -> None:
    """Case by case, where y fixes x to the accuracy asked."""
    setup, certain = tiny("fixed-point"), 0
    for scale in setup.scales:
        cases = fixed_point.draw_cases(setup, family, scale, seed=0)
        for name in ("picard", "absolute_value", "newton"):
            answer = SOLVERS[name](cases.A, cases.B, cases.c, cases.y, tol=setup.tol)
            said = torch.tensor([verdict == "the input" for verdict in answer.answer])
            assert bool(((answer.x - cases.x).abs().amax(1)[said] <= setup.equal).all())
            certain += int(said.sum())
    assert certain


@needs_data
def test_digits_come_back_and_a_weaker_bound_stops_picard() -> None:
    for row in rows_of("mnist", **{"class": "all"}):
        assert row["absolute_value (%)"] == row["newton (%)"] == row["substitution (%)"] == 100
    assert rows_of("mnist", **{"class": "all"})[-1]["picard (%)"] < 50


@needs_data
def test_the_registered_padding_is_inverted_and_well_conditioned() -> None:
    for row in rows_of("padding", unit="one side, registered"):
        assert row["absolute_value (%)"] == row["newton (%)"] == row["substitution (%)"] == 100
        assert row["condition"] < 100


@pytest.mark.parametrize("name", UNITS)
def test_condition_equals_that_of_the_dense_jacobian(name: str) -> None:
    torch.manual_seed(0)
    unit = UNITS[name](4, 6, 3).double().requires_grad_(False)
    for parameter in unit.parameters():
        parameter.normal_(0, 0.2)
    x = torch.randn(4, 5, 5, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda x: unit(x[None])[0], x).view(100, 100)
    setup = type(EXPERIMENTS["padding"].full)(powers=2000)
    assert condition(unit, x, setup) == pytest.approx(float(torch.linalg.cond(jacobian)), rel=1e-2)


@pytest.mark.parametrize("name", ["one side, only B0 A0 held", "one side, random taps"])
def test_units_that_hold_the_pixel_alone_keep_it_semidefinite(name: str) -> None:
    torch.manual_seed(0)
    unit = UNITS[name](4, 6, 3).double().requires_grad_(False)
    for parameter in unit.parameters():
        parameter.normal_(0, 0.2)
    at_pixel = unit.diagonal(*unit.weights())
    torch.testing.assert_close(at_pixel, at_pixel.mT)
    assert torch.linalg.eigvalsh(at_pixel).min() > -1e-12


@pytest.mark.parametrize("padding", ["before", "both"])
def test_convolution_matrix_is_the_convolution(padding: str) -> None:
    x, kernel = torch.randn(3, 4, 4, dtype=torch.float64), torch.randn(2, 3, 3, 3, dtype=torch.float64)
    sides = (2, 0, 2, 0) if padding == "before" else (1, 1, 1, 1)
    expected = torch.nn.functional.conv2d(torch.nn.functional.pad(x, sides)[None], kernel)[0]
    found = convolution_matrix(kernel.numpy(), 4, padding == "before") @ raster(x)
    np.testing.assert_allclose(found, raster(expected), atol=1e-12)


@pytest.mark.parametrize("block", BLOCKS)
def test_memory_free_chains_keep_the_same_at_every_depth(block: str) -> None:
    free = {row["blocks"]: row for row in rows_of("depth", block=block, backward="memory-free")}
    plain = {row["blocks"]: row for row in rows_of("depth", block=block, backward="plain")}
    assert free[4]["saved (MiB)"] == free[8]["saved (MiB)"]
    assert plain[8]["saved (MiB)"] > 1.5 * plain[4]["saved (MiB)"]
    assert free[8]["peak (MiB)"] <= 1.1 * free[4]["peak (MiB)"]


def test_allocations_count_what_is_alive_together() -> None:
    with Allocations() as allocations:
        kept = torch.zeros(1000)
        (torch.ones(500) + 1).relu_().view(10, 50).sum()
    assert allocations.peak(without=[]) == 4 * 2000
    assert allocations.peak(without=[kept]) == 4 * 1000


@pytest.mark.parametrize("name", [*BLOCKS, PLAIN])
def test_networks_have_equal_parameters(name: str) -> None:
    parameters = EXPERIMENTS["blocks"].full.parameters
    assert count(build(name, fit_width(name, parameters))) == pytest.approx(parameters, rel=0.03)


def test_the_twin_has_the_parameters_of_the_additive_network() -> None:
    config = fit_width("additive", 40_000)
    assert count(build(PLAIN, config)) == count(build("additive", config))
    image = torch.rand(1, 3, 9, 11)
    assert build(PLAIN, config)(image, torch.zeros(1, 2, 1, 1)).shape == image.shape


@needs_data
def test_finished_runs_are_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    result, folder = run_tiny("blocks")
    assert all(row["spread (dB)"] is not None for row in result.rows)
    runs = folder / "runs.jsonl"
    with runs.open("a") as file:
        file.write('{"key": "cut off')  # as a run that was ended in the middle of a line leaves it
    monkeypatch.setattr(blocks_experiment, "train_one", lambda job: pytest.fail("was trained again"))
    again = EXPERIMENTS["blocks"].run(tiny("blocks"), Context(folder))
    assert again.rows == result.rows
    found = blocks_experiment.read_runs(runs)
    kept = next(iter(found.values()))
    assert kept["psnr"] > 0
    # A run that is still open then goes on a line of its own.
    runs.write_text(runs.read_text().partition("\n")[2])
    monkeypatch.setattr(blocks_experiment, "train_one", lambda job: (job.key(), kept))
    EXPERIMENTS["blocks"].run(tiny("blocks"), Context(folder))
    assert blocks_experiment.read_runs(runs) == found


def test_jobs_run_in_other_processes() -> None:
    assert sorted(in_processes(abs, [-2, 1, -3], processes=1)) == [1, 2, 3]


def test_missing_mnist_is_said_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="MNIST is expected in"):
        load_mnist(tmp_path)


def test_unknown_experiment_lists_the_known_ones() -> None:
    with pytest.raises(ExperimentError, match="fixed-point, mnist, padding, depth, blocks"):
        find_experiment("fixedpoint")
    assert isinstance(CliRunner().invoke(app, ["experiments", "fixedpoint"]).exception, ExperimentError)


def test_numbers_are_shown_short_and_written_in_full() -> None:
    assert (show(1 / 3), show(None), show("a")) == ("0.3333", "", "a")
    assert str(1 / 3) in csv_text([{"x": 1 / 3}])
