"""A network on a device at a precision: restores arrays, keeps what is left beside them, recovers the input."""

from __future__ import annotations

import copy
import ctypes
import json
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor
from torch.nn.functional import conv2d

from irae.conditions import CONDITION_CHANNELS, fill_holes, jpeg_condition, noise_condition
from irae.degrade import as_rgb
from irae.errors import IraeError
from irae.journal import digest
from irae.jpeg import JpegTables
from irae.models.irae import IRAE, RecoverError, Rest
from irae.runner import BYTES_A_PIXEL, Runner, free_memory
from irae.tiles import Condition, restore_parts, restore_tiled
from irae.weights import load_model

Pixels = NDArray[Any]

TASKS = tuple(CONDITION_CHANNELS)
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
PRECISIONS = ("auto", "fp32", *DTYPES)
DEVICES = ("auto", "cpu", "cuda", "mps")
Afterwards = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""What is done to a restored image (H, W) or (H, W, 3), nominally in [0, 1], before it is mixed with the input and
rounded. The result is mixed in place."""
REST_FORMAT = "irae-rest-2"
REST_KEYS = {"weights", "hints", "precision", "settings", "sha256"}
REST_TENSORS = {"extra", "border", "rounding", "mask", "holes"}
GRID_STEP = 4  # JPEG grids that begin at multiples of it are those that the network was taught
HOLE_DEPTH = 20
"""Pixels: what lies deeper in a hole is filled in further passes, from the border inward.

Of 8 to 96 the best on held-out training images: squares of half a side gain 0.12 dB over 48, those of 64 pixels lose
nothing.
"""


class OptionError(IraeError):
    """An option or argument that makes no sense."""


@dataclass(frozen=True)
class Hints:
    """What is known of an image beside its pixels; a task takes what concerns it.

    Attributes:
        sigma: denoise, photo: noise level in 8-bit levels, None: blind.
        tables: jpeg: quantisation tables and subsampling, None: blind.
        grid: jpeg: row and column of the first pixel on the grid of 16 x 16 pixels, None: not known.
        mask: inpaint: (H, W) bool, True where a pixel is missing.
    """

    sigma: float | None = None
    tables: JpegTables | None = None
    grid: tuple[int, int] | None = None
    mask: NDArray[np.bool_] | None = None


class Restorer:
    """A network on a device, ready for one image after another.

    Args:
        task: of `TASKS`; None: that of the weights.
        model: a network, or weights by name or path; the task's own by default.
        device: "auto", "cpu", "cuda" or "mps".
        precision: "auto", "fp32", "bf16" or "fp16" for the subnets. Auto takes bf16 for 8-bit images where the hardware
            is faster at it (a GPU that has it; a CPU is timed, once), else fp32.
        runner: runs the network; by default at once, in the thread that asks.

    Raises:
        IraeError: an unknown name, a device that is not there, weights that are not there, damaged or for another task.
    """

    def __init__(
        self,
        task: str | None = None,
        model: str | Path | IRAE | None = None,
        device: str = "auto",
        precision: str = "auto",
        runner: Runner | None = None,
    ) -> None:
        if task is not None:
            _choose("task", task, TASKS)
        _choose("precision", precision, PRECISIONS)
        self.device, self.precision = pick_device(device), precision
        self.model = model if isinstance(model, IRAE) else load_model(model or task or "denoise")
        self.task = self.model.config.task
        if task not in (None, self.task):
            raise OptionError(f"These weights are for the task {self.task!r}, not {task!r}.")
        if next(self.model.parameters()).device.type != self.device.type:
            self.model = copy.deepcopy(self.model).to(self.device)  # the caller's network, or the cached one, stays
        self.runner = runner or Runner(self.device)
        self._whole_images = threading.Lock()  # one at a time where they are not cut

    def __call__(
        self, pixels: Pixels, hints: Hints = Hints(), strength: float = 1.0, afterwards: Afterwards | None = None
    ) -> Pixels:
        """The restored pixels, dtype and shape as given. Inpainting leaves known pixels as they are, every bit.

        Args:
            pixels: (H, W) or (H, W, 3), uint8, uint16 or float32.
            hints: what is known beside them.
            strength: 1 gives the restored image, 0 the input, between them their mixture.
            afterwards: changes the network's image; see `Afterwards`.
        """
        self._check(pixels, hints, strength)
        above, before = (0, 0) if hints.grid is None else (at % GRID_STEP for at in hints.grid)
        if strength < 1 and (afterwards is not None or above or before):

            def mixed(image: NDArray[np.float32]) -> NDArray[np.float32]:
                image = image if afterwards is None else afterwards(image)
                mix(pixels, image, strength)
                return image

            return self(pixels, hints, afterwards=mixed)
        if above or before:
            assert hints.grid is not None
            larger = np.pad(pixels, ((above, 0), (before, 0), (0, 0))[: pixels.ndim], mode="edge")
            moved = replace(hints, grid=(hints.grid[0] - above, hints.grid[1] - before))

            def cut(image: NDArray[np.float32]) -> NDArray[np.float32]:
                image = image[above:, before:]
                return image if afterwards is None else afterwards(image)

            return self(larger, moved, afterwards=cut)
        with torch.inference_mode(), self._autocast(pixels.dtype):
            if hints.mask is not None:
                image = as_rgb_image(pixels)
                return finish(image, self._fill(image, hints.mask), pixels, hints, strength, afterwards)
            result = np.empty(pixels.shape, pixels.dtype if afterwards is None else np.float32)

            def part(rows: slice, columns: slice) -> Tensor:
                return as_rgb_image(pixels[rows, columns])

            def put(rows: slice, columns: slice, restored: Tensor) -> None:
                mixed = restored if strength == 1 else torch.lerp(part(rows, columns), restored, strength)
                result[rows, columns] = as_pixels(mixed, result[rows, columns])

            restore_parts(self.model, pixels.shape[:2], part, self._condition(hints, "cpu"), put, self.runner)
        return result if afterwards is None else as_pixels(as_tensor(afterwards(result)), pixels)

    def _fill(self, image: Tensor, mask: NDArray[np.bool_]) -> Tensor:
        """The image with its holes filled, pass by pass."""
        while True:
            depth = cv2.distanceTransform(np.pad(mask, 1, mode="edge").astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
            deeper = depth > HOLE_DEPTH
            hints = Hints(mask=mask)
            holes = partial(_any_in, mask)
            restored = restore_tiled(
                self.model, self._enter(image, hints), self._condition(hints, "cpu"), self.runner, holes
            )
            if not deeper.any():
                return restored
            image, mask = restored, deeper

    def with_rest(
        self, pixels: Pixels, hints: Hints = Hints(), strength: float = 1.0, afterwards: Afterwards | None = None
    ) -> tuple[Pixels, bytes]:
        """The restored pixels and, as the bytes of a file, what is left beside them.

        The image is not cut into tiles, holes are filled in one pass, and a JPEG grid that begins at no multiple of 4
        is not told to the network. Whether it comes back is tried here, so that
        no useless rest is ever kept.

        Raises:
            RecoverError: the input would not come back bit for bit, for example in a low precision.
            MemoryError: the image is too large for it.
        """
        self._check(pixels, hints, strength)
        if hints.grid is not None and any(at % GRID_STEP for at in hints.grid):
            hints = replace(hints, tables=None, grid=None)  # a larger image would come back otherwise
        with self._whole_images:
            return self._with_rest(pixels, hints, strength, afterwards)

    def _with_rest(
        self, pixels: Pixels, hints: Hints, strength: float, afterwards: Afterwards | None
    ) -> tuple[Pixels, bytes]:
        if pixels.shape[0] * pixels.shape[1] * BYTES_A_PIXEL > free_memory(self.device):
            raise MemoryError("out of memory")
        image = self._image(pixels)
        precision = "fp32" if self.precision == "auto" else self.precision
        mask = np.zeros(pixels.shape[:2], np.bool_) if hints.mask is None else hints.mask
        with torch.inference_mode(), self._autocast(pixels.dtype, precision):
            restored, rest = self.model.restore_with_rest(self._enter(image, hints), self._whole(hints, image))
        result = finish(image, restored, pixels, hints, strength, afterwards)
        holes = torch.from_numpy(mask)
        tensors = {
            "extra": rest.extra,
            "border": rest.border,
            "rounding": restored - self._image(result),
            "mask": holes.to(torch.uint8),
            "holes": image[..., holes.to(self.device)],
        }
        header = {
            "format": REST_FORMAT,
            "weights": self.model.digest,
            "hints": _write_hints(hints),
            "precision": precision,
            "settings": rest.settings,
            "sha256": pixels_digest(pixels),
        }
        content = save({name: t.cpu().contiguous() for name, t in tensors.items()}, metadata=header)
        self.recover(result, content)
        return result, content

    def recover(self, restored: Pixels, rest: bytes) -> Pixels:
        """The input's pixels from the restored ones and the bytes of the rest, bit for bit.

        Raises:
            RecoverError: the rest is of another model, precision or image, or a part of it is damaged.
        """
        header, tensors = _read_rest(rest)
        if header["weights"] != self.model.digest:
            raise RecoverError("The rest was made with other weights: name them with --model.")
        image, hints = self._image(restored), _read_hints(header["hints"])
        if tensors["rounding"].shape != image.shape or tensors["mask"].shape != image.shape[-2:]:
            raise RecoverError("The rest belongs to an image of another size.")
        tensors = {name: t.to(self.device) for name, t in tensors.items()}
        mask = tensors["mask"].bool()
        if self.task == "inpaint":
            hints = replace(hints, mask=mask.cpu().numpy())
        with torch.inference_mode(), self._autocast(restored.dtype, header["precision"]):
            recovered = self.model.recover(
                image + tensors["rounding"],
                Rest(tensors["extra"], tensors["border"], header["settings"]),
                self._whole(hints, image),
            )
            if tensors["holes"].shape == recovered[..., mask].shape:
                recovered[..., mask] = tensors["holes"]
        pixels = as_pixels(recovered, restored)
        if pixels_digest(pixels) != header["sha256"]:
            raise RecoverError(
                "The input does not come back bit for bit: the restored image was changed, or this machine rounds "
                "differently; keep the rest in precision fp32."
            )
        return pixels

    def _check(self, pixels: Pixels, hints: Hints, strength: float) -> None:
        """Raises OptionError for pixels, hints or strength that this task cannot take."""
        check_settings(hints.sigma, strength)
        check_pixels(pixels)
        if (hints.mask is not None) != (self.task == "inpaint"):
            raise OptionError("Inpainting needs a mask of what is missing, and no other task takes one.")
        if hints.mask is not None:
            check_mask(hints.mask, pixels)

    def _image(self, pixels: Pixels) -> Tensor:
        return as_rgb_image(pixels).to(self.device)

    def _enter(self, image: Tensor, hints: Hints) -> Tensor:
        """What the network reads: the image, its holes filled from around."""
        if hints.mask is None:
            return image
        known = torch.from_numpy(~hints.mask).to(image)[None, None]
        return fill_holes(image, known)

    def _condition(self, hints: Hints, device: str | torch.device) -> Condition:
        return partial(CONDITIONS[self.task], hints, torch.device(device))

    def _whole(self, hints: Hints, image: Tensor) -> Tensor:
        """The condition of the whole image."""
        return self._condition(hints, self.device)(slice(0, image.shape[-2]), slice(0, image.shape[-1]))

    def _autocast(self, dtype: np.dtype[Any], precision: str | None = None) -> AbstractContextManager[Any]:
        precision = precision or self.precision
        if precision == "auto":
            precision = pick_precision("auto", self.device) if dtype == np.uint8 else "fp32"
        return torch.autocast(self.device.type, DTYPES.get(precision, torch.bfloat16), enabled=precision != "fp32")


def _any_in(mask: NDArray[np.bool_], rows: slice, columns: slice) -> bool:
    return bool(mask[rows, columns].any())


def _denoise_condition(hints: Hints, device: torch.device, rows: slice, columns: slice) -> Tensor:
    return noise_condition(hints.sigma).to(device)


def _jpeg_condition(hints: Hints, device: torch.device, rows: slice, columns: slice) -> Tensor:
    origin = None if hints.grid is None else (hints.grid[0] + rows.start, hints.grid[1] + columns.start)
    return jpeg_condition(hints.tables, rows.stop - rows.start, columns.stop - columns.start, origin).to(device)


def _inpaint_condition(hints: Hints, device: torch.device, rows: slice, columns: slice) -> Tensor:
    assert hints.mask is not None
    return torch.from_numpy(~hints.mask[rows, columns]).to(device, torch.float32)[None, None]


CONDITIONS = {
    "denoise": _denoise_condition,
    "photo": _denoise_condition,
    "jpeg": _jpeg_condition,
    "inpaint": _inpaint_condition,
}


def pick_device(device: str) -> torch.device:
    """The device by name; "auto" is cuda, else mps, else cpu."""
    _choose("device", device, DEVICES)
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device == "auto":
        device = next(name for name in ("cuda", "mps", "cpu") if available[name])
    if not available[device]:
        raise OptionError(f"This machine has no device '{device}': use --device auto.")
    if device == "cuda":
        torch.backends.cudnn.allow_tf32 = False  # fp32 is to mean it
    return torch.device(device)


def pick_precision(precision: str, device: torch.device) -> str:
    """The precision by name; "auto" is bf16 where the device is faster at it, else fp32."""
    _choose("precision", precision, PRECISIONS)
    if precision != "auto":
        return precision
    return "bf16" if _fast_bf16(device) else "fp32"


def keep_freed_memory() -> None:
    """Let this process keep the memory of freed tensors, on Linux with glibc; elsewhere nothing happens.

    By default glibc gives large blocks back to the system, and every new tensor pays for its pages again: restoring a
    1-megapixel image on two cores took 1.7 times as long. For programs that restore and end, such as the command.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    trim_threshold, mmap_max, arena_max = -1, -4, -8  # malloc.h
    mallopt(arena_max, 1)  # those of other threads give memory back all the same
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)


def check_settings(sigma: float | None, strength: float = 1.0) -> None:
    """Raises OptionError for a noise level outside 0 to 255 or a strength outside 0 to 1."""
    if sigma is not None and not isinstance(sigma, (int, float, np.integer, np.floating)):
        raise OptionError("The noise level is one number, in 8-bit levels.")
    if sigma is not None and not 0 <= sigma <= 255:
        raise OptionError(f"The noise level {sigma:g} is not between 0 and 255 (8-bit levels).")
    if not 0 <= strength <= 1:
        raise OptionError(f"The strength {strength:g} is not between 0 and 1.")


def check_pixels(pixels: Pixels) -> None:
    """Raises OptionError for another dtype than uint8, uint16 and float32, no pixels, or values that are not finite."""
    if pixels.size == 0:
        raise OptionError("The image has no pixels.")
    if pixels.dtype not in (np.uint8, np.uint16, np.float32):
        raise OptionError(f"An image is uint8, uint16 or float32, not {pixels.dtype}: convert it with .astype.")
    if pixels.dtype == np.float32 and not np.isfinite(pixels).all():
        raise OptionError("The image holds values that are not finite.")


def check_mask(mask: NDArray[np.bool_], pixels: Pixels) -> None:
    """Raises OptionError for a mask (H, W) of another size than the pixels, or that leaves nothing known."""
    if mask.dtype != np.bool_ or mask.shape != pixels.shape[:2]:
        height, width = pixels.shape[:2]
        raise OptionError(
            f"The mask is {' x '.join(map(str, mask.shape[1::-1]))} pixels and the image {width} x {height}: "
            "they must be equal."
        )
    if mask.all():
        raise OptionError("The mask covers the whole image: nothing is known to fill it from.")


def finish(
    image: Tensor, restored: Tensor, pixels: Pixels, hints: Hints, strength: float, afterwards: Afterwards | None
) -> Pixels:
    """The pixels of an image (1, 3, H, W) and what a network restored of it, like those it was made from.

    First comes what follows the network, then the mixture by `strength`. Known pixels stay untouched.
    """
    if afterwards is not None:
        restored = as_tensor(afterwards(as_pixels(restored, pixels.astype(np.float32)))).to(image)
    result = as_pixels(torch.lerp(image, restored, strength), pixels)
    if hints.mask is None:
        return result
    merged = pixels.copy()
    merged[hints.mask] = result[hints.mask]
    return merged


def mix(given: Pixels, made: Pixels, strength: float) -> None:
    """Turn `made` into the mixture of what was given, at strength 0, and itself, at 1.

    Both of one shape, (H, W) or (H, W, 3), and any dtype of images. In strips, as it is done in floats.
    """
    for top in range(0, len(given), 256):
        before, after = (array[top : top + 256] for array in (given, made))
        after[:] = as_pixels(torch.lerp(as_rgb_image(before), as_rgb_image(after), strength), after)


@cache
def _fast_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    if not (capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")):
        return False
    least = _convolution_times(torch.float32, torch.bfloat16)
    return 1.2 * least[torch.bfloat16] < least[torch.float32]


def _convolution_times(*dtypes: torch.dtype) -> dict[torch.dtype, float]:
    """Seconds that the CPU takes for a convolution such as the networks have, 0.3 GFLOP: the least of five, in turns.

    What a processor says of itself is not enough: in a virtual machine that hides the tiles of AMX, one that names
    AMX and AVX512-BF16 took 1.5 times as long in bf16 as in float32.
    """
    times: dict[torch.dtype, list[float]] = {dtype: [] for dtype in dtypes}
    with torch.inference_mode():
        for _ in range(5):
            for dtype in dtypes:
                image = torch.zeros(1, 64, 64, 64, dtype=dtype).to(memory_format=torch.channels_last)
                weight = torch.zeros(64, 64, 3, 3, dtype=dtype).to(memory_format=torch.channels_last)
                start = time.perf_counter()
                conv2d(image, weight, padding=1)
                times[dtype].append(time.perf_counter() - start)
    return {dtype: min(seconds) for dtype, seconds in times.items()}


def _choose(kind: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise OptionError(f"There is no {kind} '{value}'; choose one of {', '.join(choices)}.")


def as_tensor(pixels: Pixels) -> Tensor:
    """Pixels (H, W) or (H, W, 3), uint8, uint16 or float32, as (1, 1 or 3, H, W) float32, integers scaled to [0, 1].

    Raises:
        OptionError: see `check_pixels`.
    """
    check_pixels(pixels)
    values = pixels.astype(np.float32)
    if pixels.dtype != np.float32:
        values /= np.iinfo(pixels.dtype).max
    image = torch.from_numpy(values)
    return image[None, None] if image.ndim == 2 else image.permute(2, 0, 1)[None]


def as_rgb_image(pixels: Pixels) -> Tensor:
    """As `as_tensor`, but always (1, 3, H, W)."""
    return as_rgb(as_tensor(pixels))


def as_pixels(image: Tensor, like: Pixels) -> Pixels:
    """An image (1, 1 or 3, H, W) in the dtype and shape of `like`: grey where that is grey; integers are clipped and
    rounded, floats are neither."""
    array = image[0].float().permute(1, 2, 0)
    values = (array if like.ndim == 3 else array.mean(2)).cpu().numpy()
    if like.dtype == np.float32:
        return values
    top = np.iinfo(like.dtype).max
    return np.rint(values.clip(0, 1) * np.float32(top)).astype(like.dtype)


def pixels_digest(pixels: Pixels) -> str:
    """SHA-256, in hexadecimal, of the dtype, shape and values of an array of any shape."""
    return digest(f"{pixels.dtype} {pixels.shape} ".encode() + pixels.tobytes())


def rest_weights(content: bytes) -> str:
    """The digest of the weights that made a rest, from the bytes of its file."""
    return _read_rest(content)[0]["weights"]


def _write_hints(hints: Hints) -> str:
    tables = hints.tables
    chroma = None if tables is None or tables.chroma is None else tables.chroma.tolist()
    values = None if tables is None else [tables.luma.tolist(), chroma, tables.sampling]
    sigma = None if hints.sigma is None else float(hints.sigma)
    return json.dumps({"sigma": sigma, "tables": values, "grid": hints.grid})


def _read_hints(text: str) -> Hints:
    values = json.loads(text)
    tables = values["tables"]
    if tables is not None:
        luma, chroma, sampling = tables
        tables = JpegTables(np.array(luma), None if chroma is None else np.array(chroma), tuple(sampling))
    grid = values["grid"]
    return Hints(values["sigma"], tables, None if grid is None else tuple(grid))


def _read_rest(content: bytes) -> tuple[dict[str, str], dict[str, Tensor]]:
    try:
        tensors = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
        complete = header["format"] == REST_FORMAT and set(header) >= REST_KEYS and set(tensors) == REST_TENSORS
        check_settings(_read_hints(header["hints"]).sigma)
    except (SafetensorError, KeyError, TypeError, ValueError, IraeError) as error:
        raise RecoverError("The rest is damaged or of another kind.") from error
    if not complete or header["precision"] not in PRECISIONS:
        raise RecoverError("The rest is damaged or was written by another version of irae.")
    return header, tensors
