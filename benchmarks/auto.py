"""How well `irae.auto` decides: kinds of files against decisions, the error of its readings, and harm to clean files.

Every image of the sets gives one file of each kind, cut to its middle. Shrunk: to two thirds by area averaging, which
leaves no trace of JPEG. CBSD68 are JPEGs of quality 95 themselves: as they are, their grid is found, rightly. A JPEG is
judged with its tables; "PNG of" has lost them and up to 7 rows and columns.

    python benchmarks/auto.py --data cbsd68,live1 [--limit 31] [--kinds noise]
"""

from __future__ import annotations

import io
import re
from collections import Counter, defaultdict
from typing import Annotated, Any

import cv2
import numpy as np
import typer
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table

from irae.auto import Decision, decide, estimate_jpeg_noise, estimate_luma_noise, estimate_noise
from irae.datasets import image_paths
from irae.degrade import CameraNoise, from_pixels, generator_for, to_pixels
from irae.images import Picture, read_image
from irae.jpeg import JpegTables, read_tables
from irae.metrics import psnr
from irae.restorer import Hints, Restorer

Pixels = NDArray[Any]
File = tuple[Picture, JpegTables | None]
SIDE = 384

KINDS = [
    *("clean", "clean shrunk", "clean grey", "clean grey shrunk"),
    *(f"noise {sigma}" for sigma in (5, 10, 15, 25, 50)),
    *(f"grey noise {sigma}" for sigma in (5, 15, 50)),
    *(f"JPEG {quality}" for quality in (10, 30, 50, 75, 90, 95)),
    *("noise 10 JPEG 90", "noise 10 JPEG 75", "noise 25 JPEG 95", "noise 25 JPEG 75", "noise 25 JPEG 50"),
    *(f"PNG of JPEG {quality}" for quality in (10, 30, 50, 75, 90, 95)),
    *("PNG of noise 25 JPEG 75", "PNG of noise 25 JPEG 99"),
    *("clean shrunk WebP 90", "noise 10 WebP 90", "noise 15 WebP 90", "noise 25 WebP 90"),
    *(f"camera {level}" for level in (5, 10, 15, 30)),
]


def make(kind: str, image: Pixels, rng: Generator) -> File:
    """A file of a kind, made from a clean 8-bit image (H, W, 3)."""
    if kind not in ("clean", "clean grey"):
        image = cv2.resize(image, None, fx=2 / 3, fy=2 / 3, interpolation=cv2.INTER_AREA)
    if "grey" in kind:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    if kind.startswith("camera"):
        generator = generator_for(str(rng.integers(2**32)))
        noise = CameraNoise.draw(float(kind.split()[-1]), generator)
        return Picture(to_pixels(noise(from_pixels(image), generator).image)), None
    if sigma := level_of(kind):
        image = np.rint(image + sigma * rng.standard_normal(image.shape)).clip(0, 255).astype(np.uint8)
    file = io.BytesIO()
    if "WebP" in kind:
        Image.fromarray(image).save(file, "WEBP", quality=int(kind.split()[-1]))
        return read_image(file.getvalue()), None
    if "JPEG" not in kind:
        return Picture(image), None
    Image.fromarray(image).save(file, "JPEG", quality=int(kind.split()[-1]))
    picture = read_image(file.getvalue())
    if kind.startswith("PNG"):
        row, column = rng.integers(0, 8, 2)
        return Picture(picture.pixels[row:, column:]), None
    return picture, read_tables(file.getvalue())


def level_of(kind: str) -> int:
    match = re.search(r"noise (\d+)", kind)
    return int(match[1]) if match else 0


def reading(picture: Picture, tables: JpegTables | None) -> float:
    """The noise level that is read from a file, whatever is decided then."""
    if picture.lossy and tables is None:
        return estimate_luma_noise(picture.pixels)
    return estimate_noise(picture.pixels) if tables is None else estimate_jpeg_noise(picture.pixels, tables.luma)


def denoised(restorers: dict[str, Restorer], pixels: Pixels, decision: Decision) -> Pixels:
    """What denoising as decided makes of the pixels; without it the pixels."""
    for step in decision.steps:
        if step.task in restorers:
            pixels = restorers[step.task](pixels, Hints(sigma=step.sigma))
    return pixels


def main(
    data: Annotated[str, typer.Option(help="Image sets by name, or folders; commas between.")] = "cbsd68,live1",
    limit: Annotated[int, typer.Option(help="So many images of each set.")] = 1000,
    kinds: Annotated[str, typer.Option(help="Only kinds that contain this.")] = "",
) -> None:
    """Print the tables."""
    paths = [path for name in data.split(",") for path in image_paths(name)[:limit]]
    restorers, decided = {task: Restorer(task) for task in ("denoise", "photo")}, defaultdict(list)
    qualities, levels, harm = defaultdict(list), defaultdict(list), defaultdict(list)
    chosen = [kind for kind in KINDS if kinds in kind]
    for path in track(paths, console=Console(stderr=True)):
        image = middle(read_image(path).pixels)
        for kind in chosen:
            seed = generator_for(f"{kind}:{path.stem}").initial_seed()
            picture, tables = make(kind, image, np.random.default_rng(seed))
            decision = decide(picture, tables, photo=restorers["photo"])
            decided[kind].append(decision)
            for step in decision.steps:
                if step.task == "jpeg" and tables is None and step.quality is not None:
                    qualities[kind].append(step.quality)
            if level_of(kind) and not kind.startswith("PNG"):
                levels[kind].append(reading(picture, tables))
            if kind.startswith("clean"):
                harm[kind].append(psnr(denoised(restorers, picture.pixels, decision), picture.pixels))
    console = Console(width=120)
    outcomes = ("nothing", "denoise", "jpeg", "jpeg, denoise", "photo")
    table = Table(
        "kind", *outcomes, "noise level: mean, RMSE", "quality: median, range", title=f"{len(paths)} files a kind"
    )
    for kind in chosen:
        count = Counter(", ".join(step.task for step in decision.steps) or "nothing" for decision in decided[kind])
        found, quality = np.array(levels[kind]), qualities[kind]
        table.add_row(
            kind,
            *(str(count[outcome] or "") for outcome in outcomes),
            f"{found.mean():.1f}, {np.sqrt(np.mean((found - level_of(kind)) ** 2)):.2f}" if found.size else "",
            f"{np.median(quality):.0f}, {min(quality)} to {max(quality)}" if quality else "",
        )
    console.print(table)
    for kind, values in harm.items():
        changed = [value for value in values if np.isfinite(value)]
        worst = f", those mean {np.mean(changed):.1f} dB, worst {min(changed):.1f} dB" if changed else ""
        console.print(f"{kind}: {len(changed)} of {len(values)} denoised{worst}")


def middle(image: Pixels) -> Pixels:
    """At most SIDE pixels a side, cut at multiples of 8."""
    top, left = (max(0, (side - SIDE) // 16 * 8) for side in image.shape[:2])
    return image[top : top + SIDE, left : left + SIDE]


if __name__ == "__main__":
    typer.run(main)
