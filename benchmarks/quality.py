"""Quality of the shipped networks by the usual protocols: one table a task.

    python benchmarks/quality.py denoise [--data cbsd68,set12] [--precision fp32]
    python benchmarks/quality.py jpeg [--data live1] [--grey]
    python benchmarks/quality.py inpaint [--data cbsd68]
    python benchmarks/quality.py robust [--data holdout]

Outputs are clipped and rounded to 8 bits; PSNR over all channels and pixels; mean over images. What is random is
seeded by the image's name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from irae.classical import INPAINTERS
from irae.datasets import image_paths
from irae.degrade import GaussianNoise, Noise, PoissonGaussianNoise, VaryingNoise, generator_for, to_8bit
from irae.engine import Engine, Wishes
from irae.evaluation.protocols import matlab_luma
from irae.images import Picture, read_image
from irae.jpeg import consistent_share
from irae.masks import MASKS, mask_for
from irae.metrics import psnr, psnr_b, ssim
from irae.restorer import Hints, Restorer, as_pixels, as_tensor

Image = NDArray[np.uint8]
app = typer.Typer(add_completion=False)
DataOption = Annotated[str, typer.Option(help="Image sets by name, or folders; commas between.")]
PrecisionOption = Annotated[str, typer.Option(help="fp32 or bf16.")]


@app.command()
def denoise(
    data: DataOption = "cbsd68",
    model: Annotated[str, typer.Option()] = "denoise",
    precision: PrecisionOption = "fp32",
    sigmas: Annotated[str, typer.Option(help="Noise levels.")] = "15,25,50",
    protocol: Annotated[str, typer.Option(help="float, file or both.")] = "both",
) -> None:
    """Gaussian noise in float, neither clipped nor rounded ("float"), or clipped and rounded first ("file")."""
    restorer = Restorer(model=model, precision=precision)
    table = Table("data", "protocol", "noise level", *(f"sigma {s}: PSNR / SSIM" for s in sigmas.split(",")))
    protocols = ("float", "file") if protocol == "both" else (protocol,)
    rows = [(name, kind, known) for name in data.split(",") for kind in protocols for known in (True, False)]
    for name, kind, known in _progress(rows):
        cells = []
        for sigma in map(float, sigmas.split(",")):
            scores = []
            for path, clean in _images(name):
                noisy = GaussianNoise(sigma)(as_tensor(clean)[0], generator_for(path.stem)).image
                pixels = as_pixels((to_8bit(noisy) if kind == "file" else noisy)[None], clean.astype(np.float32))
                result = _rounded(restorer(pixels, Hints(sigma if known else None)))
                scores.append((psnr(result, clean), ssim(result, clean)))
            cells.append("{:.3f} / {:.4f}".format(*np.mean(scores, axis=0)))
        table.add_row(name, kind, "given" if known else "blind", *cells)
    Console(width=120).print(table)


@app.command()
def jpeg(
    data: DataOption = "live1",
    model: Annotated[str, typer.Option()] = "jpeg",
    precision: PrecisionOption = "fp32",
    qualities: Annotated[str, typer.Option(help="libjpeg's qualities.")] = "10,20,30,40",
    grey: Annotated[bool, typer.Option(help="Y of MATLAB's rgb2ycbcr, as a grey JPEG.")] = False,
) -> None:
    """JPEG files by OpenCV's libjpeg, 4:2:0: PSNR / SSIM / PSNR-B."""
    engine = Engine(model, precision=precision)
    ways: dict[str, Callable[[Picture, bytes], Image]] = {
        "the JPEG itself": lambda picture, _: picture.pixels,
        "blind": lambda picture, _: engine.restorer("jpeg")(picture.pixels),
        "its tables": lambda picture, file: _run(engine, picture, file, consistent=False),
        "its tables, consistent": lambda picture, file: _run(engine, picture, file, consistent=True),
    }
    table = Table("data", "", *(f"q {q}: PSNR / SSIM / PSNR-B / same" for q in qualities.split(",")))
    for name, way in _progress([(name, way) for name in data.split(",") for way in ways]):
        cells = []
        for quality in map(int, qualities.split(",")):
            scores = []
            for _, image in _images(name):
                clean = matlab_luma(image) if grey and image.ndim == 3 else image
                encodable = clean if clean.ndim == 2 else np.ascontiguousarray(clean[..., ::-1])
                file = cv2.imencode(".jpg", encodable, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
                result = ways[way](read_image(file), file)
                measures = (psnr, ssim, psnr_b)
                scores.append((*(measure(result, clean) for measure in measures), 100 * consistent_share(result, file)))
            cells.append("{:.3f} / {:.4f} / {:.3f} / {:.2f} %".format(*np.mean(scores, axis=0)))
        table.add_row(name, way, *cells)
    Console(width=200).print(table)


@app.command()
def inpaint(
    data: DataOption = "cbsd68",
    model: Annotated[str, typer.Option()] = "inpaint",
    precision: PrecisionOption = "fp32",
    kinds: Annotated[str, typer.Option(help="Masks.")] = ",".join(MASKS),
    classical: Annotated[bool, typer.Option(help="Also the classical methods; they take hours.")] = False,
) -> None:
    """Holes: PSNR / SSIM over the whole image, and PSNR over the missing pixels alone."""
    restorer = Restorer(model=model, precision=precision)
    methods: dict[str, Callable[[Image, NDArray[np.bool_]], Image]] = {
        "irae": lambda image, mask: restorer(image, Hints(mask=mask)),
        **(INPAINTERS if classical else {}),
    }
    table = Table("data", "method", *(f"{kind}" for kind in kinds.split(",")))
    for name, method in _progress([(name, method) for name in data.split(",") for method in methods]):
        cells = []
        for kind in kinds.split(","):
            scores = []
            for path, clean in _images(name):
                mask = mask_for(path.stem, kind, *clean.shape[:2])
                damaged = clean.copy()
                damaged[mask] = 0
                result = methods[method](damaged, mask)
                scores.append((psnr(result, clean), ssim(result, clean), psnr(result[mask], clean[mask])))
            cells.append("{:.2f} / {:.4f} / {:.2f}".format(*np.mean(scores, axis=0)))
        table.add_row(name, method, *cells)
    Console(width=220).print(table)


def _run(engine: Engine, picture: Picture, file: bytes, consistent: bool) -> Image:
    return engine.run(engine.plan(picture, Wishes("jpeg", consistent=consistent), file))


@app.command()
def robust(
    data: DataOption = "holdout",
    model: Annotated[str, typer.Option()] = "denoise",
    precision: PrecisionOption = "fp32",
) -> None:
    """Denoising beside the usual protocol: PSNR told the level and blind, and the mean error of red, green and blue."""
    restorer = Restorer(model=model, precision=precision)
    flat: dict[str, tuple[Noise, float]] = {f"noise {s}": (GaussianNoise(s), s) for s in (5, 15, 25, 50, 75, 80, 100)}
    noises = {
        **flat,
        "noise 25, told 20": (GaussianNoise(25), 20),
        "noise 25, told 30": (GaussianNoise(25), 30),
        "noise 10 to 40, varying": (VaryingNoise(10, 40), 25),
        "noise of photons, 25 at mid grey": (PoissonGaussianNoise(25**2 / 127.5, 0), 25),
        "no noise": (GaussianNoise(0), 0),
    }
    looks: dict[str, Callable[[Image], Image]] = {
        "as they are": lambda image: image,
        "grey": lambda image: cv2.cvtColor(image, cv2.COLOR_RGB2GRAY),
        "halved": halved,
        "halved, vivid": lambda image: vivid(halved(image)),
    }
    rows = [("as they are", noise) for noise in noises]
    rows += [(look, f"noise {sigma}") for look in list(looks)[1:] for sigma in (15, 25, 50)]
    table = Table("images", "damage", "told", "blind", "blind, 8 bits", "error of red, green, blue (levels)")
    for look, name in _progress(rows):
        noise, told = noises[name]
        scores, errors = [], []
        for path, image in _images(data):
            clean = looks[look](image)
            noisy = noise(as_tensor(clean)[0], generator_for(path.stem)).image
            pixels, file = (as_pixels(i[None], clean.astype(np.float32)) for i in (noisy, to_8bit(noisy)))
            cases = ((pixels, Hints(told)), (pixels, Hints()), (file, Hints()))
            results = [_rounded(restorer(damaged, hints)) for damaged, hints in cases]
            scores.append([psnr(result, clean) for result in results])
            errors.append((results[0].astype(float) - clean).mean((0, 1)))
        shift = " / ".join(f"{value:+.2f}" for value in np.atleast_1d(np.mean(errors, axis=0)))
        table.add_row(look, name, *(f"{value:.2f}" for value in np.mean(scores, axis=0)), shift)
    Console(width=120).print(table)


def halved(image: Image) -> Image:
    """Shrunk by area averaging, so that colour has the resolution of light: (H, W, 3) -> (H / 2, W / 2, 3), uint8."""
    return np.asarray(cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def vivid(image: Image) -> Image:
    """Twice as far from the mean of red, green and blue, clipped: (H, W, 3) -> the same, uint8."""
    grey = image.mean(2, keepdims=True)
    return np.rint((grey + 2 * (image - grey)).clip(0, 255)).astype(np.uint8)


def _images(name: str) -> Iterator[tuple[Path, Image]]:
    return ((path, read_image(path).pixels) for path in image_paths(name))


def _rounded(image: NDArray[np.float32]) -> Image:
    return np.rint(image.clip(0, 1) * 255).astype(np.uint8)


def _progress(rows: list[tuple[str, ...]]) -> Iterator[tuple[str, ...]]:
    return iter(track(rows, console=Console(stderr=True)))


if __name__ == "__main__":
    app()
