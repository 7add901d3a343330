"""What all experiments share: the set-up and where it runs, and a result that is written as table, CSV and plot.

Every result says how it was made: the set-up, the seed, the versions and the hardware.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import multiprocessing
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

import irae
from irae.errors import IraeError
from irae.files import write_bytes

Row = dict[str, Any]
Item = TypeVar("Item")
Job = TypeVar("Job")
Done = TypeVar("Done")


class ExperimentError(IraeError):
    """An experiment that is not there, or that cannot run as asked."""


@dataclass(frozen=True)
class Context:
    """Where an experiment runs.

    Attributes:
        folder: for everything it writes.
        seed: of all that is random in it.
        root: the data root, None for the variable IRAE_DATA.
        console: for the progress bar.
    """

    folder: Path
    seed: int = 0
    root: Path | None = None
    console: Console = dataclasses.field(default_factory=lambda: Console(stderr=True))

    def track(self, items: Iterable[Item], total: int, description: str) -> Iterator[Item]:
        """The items, with a progress bar where somebody looks on."""
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        disabled = not self.console.is_terminal
        with Progress(*columns, TimeRemainingColumn(), console=self.console, transient=True, disable=disabled) as bar:
            yield from bar.track(items, total=total, description=description)

    def say(self, sentence: str) -> None:
        """One line for those who look on."""
        self.console.print(sentence, markup=False)


@dataclass
class Result:
    """What an experiment found.

    Attributes:
        rows: the table, a dictionary of column -> value each; all have the first one's columns.
        notes: sentences that the table needs to be understood.
        figures: file stem -> figure; the first is the plot.
    """

    rows: list[Row]
    notes: list[str]
    figures: dict[str, Figure]


@dataclass(frozen=True)
class Experiment:
    """An entry of the registry.

    Attributes:
        title: the claim that is tested.
        run: from a set-up and a context to a result.
        full, quick: the set-ups, frozen dataclasses.
        minutes: of a full run, roughly, on two cores of a recent x86 server.
    """

    title: str
    run: Callable[[Any, Context], Result]
    full: Any
    quick: Any
    minutes: float


def run_experiment(experiment: Experiment, setup: Any, context: Context) -> Result:
    """Run an experiment and write `table.md`, `table.csv` and its figures as PNG into the context's folder.

    Args:
        setup: the experiment's `full` or `quick`, or one between.
    """
    context.folder.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    result = experiment.run(setup, context)
    seconds = time.monotonic() - start
    text = markdown(experiment.title, result, provenance(setup, context, seconds))
    write_bytes(context.folder / "table.md", text.encode(), overwrite=True)
    write_bytes(context.folder / "table.csv", csv_text(result.rows).encode(), overwrite=True)
    for stem, figure in result.figures.items():
        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=140, bbox_inches="tight")
        write_bytes(context.folder / f"{stem}.png", picture.getvalue(), overwrite=True)
    return result


def provenance(setup: Any, context: Context, seconds: float) -> dict[str, str]:
    """How a result was made, as name -> text."""
    values = {key.replace("_", " "): str(value) for key, value in dataclasses.asdict(setup).items()}
    return {
        **values,
        "seed": str(context.seed),
        "versions": f"irae {irae.__version__}, torch {torch.__version__}, numpy {np.__version__}, "
        f"matplotlib {matplotlib.__version__}, Python {platform.python_version()}",
        "hardware": f"{os.cpu_count()} cores, {platform.machine()}, {torch.get_num_threads()} threads",
        "time": f"{seconds / 60:.1f} minutes",
    }


def markdown(title: str, result: Result, settings: dict[str, str]) -> str:
    """The result as a Markdown page: title, notes, table, and how it was made."""
    heads = list(result.rows[0])
    lines = [f"# {title}", "", *(f"{note}\n" for note in result.notes)]
    lines += ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    lines += ["| " + " | ".join(show(row[head]) for head in heads) + " |" for row in result.rows]
    lines += ["", "How it was made:", "", *(f"- {key}: {value}" for key, value in settings.items()), ""]
    return "\n".join(lines)


def csv_text(rows: list[Row]) -> str:
    """The rows as CSV, numbers in full."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def rich_table(title: str, result: Result) -> Table:
    """The rows for the terminal."""
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for head, value in result.rows[0].items():
        table.add_column(head, justify="left" if isinstance(value, str) else "right", overflow="fold")
    for row in result.rows:
        table.add_row(*(show(value) for value in row.values()))
    return table


def show(value: Any) -> str:
    """A value for people: four significant digits, nothing for None."""
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def in_processes(function: Callable[[Job], Done], jobs: Sequence[Job], processes: int) -> Iterator[Done]:
    """`function` of every job, in the order in which they end, each on one thread.

    Args:
        function: of a module, so that another process finds it.
        processes: at a time; 0 to compute here.
    """
    if not processes:
        yield from map(function, jobs)
        return
    spawn = multiprocessing.get_context("spawn")  # a forked process would share this one's threads
    with ProcessPoolExecutor(processes, mp_context=spawn, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for done in as_completed([pool.submit(function, job) for job in jobs]):
            yield done.result()


def panels(count: int, width: float = 4.2, height: float = 3.4) -> tuple[Figure, list[Any]]:
    """A figure with axes side by side."""
    figure = Figure(figsize=(width * count, height), layout="constrained")
    return figure, list(figure.subplots(1, count, squeeze=False)[0])


def log_axis(axes: Any, values: Iterable[float]) -> None:
    """A logarithmic x axis with ticks at the values and nowhere else."""
    ticks = sorted(set(values))
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], fontsize="small")
    axes.minorticks_off()
