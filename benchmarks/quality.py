"""Denoising quality by the usual protocol: one table, PSNR and SSIM by data set and noise level.

Clean 8-bit image / 255 plus Gaussian noise in float, neither clipped nor rounded ("float"), or clipped and rounded
first, as a user's file is ("file"); the noise is seeded by the image's name. Output clipped and rounded to 8 bits;
PSNR over all channels and pixels; mean over images.

    python benchmarks/quality.py --data cbsd68,set12 [--precision fp32] [--model denoise]
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from irae.datasets import image_paths
from irae.degrade import GaussianNoise, generator_for, to_8bit
from irae.images import read_image
from irae.metrics import psnr, ssim
from irae.restorer import Hints, Restorer, as_pixels, as_tensor


def measure(restorer: Restorer, paths: list[Path], sigma: float, known: bool, file: bool) -> tuple[float, float]:
    """Mean PSNR in dB and SSIM over images."""
    scores = []
    for path in paths:
        clean = read_image(path).pixels
        noisy = GaussianNoise(sigma)(as_tensor(clean)[0], generator_for(path.stem)).image
        pixels = as_pixels((to_8bit(noisy) if file else noisy)[None], np.empty_like(clean, np.float32))
        restored = restorer(pixels, Hints(sigma if known else None))
        result = np.rint(restored.clip(0, 1) * 255).astype(np.uint8)
        scores.append((psnr(result, clean), ssim(result, clean)))
    mean = np.mean(scores, axis=0)
    return float(mean[0]), float(mean[1])


def main(
    data: Annotated[str, typer.Option(help="Image sets by name, or folders; commas between.")] = "cbsd68",
    model: Annotated[str, typer.Option()] = "denoise",
    precision: Annotated[str, typer.Option(help="fp32 or bf16.")] = "fp32",
    sigmas: Annotated[str, typer.Option(help="Noise levels.")] = "15,25,50",
    protocol: Annotated[str, typer.Option(help="float, file or both.")] = "both",
) -> None:
    """Print the table."""
    restorer = Restorer(model=model, precision=precision)
    table = Table("data", "protocol", "noise level", *(f"sigma {s}: PSNR / SSIM" for s in sigmas.split(",")))
    protocols = ("float", "file") if protocol == "both" else (protocol,)
    rows = [(name, kind, known) for name in data.split(",") for kind in protocols for known in (True, False)]
    for name, kind, known in track(rows, console=Console(stderr=True)):
        paths = image_paths(name)
        cells = [measure(restorer, paths, float(s), known, kind == "file") for s in sigmas.split(",")]
        table.add_row(name, kind, "given" if known else "blind", *(f"{p:.3f} / {s:.4f}" for p, s in cells))
    Console(width=120).print(table)


if __name__ == "__main__":
    typer.run(main)
