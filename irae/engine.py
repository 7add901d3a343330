"""What is done to a picture: the wishes of the user, what the picture itself says, and the networks that do it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from irae.auto import Need, decide, estimate_compression, find_grid
from irae.ensemble import ensemble
from irae.errors import printable
from irae.images import MAX_PIXELS, ImageError, Picture, read_image
from irae.jpeg import NARROW, project, read_coefficients, read_tables, standard_tables
from irae.models.irae import IRAE
from irae.restorer import (
    TASKS,
    Afterwards,
    Hints,
    OptionError,
    Restorer,
    check_mask,
    check_settings,
    mix,
    pick_device,
    pick_precision,
)
from irae.runner import Runner
from irae.weights import SIZES, installed_weights, weights_of

Pixels = NDArray[Any]
Found = TypeVar("Found")

CHOICES = ("auto", *TASKS)
ALPHA = "alpha"
LEAST_FOUND = 0.75  # of the measured noise, that a denoiser takes out where it found it (docs/auto.md)


@dataclass(frozen=True)
class Wishes:
    """What the user asks for.

    Attributes:
        task: "auto" finds out what the picture needs; otherwise a task of `irae.restorer.TASKS`.
        sigma: noise level in 8-bit levels. With "auto" it means denoising.
        jpeg_quality: libjpeg's quality, 1 to 100, of the JPEG that a picture in another format was before. Its grid is
            found; where none is, the first pixel is on it. With "auto" it means decompression.
        mask: what is missing: a mask file (white = missing; it lies on the picture as a viewer shows both) or a folder
            of them by the pictures' names, "alpha" (transparent = missing), "#rrggbb" (that colour = missing), or an
            array (H, W), not 0 = missing. With "auto" it means inpainting.
        consistent: project a decompressed JPEG onto the images that its file could have come from; None: where the
            picture is that file.
        strength: 1 the restored image, 0 the input, between them their mixture.
        ensemble: restore all eight flips and rotations and take the mean.
    """

    task: str = "auto"
    sigma: float | None = None
    jpeg_quality: int | None = None
    mask: str | Path | Pixels | None = None
    consistent: bool | None = None
    strength: float = 1.0
    ensemble: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.mask, str) and self.mask != ALPHA and not self.mask.startswith("#"):
            object.__setattr__(self, "mask", Path(self.mask))
        elif self.mask is not None and not isinstance(self.mask, (str, Path)):
            object.__setattr__(self, "mask", np.asarray(self.mask))
            if np.ndim(self.mask) not in (2, 3):
                raise OptionError(f"A mask has the shape (H, W), not {np.shape(self.mask)}.")
        check_settings(self.sigma, self.strength)
        check_quality(self.jpeg_quality)
        if self.task not in CHOICES:
            raise OptionError(f"There is no task '{self.task}'; choose one of {', '.join(CHOICES)}.")
        given = {"denoise": self.sigma, "jpeg": self.jpeg_quality, "inpaint": self.mask}
        asked = {task for task, value in given.items() if value is not None}
        own = "denoise" if self.task == "photo" else self.task
        if self.task != "auto" and not asked <= {own}:
            other = min(asked - {own})
            raise OptionError(f"The task '{self.task}' does not take the options of the task '{other}'.")
        if "inpaint" in asked and len(asked) > 1:
            raise OptionError("A mask means inpainting, which takes no noise level and no JPEG quality.")
        if self.task == "inpaint" and self.mask is None:
            raise OptionError("Inpainting needs --mask or --mask-color: what is missing.")
        decompresses = self.task == "jpeg" or (self.task == "auto" and asked <= {"jpeg"}) or "jpeg" in asked
        if self.consistent and not decompresses:
            raise OptionError(f"The task '{min(asked | {own} - {'auto'})}' makes nothing consistent with a JPEG file.")


def check_rest(wishes: Wishes) -> None:
    """Raises OptionError where no rest can be kept that gives all of the input back."""
    if wishes.ensemble:
        raise OptionError("A rest is kept of one pass, and an ensemble has eight: leave one of them out.")
    if isinstance(wishes.mask, str) and wishes.mask == ALPHA:
        raise OptionError("A rest keeps no transparency: give the mask as a file, or leave --keep-rest out.")


def check_quality(quality: int | None) -> None:
    """Raises OptionError for a JPEG quality that is no whole number from 1 to 100."""
    if quality is not None and not (isinstance(quality, (int, np.integer)) and 1 <= quality <= 100):
        raise OptionError(f"The JPEG quality {quality} is not a whole number from 1 to 100.")


@dataclass(frozen=True)
class Step:
    """The part of one network.

    Attributes:
        task: of the network.
        hints: what the network is told.
        afterwards: what is done to its image.
        level: the noise that was measured, in 8-bit levels, where `hints` leave it to the network to find it; if that
            took out less than `LEAST_FOUND` of it, it is told in a second pass.
    """

    task: str
    hints: Hints = field(default_factory=Hints)
    afterwards: Afterwards | None = None
    level: float | None = None


@dataclass(frozen=True)
class Plan:
    """What is done to a picture.

    Attributes:
        steps: in order; none where it needs nothing.
        found: sentences that say why.
        picture: what the steps start from; where alpha was the mask, it is opaque in the holes.
    """

    steps: tuple[Step, ...]
    found: tuple[str, ...]
    picture: Picture


class Engine:
    """The networks of all tasks on a device, loaded when they are needed.

    Args:
        model: a network, or weights by name or path, for its own task; or "small" or "best", the installed weights of
            that size. By default the best ones on a GPU, the small ones on a CPU.
        device, precision, runner: see `irae.restorer.Restorer`.
    """

    def __init__(
        self,
        model: str | Path | IRAE | None = None,
        device: str = "auto",
        precision: str = "auto",
        runner: Runner | None = None,
    ) -> None:
        place = pick_device(device)
        pick_precision(precision, place)  # or a wrong name would only come out at the first image
        self.size = "small" if place.type == "cpu" else "best"
        if isinstance(model, str) and model in SIZES:
            self.size, model = model, None
        self.device, self.precision, self.runner = device, precision, runner
        self.restorers: dict[str, Restorer] = {}
        self.own_task = None
        self._loading = threading.Lock()
        if model is not None:
            restorer = Restorer(None, model, device, precision, runner)
            self.own_task = restorer.task
            self.restorers[restorer.task] = restorer

    def restorer(self, task: str) -> Restorer:
        """The network of a task; "auto": the one that `decide` asks, by which its thresholds were chosen."""
        if self.own_task not in (None, task):
            raise OptionError(f"These weights are for the task '{self.own_task}', not '{task}'.")
        with self._loading:
            if task not in self.restorers:
                use, size = ("photo", "small") if task == "auto" else (task, self.size)
                self.restorers[task] = Restorer(use, weights_of(use, size), self.device, self.precision, self.runner)
        return self.restorers[task]

    def settle(self, wishes: Wishes) -> Wishes:
        """The wishes, their task that of the engine's own weights, where it has some.

        Raises:
            OptionError: these weights do not do what is wished.
        """
        if self.own_task is None:
            return wishes
        if wishes.task not in ("auto", self.own_task):
            raise OptionError(f"These weights are for the task '{self.own_task}', not '{wishes.task}'.")
        return replace(wishes, task=self.own_task)

    def weights_digest(self, task: str) -> str:
        """The digest of the weights of a task; empty for a task that the engine's own weights are not for, and for
        weights that were not loaded from a file.
        """
        return self.restorer(task).model.digest if self.own_task in (None, task) else ""

    def plan(self, picture: Picture, wishes: Wishes, data: bytes = b"", name: str = "") -> Plan:
        """What is to be done to a picture.

        Args:
            picture: the picture.
            wishes: what the user asks for; weights given to the engine decide the task where these do not.
            data: the bytes of its file, where it is a JPEG.
            name: path of the file, for messages and for a folder of masks.

        Raises:
            IraeError: a wish that this picture does not allow.
        """
        wishes = self.settle(wishes)
        task = wishes.task
        if wishes.mask is not None:
            return _inpaint(picture, wishes.mask, name)
        jpeg = picture.format == "JPEG" and bool(data)
        if wishes.consistent and not jpeg:
            raise OptionError("Only the result of a JPEG file can be made consistent with it.")
        measured = task == "auto" and wishes.sigma is None and wishes.jpeg_quality is None
        if measured:
            photo = self.restorer("auto") if "photo" in installed_weights() else None
            decision = decide(picture, _of_file(read_tables, data, name) if jpeg else None, photo=photo)
            needs, found = decision.steps, tuple(decision.found.splitlines())
        else:
            tasks = [t for t, v in (("jpeg", wishes.jpeg_quality), ("denoise", wishes.sigma)) if v is not None]
            tasks = tasks if task == "auto" else [task]
            needs = tuple(
                _asked_jpeg(picture, wishes, jpeg) if t == "jpeg" else Need(t, sigma=wishes.sigma) for t in tasks
            )
            found = tuple(f"{need.task}, as asked{_goes_by(need, jpeg)}" for need in needs)
        if wishes.sigma == 0:
            needs = tuple(need for need in needs if need.sigma is None)
            found = (*found, "Noise level 0, as asked: nothing to take out.")
        if wishes.consistent and any(need.task != "jpeg" for need in needs):
            more = ", ".join(need.task for need in needs if need.task != "jpeg")
            raise OptionError(f"After '{more}' nothing is consistent with a JPEG: give --task jpeg or no --consistent.")
        compressed = picture.lossy or any(need.task == "jpeg" for need in needs)

        def step(need: Need) -> Step:
            if need.task == "jpeg":
                return _decompress(picture, need, wishes, data if jpeg else b"", name)
            if measured and not compressed:
                return Step(need.task, level=need.sigma)
            return Step(need.task, Hints(sigma=need.sigma))

        return Plan(tuple(map(step, needs)), found, picture)

    def run(self, plan: Plan, wishes: Wishes = Wishes()) -> Pixels:
        """The restored pixels of a plan, as strong and by as many passes as is wished."""
        before, several = plan.picture.pixels, len(plan.steps) > 1
        pixels = before if plan.steps else before.copy()
        strength = 1.0 if several else wishes.strength
        for step in plan.steps:
            restorer = self.restorer(step.task)
            restore = partial(ensemble, restorer) if wishes.ensemble else restorer
            given = pixels
            pixels = restore(given, step.hints, strength, step.afterwards)
            if _left_in(step, given, pixels, strength):
                pixels = restore(given, _told(step), strength, step.afterwards)
        if several and wishes.strength < 1:
            mix(before, pixels, wishes.strength)  # the picture and what came of all steps
        return pixels

    def run_with_rest(self, plan: Plan, wishes: Wishes = Wishes()) -> tuple[Pixels, bytes]:
        """The restored pixels of a plan of one step, and the rest, from which the input comes back.

        Raises:
            OptionError: the plan has none or several steps, or see `check_rest`.
        """
        check_rest(wishes)
        if len(plan.steps) != 1:
            raise OptionError("A rest is kept of exactly one step of restoration: name it with --task.")
        step = plan.steps[0]
        given, restore = plan.picture.pixels, self.restorer(step.task).with_rest
        made = restore(given, step.hints, wishes.strength, step.afterwards)
        if _left_in(step, given, made[0], wishes.strength):
            del made  # a rest is large
            made = restore(given, _told(step), wishes.strength, step.afterwards)
        return made


def _left_in(step: Step, given: Pixels, made: Pixels, strength: float) -> bool:
    """Whether a network that was told no level took out less than `LEAST_FOUND` of the noise that was measured.

    It finds white noise by itself, better than one level says it where the noise is not the same everywhere. Noise
    that was compressed it takes for the picture.

    Args:
        step: with the level.
        given, made: what went in and what came out, of one shape and type: (H, W) or (H, W, C), uint8, uint16 or
            float32 in [0, 1].
        strength: with which it was made, 0 to 1.
    """
    if step.level is None:
        return False
    scale = 255 / np.iinfo(given.dtype).max if given.dtype.kind == "u" else 255.0
    squares = 0.0
    for top in range(0, len(given), 256):  # in strips, as it is in floats
        before, after = (array[top : top + 256].astype(np.float32) for array in (given, made))
        squares += float(np.square(before - after).sum())
    return scale * (squares / given.size) ** 0.5 < strength * LEAST_FOUND * step.level


def _told(step: Step) -> Hints:
    """What the network is told of a step whose level it did not find."""
    return replace(step.hints, sigma=step.level)


def _asked_jpeg(picture: Picture, wishes: Wishes, file: bool) -> Need:
    """The decompression that the user asks for: grid and quality are found where the file or he does not tell them."""
    offset = None if file else find_grid(picture)
    quality = wishes.jpeg_quality
    if offset is not None and quality is None:
        like = estimate_compression(picture.pixels, offset)
        quality = like.quality if like.libjpeg else None
    return Need("jpeg", offset=offset, quality=quality)


def _goes_by(need: Need, file: bool) -> str:
    """What a decompression that was asked for goes by, as the end of a sentence."""
    if need.task != "jpeg":
        return ""
    if file:
        return ", by the tables of the file"
    if need.quality is None:
        return ", blind"
    return f", as of quality {need.quality} with the grid at {need.offset or (0, 0)}"


def _of_file(read: Callable[[bytes], Found], data: bytes, name: str) -> Found:
    """What `read` finds in a JPEG file, its refusal with the name of the file."""
    try:
        return read(data)
    except ImageError as error:
        raise ImageError(f"{printable(name) if name else 'the image data'} {error}") from error.__cause__


def _decompress(picture: Picture, need: Need, wishes: Wishes, data: bytes, name: str) -> Step:
    """Decompression: with the tables of the file, or those of a quality, or blind.

    Which chroma a picture had that was a JPEG once is not known. 4:2:0 is the usual one, and to say that of 4:4:4 is
    still better than to say nothing, by 0.05 to 0.1 dB on the training images that were held out.
    """
    if data:
        tables = _of_file(read_tables, data, name)
        if max(tables.sampling) > 1:  # the network was taught 4:4:4 and 4:2:0, and told the latter does best on 4:2:2
            tables = replace(tables, sampling=(2, 2))
        hints = Hints(tables=tables, grid=(0, 0))
        if wishes.consistent is not False:
            coefficients = _of_file(read_coefficients, data, name)
            return Step("jpeg", hints, lambda image: project(image, coefficients, NARROW).astype(np.float32))
        return Step("jpeg", hints)
    if need.quality is None:
        return Step("jpeg")
    row, column = (-at % 8 for at in need.offset or (0, 0))
    return Step("jpeg", Hints(tables=standard_tables(need.quality, grey=picture.pixels.ndim == 2), grid=(row, column)))


def _inpaint(picture: Picture, mask: str | Path | Pixels, name: str) -> Plan:
    """Inpainting of what a mask says; nothing where nothing is missing."""
    missing = _missing(picture, mask, name)
    check_mask(missing, picture.pixels)
    if isinstance(mask, str) and mask == ALPHA:
        picture = replace(picture, alpha=_filled_alpha(picture.alpha, missing))
    share = missing.mean()
    if not share:
        return Plan((), ("Nothing is marked as missing: nothing to do.",), picture)
    found = f"{100 * share:.1f} % of the pixels are missing: inpainting"
    return Plan((Step("inpaint", Hints(mask=missing)),), (found,), picture)


def _filled_alpha(alpha: Pixels | None, missing: NDArray[np.bool_]) -> Pixels | None:
    """Alpha that is opaque where holes were filled; None where it is opaque everywhere."""
    assert alpha is not None
    filled = np.where(missing, opaque(alpha), alpha)
    return None if (filled == opaque(alpha)).all() else filled


def opaque(alpha: Pixels) -> Pixels:
    """Alpha that hides nothing, of this shape and dtype."""
    return np.full_like(alpha, 1 if alpha.dtype.kind == "f" else np.iinfo(alpha.dtype).max)


def _missing(picture: Picture, mask: str | Path | Pixels, name: str) -> NDArray[np.bool_]:
    """What a mask says is missing, (H, W)."""
    if isinstance(mask, np.ndarray):
        return np.asarray(mask != 0) if mask.ndim == 2 else np.asarray((mask != 0).any(-1))
    if isinstance(mask, str) and mask == ALPHA:
        if picture.alpha is None:
            raise OptionError("The picture has no transparency that could say what is missing.")
        return np.asarray(picture.alpha == 0)
    if isinstance(mask, str) and mask.startswith("#"):
        dtype, colour = picture.pixels.dtype, parse_colour(mask)
        colour = (colour / 255).astype(dtype) if dtype.kind == "f" else colour * (257 if dtype == np.uint16 else 1)
        pixels = picture.pixels[..., None] if picture.pixels.ndim == 2 else picture.pixels
        return np.asarray((pixels == colour).all(-1))
    assert isinstance(mask, Path)
    return _white_of(mask_of(mask, name), picture)


def _white_of(path: Path, picture: Picture) -> NDArray[np.bool_]:
    """What is white in a mask file, (H, W), in the stored orientation of the picture that it lies on."""
    size = picture.pixels.shape[:2]
    mask = read_image(path, max_pixels=max(MAX_PIXELS, size[0] * size[1]))
    shades, top = mask.pixels, np.iinfo(mask.pixels.dtype).max
    white = (shades if shades.ndim == 2 else shades.max(2)) > top // 2
    if mask.alpha is not None:
        white &= mask.alpha > top // 2
        if not white.any() and mask.alpha.any() and not mask.alpha.all():
            raise OptionError(f"{printable(path)} marks nothing as missing: white does that, transparency does not.")
    if 0 < shades.max() <= top // 2:
        raise OptionError(f"{printable(path)} marks nothing as missing: that is white, {top}, not {shades.max()}.")
    placed = picture.stored(replace(mask, pixels=white).upright)
    return placed if placed.shape == size else white


def mask_of(path: Path, name: str) -> Path:
    """The mask file of a picture by the picture's name: `path`, or in a folder what has that name and any suffix.

    Raises:
        OptionError: none in the folder has it, or several, or the picture has no name.
    """
    if not path.is_dir():
        return path
    if not name:
        raise OptionError(f"A picture without a name finds no mask in {printable(path)}: name the mask file.")
    found = sorted(mask for mask in path.iterdir() if mask.is_file() and mask.stem == Path(name).stem)
    if len(found) != 1:
        raise OptionError(f"{printable(path)} holds {len(found)} masks named {Path(name).stem!r}: one is needed.")
    return found[0]


def parse_colour(text: str) -> NDArray[np.uint16]:
    """Red, green and blue, 0 to 255, of "#rrggbb"."""
    try:
        values = bytes.fromhex(text.removeprefix("#"))
    except ValueError:
        values = b""
    if len(values) != 3 or not text.startswith("#"):
        raise OptionError(f"'{text}' is no colour: write it as #rrggbb, such as #ff00ff.")
    return np.frombuffer(values, np.uint8).astype(np.uint16)
