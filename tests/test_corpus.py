"""A folder of bad and odd files: each is restored rightly or refused by one sentence, and none stops the others."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from numpy.typing import NDArray
from PIL import Image

from irae.batch import Batch, Failed
from irae.engine import Engine, Wishes
from irae.images import Picture, encode_image, read_image
from irae.pipeline import Done, Settings, plan
from irae.runner import Workers

Pixels = NDArray[Any]
RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (20, 31, 3), dtype=np.uint8)
GREY = COLOUR[..., 0].copy()
DEEP = GREY.astype(np.uint16) * 257 + 3


def saved(pixels: Pixels | Image.Image, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(file, format, **options)
    return file.getvalue()


def tiff(pixels: Pixels, **options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **options)
    return file.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG whose header promises what it does not hold."""
    content = saved(COLOUR, "PNG")
    body = b"IHDR" + struct.pack(">II", width, height) + content[24:29]
    return content[:12] + body + zlib.crc32(body).to_bytes(4, "big") + content[33:]


def decoded(content: bytes) -> Pixels:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


PALETTE = Image.fromarray(COLOUR).quantize(16)
ONE_BIT = Image.fromarray(GREY > 128)
JPEG = saved(COLOUR, "JPEG", quality=90)
FRAMES = {"save_all": True, "append_images": [Image.fromarray(COLOUR[::-1])]}

GOOD: dict[str, tuple[bytes, Pixels]] = {
    "plain.png": (saved(COLOUR, "PNG"), COLOUR),
    "png named.jpg": (saved(COLOUR, "PNG"), COLOUR),
    "jpeg named.png": (JPEG, decoded(JPEG)),
    "capital.PNG": (saved(COLOUR, "PNG"), COLOUR),
    "palette.png": (saved(PALETTE, "PNG"), np.asarray(PALETTE.convert("RGB"))),
    "palette.bmp": (saved(PALETTE, "BMP"), np.asarray(PALETTE.convert("RGB"))),
    "one bit.png": (saved(ONE_BIT, "PNG"), np.asarray(ONE_BIT.convert("L"))),
    "one bit.tif": (saved(ONE_BIT, "TIFF"), np.asarray(ONE_BIT.convert("L"))),
    "deep grey with alpha.png": (encode_image(Picture(DEEP, DEEP[::-1].copy()), "PNG"), DEEP),
    "deep grey.tif": (tiff(DEEP), DEEP),
    "interlaced palette.tiff": (saved(PALETTE, "TIFF"), np.asarray(PALETTE.convert("RGB"))),
    "lossless.webp": (saved(COLOUR, "WEBP", lossless=True), COLOUR),
    "broken exif.png": (saved(COLOUR, "PNG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff nothing"), COLOUR),
    "broken exif.jpg": (saved(COLOUR, "JPEG", quality=90, exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff"), decoded(JPEG)),
    "broken profile.png": (saved(COLOUR, "PNG", icc_profile=b"no profile"), COLOUR),
    "broken profile.jpg": (saved(COLOUR, "JPEG", quality=90, icc_profile=b"\xff" * 70), decoded(JPEG)),
    "one pixel.png": (saved(COLOUR[:1, :1], "PNG"), COLOUR[:1, :1]),
    "one column.png": (saved(COLOUR[:, :1], "PNG"), COLOUR[:, :1]),
    "new\nline and  spaces .png": (saved(COLOUR, "PNG"), COLOUR),
    "žluťoučký 馬 🐎.png": (saved(COLOUR, "PNG"), COLOUR),
    "n" * 246 + ".png": (saved(COLOUR, "PNG"), COLOUR),
    "-o.png": (saved(COLOUR, "PNG"), COLOUR),
    "[red]markup.png": (saved(COLOUR, "PNG"), COLOUR),
}
BAD: dict[str, bytes] = {
    "empty.png": b"",
    "text.png": b"this is no image",
    "zeros.jpg": bytes(3000),
    "gif named.png": saved(PALETTE, "GIF"),
    "huge header.png": png_header(100_000, 100_000),
    "largest header.png": png_header(2**31 - 1, 2**31 - 1),
    "larger header.png": png_header(31, 21),
    "huge header.bmp": (bmp := saved(COLOUR, "BMP"))[:18] + struct.pack("<ii", 60_000, 60_000) + bmp[26:],
    "animated.png": saved(COLOUR, "PNG", **FRAMES),
    "animated.webp": saved(COLOUR, "WEBP", **FRAMES),
    "cmyk.jpg": saved(Image.fromarray(COLOUR).convert("CMYK"), "JPEG"),
    "cmyk.tif": saved(Image.fromarray(COLOUR).convert("CMYK"), "TIFF"),
    "float.tif": tiff(GREY.astype(np.float32) / 255),
    "two pages.tif": tiff(np.stack([GREY, GREY]), photometric="minisblack"),
    "checksum.png": (png := saved(COLOUR, "PNG"))[:100] + bytes([png[100] ^ 1]) + png[101:],
}
for _kind, _suffix in (("PNG", "png"), ("JPEG", "jpg"), ("TIFF", "tif"), ("WEBP", "webp"), ("BMP", "bmp")):
    _whole = saved(COLOUR, _kind)
    BAD |= {f"{tenth}0 percent.{_suffix}": _whole[: len(_whole) * tenth // 10] for tenth in range(1, 10)}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("task", ["denoise", "auto"])
def test_each_is_restored_rightly_or_refused_by_one_sentence(tmp_path: Path, weights_file: Path, task: str) -> None:
    assert len(GOOD) + len(BAD) >= 60
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a folder.png").mkdir()
    (folder / "dangling.png").symlink_to(tmp_path / "nowhere")
    for name, content in {**{name: content for name, (content, _) in GOOD.items()}, **BAD}.items():
        (folder / name).write_bytes(content)
    jobs = plan([folder])
    with Workers([torch.device("cpu")]) as workers:
        engine = Engine(weights_file if task == "denoise" else None, "cpu", "fp32", workers)
        wishes = Wishes(task, strength=0, consistent=False if task == "auto" else None)
        outcomes = {o.job.source.name: o for o in Batch(jobs, engine, Settings(wishes)).run()}
    assert set(outcomes) == set(GOOD) | set(BAD)
    wrong = {name for name, outcome in outcomes.items() if isinstance(outcome, Done) != (name in GOOD)}
    assert not wrong, {name: getattr(outcomes[name], "sentence", "restored") for name in wrong}
    for name, (_, pixels) in GOOD.items():
        assert np.array_equal(read_image(outcomes[name].job.target).pixels, pixels), name
    for name in BAD:
        outcome = outcomes[name]
        assert isinstance(outcome, Failed) and "\n" not in outcome.sentence and name in outcome.sentence
    results = tmp_path / "in.restored"
    assert len([path for path in results.iterdir() if path.suffix != ".jsonl"]) == len(GOOD)
