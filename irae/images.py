"""Reads and writes image files without touching what is not restored.

Pixels stay in their stored orientation; alpha, the EXIF block, the ICC profile and the resolution in dpi are kept,
and from PNG to PNG its own words on colour.
"""

import functools
import io
import logging
import math
import struct
import threading
import warnings
import zlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from irae.errors import IraeError, printable
from irae.files import read_file, write_bytes

# Pillow, OpenCV and tifffile are imported where they are used, so that importing this module is quick.

MAX_PIXELS = 200_000_000  # that are read where nobody says how many
SUFFIXES = {
    ".png": "PNG",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".bmp": "BMP",
}

_PNG_START = b"\x89PNG\r\n\x1a\n"
_STARTS = {_PNG_START: "PNG", b"\xff\xd8\xff": "JPEG", b"BM": "BMP", b"II*\0": "TIFF", b"MM\0*": "TIFF"}
_STARTS |= {b"II+\0": "TIFF", b"MM\0+": "TIFF"}  # BigTIFF
_EXIF_START = b"Exif\0\0"
_ORIENTATION, _EXTRA_SAMPLES, _ICC = 274, 338, 34675
_RESOLUTION = (282, 283, 296)  # across, down, and their unit: 2 an inch, 3 a centimetre
_INCH = 0.0254  # metres
# The TIFF tags that describe the photograph, while the others describe how its pixels are stored:
# description, make, model, orientation, resolution x 3, software, date, artist, copyright, EXIF, GPS.
_DESCRIPTIVE = frozenset({270, 271, 272, _ORIENTATION, 282, 283, 296, 305, 306, 315, 33432, 34665, 34853})
_QUIET = logging.NullHandler()
_PILLOW = threading.Lock()  # its limit of pixels is one for all threads
_TRUNCATED = "is truncated: get a whole copy of the file"
_PNG_COLOUR = {b"cICP": 4, b"sRGB": 1, b"gAMA": 4, b"cHRM": 32}  # chunks, and the bytes that each has
_MOST_PROFILE = 1 << 24  # bytes of an ICC profile; a PNG can hold gigabytes of one in little


class ImageError(IraeError):
    """What is no picture that is read here, or none that a format holds: one sentence with the way out."""


@dataclass(frozen=True)
class Picture:
    """A decoded image, in its stored orientation.

    pixels: (H, W) grey or (H, W, 3) RGB, uint8 (0..255) or uint16 (0..65535); float32 (0..1) where it is of no file.
    alpha: (H, W) of the same dtype, straight (not premultiplied), or None.
    format: that of the file it was read from; lossy: JPEG, or WebP that is not lossless.
    exif: the EXIF block, from its TIFF header on (no "Exif" prefix); icc: the ICC profile.
    dpi: pixels per inch, across and down, 1 to 65,535: how large it is printed.
    png_colour: the bodies of the chunks cICP, sRGB, gAMA and cHRM of a PNG by their names, which say what its values
        mean (W3C, PNG specification, third edition, 11.3.2).
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    format: str = "PNG"
    lossy: bool = False
    exif: bytes | None = None
    icc: bytes | None = None
    dpi: tuple[float, float] | None = None
    png_colour: dict[bytes, bytes] = field(default_factory=dict)

    @property
    def orientation(self) -> int:
        """How EXIF says that a viewer flips and turns the pixels (TIFF 6.0, tag 274), 1 to 8; 1: not at all.

        Where it says anything else, 1.
        """
        orientation = _load_exif(self.exif).get(_ORIENTATION, 1)
        return orientation if orientation in range(1, 9) else 1

    @property
    def upright(self) -> np.ndarray:
        """The pixels as a viewer shows them, flipped and turned by the orientation of EXIF.

        (H, W) or (H, W, 3), or with H and W exchanged where it turns by a quarter; a view.
        """
        orientation = self.orientation
        turned = self.pixels.swapaxes(0, 1) if orientation in (5, 6, 7, 8) else self.pixels
        return _flip(turned, orientation)

    def stored(self, upright: np.ndarray) -> np.ndarray:
        """What a viewer shows, (H, W) or (H, W, 3), in the stored orientation: undoes `upright`; a view."""
        flipped = _flip(upright, self.orientation)
        return flipped.swapaxes(0, 1) if self.orientation in (5, 6, 7, 8) else flipped


def _flip(shown: np.ndarray, orientation: int) -> np.ndarray:
    rows, columns = (-1 if orientation in flipped else 1 for flipped in ((3, 4, 7, 8), (2, 3, 6, 7)))
    return shown[::rows, ::columns]


def is_image_path(path: str | Path) -> bool:
    """Whether the path has the suffix of a format that is read and written here."""
    return Path(path).suffix.lower() in SUFFIXES


def is_lossy(path: Path) -> bool:
    """Whether a file loses something when written in its own format: JPEG by its suffix, WebP by its content."""
    if SUFFIXES.get(path.suffix.lower()) != "WEBP":
        return SUFFIXES.get(path.suffix.lower()) == "JPEG"
    try:
        return _webp_header(path.read_bytes())[2]
    except (OSError, ValueError, struct.error):
        return True  # reading it will tell what is wrong


def read_image(source: str | Path | bytes, *, max_pixels: int = MAX_PIXELS, name: str = "the image data") -> Picture:
    """Read an image file, or the bytes of one, called `name` in errors; its format is told from the content.

    Reads 8- and 16-bit PNG and TIFF, JPEG, WebP and BMP. Palettes and 1- to 4-bit images are expanded
    to 8 bits, transparent colours become an alpha channel, premultiplied TIFF alpha is made straight.
    A broken EXIF block, ICC profile or colour chunk is dropped. The EXIF block of a TIFF is built from
    its descriptive tags: orientation, camera, dates, author, resolution, EXIF and GPS tables.

    Raises ImageError for all that would not be read whole and right: damaged or truncated files, more
    than max_pixels pixels (told before decoding), CMYK, animations, several pages, float TIFF, other
    formats.
    """
    name = name if isinstance(source, bytes) else printable(source)
    data = source if isinstance(source, bytes) else read_file(Path(source))
    try:
        format = _format_of(data)
        with warnings.catch_warnings(action="ignore"):
            if format == "PNG":
                return _read_png(data, max_pixels)
            if format == "TIFF":
                return _read_tiff(data, max_pixels)
            return _read_by_pillow(data, max_pixels, format)
    except ImageError as refusal:  # the functions below leave the name of the file to this place
        raise ImageError(f"{name} {refusal}") from refusal.__cause__
    except MemoryError as error:
        raise ImageError(f"{name} does not fit in memory: cut it in smaller pictures") from error
    except Exception as error:  # decoders raise nearly anything on damaged files
        raise ImageError(f"{name} is damaged or of a rare kind: get a whole copy or a PNG") from error


def count_pixels(path: Path) -> int:
    """How many pixels an image file says that it has, of which little is read; 0 where it says nothing clear."""
    import tifffile

    try:
        with open(path, "rb") as file:
            start = file.read(32)
            format = _format_of(start)
            if format == "PNG":
                width, height = struct.unpack_from(">II", start, 16)
            elif format == "WEBP":
                width, height, _ = _webp_header(start + file.read())
            elif format == "TIFF":
                logging.getLogger("tifffile").addHandler(_QUIET)
                with tifffile.TiffFile(file) as tiff:
                    width, height = _tiff_size(tiff.pages[0])
            else:
                width, height = pillow_image(file, format).size
    except Exception:  # reading it will tell what is wrong
        return 0
    return int(width * height)


def _format_of(data: bytes) -> str:
    if not data:
        raise ImageError("is empty: get a whole copy of the file")
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    for start, format in _STARTS.items():
        if data.startswith(start):
            return format
    raise ImageError("is not a PNG, TIFF, JPEG, WebP or BMP image: convert it to PNG or TIFF first")


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        most = f"{max_pixels / 1e6:g} megapixels"
        raise ImageError(
            f"has {width} x {height} pixels, over the limit of {most}: raise it (--max-pixels) or cut it up"
        )


def _picture(
    samples: np.ndarray,
    format: str,
    exif: bytes | None,
    icc: bytes | None,
    lossy: bool = False,
    dpi: tuple[float, float] | None = None,
) -> Picture:
    """The Picture of (H, W) or (H, W, 1 to 4) samples: grey, grey + alpha, RGB or RGBA; its dpi by default EXIF's."""
    samples = samples.reshape(*samples.shape[:2], -1)
    channels = samples.shape[2]
    pixels = np.ascontiguousarray(samples[..., :3] if channels > 2 else samples[..., 0])
    alpha = samples[..., -1].copy() if channels in (2, 4) else None
    while exif and exif.startswith(_EXIF_START):
        exif = exif[len(_EXIF_START) :]
    exif = exif if len(_load_exif(exif)) else None
    icc = icc if icc and icc[36:40] == b"acsp" and int.from_bytes(icc[:4], "big") <= len(icc) else None
    return Picture(pixels, alpha, format, lossy, exif, icc, _sensible(dpi) or _exif_dpi(exif))


def _sensible(dpi: Any) -> tuple[float, float] | None:
    """Two numbers that every format holds, or None."""
    across, down = dpi or (0, 0)
    return (across, down) if 1 <= across <= 0xFFFF and 1 <= down <= 0xFFFF else None


def _exif_dpi(block: bytes | None) -> tuple[float, float] | None:
    exif = _load_exif(block)
    try:
        across, down, unit = (float(exif.get(tag, 2 if tag == 296 else 0)) for tag in _RESOLUTION)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    scale = 1.0 if unit == 2 else 100 * _INCH if unit == 3 else math.nan
    return _sensible((across * scale, down * scale))


def _load_exif(block: bytes | None) -> Any:
    """Pillow's Exif of a block (or of a whole TIFF); an empty one when it is broken."""
    from PIL import Image

    exif = Image.Exif()
    try:
        exif.load(block or b"")
        dict(exif)
    except Exception:  # the parser raises nearly anything on broken blocks
        exif = Image.Exif()
    return exif


def _descriptive_exif(block: bytes | None) -> Any:
    """Pillow's Exif of a block (or of a whole TIFF), with no other tags than the descriptive ones."""
    exif = _load_exif(block)
    for tag in set(exif) - _DESCRIPTIVE:
        del exif[tag]
    try:
        exif.tobytes()
    except Exception:  # odd tags that cannot be written again: the orientation alone matters
        for tag in set(exif) - {_ORIENTATION}:
            del exif[tag]
    return exif


# ------------------------------------------------------------------------------------- JPEG, WebP, BMP


def _read_by_pillow(data: bytes, max_pixels: int, format: str) -> Picture:
    lossy = format == "JPEG"
    if format == "WEBP":  # opening it takes the memory of its pixels already
        width, height, lossy = _webp_header(data)
        _check_size(width, height, max_pixels)
    image = pillow_image(io.BytesIO(data), format)
    _check_size(image.width, image.height, max_pixels)
    samples, facts = _pillow_samples(image), image.info
    told = format == "BMP" or facts.get("jfif_unit") in (1, 2)  # elsewhere it is EXIF's, or made up
    dpi = facts.get("dpi") if told else None
    return _picture(samples, format, facts.get("exif"), facts.get("icc_profile"), lossy, dpi)


def pillow_image(file: IO[bytes], format: str) -> Any:
    """Pillow's image, not decoded yet, without Pillow's own limit of pixels."""
    from PIL import Image

    logging.getLogger("PIL").addHandler(_QUIET)
    with _PILLOW:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(file, formats=[format])
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _pillow_samples(image: Any) -> np.ndarray:
    """(H, W) or (H, W, 1 to 4) uint8 samples of an image that Pillow opened and has yet to decode."""
    palette = "RGBA" if "transparency" in image.info else "RGB"
    if image.mode in (modes := {"1": "L", "P": palette, "YCbCr": "RGB"}):
        image = image.convert(modes[image.mode])
    if image.mode not in ("L", "LA", "RGB", "RGBA"):
        raise ImageError(f"is a {image.mode} picture, which is not read: convert it to RGB or grey first")
    image.load()  # numpy would hide its errors
    return np.array(image)


def _webp_header(data: bytes) -> tuple[int, int, bool]:
    """Width, height, and whether it is lossy."""
    at = 12
    while at < len(data):
        kind, size = struct.unpack_from("<4sI", data, at)
        if kind == b"ANIM":
            raise ImageError("is an animation: save the frame you want as PNG first")
        if kind == b"VP8L":
            (bits,) = struct.unpack_from("<I", data, at + 9)
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, False
        if kind == b"VP8 ":
            width, height = struct.unpack_from("<HH", data, at + 14)
            return width & 0x3FFF, height & 0x3FFF, True
        at += 8 + size + size % 2
    raise ImageError(_TRUNCATED)


# ------------------------------------------------------------------------------------------------- PNG


def _read_png(data: bytes, max_pixels: int) -> Picture:
    width, height, depth, colour, interlaced = struct.unpack_from(">IIBB2xB", data, 16)
    _check_size(width, height, max_pixels)
    chunks = _png_chunks(data)
    if b"acTL" in chunks and int.from_bytes(chunks[b"acTL"][0][:4], "big") > 1:
        raise ImageError("is an animation: save the frame you want as a plain PNG first")
    # The decoder gets nothing but the pixels: no orientation, gamma or broken text can get in the way.
    kinds = (b"IHDR", b"PLTE", b"tRNS", b"IDAT") if colour == 3 else (b"IHDR", b"IDAT")
    parts = [part for kind in kinds if kind in chunks for part in _png_chunk(kind, *chunks[kind])]
    core = b"".join([_PNG_START, *parts, *_png_chunk(b"IEND")])
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    expected = height * (1 + (width * bits + 7) // 8)
    if depth == 16:
        _check_png_data(chunks[b"IDAT"], expected)
        samples = _opencv_samples(core)
    else:
        samples = _pillow_samples(pillow_image(io.BytesIO(core), "PNG"))
        if depth < 8 or colour == 3 or interlaced or not samples[-1].any():  # Pillow leaves black what is missing
            _check_png_data(chunks[b"IDAT"], expected)
    samples = samples.reshape(height, width, -1)
    if colour == 4:
        samples = samples[..., [0, -1]]  # OpenCV repeats the grey three times
    if colour in (0, 2) and b"tRNS" in chunks:
        samples = np.dstack([samples, _keyed_alpha(samples, chunks[b"tRNS"][0], depth)])
    exif, profile, size = (chunks.get(kind, [b""])[0] for kind in (b"eXIf", b"iCCP", b"pHYs"))
    picture = _picture(samples, "PNG", exif, _png_profile(profile), dpi=_png_dpi(size))
    said = {kind: chunks[kind][0] for kind in _PNG_COLOUR if kind in chunks}
    return replace(picture, png_colour={kind: body for kind, body in said.items() if len(body) == _PNG_COLOUR[kind]})


def _png_chunks(data: bytes) -> dict[bytes, list[Any]]:
    """The bodies of the chunks by kind, those of pixels as views; broken ones without pixels are left out."""
    chunks: dict[bytes, list[Any]] = {}
    at, view = len(_PNG_START), memoryview(data)
    while b"IEND" not in chunks:
        if at + 12 > len(data):
            raise ImageError(_TRUNCATED)
        size, kind = struct.unpack_from(">I4s", data, at)
        body, checksum = view[at + 8 : at + 8 + size], view[at + 8 + size : at + 12 + size]
        if zlib.crc32(body, zlib.crc32(kind)).to_bytes(4, "big") == checksum:
            chunks.setdefault(kind, []).append(body if kind == b"IDAT" else bytes(body))
        elif kind[:1].isupper():
            raise ImageError("is damaged or truncated (PNG checksum): get a whole copy of the file")
        at += 12 + size
    return chunks


def _png_chunk(kind: bytes, *bodies: bytes) -> list[bytes]:
    """The parts of a chunk that holds these bodies one after another."""
    checksum = functools.reduce(lambda value, body: zlib.crc32(body, value), bodies, zlib.crc32(kind))
    return [struct.pack(">I", sum(map(len, bodies))), kind, *bodies, checksum.to_bytes(4, "big")]


def _check_png_data(bodies: list[bytes], expected: int) -> None:
    """Refuse pixel data that ends too early, which the decoders take in silence."""
    inflater, size = zlib.decompressobj(), 0
    for body in bodies:
        for at in range(0, len(body), 1 << 16):  # in pieces, to hold little of the result at a time
            size += len(inflater.decompress(body[at : at + (1 << 16)], expected - size))
            if size >= expected:
                return
    raise ImageError(_TRUNCATED)


def _png_profile(body: bytes) -> bytes | None:
    inflater = zlib.decompressobj()
    try:
        profile = inflater.decompress(body.partition(b"\0")[2][1:], _MOST_PROFILE)
    except zlib.error:
        return None
    return profile if inflater.eof else None


def _png_dpi(body: bytes) -> tuple[float, float] | None:
    across, down, unit = struct.unpack(">IIB", body) if len(body) == 9 else (0, 0, 0)
    return (across * _INCH, down * _INCH) if unit == 1 else None  # 0: the shape of a pixel alone


def _keyed_alpha(samples: np.ndarray, key: bytes, depth: int) -> np.ndarray:
    """(H, W) alpha: zero where the (H, W, C) samples have the one transparent colour of the file."""
    top = np.iinfo(samples.dtype).max
    scale = top // (2**depth - 1)  # 1 to 4 bits are expanded to 8
    colour = np.frombuffer(key, ">u2").astype(np.uint32) * scale
    return np.where((samples == colour).all(axis=2), 0, top).astype(samples.dtype)


def _opencv_samples(data: bytes) -> np.ndarray:
    """(H, W) or (H, W, C) uint16 samples in RGB order; the data must hold no orientation to apply."""
    import cv2

    level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        samples = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    finally:
        cv2.utils.logging.setLogLevel(level)
    if samples is None or samples.dtype != np.uint16:
        raise ValueError("not decoded as 16 bits")
    return samples if samples.ndim == 2 else samples[..., [2, 1, 0, 3][: samples.shape[2]]]


# ------------------------------------------------------------------------------------------------ TIFF


def _read_tiff(data: bytes, max_pixels: int) -> Picture:
    import tifffile

    logging.getLogger("tifffile").addHandler(_QUIET)  # or its warnings go to the terminal
    with tifffile.TiffFile(io.BytesIO(data)) as tiff:
        page: Any = tiff.pages[0]
        _check_size(*_tiff_size(page), max_pixels)
        if len(tiff.pages) > 1:
            raise ImageError(f"has {len(tiff.pages)} pages: save the one you want in its own file first")
        _check_tiff(page, len(data))
        samples = _tiff_samples(page, data)
    if tuple(page.extrasamples) == (1,):
        samples = _straight(samples)
    exif = _descriptive_exif(data)
    if _ORIENTATION in page.tags:
        exif.setdefault(_ORIENTATION, int(page.tags[_ORIENTATION].value))  # Pillow reads no tags of BigTIFF
    return _picture(samples, "TIFF", exif.tobytes(), page.tags.valueof(_ICC))


def _tiff_size(page: Any) -> tuple[int, int]:
    """Width and height; a damaged tag holds many numbers, and a tuple of them times the other side is a bomb."""
    width, height = page.imagewidth, page.imagelength
    if not (isinstance(width, int) and isinstance(height, int)):
        raise ImageError("does not say how large it is: get a whole copy of the file")
    return width, height


def _check_tiff(page: Any, size: int) -> None:
    if page.photometric == 5:
        raise ImageError("is a CMYK picture: convert it to RGB first")
    if page.sampleformat != 1 or page.bitspersample not in (1, 2, 4, 8, 16):
        raise ImageError("has samples that are not 8- or 16-bit integers: convert it to 16 bits first")
    if page.photometric not in (0, 1, 2, 3, 6) or page.subfiletype & 1 or 50706 in page.tags:  # a DNG
        raise ImageError("is not a plain grey or RGB picture (a camera raw file?): convert it to RGB first")
    if page.samplesperpixel - (3 if page.photometric in (2, 6) else 1) > 1 or page.imagedepth > 1:
        raise ImageError("has more channels than colour and alpha: save it without the others first")
    counts = page.databytecounts
    ends = [at + count for at, count in zip(page.dataoffsets, counts, strict=True)]
    if not ends or max(ends) > size or min(counts) == 0:
        raise ImageError(_TRUNCATED)


def _tiff_samples(page: Any, data: bytes) -> np.ndarray:
    """(H, W) or (H, W, C) uint8 or uint16 samples; the alpha as stored, and white the top value."""
    plain = page.photometric in (0, 1, 2) and page.bitspersample in (8, 16)
    if plain and page.compression in (1, 8, 32946):  # none or deflate, which tifffile decodes by itself
        samples = page.asarray()
        samples = np.moveaxis(samples, 0, 2) if samples.ndim == 3 and page.planarconfig == 2 else samples
    elif page.bitspersample <= 8:
        return _pillow_samples(pillow_image(io.BytesIO(_as_stored(page, data)), "TIFF"))
    elif plain and page.samplesperpixel != 2 and page.planarconfig == 1:
        samples = _opencv_samples(_as_stored(page, data))
    else:
        raise ImageError("is a 16-bit TIFF of a rare kind: save it again without compression")
    if page.photometric != 0:
        return samples
    turned = np.iinfo(samples.dtype).max - samples
    if page.samplesperpixel == 2:
        turned[..., 1] = samples[..., 1]
    return turned


def _as_stored(page: Any, data: bytes) -> bytes:
    """The file with its orientation and kind of alpha made neutral, as the decoders act on both tags."""
    patched = bytearray(data)
    for code, value in ((_ORIENTATION, 1), (_EXTRA_SAMPLES, 2)):
        tag = page.tags.get(code)
        if tag is not None:
            struct.pack_into(page.parent.byteorder + "H", patched, tag.valueoffset, value)
    return bytes(patched)


def _straight(samples: np.ndarray) -> np.ndarray:
    """Divide the colours by the alpha they were multiplied with."""
    top = np.iinfo(samples.dtype).max
    colours, alpha = samples[..., :-1], samples[..., -1:]
    colours = np.rint(colours * (float(top) / np.maximum(alpha, 1))).clip(0, top).astype(samples.dtype)
    return np.concatenate([colours, alpha], axis=2)


# --------------------------------------------------------------------------------------------- writing


def encode_image(picture: Picture, format: str) -> bytes:
    """The bytes of a file of the picture, always the same for the same picture.

    PNG, TIFF (not compressed), BMP and WebP are lossless, though WebP makes RGB of grey; JPEG has
    quality 95 and full colour resolution. The EXIF block is written byte for byte, except in TIFF,
    which takes its descriptive tags with the EXIF and GPS tables, and in BMP, which holds no metadata.
    A grey ICC profile is left out of WebP, which has no place for dpi either. What a PNG says of
    colour beside a profile is written in PNG alone.

    Raises ImageError when the format cannot hold the picture: 16 bits elsewhere than in PNG and TIFF,
    alpha in JPEG or BMP, an orientation in BMP, sides too long.
    """
    _check_writable(picture, format)
    try:
        with warnings.catch_warnings(action="ignore"):
            if format == "TIFF":
                return _encode_tiff(picture)
            if picture.pixels.dtype == np.uint16:
                return _encode_png16(picture)
            return _encode_by_pillow(picture, format)
    except (OSError, ValueError, struct.error) as error:
        height, width = picture.pixels.shape[:2]
        raise ImageError(f"{width} x {height} pixels and EXIF do not fit in {format}: choose PNG") from error


def write_image(path: str | Path, picture: Picture, format: str | None = None, *, overwrite: bool = False) -> None:
    """Write the picture in a format told from the suffix by default; see encode_image and write_bytes."""
    format = format or SUFFIXES.get(Path(path).suffix.lower())
    if format is None:
        raise ImageError(f"{printable(path)} has no image suffix: use one of {', '.join(SUFFIXES)}")
    try:
        data = encode_image(picture, format)
    except ImageError as refusal:
        raise ImageError(f"{printable(path)} cannot be written: {refusal}") from refusal.__cause__
    write_bytes(path, data, overwrite=overwrite)


def _check_writable(picture: Picture, format: str) -> None:
    pixels, alpha = picture.pixels, picture.alpha
    if format not in SUFFIXES.values():
        raise ImageError(f"{format!r} is not a format that is written: choose PNG, TIFF, JPEG, WEBP or BMP")
    if pixels.dtype not in (np.uint8, np.uint16) or pixels.ndim < 2 or pixels.shape[2:] not in ((), (3,)):
        raise ImageError(f"{pixels.dtype} {pixels.shape} is no picture: give 8- or 16-bit grey or RGB")
    if pixels.size == 0:
        raise ImageError("the picture is empty: give one pixel at least")
    if alpha is not None and (alpha.shape, alpha.dtype) != (pixels.shape[:2], pixels.dtype):
        raise ImageError("the alpha channel is unlike the pixels: give both of one size and type")
    if pixels.dtype == np.uint16 and format not in ("PNG", "TIFF"):
        raise ImageError(f"a 16-bit picture does not fit in {format}: choose PNG or TIFF")
    if alpha is not None and format in ("JPEG", "BMP"):
        raise ImageError(f"a picture with an alpha channel does not fit in {format}: choose PNG or TIFF")
    if format == "BMP" and picture.orientation != 1:
        raise ImageError("BMP does not keep which way a picture is turned: choose PNG or TIFF")


def _samples(picture: Picture) -> np.ndarray:
    """(H, W, 1 to 4): the pixels, then the alpha channel if any."""
    return np.dstack([picture.pixels] if picture.alpha is None else [picture.pixels, picture.alpha])


def _encode_by_pillow(picture: Picture, format: str) -> bytes:
    from PIL import Image, PngImagePlugin

    colour = PngImagePlugin.PngInfo()
    for kind, body in picture.png_colour.items():
        colour.add(kind, body)
    settings: dict[str, dict[str, Any]] = {
        # restored photographs get no larger than by default, in a third of the time
        "PNG": {"compress_level": 1, "pnginfo": colour},
        "JPEG": {"quality": 95, "subsampling": 0},
        "WEBP": {"lossless": True, "exact": True},
    }
    file = io.BytesIO()
    samples = picture.pixels if picture.alpha is None else _samples(picture)
    if format == "WEBP" and (picture.icc or b"")[16:20] == b"GRAY":  # of grey, which WebP does not hold
        picture = replace(picture, icc=None)
    Image.fromarray(samples).save(file, format, **settings.get(format, {}), **pillow_metadata(picture))
    return file.getvalue()


def pillow_metadata(picture: Picture) -> dict[str, Any]:
    """EXIF block ("exif"), ICC profile ("icc_profile") and "dpi", those that a picture has, for Pillow's writers."""
    exif = _EXIF_START + picture.exif if picture.exif else None
    metadata = {"exif": exif, "icc_profile": picture.icc, "dpi": picture.dpi}
    return {key: value for key, value in metadata.items() if value}


def _encode_png16(picture: Picture) -> bytes:
    """By hand, as Pillow writes no 16-bit colours and OpenCV no 16-bit grey with alpha."""
    samples = _samples(picture)
    height, width, channels = samples.shape
    rows, step = samples.astype(">u2").reshape(height, -1).view(np.uint8), 2 * channels
    filtered = np.empty((height, 1 + rows.shape[1]), np.uint8)
    filtered[:, 0] = 1  # the filter of the row: each byte less the same one of the pixel on its left
    filtered[:, 1 : 1 + step] = rows[:, :step]
    np.subtract(rows[:, step:], rows[:, :-step], out=filtered[:, 1 + step :])
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    parts = [_PNG_START, *_png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0))]
    if picture.icc:
        parts += _png_chunk(b"iCCP", b"ICC Profile\0\0" + zlib.compress(picture.icc))
    for kind, body in picture.png_colour.items():
        if not (kind == b"sRGB" and picture.icc):  # PNG forbids both
            parts += _png_chunk(kind, body)
    if picture.exif:
        parts += _png_chunk(b"eXIf", picture.exif)
    if picture.dpi:
        parts += _png_chunk(b"pHYs", struct.pack(">IIB", *(round(dots / _INCH) for dots in picture.dpi), 1))
    parts += [*_png_chunk(b"IDAT", zlib.compress(filtered.tobytes())), *_png_chunk(b"IEND")]
    return b"".join(parts)


def _encode_tiff(picture: Picture) -> bytes:
    """By hand: an EXIF block is a TIFF without pixels, so this adds the tags of the pixels, then them."""
    samples = _samples(picture)
    height, width, channels = samples.shape
    exif = _descriptive_exif(picture.exif)
    exif.endian = exif.endian or "<"
    exif.update({256: width, 257: height, 258: (8 * samples.itemsize,) * channels})
    exif.update({259: 1, 262: 2 if channels > 2 else 1, 277: channels})  # not compressed; RGB or grey
    exif.update({273: 0, 278: height, 279: samples.nbytes})  # one strip, which Pillow puts after the tags
    exif.update({} if picture.alpha is None else {_EXTRA_SAMPLES: 2})
    exif.update({_ICC: picture.icc} if picture.icc else {})
    if picture.dpi and picture.dpi != _exif_dpi(picture.exif):
        exif.update(zip(_RESOLUTION, (*picture.dpi, 2), strict=True))
    stored = samples.astype(samples.dtype.newbyteorder(exif.endian))
    return exif.tobytes()[len(_EXIF_START) :] + stored.tobytes()
