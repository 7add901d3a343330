"""What is missing of an image: the seven masks that inpainting is trained on and measured with.

A mask is a bool array (H, W), True where the pixel is missing. All randomness comes from the generator passed in.
"""

from __future__ import annotations

import hashlib
import string
from collections.abc import Callable
from functools import lru_cache, partial
from math import cos, hypot, pi, sin, sqrt

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Mask = NDArray[np.bool_]
Canvas = NDArray[np.uint8]  # (H, W), not 0 where something was drawn

LETTERS = np.array([*string.ascii_letters, *string.digits, *".,:;!?&@", *" " * 12])  # about one in seven is a space


def random_pixels(height: int, width: int, rng: np.random.Generator, share: float) -> Mask:
    """Each pixel missing by itself with probability `share`.

    Shape: (H, W).
    """
    return _some_of_each(rng.random((height, width), np.float32) < share, rng)


def text(height: int, width: int, rng: np.random.Generator) -> Mask:
    """Lines of random words in varying size and position, as a caption or watermark printed across a photograph.

    Letters are 12 to 36 pixels high up to a shorter side of 320 pixels, in proportion above. About 8 to 20 % missing.

    Shape: (H, W).
    """
    image = Image.new("L", (width, height))
    draw = ImageDraw.Draw(image)
    y = -rng.uniform(0, 24)
    while y < height:
        size = round(rng.integers(12, 37) * _enlargement(height, width))
        length = 1 + int(rng.uniform(0.5, 2) * width / size)
        position = (rng.uniform(-0.2, 0.3) * width, y)
        draw.text(position, "".join(rng.choice(LETTERS, length)), fill=255, font=_font(size))
        y += size * rng.uniform(0.9, 1.5)
    return _some_of_each(np.asarray(image) > 0, rng)


def scratches(height: int, width: int, rng: np.random.Generator) -> Mask:
    """Long, slightly curved lines (quadratic Bezier curves) in any direction, as on old prints.

    Lines are 1 to 3 pixels wide up to a shorter side of 320 pixels, in proportion above. About 2 to 9 % missing.

    Shape: (H, W).
    """
    canvas = np.zeros((height, width), np.uint8)
    enlargement = _enlargement(height, width)
    number = 1 + round(rng.uniform(7, 12) * min(height, width) / 320 / enlargement)
    t = np.linspace(0, 1, 17)[:, None]
    for _ in range(number):
        middle, angle = rng.uniform(0, (width, height)), rng.uniform(0, 2 * pi)
        along = np.array((cos(angle), sin(angle))) * hypot(height, width) * rng.uniform(0.15, 0.5)
        bend = rng.uniform(-0.3, 0.3) * along[::-1] * (1, -1)
        curve = middle + (2 * t - 1) * along + 2 * t * (1 - t) * bend
        _draw_line(canvas, curve, rng.uniform(1, 3.5) * enlargement)
    return _some_of_each(canvas > 0, rng)


def strokes(height: int, width: int, rng: np.random.Generator) -> Mask:
    """One to three free-form brush strokes, each a zigzag of 4 to 11 segments (Yu et al., "Free-form image inpainting
    with gated convolution", ICCV 2019, Algorithm 1), with their numbers for 256 x 256 in proportion to the image.

    About 3 to 35 % missing.

    Shape: (H, W).
    """
    canvas = np.zeros((height, width), np.uint8)
    length = hypot(height, width) / 8
    for _ in range(rng.integers(1, 4)):
        sharpest, bluntest = 2 * pi / 5 + rng.uniform((-2 * pi / 15, 0), (0, 2 * pi / 15))
        points = [rng.uniform(0, (width, height))]
        for i in range(rng.integers(4, 12)):
            angle = (-1) ** (i + 1) * rng.uniform(sharpest, bluntest)
            step = np.clip(rng.normal(length, length / 2), 0, 2 * length) * np.array((cos(angle), sin(angle)))
            points.append(np.clip(points[-1] + step, 0, (width, height)))
        _draw_line(canvas, np.array(points), rng.uniform(12, 40) * sqrt(height * width) / 256)
    flips = slice(None, None, rng.choice((-1, 1))), slice(None, None, rng.choice((-1, 1)))
    return _some_of_each(canvas[flips] > 0, rng)


def rectangles(height: int, width: int, rng: np.random.Generator) -> Mask:
    """Squares of 64 x 64 (at most half the shorter side) anywhere, that do not touch.

    About 10 to 15 % missing; of an image that is no larger than a few squares, one square.

    Shape: (H, W).
    """
    mask = np.zeros((height, width), np.bool_)
    side = max(1, min(64, height // 2, width // 2))
    number = max(1, round(0.125 * height * width / side**2))
    for y, x in rng.integers(0, (height - side + 1, width - side + 1), (20 * number, 2)):
        if number and not mask[max(0, y - 1) : y + side + 1, max(0, x - 1) : x + side + 1].any():
            mask[y : y + side, x : x + side] = True
            number -= 1
    return _some_of_each(mask, rng)


def centre(height: int, width: int, rng: np.random.Generator) -> Mask:
    """The square in the centre whose side is half the shorter side: at most 25 % missing. Nothing is random.

    Shape: (H, W).
    """
    mask = np.zeros((height, width), np.bool_)
    side = max(1, min(height, width) // 2)
    y, x = (height - side) // 2, (width - side) // 2
    mask[y : y + side, x : x + side] = True
    return _some_of_each(mask, rng)


MASKS: dict[str, Callable[[int, int, np.random.Generator], Mask]] = {
    "random50": partial(random_pixels, share=0.5),
    "random80": partial(random_pixels, share=0.8),
    "text": text,
    "scratches": scratches,
    "strokes": strokes,
    "rectangles": rectangles,
    "centre": centre,
}


def mask_for(name: str, kind: str, height: int, width: int, seed: int = 0) -> Mask:
    """The mask that belongs to an image's name, so that every method fills the same holes in it.

    Args:
        name: the image's name without its ending.
        kind: a name in `MASKS`.

    Shape: (H, W).
    """
    digest = hashlib.sha256(f"{seed}:{name}".encode(errors="surrogateescape")).digest()
    return MASKS[kind](height, width, np.random.default_rng(int.from_bytes(digest, "big")))


def _some_of_each(mask: Mask, rng: np.random.Generator) -> Mask:
    """The mask, but with one random pixel changed where all or none are missing; of a single pixel nothing is."""
    if mask.size == 1:
        return np.zeros_like(mask)
    if mask.all() or not mask.any():
        mask.flat[rng.integers(mask.size)] ^= True
    return mask


def _enlargement(height: int, width: int) -> float:
    """How much larger text and scratches are than on a small photograph, whose shorter side is 320 pixels."""
    return max(1.0, min(height, width) / 320)


def _draw_line(canvas: Canvas, points: NDArray[np.float64], thickness: float) -> None:
    """Draw a line with round joints and ends through points (N, 2) in (x, y), at least one pixel wide."""
    fixed = np.rint(points * 16 - 8).astype(np.int32)  # OpenCV counts from the first pixel's middle, here in sixteenths
    cv2.polylines(canvas, [fixed], False, 255, max(1, int(thickness)), cv2.LINE_8, shift=4)


@lru_cache(maxsize=64)
def _font(size: int) -> ImageFont.FreeTypeFont:
    """Pillow's built-in font in the layout that every Pillow has, so that a mask is the same everywhere."""
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow was built without FreeType"
    return font.font_variant(layout_engine=ImageFont.Layout.BASIC)
