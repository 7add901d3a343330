"""The main job: restore an array, a file, a folder; `irae.restore` is the function for arrays and paths."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from irae.compare import side_by_side
from irae.degrade import NOISES, generator_for
from irae.engine import Engine, Plan, Wishes, check_quality, check_rest, mask_of, opaque
from irae.errors import printable
from irae.files import make_folder, read_file, write_bytes
from irae.images import (
    MAX_PIXELS,
    SUFFIXES,
    Picture,
    count_pixels,
    encode_image,
    is_image_path,
    is_lossy,
    pillow_metadata,
    read_image,
)
from irae.journal import NAME as JOURNAL
from irae.journal import Entry, Journal, Verdict, digest, digest_file
from irae.jpeg import encode_jpeg, standard_tables
from irae.masks import MASKS, mask_for
from irae.models.irae import IRAE
from irae.restorer import (
    OptionError,
    Restorer,
    as_pixels,
    as_tensor,
    check_pixels,
    check_settings,
    pixels_digest,
    rest_weights,
)
from irae.weights import weights_with_digest

Pixels = NDArray[Any]

SUBSAMPLINGS = {"4:4:4": (1, 1), "4:2:2": (2, 1), "4:2:0": (2, 2)}
INEXACT = "{} does not keep these pixels exactly, and the rest needs that: write PNG or TIFF."
BYTES_A_PIXEL = 64  # of an image in flight, from its file's bytes to those of its result
RAW = {".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2"}
FOREIGN = RAW | {".heic", ".heif", ".avif", ".jxl", ".gif", ".jp2"}  # what is not read here
FORMAT_SUFFIXES = {"png": ".png", "tiff": ".tif", "jpeg": ".jpg", "webp": ".webp", "bmp": ".bmp"}


def restore(
    image: str | Path | Pixels,
    task: str = "auto",
    sigma: float | None = None,
    mask: str | Path | Pixels | None = None,
    jpeg_quality: int | None = None,
    consistent: bool | None = None,
    ensemble: bool = False,
    model: str | Path | IRAE | None = None,
    device: str = "auto",
    precision: str = "auto",
    max_pixels: int = MAX_PIXELS,
    strength: float = 1.0,
) -> Pixels:
    """Restore an image.

    Args:
        image: a path (pixels are taken in their stored orientation), or an array (H, W) or (H, W, C), C one of 1
            (grey), 2 (grey, alpha), 3 (RGB), 4 (RGB, alpha); uint8, uint16, or float32 nominally in [0, 1]. Floats
            outside that range go to the network unclipped. Alpha stays as it is, unless it is the mask.
        task: "auto" finds out what the image needs; or "denoise", "photo", "jpeg", "inpaint".
        sigma: standard deviation of the noise in 8-bit levels, whatever the dtype.
        mask: what is missing: an array (H, W), a mask file, "alpha" or "#rrggbb"; see `irae.engine.Wishes`.
        jpeg_quality, consistent, ensemble: see `irae.engine.Wishes`.
        model, device, precision: see `irae.engine.Engine`.
        max_pixels: an image file of more pixels is refused before it is decoded.
        strength: see `irae.engine.Wishes`.

    Returns:
        The restored image, dtype and shape as `image`. Integers are clipped and rounded, floats are neither.

    Raises:
        IraeError: anything that the caller can mend; one sentence.
    """
    wishes = Wishes(task, sigma, jpeg_quality, mask, consistent, strength, ensemble)
    engine = Engine(model, device, precision)
    if isinstance(image, (str, Path)):
        data = read_file(Path(image))
        picture = read_image(data, max_pixels=max_pixels, name=printable(image))
        plan = engine.plan(picture, wishes, data, str(image))
        restored, alpha = engine.run(plan, wishes), plan.picture.alpha
        return restored if alpha is None else np.dstack((restored, alpha))
    array = np.asarray(image)
    check_pixels(array)
    layers = array[..., None] if array.ndim == 2 else array
    if layers.ndim != 3 or not 1 <= layers.shape[2] <= 4:
        raise OptionError(f"An image has the shape (H, W) or (H, W, 1 to 4), not {array.shape}.")
    alpha = layers[..., -1] if layers.shape[2] in (2, 4) else None
    plan = engine.plan(Picture(layers[..., :3] if layers.shape[2] > 2 else layers[..., 0], alpha), wishes)
    restored = engine.run(plan, wishes)
    if alpha is not None:
        restored = np.dstack((restored, opaque(alpha) if plan.picture.alpha is None else plan.picture.alpha))
    return restored.reshape(array.shape)


@dataclass(frozen=True)
class Settings:
    """What is done to each picture, and what is written.

    Attributes:
        wishes: what the user asks for.
        keep_rest: also write what is left beside the image, `X.rest` beside `X.png`.
        compare: also write input and result side by side, `X.compare.png`.
        overwrite: replace outputs that exist. An input is never replaced.
        max_pixels: images of more pixels are refused before they are decoded.

    Raises:
        OptionError: a rest cannot be kept of what is wished.
    """

    wishes: Wishes = field(default_factory=Wishes)
    keep_rest: bool = False
    compare: bool = False
    overwrite: bool = False
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        if self.keep_rest:
            check_rest(self.wishes)


@dataclass(frozen=True)
class Job:
    """A file to restore and where the result goes.

    Attributes:
        source: the file.
        target: its suffix is the format that is written.
        root: the folder of results whose journal tells of it; None where the result lies alone or beside the input.
        skip: why it is left out; empty where it is not.
        inside: the sub-folder of the input that the file lies in.
    """

    source: Path
    target: Path
    root: Path | None = None
    skip: str = ""
    inside: Path = Path()


@dataclass(frozen=True)
class Skipped:
    """A file that is left as it is, and why."""

    job: Job
    why: str


@dataclass(frozen=True)
class Done:
    """A file that was restored: what was written, first the image, how long it took in seconds, and what was done."""

    job: Job
    written: tuple[Path, ...]
    seconds: float
    megapixels: float
    tasks: tuple[str, ...]
    found: tuple[str, ...]


def plan(
    inputs: Sequence[Path], output: Path | None = None, recursive: bool = False, format: str | None = None
) -> list[Job]:
    """Which files are restored, and where the results go.

    One file gives `NAME.restored.png` beside it, a folder `FOLDER.restored/`. `output` names a file, where there is one
    input file and it has a suffix and is no folder, else a folder. Lossless formats stay; JPEG and lossy WebP become
    PNG unless `format` says otherwise. Inputs that would get the same name keep their whole name in it.

    Raises:
        OptionError: an input is missing, a folder holds no images or cannot be read, two inputs have one target, or
            `output` is no image file, or not of that format.
    """
    inputs = list(dict.fromkeys(inputs))
    for path in inputs:
        if not path.exists():
            raise OptionError(f"There is no file or folder {printable(path)}.")
    one_file = len(inputs) == 1 and not inputs[0].is_dir()
    if output is not None and one_file and output.suffix and not output.is_dir():
        if format not in (None, written := file_format(output)):
            raise OptionError(f"{printable(output)} is a {written.upper()} file: leave --format out, or name another.")
        return [Job(inputs[0], output)]
    if output is not None and is_image_path(output) and not output.is_dir():
        raise OptionError(f"{printable(output)} names one file, and the input is a folder or several: name a folder.")
    return _apart([job for path in inputs for job in _jobs(path, output, recursive, format, len(inputs) > 1)])


def check_outputs(jobs: Sequence[Job], settings: Settings) -> None:
    """See that nothing that is read would be written over, under whatever name, nothing written twice, and no rest
    kept beside a JPEG.

    Raises:
        OptionError: it would.
    """
    read = (*_masks(settings.wishes), *(job.source for job in jobs))
    inputs = {identity for path in read if (identity := _identity(path))}
    owners = dict[str, Job]()
    for job in jobs:
        if settings.keep_rest and file_format(job.target) == "jpeg":
            raise OptionError(INEXACT.format("JPEG"))
        for path in () if job.skip else _outputs(job, settings):
            if _identity(path) in inputs:
                raise OptionError(
                    f"{printable(path)} is an input, and inputs are never overwritten: give another --output."
                )
            if owners.setdefault(os.path.realpath(path), job) is not job:
                raise OptionError(f"Several inputs would be written to {printable(path)}: use different folders.")


def is_mask(path: Path, wishes: Wishes) -> bool:
    """Whether a path is a file of a mask, under whatever name."""
    identity = _identity(path)
    return identity is not None and identity in map(_identity, _masks(wishes))


def _masks(wishes: Wishes) -> list[Path]:
    """The files that masks may be read from."""
    if not isinstance(wishes.mask, Path):
        return []
    return list(wishes.mask.rglob("*")) if wishes.mask.is_dir() else [wishes.mask]


def _wishes(job: Job, settings: Settings) -> Wishes:
    """The wishes for one file: where the folder of masks has the sub-folder that the file lies in, masks are there."""
    wishes = settings.wishes
    if isinstance(wishes.mask, Path) and (masks := wishes.mask / job.inside).is_dir():
        return replace(wishes, mask=masks)
    return wishes


def _identity(path: Path) -> tuple[int, int] | None:
    """What tells a file from others whatever its name; None where there is none."""
    try:
        stat = path.stat()
    except (OSError, ValueError):
        return None
    return stat.st_dev, stat.st_ino


def judge(job: Job, content: bytes, engine: Engine, settings: Settings, journal: Journal | None) -> Verdict:
    """Whether a file is to be restored: what exists decides, and the journal, where there is one.

    Raises:
        IraeError: a target that is the input, or that cannot be written.
    """
    paths = _outputs(job, settings)
    for path in paths:
        _check_output(path, job.source, settings.overwrite or journal is not None)
    if journal is None:
        return Verdict("restore", "new")
    options = _options(job, engine, settings)
    return journal.judge(paths, content, options, engine.weights_digest, settings.overwrite)


class GateClosed(Exception):
    """The run was stopped before an image got in."""


class Gate:
    """Lets images in as long as together they have no more pixels than a limit, and a larger one alone.

    Args:
        limit: in pixels.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.inside, self.closed = limit, 0, False
        self._left = threading.Condition()

    def close(self) -> None:
        """Let nobody in any more."""
        with self._left:
            self.closed = True
            self._left.notify_all()

    @contextmanager
    def admit(self, pixels: int) -> Iterator[None]:
        """Wait until there is room for an image.

        Raises:
            GateClosed: the gate was closed.
        """
        with self._left:
            self._left.wait_for(lambda: self.closed or not self.inside or self.inside + pixels <= self.limit)
            if self.closed:
                raise GateClosed
            self.inside += pixels
        try:
            yield
        finally:
            with self._left:
                self.inside -= pixels
                self._left.notify_all()


def restore_file(
    job: Job, engine: Engine, settings: Settings, journal: Journal | None = None, gate: Gate | None = None
) -> Done | Skipped:
    """Restore one file; everything is written beside its place and renamed, the image last.

    Args:
        job: the file.
        engine: the networks.
        settings: what is done.
        journal: of the folder of results: what is finished there is skipped, and what is written is noted.
        gate: waited at before the file is read.

    Raises:
        IraeError: the input cannot be read, an output exists or cannot be written; nothing is left half done.
        GateClosed: the gate was closed; nothing was done.
    """
    start = time.monotonic()
    if journal is None:
        judge(job, b"", engine, settings, None)  # before time is spent
    with gate.admit(_room(job.source, settings.max_pixels)) if gate else nullcontext():
        data = read_file(job.source)
        verdict = judge(job, data, engine, settings, journal)
        if verdict.action == "refuse":
            raise OptionError(verdict.why)
        if verdict.action == "skip":
            return Skipped(job, verdict.why)
        contents, plan, size = _restore(job, data, engine, settings)
        outdated: list[Path] = []
        tasks = tuple(step.task for step in plan.steps)
        if journal is not None:
            if engine.runner is not None:
                journal.record_shape(engine.runner.device.type, engine.runner.shape)
            written = {journal.name(path): digest(content) for path, content in contents.items()}
            deciding = {"auto"} & set(engine.restorers)  # that network is asked where nobody said what to do
            weights = {task: engine.weights_digest(task) for task in (*tasks, *deciding)}
            name, options = journal.name(job.target), _options(job, engine, settings)
            outdated = journal.outdated(name, written)
            journal.record(Entry(name, digest(data), options, weights, written))
        _write_all(contents, settings.overwrite or verdict.action == "redo")
        for path in outdated:
            path.unlink(missing_ok=True)
    return Done(job, _outputs(job, settings), time.monotonic() - start, size / 1e6, tasks, plan.found)


def _room(path: Path, max_pixels: int) -> int:
    """The pixels that a file counts for at the gate: those that will be decoded, or what its bytes take."""
    try:
        size = path.stat().st_size
    except OSError:  # reading it will tell what is wrong
        return 0
    return max(min(count_pixels(path), max_pixels), size // BYTES_A_PIXEL)


def _restore(job: Job, data: bytes, engine: Engine, settings: Settings) -> tuple[dict[Path, bytes], Plan, int]:
    """The content of the files to write, the image last; what was done; and the number of pixels."""
    format = file_format(job.target).upper()
    picture = read_image(data, max_pixels=settings.max_pixels, name=printable(job.source))
    wishes = _wishes(job, settings)
    plan = engine.plan(picture, wishes, data, str(job.source))
    contents: dict[Path, bytes] = {}
    if settings.keep_rest:
        pixels, contents[rest_path(job.target)] = engine.run_with_rest(plan, wishes)
    else:
        pixels = engine.run(plan, wishes)
    restored = replace(plan.picture, pixels=pixels)
    if settings.compare:
        both = Picture(side_by_side({"input": picture.upright, "restored": restored.upright}))
        if picture.pixels.ndim == 3:  # a grey profile says nothing of colours
            both = replace(both, icc=picture.icc, png_colour=picture.png_colour)
        contents[compare_path(job.target)] = encode_image(both, "PNG")
    contents[job.target] = _encode_exactly(restored, format) if settings.keep_rest else encode_image(restored, format)
    return contents, plan, pixels.shape[0] * pixels.shape[1]


def restore_bytes(
    data: bytes, engine: Engine, settings: Settings, format: str | None = None, source: Path | None = None
) -> tuple[bytes, Plan]:
    """Restore the content of an image file, for standard input and output.

    Args:
        data: the content.
        engine, settings: as `restore_file`.
        format: of the result, a key of `FORMAT_SUFFIXES`.
        source: the file, where it is one.

    Returns:
        The content of the result, PNG for JPEG and lossy WebP, else the format of the input, unless `format` says
        otherwise; and what was done.
    """
    name = "standard input" if source is None else printable(source)
    picture = read_image(data, max_pixels=settings.max_pixels, name=name)
    plan = engine.plan(picture, settings.wishes, data, "" if source is None else str(source))
    restored = replace(plan.picture, pixels=engine.run(plan, settings.wishes))
    return encode_image(restored, (format or ("png" if picture.lossy else picture.format)).upper()), plan


def recover_file(
    restored: Path,
    output: Path | None = None,
    model: str | None = None,
    device: str = "auto",
    overwrite: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> Path:
    """The input's pixels, bit for bit, from a restored image and the rest beside it (`NAME.rest`).

    Args:
        restored: the image that `restore_file` wrote with `keep_rest`.
        output: the file or folder to write; by default `X.recovered.png` for `X.restored.png`.
        model: weights by name or path, where they are not installed.
        device: as `Restorer`.
        overwrite: replace the output, if it exists.
        max_pixels: images of more pixels are refused before they are decoded.

    Returns:
        The path written.

    Raises:
        IraeError: there is no rest, or it does not belong to this image, these weights or this arithmetic.
    """
    _check_file(restored)
    if restored.suffix == ".rest":
        raise OptionError(f"{printable(restored)} is the rest: name the image beside it.")
    target = restored.with_name(f"{restored.stem.removesuffix('.restored')}.recovered{restored.suffix}")
    target = _placed(target, output)
    format = file_format(target).upper()
    _check_output(target, restored, overwrite)
    picture, rest = read_image(restored, max_pixels=max_pixels), rest_path(restored)
    if not rest.is_file():
        raise OptionError(f"There is no {printable(rest)}: restore with --keep-rest to get the input back later.")
    content = rest.read_bytes()
    restorer = Restorer(model=model or weights_with_digest(rest_weights(content)), device=device)
    recovered = replace(picture, pixels=restorer.recover(picture.pixels, content))
    _write_all({target: _encode_exactly(recovered, format)}, overwrite)
    return target


@dataclass(frozen=True)
class Damage:
    """How `degrade_file` damages a clean image: noise, then holes or JPEG compression, whichever are asked for.

    Attributes:
        noise: noise level in 8-bit levels.
        kind: of the noise, a name in `irae.degrade.NOISES`.
        mask: a name in `irae.masks.MASKS`; missing pixels become black, and the mask is written too.
        jpeg: quality of libjpeg, 1 to 100.
        subsampling: of the chroma in the JPEG, a name in `SUBSAMPLINGS`.
        seed: what is random depends on it and on the file's name.
    """

    noise: float | None = None
    kind: str = "gaussian"
    mask: str | None = None
    jpeg: int | None = None
    subsampling: str = "4:2:0"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.noise is None and self.mask is None and self.jpeg is None:
            raise OptionError("Say what to do: --noise, --jpeg or --mask.")
        if self.mask is not None and self.jpeg is not None:
            raise OptionError("A JPEG file does not keep holes exactly: give --mask or --jpeg.")
        if self.noise is None and self.kind != Damage.kind:
            raise OptionError("The kind of the noise says nothing without its level: give --noise.")
        if self.jpeg is None and self.subsampling != Damage.subsampling:
            raise OptionError("The subsampling says nothing without a JPEG quality: give --jpeg.")
        check_settings(self.noise)
        for value, choices in ((self.kind, NOISES), (self.subsampling, SUBSAMPLINGS), (self.mask, MASKS)):
            if value is not None and value not in choices:
                raise OptionError(f"There is no {value!r} here; choose one of {', '.join(choices)}.")
        check_quality(self.jpeg)


def degrade_file(
    clean: Path, output: Path | None, damage: Damage, overwrite: bool = False, max_pixels: int = MAX_PIXELS
) -> tuple[Path, ...]:
    """Write a damaged copy of an image, to try things out.

    Args:
        clean: the image.
        output: the file or folder to write; by default beside it `NAME.noisy.png`, `NAME.q30.jpg` or
            `NAME.holes.png`, the mask beside that with `.mask.png` for its suffix.
        damage: what to do.
        overwrite: replace the outputs, if they exist.
        max_pixels: images of more pixels are refused before they are decoded.

    Returns:
        The paths written: the image, and the mask where there is one.
    """
    _check_file(clean)
    named = _target(clean, clean, None)
    ending = f"q{damage.jpeg}" if damage.jpeg else "holes" if damage.mask else "noisy"
    target = named.with_name(f"{named.stem}.{ending}{'.jpg' if damage.jpeg else named.suffix}")
    target = _placed(target, output)
    format = file_format(target).upper()
    if (format == "JPEG") != (damage.jpeg is not None):
        raise OptionError(f"{printable(target)}: a .jpg file is written with --jpeg QUALITY, and with that only.")
    mask_path = target.with_suffix(".mask.png")
    for path in (target, mask_path)[: 1 + bool(damage.mask)]:
        _check_output(path, clean, overwrite)
    picture = read_image(clean, max_pixels=max_pixels)
    if damage.noise is not None:
        generator = generator_for(clean.stem, damage.seed)
        noise = NOISES[damage.kind].draw(damage.noise, generator)
        noisy = noise(as_tensor(picture.pixels)[0], generator).image[None]
        picture = replace(picture, pixels=as_pixels(noisy, picture.pixels))
    contents: dict[Path, bytes] = {}
    height, width = picture.pixels.shape[:2]
    if damage.mask is not None:
        mask = mask_for(clean.stem, damage.mask, height, width, damage.seed)
        pixels = picture.pixels.copy()
        pixels[mask] = 0
        picture = replace(picture, pixels=pixels)
        contents[mask_path] = encode_image(Picture(mask.astype(np.uint8) * 255, exif=picture.exif), "PNG")
    if damage.jpeg is not None:
        if picture.pixels.dtype != np.uint8 or picture.alpha is not None:
            raise OptionError(f"{printable(clean)} has 16 bits or transparency, which JPEG has not.")
        tables = standard_tables(damage.jpeg, SUBSAMPLINGS[damage.subsampling], picture.pixels.ndim == 2)
        contents[target] = encode_jpeg(picture.pixels, tables, **pillow_metadata(picture))
    else:
        contents[target] = encode_image(picture, format)
    _write_all(contents, overwrite)
    return tuple(reversed(contents))


def _outputs(job: Job, settings: Settings) -> tuple[Path, ...]:
    """What is written for a file, the image first."""
    rest, compare = rest_path(job.target), compare_path(job.target)
    return (job.target, *[rest] * settings.keep_rest, *[compare] * settings.compare)


def _options(job: Job, engine: Engine, settings: Settings) -> dict[str, Any]:
    """What is asked for, in plain values, a mask as the digest of its content."""
    wishes = engine.settle(_wishes(job, settings))
    options = {**vars(wishes), "keep_rest": settings.keep_rest, "compare": settings.compare}
    options["precision"] = engine.precision
    if isinstance(wishes.mask, np.ndarray):
        options["mask"] = pixels_digest(wishes.mask)
    elif isinstance(wishes.mask, Path):
        options["mask"] = digest_file(mask_of(wishes.mask, job.source.name))
    return options


def rest_path(restored: Path) -> Path:
    """Where the rest of a restored image lies."""
    return restored.with_name(f"{restored.name}.rest")


def compare_path(restored: Path) -> Path:
    """Where the side-by-side picture of a restored image lies."""
    return restored.with_name(f"{restored.name}.compare.png")


def file_format(path: Path) -> str:
    """The format that a file's suffix stands for, a key of `FORMAT_SUFFIXES`; raises OptionError where it has none."""
    if not is_image_path(path):
        raise OptionError(f"{printable(path)} has no suffix of an image format: {', '.join(SUFFIXES)}.")
    return SUFFIXES[path.suffix.lower()].lower()


def _placed(target: Path, output: Path | None) -> Path:
    """Where a single result goes: beside its input, or to the file or folder that is named."""
    if output is None:
        return target
    return output / target.name if output.is_dir() or not output.suffix else output


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise OptionError(f"{printable(path)} is a folder: name an image in it.")


def _check_output(path: Path, source: Path, overwrite: bool) -> None:
    if os.path.exists(path):
        if _identity(path) == _identity(source):
            raise OptionError(f"{printable(source)} would be written over itself: inputs are never overwritten.")
        check_new(path, overwrite)


def check_new(path: Path, overwrite: bool) -> None:
    """Raises OptionError where something exists that is not to be replaced."""
    if not overwrite and os.path.lexists(path):
        raise OptionError(f"{printable(path)} exists: give --overwrite to replace it.")


def _encode_exactly(picture: Picture, format: str) -> bytes:
    content = encode_image(picture, format)
    if not np.array_equal(read_image(content).pixels, picture.pixels):
        raise OptionError(INEXACT.format(format))
    return content


def _write_all(contents: dict[Path, bytes], overwrite: bool) -> None:
    """Write files in order; where one cannot be written, those that were new and written before it go again."""
    new: list[Path] = []
    try:
        for path, content in contents.items():
            existed = path.exists()
            make_folder(path.parent)
            write_bytes(path, content, overwrite=overwrite)
            new += [] if existed else [path]
    except BaseException:
        for path in new:
            path.unlink(missing_ok=True)
        raise


def _jobs(path: Path, output: Path | None, recursive: bool, format: str | None, several: bool) -> list[Job]:
    """The jobs of one input, a file or a folder; `output` is a folder."""
    if not path.is_dir():
        target = _target(path, output / path.name if output else path, format)
        if output:
            return [Job(path, target, output if several else None)]
        return [Job(path, target.with_name(f"{target.stem}.restored{target.suffix}"))]
    resolved = path.resolve()
    folder = output or resolved.parent / f"{resolved.name}.restored"
    results = folder.resolve()
    if results == resolved:
        raise OptionError(f"{printable(path)} is the input: give another folder with --output.")
    jobs = []
    for source in sorted(_images_in(path, recursive)):
        place = source.resolve()
        if resolved.is_relative_to(results) or not place.is_relative_to(results):
            inside, skip = source.relative_to(path), ""
            if is_foreign := source.suffix.lower() in FOREIGN:
                skip = "a format that is not read (convert it to PNG or TIFF)"
            elif not place.is_relative_to(resolved):
                skip = "a link that leads out of the folder is not followed"
            target = folder / inside if is_foreign else _target(source, folder / inside, format)
            jobs.append(Job(source, target, folder, skip, inside.parent))
    if all(job.source.suffix.lower() in FOREIGN for job in jobs):
        deeper = "" if recursive else " (try --recursive)"
        raise OptionError(f"The folder {printable(path)} holds no PNG, TIFF, JPEG, WebP or BMP images{deeper}.")
    return jobs


def _images_in(folder: Path, recursive: bool) -> Iterator[Path]:
    """The image files in a folder, of foreign formats too, and sub-folders that cannot be read, whose reading will tell
    why.

    Hidden files and folders and the results of earlier runs are none of it.
    """
    unreadable: list[Path] = []
    results = set[Path]()

    def refuse(error: OSError) -> None:
        if Path(error.filename) == folder:
            raise OptionError(f"{printable(error.filename)} cannot be read: {error.strerror}.") from error
        unreadable.append(Path(error.filename))

    for place, folders, files in os.walk(folder, onerror=refuse):
        known = {*files, *(Path(name).stem for name in files)}
        for name in files:
            path = Path(place, name)
            hidden = name.startswith(".") or _is_result(name, known) or path in results
            if not hidden and (is_image_path(path) or path.suffix.lower() in FOREIGN) and path.is_file():
                yield path
        folders[:] = [f for f in folders if recursive and not f.startswith(".")]
        for inner in (Path(place, f) for f in folders):
            if os.path.exists(inner / JOURNAL):  # not where the folder cannot be read, which comes out in its turn
                results |= Journal(inner).results
    yield from unreadable


def _is_result(name: str, known: set[str]) -> bool:
    """Whether a file is what was made of another one beside it: `X.restored.png` beside X.png, and its like."""
    stem, _, kind = Path(name).stem.rpartition(".")
    return kind in ("restored", "recovered", "compare") and stem in known


def _target(source: Path, place: Path, format: str | None) -> Path:
    if format is not None:
        return place.with_suffix(FORMAT_SUFFIXES[format])
    return place.with_suffix(".png") if is_lossy(source) or not is_image_path(place) else place


def _apart(jobs: list[Job]) -> list[Job]:
    """Targets that meet (also on a file system that ignores case) get the whole name of their input; once more, where
    there is an input that has such a name.
    """
    for place in (str.casefold, str):
        places = [place(str(job.target)) for job in jobs]
        count = Counter(places)
        jobs = [
            replace(job, target=job.target.with_name(job.source.name + job.target.name.removeprefix(job.source.stem)))
            if count[where] > 1 and job.source.suffix != job.target.suffix
            else job
            for job, where in zip(jobs, places, strict=True)
        ]
    return jobs
