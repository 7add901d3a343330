"""How images are damaged and results are scored: the same for every method, all chance seeded by the image's name.

Denoising: Gaussian noise in float, neither clipped nor rounded; in settings ending in "-file" clipped and rounded to 8
bits, as in a noisy PNG. JPEG: by OpenCV's libjpeg, 4:2:0 in colour; settings ending in "-grey": Y of MATLAB's rgb2ycbcr
as a grey JPEG. Inpainting: the masks of `irae.masks`. Results are clipped and rounded to 8 bits before they are scored.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from irae.degrade import GaussianNoise, from_pixels, generator_for, photographed, to_8bit
from irae.errors import IraeError
from irae.images import read_image
from irae.jpeg import read_tables
from irae.masks import MASKS, mask_for
from irae.metrics import psnr, psnr_b, ssim
from irae.restorer import Hints

Image = NDArray[np.uint8]

VERSION = 3  # part of the cache's keys: raise it where a score would change
DEFINITIONS = (
    "Results are clipped and rounded to 8 bits. PSNR over all channels and pixels, data range 255, mean over images. "
    "SSIM (Wang et al. 2004): Gaussian window 11 x 11, sigma 1.5, no sample covariance, data range 255, mean over "
    "channels. PSNR-B as Yim and Bovik 2011. Noise and holes are the same for every method, seeded by the image's name."
)


@dataclass(frozen=True)
class Case:
    """A damaged image and what a method may be told of it.

    Attributes:
        clean: (H, W) or (H, W, 3), uint8.
        damaged: the same shape, float32, nominally in [0, 1]; 0 where a pixel is missing.
        hints: noise level; JPEG tables and grid; mask.
    """

    clean: Image
    damaged: NDArray[np.float32]
    hints: Hints


@dataclass(frozen=True)
class Setting:
    """One way to damage images.

    Attributes:
        task, name: such as "denoise" and "sigma25".
        title: for people.
        damage: the case of an image's name and its clean pixels.
    """

    task: str
    name: str
    title: str
    damage: Callable[[str, Image], Case]

    def score(self, case: Case, result: NDArray[Any]) -> dict[str, float]:
        """PSNR and SSIM; PSNR-B for JPEG; PSNR over the missing pixels alone for inpainting.

        Raises:
            IraeError: a result that is no image of the clean one's size, or not finite.
        """
        pixels, clean = rounded(result), case.clean
        if pixels.shape != clean.shape:
            raise IraeError(f"The result has the shape {pixels.shape}, the image {clean.shape}.")
        scores = {"psnr": psnr(pixels, clean), "ssim": ssim(pixels, clean)}
        if self.task == "jpeg":
            scores["psnr_b"] = psnr_b(pixels, clean)
        if case.hints.mask is not None:
            scores["psnr_holes"] = psnr(pixels[case.hints.mask], clean[case.hints.mask])
        return scores


DEFAULT_SETTINGS = {
    "denoise": tuple(f"sigma{level}{kind}" for kind in ("", "-file") for level in (15, 25, 50)),
    "jpeg": tuple(f"q{quality}{kind}" for kind in ("", "-grey") for quality in (10, 20, 30, 40)),
    "inpaint": tuple(MASKS),
    "photo": tuple(f"camera{level}" for level in (5, 15, 30)),
}
DEFAULT_DATA = {"denoise": "cbsd68", "jpeg": "live1", "inpaint": "cbsd68", "photo": "cbsd68"}


def find_setting(task: str, name: str) -> Setting:
    """The setting of a task by name: "sigma25", "sigma25-file", "q10", "q10-grey", a mask of `irae.masks`, "camera15".

    Raises:
        IraeError: there is none of this name.
    """
    if task == "denoise" and (match := re.fullmatch(r"sigma(\d+(?:\.\d+)?)(-file)?", name)):
        level, file = float(match[1]), bool(match[2])
        if 0 < level <= 255:
            title = f"noise level {level:g}{', 8-bit file' if file else ''}"
            return Setting(task, name, title, lambda stem, clean: noisy(stem, clean, level, file))
    if task == "jpeg" and (match := re.fullmatch(r"q(\d+)(-grey)?", name)):
        quality, grey = int(match[1]), bool(match[2])
        if 1 <= quality <= 100:
            title = f"quality {quality}{', grey' if grey else ''}"
            return Setting(task, name, title, lambda _, clean: compressed(clean, quality, grey))
    if task == "inpaint" and name in MASKS:
        return Setting(task, name, name, lambda stem, clean: holed(stem, clean, name))
    if task == "photo" and (match := re.fullmatch(r"camera(\d+(?:\.\d+)?)", name)):
        level = float(match[1])
        if level <= 255:
            return Setting(task, name, f"camera noise {level:g}", lambda stem, clean: developed(stem, clean, level))
    known = ", ".join(DEFAULT_SETTINGS[task])
    raise IraeError(f"There is no setting '{name}' of the task '{task}'; choose such as {known}.")


def is_setting(task: str, name: str) -> bool:
    """Whether a task has a setting of this name."""
    try:
        find_setting(task, name)
    except IraeError:
        return False
    return True


def noisy(stem: str, clean: Image, level: float, file: bool) -> Case:
    """Gaussian noise of a level, in float, or as in an 8-bit file."""
    damaged = GaussianNoise(level)(from_pixels(clean), generator_for(stem)).image
    damaged = (to_8bit(damaged) if file else damaged).permute(1, 2, 0)
    return Case(clean, damaged.numpy().reshape(clean.shape), Hints(sigma=level))


def developed(stem: str, clean: Image, level: float) -> Case:
    """A photograph by a camera that does not sharpen; a method may be told the root mean square of the damage."""
    found = photographed(from_pixels(clean), level, stem)
    return Case(clean, found.image.permute(1, 2, 0).numpy().reshape(clean.shape), Hints(sigma=float(found.sigma)))


def compressed(clean: Image, quality: int, grey: bool) -> Case:
    """A JPEG of a quality by OpenCV's libjpeg with its default 4:2:0; `grey`: of luma alone."""
    if grey and clean.ndim == 3:
        clean = matlab_luma(clean)
    encodable = clean if clean.ndim == 2 else np.ascontiguousarray(clean[..., ::-1])
    file = cv2.imencode(".jpg", encodable, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
    return Case(clean, as_float(read_image(file).pixels), Hints(tables=read_tables(file), grid=(0, 0)))


def holed(stem: str, clean: Image, kind: str) -> Case:
    """An image with the holes of a mask."""
    mask = mask_for(stem, kind, clean.shape[0], clean.shape[1])
    damaged = as_float(clean)
    damaged[mask] = 0
    return Case(clean, damaged, Hints(mask=mask))


def matlab_luma(image: Image) -> Image:
    """Y of MATLAB's rgb2ycbcr, 16 to 235, of (H, W, 3) RGB."""
    luma = image @ np.array([65.481, 128.553, 24.966]) / 255 + 16
    return np.rint(luma).astype(np.uint8)


def as_float(pixels: Image) -> NDArray[np.float32]:
    """8-bit pixels in [0, 1]."""
    return pixels.astype(np.float32) / np.float32(255)


def rounded(image: NDArray[Any]) -> Image:
    """An image in [0, 1] clipped and rounded to 8 bits; 8-bit pixels as they are.

    Raises:
        IraeError: another dtype, or values that are not finite.
    """
    if image.dtype == np.uint8:
        return image
    if not np.issubdtype(image.dtype, np.floating):
        raise IraeError(f"The result is {image.dtype}, neither uint8 nor float in [0, 1].")
    if not np.isfinite(image).all():
        raise IraeError("The result holds values that are not finite.")
    return np.rint(image.astype(np.float64).clip(0, 1) * 255).astype(np.uint8)


def image_digest(stem: str, clean: Image) -> str:
    """sha256 of an image's name and pixels: all that its damage depends on."""
    return hashlib.sha256(f"{stem} {clean.shape} ".encode(errors="surrogateescape") + clean.tobytes()).hexdigest()
