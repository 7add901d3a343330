"""What a JPEG file says of the picture that it was made from: its tables, its coefficients, and the set of images that
it could have come from.

A coefficient k stored with the step q says that the one before quantisation lay in the bin [(k - 1/2) q, (k + 1/2) q]
(ITU-T T.81, A.3.4). `project` moves an image to the nearest one whose coefficients all lie in the file's bins. The
refusals here leave the name of the file to the caller, as those inside irae.images do.
"""

from __future__ import annotations

import io
import os
import re
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from typing import IO, Any

import numpy as np

from irae.errors import IraeError
from irae.images import ImageError, pillow_image

# Pillow, SciPy and jpeglib are imported where they are used, so that importing this module is quick.

_LUMA = """
    16 11 10 16 24 40 51 61  12 12 14 19 26 58 60 55  14 13 16 24 40 57 69 56  14 17 22 29 51 87 80 62
    18 22 37 56 68 109 103 77  24 35 55 64 81 104 113 92  49 64 78 87 103 121 120 101  72 92 95 98 112 100 103 99
"""
_CHROMA = """
    17 18 24 47 99 99 99 99  18 21 26 66 99 99 99 99  24 26 56 99 99 99 99 99  47 66 99 99 99 99 99 99
    99 99 99 99 99 99 99 99  99 99 99 99 99 99 99 99  99 99 99 99 99 99 99 99  99 99 99 99 99 99 99 99
"""
_SUBSAMPLINGS = {(1, 1): 0, (2, 1): 1, (2, 2): 2}  # Pillow's numbers
# JFIF 1.02: luma, then blue less luma and red less luma on the same scale.
_YCBCR = np.array([[0.299, 0.587, 0.114], [-0.299 / 1.772, -0.587 / 1.772, 0.5], [0.5, -0.587 / 1.402, -0.114 / 1.402]])
_RGB = np.linalg.inv(_YCBCR)
NARROW = 0.8  # of a step: bins of this width are better than whole ones at every quality (docs/model.md)
_TURNS = 32  # on the blocks that the image fills in part: after 16 nothing moves by a level any more
_REPEATED = 0.2  # of a step: as far outside its bin a coefficient may lie then. Files of libjpeg end within 0.03 up to
# quality 60 and 0.16 up to 95; lossless crops of photographs at 1 and more from quality 20 on, at 0.03 to 15 below
# What libjpeg says of data that it cannot read; bytes between segments, which some cameras leave, are none of it.
_CORRUPT = re.compile(rb"Corrupt JPEG data: (?!\d+ extraneous)")
_MARKER = re.compile(rb"\xff+([^\x00\xd0-\xd7\xff])", re.DOTALL)  # all but stuffed bytes and restart markers
TERMINAL = threading.Lock()  # jpeglib and the terminal are one for all threads


@dataclass(frozen=True, eq=False)
class JpegTables:
    """How finely a JPEG file holds its coefficients.

    luma, chroma: (8, 8) integer quantisation steps, 1..65535, by vertical and horizontal frequency (not in zigzag
        order), in 8-bit levels of the orthonormal DCT; chroma is None in a grey file, and the table of Cb where Cr has
        another.
    sampling: how many times coarser chroma is than luma, horizontally and vertically: (2, 2) in 4:2:0, (2, 1) in 4:2:2,
        (1, 1) in 4:4:4 and grey.
    """

    luma: np.ndarray
    chroma: np.ndarray | None
    sampling: tuple[int, int]


@dataclass(frozen=True, eq=False)
class JpegCoefficients:
    """The quantised coefficients of a JPEG file; each tuple has one entry (Y) or three (Y, Cb, Cr).

    shape: height and width of the image in pixels.
    levels: (block rows, block columns, 8, 8) int16: how many steps each coefficient is.
    steps: (8, 8) integers, as in JpegTables.
    sampling: as in JpegTables.
    """

    shape: tuple[int, int]
    levels: tuple[np.ndarray, ...]
    steps: tuple[np.ndarray, ...]
    sampling: tuple[int, int]


def standard_tables(quality: int, sampling: tuple[int, int] = (2, 2), grey: bool = False) -> JpegTables:
    """The tables that libjpeg takes at a quality of 1 to 100: those of ITU-T T.81, Annex K, scaled.

    Raises IraeError for another quality.
    """
    if not 1 <= quality <= 100:
        raise IraeError(f"a JPEG quality is 1 to 100, not {quality}: choose one of these")
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    luma, chroma = (
        np.clip((np.array(table.split(), np.int64).reshape(8, 8) * scale + 50) // 100, 1, 255)
        for table in (_LUMA, _CHROMA)
    )
    return JpegTables(luma, None, (1, 1)) if grey else JpegTables(luma, chroma, sampling)


def read_tables(data: bytes) -> JpegTables:
    """The tables of a JPEG file, from its header alone.

    Raises ImageError for what is no grey or YCbCr JPEG of 8 bits, or samples its colours in a way that no box average
    of luma's grid is.
    """
    steps, sampling = _header(_open(data))
    return JpegTables(steps[0], steps[1] if len(steps) > 1 else None, sampling)


def encode_jpeg(
    pixels: np.ndarray, tables: JpegTables | int, sampling: tuple[int, int] | None = None, **options: Any
) -> bytes:
    """Compress pixels to a JPEG, by libjpeg: baseline, where no step is above 255. irae.images.read_image decodes it.

    Args:
        pixels: (H, W) grey or (H, W, 3) RGB, uint8.
        tables: the tables, or a quality of 1 to 100 with libjpeg's.
        sampling: (1, 1), (2, 1) or (2, 2), as in JpegTables; that of the tables, or (2, 2), when it is not given.
        options: further ones of Pillow's JPEG writer, as `progressive=True` or `exif=...`.

    Raises IraeError for another sampling, a quality or a step out of range, colours without a chroma table, and sides
    or an EXIF block larger than a JPEG holds.
    """
    tables = standard_tables(tables) if isinstance(tables, int) else tables
    grey = pixels.ndim == 2
    if not grey and tables.chroma is None:
        raise IraeError("these are the tables of a grey JPEG: give a table for the colours too")
    steps = [table for table in (tables.luma, None if grey else tables.chroma) if table is not None]
    return _encode(pixels, steps, tables.sampling if sampling is None else sampling, **options)


def _encode(pixels: np.ndarray, steps: list[np.ndarray], sampling: tuple[int, int], **options: Any) -> bytes:
    from PIL import Image

    if sampling not in _SUBSAMPLINGS:
        raise IraeError(f"colours are sampled by (1, 1), (2, 1) or (2, 2) here, not by {sampling}: choose one of these")
    coarsest = max(int(table.max()) for table in steps)
    if coarsest > 65535 or min(int(table.min()) for table in steps) < 1:
        raise IraeError("quantisation steps are 1 to 65535: correct the tables")
    # No coefficient of 8-bit samples reaches half of 4096, and libjpeg does not divide right by much more.
    tables = [np.minimum(table, 4096).ravel().tolist() for table in steps]
    file = io.BytesIO()
    options |= {"qtables": tables, "subsampling": _SUBSAMPLINGS[sampling]}
    try:
        with _overheard() if coarsest > 255 else nullcontext():  # libjpeg warns that this is not baseline
            Image.fromarray(pixels).save(file, "JPEG", **options)
    except (OSError, ValueError) as error:
        height, width = pixels.shape[:2]
        raise IraeError(f"{width} x {height} pixels and EXIF do not fit in a JPEG: choose another format") from error
    return file.getvalue()


def read_coefficients(data: bytes) -> JpegCoefficients:
    """The quantised coefficients of a JPEG file: baseline, progressive or arithmetic-coded, grey or YCbCr.

    Raises ImageError as read_tables does, and for damaged or truncated files.
    """
    image = _open(data)
    steps, sampling = _header(image)
    try:
        image.load()  # refuses what is truncated, which jpeglib would fill up with grey
        levels = _levels(_bare(data))
    except MemoryError:
        raise
    except Exception as error:  # both raise nearly anything on damaged files
        if isinstance(error, OSError) and error.errno:
            raise  # the system's, such as a full disk under the temporary file
        raise ImageError("is damaged or truncated: get a whole copy of the file") from error
    return JpegCoefficients((image.height, image.width), levels[: len(steps)], steps, sampling)


def project(image: np.ndarray, file: bytes | JpegCoefficients, width: float = 1) -> np.ndarray:
    """The nearest image that the JPEG file could have come from: every coefficient is clamped to its bin.

    Nearest is meant in luma and in each chroma plane on its own. Chroma is an average of h x v pixels, and the least
    change of the pixels that changes an average is the same for all of them: the change of the averages is repeated.

    An image that is in the set already stays as it is. No image of the set is farther from the result than from the
    given image; the one that was compressed is in the set, but for rounding in the encoder, so in luma PSNR never
    drops. The blocks that the image fills in part are taken to repeat its border, as libjpeg writes them. There the
    result is a point of the set but not always the nearest one, and distances count the border as often as it is
    repeated. Where they do not, as after lossless cropping, which leaves what lay beyond the border in them, these
    blocks stay as they are.

    Where an estimate lies outside its bin, the true coefficient does not lie on the edge but somewhat inside, and what
    lies on an edge leaves the bin again when pixels are rounded. So the bins can be narrowed, each about its middle
    (Kim and Park, "Projection onto the narrow quantization constraint set for postprocessing of scalar quantized
    images", 1996), but for those of blocks that are filled in part. What is said above of the set then holds for the
    narrowed one, in which the image that was compressed need not lie.

    Args:
        image: (H, W) grey or (H, W, 3) RGB, float, nominally in [0, 1].
        file: the JPEG file or its coefficients.
        width: of the bins, as a share of the quantisation step, above 0 and at most 1.

    Shape: that of the image, of its dtype; values may lie somewhat outside [0, 1].

    Raises ImageError as read_coefficients does, IraeError for an image of another size or number of channels and for
    another width.
    """
    if not 0 < width <= 1:
        raise IraeError(f"the bins cannot have the width {width}: give one above 0 and at most 1")
    file = file if isinstance(file, JpegCoefficients) else read_coefficients(file)
    _check_shape(image, file)
    planes = _planes(image)
    samplings = [(1, 1), file.sampling, file.sampling][: len(planes)]
    parts = list(zip(planes, file.levels, file.steps, samplings, strict=True))
    changes, repeated = zip(*(_change(*part, width) for part in parts), strict=True)
    if not all(repeated):
        changes = tuple(_change(*part, width, whole=True)[0] for part in parts)
    if image.ndim == 2:
        return image + changes[0] / 255
    return image + np.stack(changes, -1) @ (_RGB.T / 255).astype(image.dtype)


def consistent_share(pixels: np.ndarray, data: bytes | JpegCoefficients) -> float:
    """The share of a JPEG file's coefficients that come out the same when libjpeg compresses the pixels as it was.

    Args:
        pixels: (H, W) grey or (H, W, 3) RGB, uint8, of the size of the file.
        data: the JPEG file or its coefficients.

    Returns: 0 to 1.

    Raises ImageError as read_coefficients does, IraeError for pixels of another size or number of channels, and for a
    sampling that is not written here.
    """
    file = data if isinstance(data, JpegCoefficients) else read_coefficients(data)
    _check_shape(pixels, file)
    again = read_coefficients(_encode(pixels, list(file.steps), file.sampling))
    equal = sum(int(np.count_nonzero(a == b)) for a, b in zip(file.levels, again.levels, strict=True))
    return equal / sum(levels.size for levels in file.levels)


def _check_shape(image: np.ndarray, file: JpegCoefficients) -> None:
    shape = file.shape if len(file.levels) == 1 else (*file.shape, 3)
    if image.shape != shape:
        raise IraeError(f"the image has the shape {image.shape} and the JPEG file {shape}: give the file's own image")


def _planes(image: np.ndarray) -> list[np.ndarray]:
    """Y or Y, Cb, Cr of an image in [0, 1], in 8-bit levels around zero (JFIF 1.02; T.81, A.3.1)."""
    if image.ndim == 2:
        return [image * 255 - 128]
    planes = np.moveaxis(image @ (_YCBCR.T * 255).astype(image.dtype), -1, 0)
    return [planes[0] - 128, planes[1], planes[2]]


def _change(
    plane: np.ndarray,
    levels: np.ndarray,
    steps: np.ndarray,
    sampling: tuple[int, int],
    share: float,
    whole: bool = False,
) -> tuple[np.ndarray, bool]:
    """(H, W): what takes a plane, in 8-bit levels around zero, to the nearest one with all coefficients in their bins.

    `share` is that of its width that a bin keeps. Blocks that the plane fills in part, whose bins stay whole: clamping
    and repeating the border again take turns until both hold; whether they do is the other result. With `whole` these
    blocks do not change.
    """
    rows, columns = levels.shape[:2]
    levels, steps = levels.transpose(0, 2, 1, 3), steps[:, None].astype(plane.dtype)
    middle, reach = levels * steps, steps / 2
    start = _sampled(plane, rows * 8, columns * 8, sampling).reshape(rows, 8, columns, 8)
    samples = start + _clamping(start, middle, reach * share)
    height, width = (-(-size // factor) % 8 for size, factor in zip(plane.shape, sampling[::-1], strict=True))
    # Of the blocks filled in part: the last row, and what is left of the last column; 0 stands for whole.
    parts = [(np.s_[-1:], height)] * bool(height) + [(np.s_[: rows - bool(height), :, -1:], 0)] * bool(width)
    repeated = True
    for part, filled in parts:
        samples[part] = start[part]
        for _ in range(0 if whole else _TURNS):
            step = _clamping(samples[part], middle[part], reach)
            if filled:
                step[:, filled - 1 :] = step[:, filled - 1 :].mean(1, keepdims=True)
            if width:
                step[:, :, -1:, width - 1 :] = step[:, :, -1:, width - 1 :].mean(3, keepdims=True)
            samples[part] += step
        repeated &= bool((np.abs(_outside(samples[part], middle[part], reach)) <= _REPEATED * steps).all())
    changes = (samples - start).reshape(rows * 8, columns * 8).repeat(sampling[1], 0).repeat(sampling[0], 1)
    return changes[: plane.shape[0], : plane.shape[1]], repeated


def _clamping(samples: np.ndarray, middle: np.ndarray, reach: np.ndarray) -> np.ndarray:
    """What takes (rows, 8, columns, 8) samples to the nearest ones with all coefficients within reach of the middle."""
    from scipy.fft import idctn

    return idctn(_outside(samples, middle, reach), axes=(1, 3), norm="ortho")


def _outside(samples: np.ndarray, middle: np.ndarray, reach: np.ndarray) -> np.ndarray:
    """What takes the coefficients of (rows, 8, columns, 8) samples to within reach of the middle."""
    from scipy.fft import dctn

    coefficients = dctn(samples, axes=(1, 3), norm="ortho")  # T.81, A.3.3
    return np.clip(coefficients, middle - reach, middle + reach) - coefficients


def _sampled(plane: np.ndarray, height: int, width: int, sampling: tuple[int, int]) -> np.ndarray:
    """(height, width): the averages of h x v samples, and what libjpeg puts beyond the border of a plane (H, W).

    It repeats the last column before it averages; of the rows only as many as the average takes, and then the averages.
    """
    h, v = sampling
    plane = np.pad(plane, ((0, -plane.shape[0] % v), (0, width * h - plane.shape[1])), "edge")
    averages = plane.reshape(-1, v, width, h).mean((1, 3))
    return np.pad(averages, ((0, height - averages.shape[0]), (0, 0)), "edge")


# ------------------------------------------------------------------------------------- the file itself


def _open(data: bytes) -> Any:
    """Pillow's image of a JPEG, not decoded yet."""
    try:
        with warnings.catch_warnings(action="ignore"):
            return pillow_image(io.BytesIO(data), "JPEG")
    except Exception as error:  # the parser raises nearly anything on damaged files
        raise ImageError("is no JPEG, damaged or of a rare kind: get a whole copy or a PNG") from error


def _header(image: Any) -> tuple[tuple[np.ndarray, ...], tuple[int, int]]:
    """The steps of each component of Pillow's image, and the sampling; refuses what they would not tell right."""
    if image.layers not in (1, 3):
        raise ImageError(f"is a {image.mode} picture, which is not read: convert it to RGB or grey first")
    identifiers = bytes(component[0] for component in image.layer)
    stored_rgb = image.info.get("adobe_transform") == 0 if "adobe" in image.info else identifiers == b"RGB"
    if image.layers == 3 and stored_rgb and "jfif" not in image.info:  # the rules of libjpeg
        raise ImageError("is a JPEG that holds RGB instead of YCbCr: save it as PNG and restore that")
    try:
        steps = tuple(np.array(image.quantization[component[3]]).reshape(8, 8) for component in image.layer)
    except KeyError as error:
        raise ImageError("lacks a quantisation table: get a whole copy or a PNG") from error
    factors = [component[1:3] for component in image.layer]  # horizontal, vertical
    if min(int(table.min()) for table in steps) < 1 or min(map(min, factors)) < 1:
        raise ImageError("is damaged (a zero in its tables): get a whole copy of the file")
    if image.layers == 1:
        return steps, (1, 1)
    (h, v), chroma, other = factors
    if chroma != other or h % chroma[0] or v % chroma[1]:
        raise ImageError("is a JPEG that samples its colours in a rare way: save it as PNG and restore that")
    return steps, (h // chroma[0], v // chroma[1])


def _bare(data: bytes) -> bytes:
    """A JPEG file without comments and application segments, of which jpeglib does not stand many."""
    parts: list[bytes] = []
    at = 0
    while marker := _MARKER.search(data, at):
        code, end = marker[1][0], marker.end()
        if code == 0xD9:  # the end of the image
            return b"".join([*parts, data[at:end]])
        if code not in (0x01, 0xD8):  # these two have no body
            end += int.from_bytes(data[end : end + 2])
        parts.append(data[at : marker.start() if 0xE0 <= code <= 0xEF or code == 0xFE else end])
        at = end
    return b"".join([*parts, data[at:]])


def _levels(data: bytes) -> tuple[np.ndarray, ...]:
    """(block rows, block columns, 8, 8) quantised coefficients of Y or of Y, Cb, Cr."""
    import jpeglib

    with _overheard() as said, tempfile.TemporaryDirectory() as folder, jpeglib.version("turbo210"):
        path = os.path.join(folder, "image.jpg")
        with open(path, "wb") as file:
            file.write(data)
        jpeg = jpeglib.read_dct(path)
        said.seek(0)
        if _CORRUPT.search(said.read()):
            raise ImageError("is damaged: get a whole copy of the file")
        return tuple(plane for plane in (jpeg.Y, jpeg.Cb, jpeg.Cr) if plane is not None)


@contextmanager
def _overheard() -> Iterator[IO[bytes]]:
    """Keeps off the terminal what libjpeg says of odd files, and gives it: C code writes it. One thread at a time."""
    with TERMINAL, tempfile.TemporaryFile() as said, open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        terminal = os.dup(2)
        try:
            os.dup2(said.fileno(), 2)
            yield said
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
