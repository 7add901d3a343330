"""The strength of each classical denoiser: mean PSNR on held-out training images, one table.

    python benchmarks/classical.py [--images 20] [--grey]

The strength that is best on the mean over the levels is the constant in `irae.classical`. Noise in float, neither
clipped nor rounded, on centre crops of 128 x 128 pixels.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table

from irae.classical import DENOISERS
from irae.datasets import image_paths
from irae.degrade import GaussianNoise, generator_for
from irae.metrics import psnr
from irae.training.data import read_rgb
from irae.training.train import centre_crop

LEVELS = (15, 25, 50)
LUMA = torch.tensor((0.299, 0.587, 0.114))
STRENGTHS = {
    "nlm": (0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
    "tv": (0.6, 0.8, 1.0, 1.2, 1.4, 1.7),
    "opencv": (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2),
}


def main(
    images: Annotated[int, typer.Option(help="Held-out images.")] = 20,
    grey: Annotated[bool, typer.Option(help="On their luma.")] = False,
) -> None:
    """Try all strengths, print a table."""
    paths = image_paths("holdout")[:images]
    table = Table("denoiser", "strength", *(f"level {level}" for level in LEVELS), "mean")
    for name, strengths in STRENGTHS.items():
        for strength in strengths:
            values = [np.mean([quality(path, name, strength, level, grey) for path in paths]) for level in LEVELS]
            table.add_row(name, f"{strength:g}", *(f"{value:.2f}" for value in (*values, np.mean(values))))
    Console(width=100).print(table)


def quality(path, name: str, strength: float, level: int, grey: bool) -> float:  # type: ignore[no-untyped-def]
    """PSNR of one image, after rounding."""
    clean = centre_crop(torch.from_numpy(read_rgb(path)).permute(2, 0, 1).float() / 255, 128)
    clean = torch.tensordot(LUMA, clean, 1)[None] if grey else clean
    noisy = GaussianNoise(level)(clean, generator_for(path.stem)).image.permute(1, 2, 0).numpy()
    result = DENOISERS[name](noisy[..., 0] if grey else noisy, level, strength)
    pixels = (clean.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    pixels = pixels[..., 0] if grey else pixels
    return psnr(np.rint(result.clip(0, 1) * 255).astype(np.uint8), pixels)


if __name__ == "__main__":
    typer.run(main)
