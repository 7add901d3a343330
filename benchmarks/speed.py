"""Speed: the whole command on a 1-megapixel PNG, start-up included, and the bare network.

python benchmarks/speed.py [--megapixels 1] [--repeat 3]
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table
from skimage.data import coffee

from irae.images import Picture, write_image
from irae.restorer import Hints, Restorer


def best_of(repeat: int, function: Callable[[], object]) -> float:
    """The shortest of several times, in seconds."""
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def main(
    megapixels: Annotated[float, typer.Option()] = 1.0,
    repeat: Annotated[int, typer.Option()] = 3,
    model: Annotated[str, typer.Option()] = "denoise",
) -> None:
    """Print the table."""
    width = round((megapixels * 1e6 * 4 / 3) ** 0.5)
    tiled = np.tile(coffee(), (width // 400 + 1, width // 600 + 1, 1))
    photo = np.ascontiguousarray(tiled[: round(width * 3 / 4), :width])
    table = Table("what", "seconds", "megapixels / second")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "photo.png"
        write_image(source, Picture(photo))
        command = [sys.executable, "-m", "irae.cli", "restore", str(source), "--model", model, "--overwrite"]
        seconds = best_of(repeat, lambda: subprocess.run(command, check=True, capture_output=True))
        table.add_row("irae restore, whole command", f"{seconds:.2f}", f"{photo.size / 3e6 / seconds:.2f}")
    for precision in ("bf16", "fp32"):
        restorer = Restorer(model=model, precision=precision)
        seconds = best_of(repeat + 1, lambda restorer=restorer: restorer(photo, Hints(25.0)))
        table.add_row(f"array to array, {precision}", f"{seconds:.2f}", f"{photo.size / 3e6 / seconds:.2f}")
    console = Console(width=100)
    console.print(table)
    console.print(
        f"{photo.shape[1]} x {photo.shape[0]} pixels, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )


if __name__ == "__main__":
    typer.run(main)
