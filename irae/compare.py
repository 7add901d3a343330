"""Pictures side by side, for people to look at."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

GAP = 8


def side_by_side(panels: dict[str, NDArray[Any]]) -> NDArray[np.uint8]:
    """Pictures of one size beside each other, each under its caption.

    Args:
        panels: caption -> (H, W) or (H, W, 3), uint8 or uint16.

    Returns:
        (H + caption, ..., 3), uint8.
    """
    pictures = [_as_rgb8(picture) for picture in panels.values()]
    height, width = pictures[0].shape[:2]
    size = max(12, min(28, width // 20))
    font, top = ImageFont.load_default(size=size), int(size * 1.6)
    canvas = Image.new("RGB", (len(pictures) * (width + GAP) - GAP, height + top), "white")
    draw = ImageDraw.Draw(canvas)
    for index, (caption, picture) in enumerate(zip(panels, pictures, strict=True)):
        left = index * (width + GAP)
        draw.text((left + 4, top // 8), caption, fill="black", font=font)
        canvas.paste(Image.fromarray(picture), (left, top))
    return np.asarray(canvas)


def _as_rgb8(picture: NDArray[Any]) -> NDArray[np.uint8]:
    eight = (picture >> 8).astype(np.uint8) if picture.dtype == np.uint16 else picture
    return np.repeat(eight[..., None], 3, axis=2) if eight.ndim == 2 else eight
