"""Activation memory of a training step against the number of blocks: saved tensors and temporaries.

Blocks of 64 channels, a batch of 4 of 128 x 128; parameters and their gradients are left out.

    python benchmarks/memory.py [--block NAME] [--blocks 8,64] [--channels 64] [--batch 4] [--size 128] [--repeats 3]
"""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from irae.experiments.depth import Setup, measure_step


def main(
    blocks: Annotated[str, typer.Option(help="Numbers of blocks.")] = "8,64",
    block: Annotated[str, typer.Option(help="A registered block.")] = "additive",
    channels: Annotated[int, typer.Option(help="Of each stream.")] = 64,
    batch: Annotated[int, typer.Option()] = 4,
    size: Annotated[int, typer.Option(help="Height and width of the streams.")] = 128,
    repeats: Annotated[int, typer.Option(help="Timed steps; the median counts.")] = 3,
) -> None:
    """Print the table."""
    depths = tuple(int(depth) for depth in blocks.split(","))
    setup = Setup(depths=depths, channels=channels, size=size, batch=batch, repeats=repeats)
    columns = ("backward", "blocks", "saved (MiB)", "peak (MiB)", "step (ms)")
    table = Table(*columns)
    for memory_free in (True, False):
        for depth in depths:
            row = measure_step(setup, block, memory_free, depth, seed=0)
            table.add_row(*(f"{row[c]:.1f}" if isinstance(row[c], float) else str(row[c]) for c in columns))
    Console(width=100).print(table)


if __name__ == "__main__":
    typer.run(main)
