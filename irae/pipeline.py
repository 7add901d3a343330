"""The main job: restore an array, a file, a folder; `irae.restore` is the function for arrays and paths."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from irae.compare import side_by_side
from irae.images import ImageError, Picture, encode_image, is_image_path, read_image, write_bytes
from irae.models.irae import IRAE
from irae.restorer import OptionError, Restorer

Pixels = NDArray[Any]

FORMAT_SUFFIXES = {"png": ".png", "tiff": ".tif", "jpeg": ".jpg", "webp": ".webp", "bmp": ".bmp"}
LOSSY_SUFFIXES = (".jpg", ".jpeg")


def restore(
    image: str | Path | Pixels,
    task: str = "denoise",
    sigma: float | None = None,
    mask: Pixels | None = None,
    jpeg_quality: int | None = None,
    model: str | Path | IRAE | None = None,
    device: str = "auto",
    precision: str = "auto",
) -> Pixels:
    """Restore an image.

    Args:
        image: a path, or an array (H, W) or (H, W, C), C one of 1 (grey), 2 (grey, alpha), 3 (RGB), 4 (RGB, alpha);
            uint8, uint16, or float32 nominally in [0, 1]. Floats outside that range go to the network unclipped.
            Alpha stays as it is.
        task: "denoise".
        sigma: standard deviation of the noise in 8-bit levels, whatever the dtype; None: blind.
        mask, jpeg_quality: for tasks to come; an error with "denoise".
        model, device, precision: see `irae.restorer.Restorer`.

    Returns:
        The restored image, dtype and shape as `image`. Integers are clipped and rounded, floats are neither.

    Raises:
        IraeError: anything that the caller can mend; one sentence.
    """
    if mask is not None or jpeg_quality is not None:
        raise OptionError(f"The task {task!r} takes neither a mask nor a JPEG quality.")
    restorer = Restorer(task, model, device, precision)
    if isinstance(image, (str, Path)):
        picture = read_image(image)
        restored = restorer(picture.pixels, sigma)
        return restored if picture.alpha is None else np.dstack((restored, picture.alpha))
    return with_colour(np.asarray(image), lambda pixels: restorer(pixels, sigma))


def with_colour(image: Pixels, function: Callable[[Pixels], Pixels]) -> Pixels:
    """Apply `function`, of (H, W) or (H, W, 3), to the colour part of (H, W) or (H, W, 1 to 4); alpha stays."""
    if image.ndim == 2:
        return function(image)
    if image.ndim != 3 or not 1 <= image.shape[2] <= 4:
        raise OptionError(f"An image has the shape (H, W) or (H, W, 1 to 4), not {image.shape}.")
    if image.shape[2] == 3:
        return function(image)
    colour = function(image[..., :3]) if image.shape[2] == 4 else function(image[..., 0])[..., None]
    return np.concatenate((colour, image[..., colour.shape[2] :]), axis=2)


@dataclass(frozen=True)
class Settings:
    """What is done to each picture, and what is written.

    Attributes:
        sigma: noise level in 8-bit levels, None: blind.
        strength: 1 the network's image, 0 the input, between them their mixture.
        keep_rest: also write what is left beside the image, `X.rest` beside `X.png`.
        compare: also write input and result side by side, `X.compare.png`.
        overwrite: replace outputs that exist. An input is never replaced.
    """

    sigma: float | None = None
    strength: float = 1.0
    keep_rest: bool = False
    compare: bool = False
    overwrite: bool = False


@dataclass(frozen=True)
class Job:
    """A file to restore and where the result goes; the target's suffix is its format."""

    source: Path
    target: Path


@dataclass(frozen=True)
class Done:
    """A file that was restored: what was written, first the image, and how long it took in seconds."""

    job: Job
    written: tuple[Path, ...]
    seconds: float
    megapixels: float


def plan(
    inputs: Sequence[Path], output: Path | None = None, recursive: bool = False, format: str | None = None
) -> list[Job]:
    """Which files are restored, and where the results go.

    One file gives `NAME.restored.png` beside it, a folder `FOLDER.restored/`. `output` names a file, for one input file,
    or else a folder. Lossless formats stay; JPEG and WebP become PNG unless `format` says otherwise. Inputs that would
    get the same name keep their whole name in it.

    Raises:
        OptionError: an input is missing, a folder holds no images, or two inputs still have one target.
    """
    if format is not None and format not in FORMAT_SUFFIXES:
        raise OptionError(f"There is no format {format!r}; choose one of {', '.join(FORMAT_SUFFIXES)}.")
    into_folder = output is not None and (len(inputs) > 1 or output.is_dir() or any(path.is_dir() for path in inputs))
    jobs: list[Job] = []
    for path in inputs:
        if path.is_dir():
            folder = output or path.with_name(f"{path.resolve().name}.restored")
            sources = _images_in(path, recursive, folder)
            if not sources:
                raise OptionError(f"The folder {path} holds no images{'' if recursive else ' (try --recursive)'}.")
            targets = [folder / source.relative_to(path) for source in sources]
            jobs += [Job(s, _with_format(t, format)) for s, t in zip(sources, targets, strict=True)]
        elif not path.exists():
            raise OptionError(f"There is no file {path}.")
        elif output is not None and into_folder:
            jobs.append(Job(path, _with_format(output / path.name, format)))
        elif output is not None:
            jobs.append(Job(path, output if format is None else output.with_suffix(FORMAT_SUFFIXES[format])))
        else:
            named = _with_format(path, format)
            jobs.append(Job(path, named.with_name(f"{named.stem}.restored{named.suffix}")))
    return _apart(jobs)


def _images_in(folder: Path, recursive: bool, output: Path) -> list[Path]:
    found = folder.rglob("*") if recursive else folder.iterdir()
    return sorted(p for p in found if is_image_path(p) and p.is_file() and not p.is_relative_to(output))


def _with_format(path: Path, format: str | None) -> Path:
    if format is not None:
        return path.with_suffix(FORMAT_SUFFIXES[format])
    return path if path.suffix.lower() in LOSSLESS_SUFFIXES else path.with_suffix(".png")


def _apart(jobs: list[Job]) -> list[Job]:
    """Targets that meet (also on a file system that ignores case) get the whole name of their input."""
    count = Counter(str(job.target).casefold() for job in jobs)
    apart = [
        replace(job, target=job.target.with_name(job.source.name + job.target.suffix))
        if count[str(job.target).casefold()] > 1 and job.source.suffix != job.target.suffix
        else job
        for job in jobs
    ]
    again = Counter(str(job.target).casefold() for job in apart)
    for job in apart:
        if again[str(job.target).casefold()] > 1:
            raise OptionError(f"Several inputs would be written to {job.target}: restore them into different folders.")
    return apart
