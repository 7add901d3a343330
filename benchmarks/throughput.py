"""Throughput on a folder of mixed sizes: files to files against the bare network, DnCNN and OpenCV, in one run.

python benchmarks/throughput.py [--images 200] [--least 0.1] [--most 4] [--device auto] [--precision auto]
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from skimage.data import astronaut, chelsea, coffee

from irae.engine import Engine
from irae.images import Picture, write_image
from irae.models.baselines import BaselineConfig, build_network
from irae.restorer import as_pixels, as_tensor, keep_freed_memory, pick_device, pick_precision
from irae.runner import Workers, all_of
from irae.tiles import restore_tiled

Pixels = NDArray[np.uint8]
CLI = Path(__file__).parent.parent / "cli.py"
DNCNN_IMAGES = 10  # as many as tell; it is slow on a CPU, and so is fastNlMeansDenoisingColored


def photographs(count: int, least: float, most: float) -> list[Pixels]:
    """Photographs with noise of level 25, of `least` to `most` megapixels, spread evenly on a logarithmic scale."""
    rng, sources = np.random.default_rng(0), (coffee(), chelsea(), astronaut())
    images = []
    for number, size in enumerate(rng.permutation(np.geomspace(least, most, count))):
        height = round((size * 1e6 * rng.choice([3 / 4, 2 / 3, 4 / 3])) ** 0.5)
        width = round(size * 1e6 / height)
        source = sources[number % len(sources)]
        tiled = np.tile(source, (height // source.shape[0] + 1, width // source.shape[1] + 1, 1))[:height, :width]
        noisy = tiled + rng.standard_normal(tiled.shape, np.float32) * 25
        images.append(np.clip(np.rint(noisy), 0, 255).astype(np.uint8))
    return images


class Utilisation:
    """How busy GPUs are while it is entered, in per cent, by nvidia-smi; a context manager."""

    def __enter__(self) -> Utilisation:
        self.found: list[float] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _look(self) -> None:
        command = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
        while torch.cuda.is_available() and not self._end.wait(0.2):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            self.found += [float(line) for line in done.stdout.split() if line.isdigit()]

    def __str__(self) -> str:
        return f", GPU {np.mean(self.found):.0f} % busy" if self.found else ""


def speed(images: Iterable[Pixels], function: Callable[[Pixels], object]) -> float:
    """Megapixels a second, one image after the other."""
    pixels, start = 0, time.perf_counter()
    for image in images:
        function(image)
        pixels += image.shape[0] * image.shape[1]
    return pixels / 1e6 / (time.perf_counter() - start)


def files_to_files(folder: Path, pixels: int, device: str, precision: str) -> tuple[float, str]:
    """Megapixels a second of `irae restore` on a folder, its start included, and how busy the GPU was."""
    command: list[str | Path] = [
        sys.executable,
        CLI,
        "restore",
        folder / "in",
        "-o",
        folder / "out",
        "--task",
        "denoise",
    ]
    start = time.perf_counter()
    with Utilisation() as utilisation:
        subprocess.run([*command, "--device", device, "--precision", precision], check=True, capture_output=True)
    return pixels / 1e6 / (time.perf_counter() - start), str(utilisation)


def main(
    images: Annotated[int, typer.Option(help="How many.")] = 200,
    least: Annotated[float, typer.Option(help="Megapixels of the smallest.")] = 0.1,
    most: Annotated[float, typer.Option(help="Megapixels of the largest.")] = 4.0,
    device: Annotated[str, typer.Option()] = "auto",
    precision: Annotated[str, typer.Option()] = "auto",
) -> None:
    """Print the table."""
    keep_freed_memory()
    place = pick_device(device)
    precision = pick_precision(precision, place)
    photos = photographs(images, least, most)
    few = photos[:DNCNN_IMAGES]
    rows: list[tuple[str, float]] = []
    with tempfile.TemporaryDirectory() as name, Workers(all_of(place)) as workers:
        folder = Path(name)
        (folder / "in").mkdir()
        for number, photo in enumerate(photos):
            write_image(folder / "in" / f"{number:04}.png", Picture(photo))
        engine = Engine(None, device, precision, workers)
        bare = engine.restorer("denoise")
        for photo in few[:2]:
            bare(photo)
        rows.append((f"bare network, array to array, {precision}", speed(photos, bare)))
        whole, busy = files_to_files(folder, sum(photo.size for photo in photos) // 3, device, precision)
        rows.append((f"irae restore, files to files, {precision}{busy}", whole))
        torch.manual_seed(0)
        dncnn = build_network(BaselineConfig("dncnn")).eval().requires_grad_(False)
        dncnn = dncnn.to(memory_format=torch.channels_last).to(place)
        blind = torch.zeros(1, 2, 1, 1)

        def by_dncnn(image: Pixels) -> object:
            with torch.autocast(place.type, torch.bfloat16, enabled=kind == "bf16"):
                return as_pixels(restore_tiled(dncnn, as_tensor(image), lambda *_: blind, workers), image)

        for kind in ("fp32", "bf16"):
            by_dncnn(few[0])
            rows.append((f"DnCNN architecture, {kind} ({len(few)} images)", speed(few, by_dncnn)))

    def non_local_means(image: Pixels) -> object:
        return cv2.fastNlMeansDenoisingColored(image, None, 15, 15)

    rows.append((f"OpenCV fastNlMeansDenoisingColored ({len(few)} images)", speed(few, non_local_means)))
    table = Table("what", "megapixels / second", "of the bare network")
    for what, rate in rows:
        table.add_row(what, f"{rate:.2f}", f"{rate / rows[0][1]:.3f}")
    console = Console(width=110)
    console.print(table)
    total = sum(photo.size for photo in photos) / 3e6
    console.print(f"{images} images, {total:.0f} megapixels, on {place}, {torch.get_num_threads()} threads")


if __name__ == "__main__":
    typer.run(main)
