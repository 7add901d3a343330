"""Peak memory and time of `irae restore` on large images, each in its own process.

python benchmarks/large.py [MEGAPIXELS ...]
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from skimage.data import coffee

from irae.images import Picture, write_image


def noisy(megapixels: float) -> np.ndarray:
    """A photograph tiled to a square of this size, with noise of level 25."""
    side = round((megapixels * 1e6) ** 0.5)
    source, rng = coffee(), np.random.default_rng(0)
    repeats = -(-side // source.shape[0]), -(-side // source.shape[1]), 1
    image = np.tile(source, repeats)[:side, :side]
    for row in range(0, side, 256):  # a strip at a time: the noise in floats would be the largest thing here
        strip = image[row : row + 256]
        image[row : row + 256] = np.clip(strip + 25 * rng.standard_normal(strip.shape, np.float32), 0, 255)
    return image


def restore(source: Path, target: Path) -> tuple[float, float]:
    """MiB at the peak and seconds of the command."""
    command = [sys.executable, "-m", "irae.cli", "restore", str(source), "-o", str(target), "--task", "denoise"]
    start = time.perf_counter()
    process = os.spawnv(os.P_NOWAIT, sys.executable, [*command, "--max-pixels", "1000000000"])
    _, status, usage = os.wait4(process, 0)
    if status:
        raise SystemExit(f"The command failed with status {status}.")
    return usage.ru_maxrss / 1024, time.perf_counter() - start


def main(megapixels: Annotated[list[float] | None, typer.Argument(help="Sizes of the images.")] = None) -> None:
    """Print the table."""
    table = Table("megapixels", "pixels in memory (MiB)", "peak (MiB)", "seconds", "megapixels / second")
    with tempfile.TemporaryDirectory() as name:
        for size in megapixels or [1, 12, 50, 150]:
            source, target = Path(name, "large.png"), Path(name, "restored.png")
            image = noisy(size)
            write_image(source, Picture(image))
            pixels, area = image.nbytes / 2**20, image.shape[0] * image.shape[1] / 1e6
            del image
            peak, seconds = restore(source, target)
            cells = f"{size:g}", f"{pixels:.0f}", f"{peak:.0f}", f"{seconds:.1f}", f"{area / seconds:.2f}"
            table.add_row(*cells)
            source.unlink(), target.unlink()
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
