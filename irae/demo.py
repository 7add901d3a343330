"""The demonstration: a photograph that scikit-image ships is damaged, restored and measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from skimage.data import coffee

from irae.compare import side_by_side
from irae.engine import Engine, Wishes
from irae.files import make_folder
from irae.images import Picture, read_image, write_image
from irae.metrics import psnr, ssim
from irae.pipeline import Damage, Job, Settings, check_new, degrade_file, restore_file
from irae.restorer import check_settings


@dataclass(frozen=True)
class Demo:
    """What the demonstration measured, (PSNR in dB, SSIM) by row, and the side-by-side picture that it wrote."""

    quality: dict[str, tuple[float, float]]
    picture: Path


def run_demo(
    folder: Path, sigma: float = 25.0, model: str | None = None, device: str = "auto", overwrite: bool = False
) -> Demo:
    """Write coffee.png, noisy, restored and side by side to a folder, by way of files as a user would.

    Args:
        folder: made where it is missing.
        sigma: noise level in 8-bit levels.
        model, device: as `Restorer`.
        overwrite: replace the pictures, if they exist.

    Raises:
        IraeError: a picture exists; then none was written.
    """
    check_settings(sigma)
    engine, wishes = Engine(model, device), Wishes("denoise")
    engine.settle(wishes)
    make_folder(folder)
    clean, compare = folder / "coffee.png", folder / "coffee.compare.png"
    noisy, restored = folder / "coffee.noisy.png", folder / "coffee.noisy.restored.png"
    for path in (clean, noisy, restored, compare):
        check_new(path, overwrite)
    write_image(clean, Picture(coffee()), overwrite=overwrite)  # a cup of coffee by Rachel Michetti, CC0
    degrade_file(clean, noisy, Damage(noise=sigma), overwrite)
    restore_file(Job(noisy, restored), engine, Settings(wishes, overwrite=overwrite))
    pictures = {
        name: read_image(path).pixels for name, path in (("clean", clean), ("noisy", noisy), ("restored", restored))
    }
    quality = {
        name: (psnr(pictures[name], pictures["clean"]), ssim(pictures[name], pictures["clean"]))
        for name in ("noisy", "restored")
    }
    captions = {
        f"{name}, {quality[name][0]:.2f} dB" if name in quality else name: picture for name, picture in pictures.items()
    }
    write_image(compare, Picture(side_by_side(captions)), overwrite=overwrite)
    return Demo(quality, compare)
