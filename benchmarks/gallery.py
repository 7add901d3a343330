"""Realistic noisy photographs beside what comes back: by the denoiser of white noise, and by those of photographs.

    python benchmarks/gallery.py [-o docs/photo.jpg]

Photographs that come with scikit-image go through the simulated camera of `irae degrade --kind camera`; then
each network restores them with nothing told. The noise is seeded by the photograph's name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import matplotlib.pyplot as plt
import numpy as np
import typer
from numpy.typing import NDArray
from skimage import data

from irae.degrade import CameraNoise, generator_for
from irae.metrics import psnr
from irae.restorer import Restorer, as_pixels, as_tensor

Image = NDArray[np.uint8]
# Camera noise level, and what is shown of the photograph: rows, columns.
PHOTOGRAPHS = {
    "chelsea": (8, slice(40, 240), slice(90, 350)),
    "coffee": (15, slice(60, 260), slice(130, 390)),
    "astronaut": (22, slice(20, 220), slice(110, 370)),
    "rocket": (30, slice(100, 300), slice(250, 510)),
}


def main(output: Annotated[Path, typer.Option("-o", "--output")] = Path("gallery.jpg")) -> None:
    """Write the picture, and print PSNR of the whole photographs."""
    networks = {name: Restorer(model=name) for name in ("denoise", "photo", "photo-best")}
    figure, axes = plt.subplots(len(PHOTOGRAPHS), 2 + len(networks), figsize=(13, 2.25 * len(PHOTOGRAPHS)))
    for row, (name, (level, rows, columns)) in zip(axes, PHOTOGRAPHS.items(), strict=True):
        generator = generator_for(name)
        photograph: Image = getattr(data, name)()
        taken = CameraNoise.draw(level, generator)(as_tensor(photograph)[0], generator)
        assert taken.target is not None
        clean, file = (as_pixels(image[None], photograph) for image in (taken.target, taken.image))
        shown = {"clean": clean, f"camera noise {level}": file}
        shown |= {network: restorer(file) for network, restorer in networks.items()}
        for axis, (title, image) in zip(row, shown.items(), strict=True):
            quality = "" if image is clean else f", {psnr(image, clean):.2f} dB"
            axis.imshow(image[rows, columns], interpolation="nearest")
            axis.set_title(title + quality, fontsize=9)
            axis.set_axis_off()
            print(f"{name}: {title}{quality}")
    figure.tight_layout(pad=0.3)
    figure.savefig(output, dpi=100, pil_kwargs={"quality": 85})


if __name__ == "__main__":
    typer.run(main)
