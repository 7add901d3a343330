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
from irae.degrade import NOISES, generator_for
from irae.images import (
    SUFFIXES,
    Picture,
    encode_image,
    is_image_path,
    is_lossy,
    read_image,
    write_bytes,
    write_image,
)
from irae.models.irae import IRAE
from irae.restorer import OptionError, Restorer, as_pixels, as_tensor, check_settings, rest_weights
from irae.weights import weights_with_digest

Pixels = NDArray[Any]

FORMAT_SUFFIXES = {"png": ".png", "tiff": ".tif", "jpeg": ".jpg", "webp": ".webp", "bmp": ".bmp"}


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

    One file gives `NAME.restored.png` beside it, a folder `FOLDER.restored/`. `output` names a file, where there is one
    input file and it has a suffix and is no folder, else a folder. Lossless formats stay; JPEG and lossy WebP become
    PNG unless `format` says otherwise. Inputs that would get the same name keep their whole name in it.

    Raises:
        OptionError: an input is missing, a folder holds no images, or two inputs still have one target.
    """
    if format is not None and format not in FORMAT_SUFFIXES:
        raise OptionError(f"There is no format {format!r}; choose one of {', '.join(FORMAT_SUFFIXES)}.")
    one_file = len(inputs) == 1 and not inputs[0].is_dir()
    if output is not None and one_file and output.suffix and not output.is_dir():
        _check_exists(inputs[0])
        return [Job(inputs[0], output if format is None else output.with_suffix(FORMAT_SUFFIXES[format]))]
    jobs: list[Job] = []
    for path in inputs:
        _check_exists(path)
        if path.is_dir():
            folder = output or path.resolve().with_name(f"{path.resolve().name}.restored")
            sources = _images_in(path, recursive, folder)
            if not sources:
                raise OptionError(f"The folder {path} holds no images{'' if recursive else ' (try --recursive)'}.")
            jobs += [Job(source, _target(source, folder / source.relative_to(path), format)) for source in sources]
        elif output is not None:
            jobs.append(Job(path, _target(path, output / path.name, format)))
        else:
            target = _target(path, path, format)
            jobs.append(Job(path, target.with_name(f"{target.stem}.restored{target.suffix}")))
    return _apart(jobs)


def restore_file(job: Job, restorer: Restorer, settings: Settings) -> Done:
    """Restore one file; everything is written beside its place and renamed, the image last.

    Raises:
        IraeError: the input cannot be read, the output exists or cannot be written; nothing is left half done.
    """
    start = time.monotonic()
    _check_target(job, settings)
    picture = read_image(job.source)
    restored, extras = _restore_picture(picture, job.target, restorer, settings)
    content = encode_image(restored, SUFFIXES[job.target.suffix.lower()])
    job.target.parent.mkdir(parents=True, exist_ok=True)
    for path, data in {**extras, job.target: content}.items():
        write_bytes(path, data, overwrite=settings.overwrite)
    megapixels = picture.pixels.shape[0] * picture.pixels.shape[1] / 1e6
    return Done(job, (job.target, *extras), time.monotonic() - start, megapixels)


def restore_bytes(data: bytes, restorer: Restorer, settings: Settings, format: str | None = None) -> bytes:
    """Restore the content of an image file, for standard input and output: PNG out unless it was TIFF, BMP or lossless
    WebP, or `format` says otherwise."""
    picture = read_image(data)
    pixels = restorer(picture.pixels, settings.sigma, settings.strength)
    return encode_image(
        replace(picture, pixels=pixels), (format or ("png" if picture.lossy else picture.format)).upper()
    )


def recover_file(
    restored: Path, output: Path | None = None, model: str | None = None, device: str = "auto", overwrite: bool = False
) -> Path:
    """The input's pixels, bit for bit, from a restored image and the rest beside it (`NAME.rest`).

    Args:
        restored: the image that `restore_file` wrote with `keep_rest`.
        output: the file to write; by default `X.recovered.png` for `X.restored.png`.
        model: weights by name or path, where they are not installed.
        device: as `Restorer`.

    Returns:
        The path written.

    Raises:
        IraeError: there is no rest, or it does not belong to this image, these weights or this arithmetic.
    """
    picture, rest = read_image(restored), rest_path(restored)
    if not rest.is_file():
        raise OptionError(f"There is no {rest}: restore with --keep-rest to get the input back later.")
    content = rest.read_bytes()
    restorer = Restorer(model=model or weights_with_digest(rest_weights(content)), device=device)
    target = output or restored.with_name(f"{restored.stem.removesuffix('.restored')}.recovered{restored.suffix}")
    pixels = restorer.recover(picture.pixels, content)
    write_image(target, replace(picture, pixels=pixels), overwrite=overwrite)
    return target


def degrade_file(
    clean: Path, output: Path | None, sigma: float, kind: str = "gaussian", seed: int = 0, overwrite: bool = False
) -> Path:
    """Write a noisy copy of an image; clipped and rounded, as a file is.

    Args:
        clean: the image.
        output: the file to write, by default `NAME.noisy.png` beside it.
        sigma: noise level in 8-bit levels.
        kind: a name in `irae.degrade.NOISES`.
        seed: the noise depends on it and on the file's name.

    Returns:
        The path written.
    """
    if kind not in NOISES:
        raise OptionError(f"There is no noise {kind!r}; choose one of {', '.join(NOISES)}.")
    check_settings(sigma)
    picture = read_image(clean)
    image, generator = as_tensor(picture.pixels), generator_for(clean.stem, seed)
    noisy = NOISES[kind].draw(sigma, generator)(image[0], generator).image[None]
    named = _target(clean, clean, None)
    target = output or named.with_name(f"{named.stem}.noisy{named.suffix}")
    write_image(target, replace(picture, pixels=as_pixels(noisy, picture.pixels)), overwrite=overwrite)
    return target


def rest_path(restored: Path) -> Path:
    """Where the rest of a restored image lies."""
    return restored.with_name(f"{restored.name}.rest")


def _restore_picture(
    picture: Picture, target: Path, restorer: Restorer, settings: Settings
) -> tuple[Picture, dict[Path, bytes]]:
    """The restored picture, and what else is to be written."""
    extras: dict[Path, bytes] = {}
    if settings.keep_rest:
        pixels, extras[rest_path(target)] = restorer.with_rest(picture.pixels, settings.sigma, settings.strength)
    else:
        pixels = restorer(picture.pixels, settings.sigma, settings.strength)
    if settings.compare:
        both = Picture(side_by_side({"input": picture.pixels, "restored": pixels}))
        extras[compare_path(target)] = encode_image(both, "PNG")
    return replace(picture, pixels=pixels), extras


def compare_path(restored: Path) -> Path:
    """Where the side-by-side picture of a restored image lies."""
    return restored.with_name(f"{restored.stem}.compare.png")


def _check_exists(path: Path) -> None:
    if not path.exists():
        raise OptionError(f"There is no file or folder {path}.")


def _check_target(job: Job, settings: Settings) -> None:
    if not is_image_path(job.target):
        raise OptionError(f"{job.target} has no suffix of an image format: {', '.join(SUFFIXES)}.")
    if settings.keep_rest and SUFFIXES[job.target.suffix.lower()] == "JPEG":
        raise OptionError("A rest belongs to the exact pixels, which JPEG does not keep: write PNG or TIFF.")
    if job.target.exists():
        if job.target.samefile(job.source):
            raise OptionError(f"{job.source} would be written over itself: inputs are never overwritten.")
        if not settings.overwrite:
            raise OptionError(f"{job.target} exists: give --overwrite to replace it.")


def _images_in(folder: Path, recursive: bool, output: Path) -> list[Path]:
    found = folder.rglob("*") if recursive else folder.iterdir()
    inside = output.resolve()
    return sorted(p for p in found if is_image_path(p) and p.is_file() and not p.resolve().is_relative_to(inside))


def _target(source: Path, place: Path, format: str | None) -> Path:
    if format is not None:
        return place.with_suffix(FORMAT_SUFFIXES[format])
    return place.with_suffix(".png") if is_lossy(source) or not is_image_path(place) else place


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
