"""Tests of irae.images: what is read is what other programs wrote, what is written is read back bit by
bit, and what is damaged is refused."""

import contextlib
import io
import struct
import subprocess
import sys
import tracemalloc
import zlib
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps

from irae.files import FileError
from irae.images import (
    SUFFIXES,
    ImageError,
    Picture,
    count_pixels,
    encode_image,
    is_image_path,
    read_image,
    write_image,
)

HEIGHT, WIDTH = 13, 17
ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def samples(dtype, channels, height=HEIGHT, width=WIDTH, seed=0):
    """(H, W) or (H, W, C) random samples over the whole range."""
    top = np.iinfo(dtype).max
    values = np.random.default_rng(seed).integers(0, top + 1, (height, width, channels), dtype=dtype)
    return values[..., 0] if channels == 1 else values


def picture(dtype, channels, **fields):
    """A Picture of 1 (grey), 2 (grey and alpha), 3 (RGB) or 4 (RGB and alpha) channels."""
    values = samples(dtype, channels).reshape(HEIGHT, WIDTH, channels)
    pixels = values[..., :3] if channels > 2 else values[..., 0]
    return Picture(pixels.copy(), values[..., -1].copy() if channels in (2, 4) else None, **fields)


def joined(read):
    """The samples of a Picture as one array."""
    return read.pixels if read.alpha is None else np.dstack([read.pixels, read.alpha])


def same(array, other):
    return array.dtype == other.dtype and array.shape == other.shape and bool((array == other).all())


def exif_block(orientation=6, big_endian=True):
    exif = Image.Exif()
    exif.endian = ">" if big_endian else "<"
    exif[274], exif[271], exif[306] = orientation, "Maker", "2024:01:02 03:04:05"
    exif[0x8769] = {33434: 0.25, 34855: 3200, 36867: "2024:01:02 03:04:05"}
    exif[0x8825] = {1: "N", 2: (47.0, 11.0, 8.5)}
    return exif.tobytes()[6:]


def saved(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def tiff(array, **options):
    file = io.BytesIO()
    tifffile.imwrite(file, array, **options)
    return file.getvalue()


def opencv(suffix, array, *flags):
    """A file written by OpenCV from RGB order."""
    order = [2, 1, 0, 3][: array.shape[2]] if array.ndim == 3 else ...
    done, data = cv2.imencode(suffix, np.ascontiguousarray(array[..., order] if array.ndim == 3 else array), flags)
    assert done
    return data.tobytes()


def png_chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width, height, depth, colour, rows, *extra):
    """A PNG file written chunk by chunk, independently of the module; rows are bytes without filter."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    chunks = [(b"IHDR", header), *extra, (b"IDAT", data), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


def refusal(source, **options):
    """The message of the refusal: one line, one sentence with a way out."""
    with pytest.raises((ImageError, FileError)) as caught:
        read_image(source, **options)
    message = str(caught.value)
    assert message and "\n" not in message and ": " in message and len(message) < 400
    return message


# ------------------------------------------------------------------------------------------ round trips

HELD = [("PNG", np.uint8, c) for c in (1, 2, 3, 4)] + [("PNG", np.uint16, c) for c in (1, 2, 3, 4)]
HELD += [("TIFF", np.uint8, c) for c in (1, 2, 3, 4)] + [("TIFF", np.uint16, c) for c in (1, 2, 3, 4)]
HELD += [("BMP", np.uint8, 1), ("BMP", np.uint8, 3), ("WEBP", np.uint8, 3), ("WEBP", np.uint8, 4)]


@pytest.mark.parametrize(("format", "dtype", "channels"), HELD)
def test_round_trip(format, dtype, channels, tmp_path):
    original = picture(dtype, channels)
    suffix = next(suffix for suffix, name in SUFFIXES.items() if name == format)
    write_image(tmp_path / f"a{suffix}", original)
    read = read_image(tmp_path / f"a{suffix}")
    assert (read.format, read.lossy, read.exif, read.icc) == (format, False, None, None)
    assert same(read.pixels, original.pixels)
    assert (read.alpha is None) == (channels in (1, 3))
    assert same(joined(read), joined(original))
    assert read.pixels.flags["C_CONTIGUOUS"] and read.pixels.dtype.isnative


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    held=st.sampled_from(HELD),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    seed=st.integers(0, 2**16),
    flat=st.booleans(),
)
def test_round_trip_of_any_shape(held, height, width, seed, flat):
    format, dtype, channels = held
    values = samples(dtype, channels, height, width, seed).reshape(height, width, channels)
    if flat:
        values[:] = values[0, 0]
    alpha = values[..., -1].copy() if channels in (2, 4) else None
    if alpha is not None:
        alpha[0, 0] = 0  # WebP leaves out an alpha channel that is opaque everywhere
    original = Picture(values[..., :3].copy() if channels > 2 else values[..., 0].copy(), alpha)
    data = encode_image(original, format)
    assert data == encode_image(original, format)
    assert same(joined(read_image(data)), joined(original))


@pytest.mark.parametrize("channels", [1, 2])
def test_webp_makes_rgb_of_grey(channels):
    original = picture(np.uint8, channels)
    read = read_image(encode_image(original, "WEBP"))
    assert not read.lossy
    assert same(read.pixels, np.dstack([original.pixels] * 3))
    assert (read.alpha is None) if channels == 1 else same(read.alpha, original.alpha)


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_written_finely(channels):
    y, x = np.mgrid[:48, :64]
    ramp = (2 * x + 2 * y).astype(np.uint8)
    pixels = ramp if channels == 1 else np.dstack([ramp, 255 - ramp, ramp // 2])
    data = encode_image(Picture(pixels), "JPEG")
    image = Image.open(io.BytesIO(data))
    if channels == 3:
        fine = Image.open(io.BytesIO(saved(Image.fromarray(pixels), "JPEG", quality=95)))
        assert image.quantization == fine.quantization
        assert {(h, v) for _, h, v, _ in image.layer} == {(1, 1)}  # no colour subsampling
    read = read_image(data)
    assert read.lossy and read.format == "JPEG" and read.pixels.shape == pixels.shape
    assert np.abs(read.pixels.astype(int) - pixels).max() <= 6


@pytest.mark.parametrize(
    ("format", "dtype", "channels"),
    [(format, np.uint16, 3) for format in ("JPEG", "WEBP", "BMP")]
    + [(format, np.uint8, channels) for format in ("JPEG", "BMP") for channels in (2, 4)],
)
def test_what_a_format_cannot_hold(format, dtype, channels, tmp_path):
    path = tmp_path / "a.out"
    with pytest.raises(ImageError, match=f"a.out .*does not fit in {format}: choose PNG or TIFF"):
        write_image(path, picture(dtype, channels), format)
    assert list(tmp_path.iterdir()) == []


def test_bmp_takes_no_picture_that_a_viewer_turns():
    exif = Image.Exif()
    for said, meant in ((6, 6), (9, 1)):
        exif[274] = said
        turned = picture(np.uint8, 3, exif=exif.tobytes().removeprefix(b"Exif\0\0"))
        assert turned.orientation == meant
        with pytest.raises(ImageError, match="turned") if meant > 1 else contextlib.nullcontext():
            encode_image(turned, "BMP")


def test_webp_keeps_no_profile_of_grey():
    for channels, profile, kept in ((1, ICC[:16] + b"GRAY" + ICC[20:], None), (3, ICC, ICC)):
        assert read_image(encode_image(picture(np.uint8, channels, icc=profile), "WEBP")).icc == kept


@pytest.mark.parametrize("format", ["JPEG", "WEBP"])
def test_sides_too_long_for_a_format(format):
    with pytest.raises(ImageError, match="choose PNG"):
        encode_image(Picture(np.zeros((1, 70_000), np.uint8)), format)


@pytest.mark.parametrize(
    "wrong",
    [
        Picture(np.zeros((4, 4), np.float32)),
        Picture(np.zeros((4, 4, 4), np.uint8)),
        Picture(np.zeros((4, 4, 3, 1), np.uint8)),
        Picture(np.zeros((0, 4), np.uint8)),
        Picture(np.zeros(4, np.uint8)),
        Picture(np.zeros((4, 4), np.uint8), np.zeros((4, 5), np.uint8)),
        Picture(np.zeros((4, 4), np.uint8), np.zeros((4, 4), np.uint16)),
    ],
)
def test_what_is_no_picture(wrong):
    with pytest.raises(ImageError):
        encode_image(wrong, "PNG")


# ---------------------------------------------------------------------- files written by other programs

U8 = {channels: samples(np.uint8, channels) for channels in (1, 2, 3, 4)}
U16 = {channels: samples(np.uint16, channels) for channels in (1, 2, 3, 4)}
UNASSOCIATED = {"photometric": "rgb", "extrasamples": ["unassalpha"]}
RGB = {"photometric": "rgb"}
ALPHA = {"extrasamples": ["unassalpha"], "planarconfig": "contig"}
OTHERS = {
    **{f"pillow png {c}": (lambda c=c: saved(Image.fromarray(U8[c]), "PNG"), U8[c]) for c in U8},
    **{f"pillow tiff {c}": (lambda c=c: saved(Image.fromarray(U8[c]), "TIFF"), U8[c]) for c in U8},
    **{
        f"pillow tiff {compression} {c}": (
            lambda c=c, compression=compression: saved(Image.fromarray(U8[c]), "TIFF", compression=compression),
            U8[c],
        )
        for c in U8
        for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits")
    },
    **{f"pillow bmp {c}": (lambda c=c: saved(Image.fromarray(U8[c]), "BMP"), U8[c]) for c in (1, 3)},
    "pillow webp 3": (lambda: saved(Image.fromarray(U8[3]), "WEBP", lossless=True), U8[3]),
    "pillow webp 4": (lambda: saved(Image.fromarray(U8[4]), "WEBP", lossless=True, exact=True), U8[4]),
    "pillow png 16 grey": (lambda: saved(Image.fromarray(U16[1]), "PNG"), U16[1]),
    "pillow tiff 16 grey": (lambda: saved(Image.fromarray(U16[1]), "TIFF"), U16[1]),
    "pillow tiff 16 grey lzw": (
        lambda: saved(Image.fromarray(U16[1]), "TIFF", compression="tiff_lzw"),
        U16[1],
    ),
    **{f"opencv png 16 {c}": (lambda c=c: opencv(".png", U16[c]), U16[c]) for c in (1, 3, 4)},
    **{
        f"opencv tiff {v.dtype} {v.ndim and v.shape[2:]} compression {compression} predictor {predictor}": (
            lambda v=v, compression=compression, predictor=predictor: opencv(
                ".tif", v, cv2.IMWRITE_TIFF_COMPRESSION, compression, cv2.IMWRITE_TIFF_PREDICTOR, predictor
            ),
            v,
        )
        for v in (U16[1], U16[3], U16[4], U8[3], U8[4])
        for compression in (1, 5, 8, 32773)
        for predictor in (1, 2)
    },
    "tifffile 16 rgb": (lambda: tiff(U16[3], **RGB), U16[3]),
    "tifffile 16 rgb big endian": (lambda: tiff(U16[3], byteorder=">", **RGB), U16[3]),
    "tifffile 16 grey big endian": (lambda: tiff(U16[1], byteorder=">"), U16[1]),
    "tifffile 16 rgb big endian deflate": (
        lambda: tiff(U16[3], byteorder=">", compression="deflate", predictor=True, **RGB),
        U16[3],
    ),
    "tifffile 16 bigtiff": (lambda: tiff(U16[3], bigtiff=True, **RGB), U16[3]),
    "tifffile 16 tiled": (lambda: tiff(U16[3], tile=(16, 16), **RGB), U16[3]),
    "tifffile 16 strips": (lambda: tiff(U16[3], rowsperstrip=2, compression="deflate", **RGB), U16[3]),
    "tifffile 16 planes": (
        lambda: tiff(np.ascontiguousarray(U16[3].transpose(2, 0, 1)), planarconfig="separate", **RGB),
        U16[3],
    ),
    "tifffile 16 rgba": (lambda: tiff(U16[4], **UNASSOCIATED), U16[4]),
    "tifffile 8 rgba": (lambda: tiff(U8[4], **UNASSOCIATED), U8[4]),
    "tifffile 8 rgba, kind not told": (
        lambda: tiff(U8[4], photometric="rgb", extrasamples=["unspecified"]),
        U8[4],
    ),
    "tifffile 16 grey alpha": (
        lambda: tiff(U16[2], photometric="minisblack", **ALPHA),
        U16[2],
    ),
    "tifffile 16 white is zero": (lambda: tiff(65535 - U16[1], photometric="miniswhite"), U16[1]),
    "pillow lzw 8 white is zero": (
        lambda: saved(Image.fromarray(U8[1]), "TIFF", compression="tiff_lzw", tiffinfo={262: 0}),
        U8[1],
    ),
    "pillow lzw 16 white is zero": (
        lambda: saved(Image.fromarray(65535 - U16[1]), "TIFF", compression="tiff_lzw", tiffinfo={262: 0}),
        U16[1],
    ),
    "tifffile 8 white is zero": (lambda: tiff(255 - U8[1], photometric="miniswhite"), U8[1]),
    "tifffile 8 white is zero, alpha": (
        lambda: tiff(np.dstack((255 - U8[2][..., 0], U8[2][..., 1])), photometric="miniswhite", **ALPHA),
        U8[2],
    ),
    "16-bit grey and alpha png": (
        lambda: png(WIDTH, HEIGHT, 16, 4, [r.astype(">u2").tobytes() for r in U16[2]]),
        U16[2],
    ),
    "16-bit png with gamma": (
        lambda: png(
            WIDTH,
            HEIGHT,
            16,
            2,
            [r.astype(">u2").tobytes() for r in U16[3]],
            (b"gAMA", struct.pack(">I", 100_000)),
        ),
        U16[3],
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_files_of_other_programs(name):
    write, expected = OTHERS[name]
    assert same(joined(read_image(write())), expected)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_other_programs_read_our_tiff(dtype, channels):
    original = picture(dtype, channels)
    data = encode_image(original, "TIFF")
    assert same(tifffile.imread(io.BytesIO(data)), joined(original))
    if dtype == np.uint8:
        assert same(np.asarray(Image.open(io.BytesIO(data))), joined(original))
    elif channels != 2:
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        assert same(decoded if channels == 1 else decoded[..., [2, 1, 0, 3][:channels]], joined(original))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_other_programs_read_our_16_bit_png(channels):
    original = picture(np.uint16, channels)
    decoded = cv2.imdecode(np.frombuffer(encode_image(original, "PNG"), np.uint8), cv2.IMREAD_UNCHANGED)
    assert same(decoded if channels == 1 else decoded[..., [2, 1, 0, 3][:channels]], joined(original))


def test_interlaced_png():
    grey = np.array([[1, 2]], np.uint16)  # 2 x 1 pixels: the first and the sixth of the seven passes
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, 0, 0, 0, 1))
    rows = zlib.compress(b"\0\x00\x01" + b"\0\x00\x02")
    data = b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", rows) + png_chunk(b"IEND", b"")
    assert same(read_image(data).pixels, grey)


def test_palette_and_bits_are_expanded():
    image = Image.fromarray(U8[3]).quantize(16)
    assert same(read_image(saved(image, "PNG")).pixels, np.asarray(image.convert("RGB")))
    assert same(read_image(saved(image, "TIFF")).pixels, np.asarray(image.convert("RGB")))
    assert same(read_image(saved(image, "BMP")).pixels, np.asarray(image.convert("RGB")))
    bits = U8[1] > 127
    for format in ("PNG", "TIFF", "BMP"):
        read = read_image(saved(Image.fromarray(bits), format))
        assert same(read.pixels, bits.astype(np.uint8) * 255), format
    fax = saved(Image.fromarray(bits), "TIFF", compression="group4")
    assert same(read_image(fax).pixels, bits.astype(np.uint8) * 255)


def test_transparent_palette_becomes_alpha():
    index = U8[1] % 4
    image = Image.fromarray(index, "P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120])
    read = read_image(saved(image, "PNG", transparency=bytes([0, 85, 255, 255])))
    assert same(
        read.pixels,
        (np.array([10, 40, 70, 100], np.uint8)[index])[..., None] + np.array([0, 10, 20], np.uint8),
    )
    assert same(read.alpha, np.array([0, 85, 255, 255], np.uint8)[index])


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_transparent_grey_becomes_alpha(depth):
    top = 2**depth - 1
    values = np.array([[0, 1, top, 0, top - 1, 0, 0, 1]])
    bits = "".join(f"{value:0{depth}b}" for value in values[0])
    row = int(bits, 2).to_bytes(depth, "big")
    read = read_image(png(8, 1, depth, 0, [row], (b"tRNS", struct.pack(">H", 1))))
    dtype, white = (np.uint16, 65535) if depth == 16 else (np.uint8, 255)
    assert same(read.pixels, (values * (white // top)).astype(dtype))
    assert read.alpha is not None and same(read.alpha, np.where(values == 1, 0, white).astype(dtype))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_transparent_colour_becomes_alpha(dtype):
    values = samples(dtype, 3)
    depth, key = 8 * values.itemsize, values[3, 5]
    values[3, 6] = [key[0], key[1], key[2] ^ 1]
    rows = [row.astype(values.dtype.newbyteorder(">")).tobytes() for row in values]
    read = read_image(png(WIDTH, HEIGHT, depth, 2, rows, (b"tRNS", struct.pack(">3H", *key))))
    expected = np.full((HEIGHT, WIDTH), np.iinfo(dtype).max, dtype)
    expected[3, 5] = 0
    assert same(read.pixels, values) and read.alpha is not None and same(read.alpha, expected)


def test_premultiplied_lzw_tiff_is_made_straight():
    values = np.array([[[40, 20, 0, 100], [7, 8, 9, 255]]], np.uint8)
    data = saved(Image.fromarray(values), "TIFF", compression="tiff_lzw")
    entry = struct.pack("<HHI", 338, 3, 1)
    read = read_image(data.replace(entry + b"\2", entry + b"\1"))
    assert joined(read).tolist() == [[[102, 51, 0, 100], [7, 8, 9, 255]]]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_premultiplied_tiff_alpha_is_made_straight(dtype):
    top = np.iinfo(dtype).max
    values = np.zeros((1, 4, 4), dtype)
    values[0] = [
        [top // 5, top // 2, 0, top // 3],
        [7, 8, 9, top],
        [0, 0, 0, 0],
        [top // 3, 0, 0, top // 3 * 2],
    ]
    read = read_image(tiff(values, photometric="rgb", extrasamples=["assocalpha"]))
    assert read.alpha is not None and same(read.alpha, values[..., 3])
    assert read.pixels[0, 0].tolist() == [round(top * 3 / 5), top, 0]
    assert read.pixels[0, 1].tolist() == [7, 8, 9]
    assert read.pixels[0, 2].tolist() == [0, 0, 0]
    assert read.pixels[0, 3].tolist() == [round(top / 2 + 0.01), 0, 0]


def test_the_content_tells_the_format(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(saved(Image.fromarray(U8[3]), "JPEG"))
    assert read_image(str(path)).format == "JPEG"
    assert read_image(path.read_bytes()).lossy


def test_a_phone_jpeg_with_a_second_picture_is_read():
    images = [Image.fromarray(samples(np.uint8, 3, 16, 16, seed)) for seed in (0, 1)]
    data = saved(images[0], "MPO", save_all=True, append_images=images[1:])
    read = read_image(data)
    assert read.format == "JPEG" and same(read.pixels, np.asarray(Image.open(io.BytesIO(data))))


def test_lossy_webp_is_told_from_lossless():
    image = Image.fromarray(U8[4])
    assert read_image(saved(image, "WEBP")).lossy
    assert read_image(saved(image, "WEBP", icc_profile=ICC)).lossy
    assert not read_image(saved(image, "WEBP", lossless=True, icc_profile=ICC)).lossy


# ---------------------------------------------------------------------------------------- EXIF and ICC

METADATA_SOURCES = {
    "JPEG": lambda exif: saved(Image.fromarray(U8[3]), "JPEG", exif=b"Exif\0\0" + exif, icc_profile=ICC),
    "PNG": lambda exif: saved(Image.fromarray(U8[3]), "PNG", exif=exif, icc_profile=ICC),
    "WEBP": lambda exif: saved(Image.fromarray(U8[3]), "WEBP", exif=exif, icc_profile=ICC, lossless=True),
    "PNG16": lambda exif: encode_image(picture(np.uint16, 3, exif=exif, icc=ICC), "PNG"),
}
if hasattr(cv2, "imencodeWithMetadata"):  # OpenCV 4.12
    METADATA_SOURCES["opencv PNG16"] = lambda exif: cv2.imencodeWithMetadata(
        ".png",
        np.zeros((HEIGHT, WIDTH, 3), np.uint16),
        [cv2.IMAGE_METADATA_EXIF, cv2.IMAGE_METADATA_ICCP],
        [np.frombuffer(exif, np.uint8), np.frombuffer(ICC, np.uint8)],
    )[1].tobytes()


def exif_resolution(unit, across=300, down=150):
    exif = Image.Exif()
    exif.update({282: across, 283: down, 296: unit})
    return exif.tobytes()[6:]


DPI = (300, 150)
DPI_SOURCES = {
    "JPEG": lambda: saved(Image.fromarray(U8[3]), "JPEG", dpi=DPI),
    "JPEG that says otherwise in EXIF": lambda: saved(
        Image.fromarray(U8[3]), "JPEG", dpi=DPI, exif=exif_resolution(2, 72, 72)
    ),
    "EXIF of a JPEG": lambda: saved(Image.fromarray(U8[3]), "JPEG", exif=b"Exif\0\0" + exif_resolution(2)),
    "EXIF of a WebP, in centimetres": lambda: saved(
        Image.fromarray(U8[3]), "WEBP", exif=exif_resolution(3, 300 / 2.54, 150 / 2.54)
    ),
    "PNG": lambda: saved(Image.fromarray(U8[3]), "PNG", dpi=DPI),
    "BMP": lambda: saved(Image.fromarray(U8[3]), "BMP", dpi=DPI),
    "TIFF": lambda: tiff(U8[3], resolution=DPI, resolutionunit="INCH"),
    "TIFF in centimetres": lambda: tiff(U8[3], resolution=(300 / 2.54, 150 / 2.54), resolutionunit="CENTIMETER"),
    "PNG of 16 bits": lambda: encode_image(picture(np.uint16, 3, dpi=DPI), "PNG"),
}


@pytest.mark.parametrize("target", ["PNG", "JPEG", "BMP", "TIFF"])
@pytest.mark.parametrize("source", DPI_SOURCES)
def test_the_resolution_is_kept(source, target):
    read = read_image(DPI_SOURCES[source]())
    assert read.dpi == pytest.approx(DPI, abs=0.02)
    if read.pixels.dtype == np.uint16 and target != "PNG":
        read = Picture((read.pixels >> 8).astype(np.uint8), dpi=read.dpi)
    data = encode_image(read, target)
    assert Image.open(io.BytesIO(data)).info["dpi"] == pytest.approx(DPI, abs=0.02)
    assert encode_image(read_image(data), target) == data or target == "JPEG"


@pytest.mark.parametrize("profile", [None, ICC], ids=["alone", "beside a profile"])
@pytest.mark.parametrize("depth", [8, 16])
def test_what_a_png_says_of_colour_is_kept(depth, profile):
    gamma, display_p3, srgb = struct.pack(">I", 45_455), bytes([12, 13, 0, 1]), b"\1"
    whites = struct.pack(">8I", 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)
    said = {b"cICP": display_p3, b"sRGB": srgb, b"gAMA": gamma, b"cHRM": whites}
    rows = [r.astype(f">u{depth // 8}").tobytes() for r in (U8 if depth == 8 else U16)[3]]
    read = read_image(png(WIDTH, HEIGHT, depth, 2, rows, *said.items()))
    data = encode_image(replace(read, icc=profile), "PNG")
    kept = {kind: body for kind, body in said.items() if not (profile and kind == b"sRGB")}  # never beside a profile
    assert read_image(data).png_colour == kept
    pixels_at = data.index(b"IDAT")
    assert all(data.index(png_chunk(kind, body)) < pixels_at for kind, body in kept.items())
    assert Image.open(io.BytesIO(data)).info["gamma"] == pytest.approx(0.45455)
    broken = png(WIDTH, HEIGHT, depth, 2, rows, (b"gAMA", gamma + b"\0"))
    assert read_image(broken).png_colour == {}


def test_a_resolution_that_nobody_gave_is_not_made_up():
    shape_of_a_pixel = png_chunk(b"pHYs", struct.pack(">IIB", 2, 1, 0))
    plain, camera = saved(Image.fromarray(U8[3]), "PNG"), exif_block()
    for data in (
        plain[:33] + shape_of_a_pixel + plain[33:],
        plain[:33] + png_chunk(b"pHYs", struct.pack(">IIB", 0, 1 << 31, 1)) + plain[33:],
        plain[:33] + png_chunk(b"pHYs", b"short") + plain[33:],
        saved(Image.fromarray(U8[3]), "JPEG", exif=b"Exif\0\0" + camera),
        saved(Image.fromarray(U8[3]), "JPEG", exif=b"Exif\0\0" + exif_resolution(1)),
        saved(Image.fromarray(U8[3]), "WEBP", exif=exif_resolution(2, 0, 0)),
    ):
        assert read_image(data).dpi is None
        assert "dpi" not in Image.open(io.BytesIO(encode_image(read_image(data), "PNG"))).info


@pytest.mark.parametrize("big_endian", [True, False])
@pytest.mark.parametrize("target", ["PNG", "WEBP", "JPEG"])
@pytest.mark.parametrize("source", METADATA_SOURCES)
def test_metadata_is_kept_byte_for_byte(source, target, big_endian):
    exif = exif_block(big_endian=big_endian)
    read = read_image(METADATA_SOURCES[source](exif))
    assert read.pixels.shape == (HEIGHT, WIDTH, 3)  # the orientation of 6 is not applied
    assert read.exif == exif and read.icc == ICC
    if read.pixels.dtype == np.uint16 and target != "PNG":
        read = Picture((read.pixels >> 8).astype(np.uint8), exif=read.exif, icc=read.icc)
    data = encode_image(read, target)
    again = read_image(data)
    assert again.exif == exif and again.icc == ICC and again.pixels.shape == (HEIGHT, WIDTH, 3)
    image = Image.open(io.BytesIO(data))
    image.load()
    assert image.info["icc_profile"] == ICC
    seen = image.getexif()
    assert (seen[274], seen[271]) == (6, "Maker")
    assert seen.get_ifd(0x8769)[34855] == 3200 and seen.get_ifd(0x8825)[1] == "N"


@pytest.mark.parametrize("big_endian", [True, False])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_metadata_in_tiff(dtype, big_endian):
    original = picture(dtype, 4, exif=exif_block(big_endian=big_endian), icc=ICC)
    data = encode_image(original, "TIFF")
    for _ in range(2):  # a TIFF made of a PNG's block, then a TIFF made of that of a TIFF
        read = read_image(data)
        assert same(joined(read), joined(original)) and read.icc == ICC
        seen = Image.Exif()
        seen.load(read.exif)
        assert (seen[274], seen[271], seen[306]) == (6, "Maker", "2024:01:02 03:04:05")
        assert dict(seen.get_ifd(0x8769)) == {33434: 0.25, 34855: 3200, 36867: "2024:01:02 03:04:05"}
        assert dict(seen.get_ifd(0x8825)) == {1: "N", 2: (47.0, 11.0, 8.5)}
        assert not set(seen) & {256, 257, 273, 279, 34675}
        data = encode_image(read, "TIFF")
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        assert file.pages[0].tags[274].value == 6 and file.pages[0].tags[34675].value == ICC


@pytest.mark.parametrize("orientation", [2, 3, 6])
@pytest.mark.parametrize(
    "options",
    [{}, {"bigtiff": True}, {"byteorder": ">"}, {"compression": "deflate"}],
)
@pytest.mark.parametrize("values", [U8[3], U16[3]], ids=["8", "16"])
def test_tiff_orientation_is_kept_and_not_applied(values, options, orientation):
    read = read_image(tiff(values, extratags=[(274, 3, 1, orientation, True)], **RGB, **options))
    assert same(read.pixels, values)
    seen = Image.Exif()
    seen.load(read.exif)
    assert seen[274] == orientation


@pytest.mark.parametrize("values", [U8[3], U8[4], U16[1]], ids=["8 rgb", "8 rgba", "16 grey"])
def test_lzw_tiff_orientation_is_kept_and_not_applied(values):
    """The decoders of LZW would turn the picture."""
    data = saved(Image.fromarray(values), "TIFF", compression="tiff_lzw", tiffinfo={274: 6})
    assert not np.array_equal(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED).shape, values.shape)
    read = read_image(data)
    assert same(joined(read), values)
    seen = Image.Exif()
    seen.load(read.exif)
    assert seen[274] == 6


def test_the_orientation_outlives_a_tag_that_tiff_cannot_take():
    odd = struct.pack(">HHI", 282, 2, 4) + b"abc\0"  # a resolution made of letters
    block = b"MM\0*\0\0\0\x08\0\2" + struct.pack(">HHIHH", 274, 3, 1, 6, 0) + odd + bytes(4)
    read = read_image(encode_image(Picture(U8[3], exif=block), "PNG"))
    assert read.exif == block
    seen = Image.Exif()
    seen.load(read_image(encode_image(read, "TIFF")).exif)
    assert dict(seen) == {274: 6}


def test_broken_metadata_is_dropped():
    junk = b"\0\0\0\x80junk" * 50
    rows = [row.tobytes() for row in U8[3]]
    broken_crc = png_chunk(b"eXIf", exif_block())[:-1] + b"\0"
    files = [
        saved(Image.fromarray(U8[3]), "JPEG", exif=b"Exif\0\0" + junk, icc_profile=junk),
        saved(Image.fromarray(U8[3]), "PNG", exif=junk, icc_profile=junk),
        saved(Image.fromarray(U8[3]), "WEBP", exif=junk, icc_profile=junk),
        png(WIDTH, HEIGHT, 8, 2, rows, (b"iCCP", b"name\0\0not deflated"), (b"eXIf", b"II*\0\xff\xff\xff\xff")),
        png(WIDTH, HEIGHT, 8, 2, rows).replace(png_chunk(b"IEND", b""), broken_crc + png_chunk(b"IEND", b"")),
        tiff(U8[3], extratags=[(34675, 7, len(junk), junk, True)], **RGB),
    ]
    for data in files:
        read = read_image(data)
        assert read.pixels.shape == U8[3].shape and read.icc is None and read.exif in (None, tiff_exif(data))


def tiff_exif(data):
    return read_image(data).exif if data[:2] == b"II" else None


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=80), st.sampled_from([b"", b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08"]))
def test_any_exif_block_can_be_read_and_written(block, start):
    read = read_image(encode_image(Picture(U16[3], exif=start + block), "PNG"))
    assert same(read.pixels, U16[3]) and read.exif in (None, start + block)
    for format in ("PNG", "TIFF"):
        assert same(read_image(encode_image(read, format)).pixels, U16[3])


# ------------------------------------------------------------------------------------------- bad files


def animated(format):
    frames = [Image.fromarray(samples(np.uint8, 3, seed=seed)) for seed in (0, 1)]
    return saved(frames[0], format, save_all=True, append_images=frames[1:])


BAD = {
    "empty": lambda: b"",
    "text": lambda: b"not an image, though it is called so\n" * 20,
    "text that starts like a BMP": lambda: b"BMW is a make of cars" * 10,
    "gif": lambda: saved(Image.fromarray(U8[1]), "GIF"),
    "avif": lambda: b"\0\0\0\x20ftypheic" + b"\0" * 100,
    "cmyk jpeg": lambda: saved(Image.fromarray(U8[4], "CMYK"), "JPEG"),
    "cmyk tiff": lambda: saved(Image.fromarray(U8[4], "CMYK"), "TIFF"),
    "cmyk 16 tiff": lambda: tiff(U16[4], photometric="separated"),
    "lab tiff": lambda: saved(Image.fromarray(U8[3], "LAB"), "TIFF"),
    "apng": lambda: animated("PNG"),
    "animated webp": lambda: animated("WEBP"),
    "two pages": lambda: animated("TIFF"),
    "float tiff": lambda: tiff(U16[1].astype(np.float32)),
    "float rgb tiff": lambda: tiff(U16[3].astype(np.float16), **RGB),
    "signed tiff": lambda: tiff(U16[1].astype(np.int16)),
    "32-bit tiff": lambda: tiff(U16[1].astype(np.uint32)),
    "5-channel tiff": lambda: tiff(samples(np.uint8, 5), planarconfig="contig", **RGB),
    "thumbnail of a camera raw file": lambda: tiff(U8[3], subfiletype=1, **RGB),
    "dng": lambda: tiff(U16[1], extratags=[(50706, 1, 4, bytes([1, 4, 0, 0]), True)]),
    "colour filter tiff": lambda: tiff(U16[1], photometric="cfa"),
    "png without pixels": lambda: png(0, 0, 8, 0, []),
    "png of an unknown colour type": lambda: png(4, 4, 8, 5, [b"\0" * 16] * 4),
    "16-bit png with a row less": lambda: png(4, 4, 16, 0, [b"\1" * 8] * 3),
    "8-bit png with a row less": lambda: png(4, 4, 8, 0, [b"\1" * 4] * 3),
    "png with a wrong checksum": lambda: png(4, 4, 16, 0, [b"\1" * 8] * 4).replace(b"IDATx", b"IDATy"),
    "png cut to its signature": lambda: b"\x89PNG\r\n\x1a\n",
    "jpeg cut to its signature": lambda: b"\xff\xd8\xff",
    "tiff cut to its signature": lambda: b"II*\0",
    "webp cut to its signature": lambda: b"RIFF\x10\0\0\0WEBP",
    "16-bit deflate tiff with half of its pixels": lambda: short_tiff(zlib.compress(bytes(HEIGHT * WIDTH * 3)), 8),
    "tiff without its second strip": lambda: two_strip_tiff(0),
    "half of a tiff": lambda: encode_image(Picture(U16[3]), "TIFF")[: U16[3].nbytes // 2],
    "tiff with a short second strip": lambda: two_strip_tiff(100),
    "volume tiff": lambda: tiff(np.zeros((16, 16, 16), np.uint8), volumetric=True, tile=(16, 16, 16)),
    "16-bit plain tiff with half of its pixels": lambda: short_tiff(bytes(HEIGHT * WIDTH * 3), 1),
    "webp of a canvas larger than its picture": lambda: webp_canvas(),
    "huge png": lambda: png(100_000, 100_000, 16, 2, [b"\0"]),
    "huge bmp": lambda: b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 100_000, 100_000, 1, 24, *[0] * 6),
    "huge jpeg": lambda: resized_jpeg(65_000, 65_000),
    "huge tiff": lambda: huge_tiff(),
    "huge webp": lambda: b"RIFF\x20\0\0\0WEBPVP8L\x10\0\0\0\x2f" + struct.pack("<I", 16382 | 16382 << 14) + b"\0" * 20,
}


REASONS = {
    "CMYK": ["cmyk jpeg", "cmyk tiff", "cmyk 16 tiff"],
    "animation": ["apng", "animated webp"],
    "2 pages": ["two pages"],
    "checksum": ["png with a wrong checksum"],
    "empty": ["empty"],
    "truncated": ["16-bit png with a row less", "tiff without its second strip", "half of a tiff"],
    "convert it to PNG or TIFF first": ["gif", "avif", "text"],
}


def resized_jpeg(width, height):
    data = saved(Image.fromarray(U8[1]), "JPEG")
    at = data.index(b"\xff\xc0")
    return data[: at + 5] + struct.pack(">HH", height, width) + data[at + 9 :]


def short_tiff(strip, compression):
    exif = Image.Exif()
    exif.endian = "<"
    exif.update({256: WIDTH, 257: HEIGHT, 258: (16, 16, 16), 259: compression, 262: 2, 277: 3, 278: HEIGHT})
    exif.update({273: 0, 279: len(strip)})
    return exif.tobytes()[6:] + strip


def two_strip_tiff(size):
    strips = U8[1].tobytes()
    exif = Image.Exif()
    exif.endian = "<"
    exif.update({256: WIDTH, 257: HEIGHT, 258: 8, 259: 1, 262: 1, 277: 1, 278: 7})
    exif.update({273: (0, 7 * WIDTH + 2), 279: (7 * WIDTH, size)})
    return exif.tobytes()[6:] + strips[: 7 * WIDTH] + b"--" + strips[7 * WIDTH :] + b"--"


def webp_canvas():
    picture = encode_image(Picture(U8[3]), "WEBP")[12:]
    canvas = b"VP8X" + struct.pack("<I", 10) + bytes(4) + (16382).to_bytes(3, "little") * 2
    return b"RIFF" + struct.pack("<I", 4 + len(canvas) + len(picture)) + b"WEBP" + canvas + picture


def huge_tiff():
    data = tiff(U8[1], photometric="minisblack")
    for tag, value in ((256, WIDTH), (257, HEIGHT)):
        for kind in (3, 4):
            data = data.replace(struct.pack("<HHII", tag, kind, 1, value), struct.pack("<HHII", tag, 4, 1, 100_000))
    return data


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused(name, tmp_path, capfd):
    path = tmp_path / "photo.png"
    path.write_bytes(BAD[name]())
    message = refusal(path)
    assert message.startswith(f"{path} ")
    if name.startswith("huge"):
        assert "pixels, over the limit of 200 megapixels" in message
    for word, kinds in REASONS.items():
        assert name not in kinds or word in message
    assert capfd.readouterr() == ("", "")


def test_nothing_is_written_to_the_terminal(tmp_path):
    whole = opencv(".tif", U8[3])  # its tags come last
    (tmp_path / "a.tif").write_bytes(whole[: len(whole) // 2])
    code = "import sys, irae.images as i\ntry: i.read_image(sys.argv[1])\nexcept i.ImageError: print('refused')"
    command = [sys.executable, "-c", code, str(tmp_path / "a.tif")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("refused\n", "")


def test_paths_that_cannot_be_read(tmp_path):
    assert "does not exist" in refusal(tmp_path / "no.png")
    assert "directory" in refusal(tmp_path)
    assert "No such" not in refusal("two\nlines.png")
    refusal("nul\0.png")
    (tmp_path / "file").write_bytes(b"x")
    refusal(tmp_path / "file" / "a.png")


def test_the_limit_is_on_pixels():
    data = encode_image(Picture(U8[3]), "PNG")
    assert same(read_image(data, max_pixels=HEIGHT * WIDTH).pixels, U8[3])
    assert f"{WIDTH} x {HEIGHT}" in refusal(data, max_pixels=HEIGHT * WIDTH - 1)


def test_the_limit_of_pillow_is_not_ours(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    for format in ("PNG", "TIFF", "BMP", "WEBP"):
        assert same(read_image(encode_image(Picture(U8[3]), format)).pixels, U8[3])
    assert read_image(encode_image(Picture(U8[3]), "JPEG")).pixels.shape == U8[3].shape


BLOCKS = np.kron(samples(np.uint8, 3, 8, 8), np.ones((8, 8, 1), np.uint8))
WHOLE = {
    "png 8": lambda: encode_image(Picture(BLOCKS), "PNG"),
    "png 16": lambda: encode_image(Picture(BLOCKS.astype(np.uint16) * 257), "PNG"),
    "opencv png 16": lambda: opencv(".png", BLOCKS.astype(np.uint16) * 257),
    "jpeg": lambda: saved(Image.fromarray(BLOCKS), "JPEG", quality=95),
    "progressive jpeg": lambda: saved(Image.fromarray(BLOCKS), "JPEG", quality=95, progressive=True),
    "tiff 8": lambda: encode_image(Picture(BLOCKS), "TIFF"),
    "tiff 16": lambda: encode_image(Picture(BLOCKS.astype(np.uint16) * 257), "TIFF"),
    "tiff 8 lzw": lambda: saved(Image.fromarray(BLOCKS), "TIFF", compression="tiff_lzw"),
    "tiff 16 lzw": lambda: opencv(".tif", BLOCKS.astype(np.uint16) * 257),
    "tiff 16 deflate": lambda: tiff(BLOCKS.astype(np.uint16) * 257, compression="deflate", rowsperstrip=8, **RGB),
    "tiff jpeg": lambda: saved(Image.fromarray(BLOCKS), "TIFF", compression="jpeg"),
    "webp": lambda: encode_image(Picture(BLOCKS), "WEBP"),
    "lossy webp": lambda: saved(Image.fromarray(BLOCKS), "WEBP"),
    "bmp": lambda: encode_image(Picture(BLOCKS), "BMP"),
}


@pytest.mark.parametrize("name", WHOLE)
def test_truncated_files_are_refused(name, capfd):
    data = WHOLE[name]()
    expected = joined(read_image(data))
    cuts = sorted({len(data) * tenth // 10 for tenth in range(10)} | {len(data) - 30, len(data) - 13, len(data) - 1})
    refused = 0
    for cut in cuts:
        try:
            read = read_image(data[:cut])
        except ImageError as error:
            assert "\n" not in str(error)
            refused += 1
        else:
            assert same(joined(read), expected), f"cut at {cut} of {len(data)}"
    assert refused >= 10
    if name != "tiff jpeg":  # the JPEG decoder inside libtiff writes to the terminal by itself
        assert capfd.readouterr() == ("", "")


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["png 8", "png 16", "tiff 16", "tiff 8", "bmp", "webp", "jpeg"]), st.data())
def test_a_changed_byte_raises_nothing_else(name, data):
    """A byte changed anywhere gives the refusal or a picture (formats without checksums cannot tell)."""
    whole = bytearray(WHOLE[name]())
    at = data.draw(st.integers(0, min(len(whole), 400) - 1) | st.integers(0, len(whole) - 1))
    whole[at] = data.draw(st.integers(0, 255))
    try:
        read = read_image(bytes(whole), max_pixels=1_000_000)
    except ImageError as error:
        assert "\n" not in str(error)
    else:
        assert read.pixels.dtype in (np.uint8, np.uint16) and read.pixels.shape[2:] in ((), (3,))
        if name.startswith("png"):
            assert same(joined(read), joined(read_image(WHOLE[name]())))


# --------------------------------------------------------------------------------------------- writing


def test_suffixes():
    assert set(SUFFIXES.values()) == {"PNG", "TIFF", "JPEG", "WEBP", "BMP"}
    assert is_image_path("a.PNG") and is_image_path(Path("b/c.tiff"))
    assert not is_image_path("a.gif") and not is_image_path("png")


@pytest.mark.parametrize(("name", "format"), [("a.gif", None), ("a", None), ("a.png", "GIF")])
def test_formats_that_are_not_written(name, format, tmp_path):
    with pytest.raises(ImageError, match=r"use one of|choose PNG"):
        write_image(tmp_path / name, Picture(U8[3]), format)
    assert list(tmp_path.iterdir()) == []


def test_the_format_asked_for_goes_before_the_suffix(tmp_path):
    write_image(tmp_path / "a.png", Picture(U8[3]), "TIFF")
    assert read_image(tmp_path / "a.png").format == "TIFF"


def test_the_import_is_light():
    code = "import irae.images, sys; print([m for m in ('cv2', 'PIL', 'tifffile', 'torch') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("part", [b"iCCP", b"IDAT"])
def test_png_bombs_are_not_inflated(part):
    """A megabyte that inflates to a gigabyte, as an ICC profile and as rows that the picture does not have."""
    zeros = zlib.compressobj()
    bomb = b"".join(zeros.compress(bytes(1 << 20)) for _ in range(1 << 10)) + zeros.flush()
    bodies = {b"PLTE": bytes(3), b"iCCP": b"x\0\0", b"IDAT": zlib.compress(bytes(20))}
    bodies[part] += bomb if part == b"iCCP" else b""
    bodies[b"IDAT"] = bomb if part == b"IDAT" else bodies[b"IDAT"]
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 3, 0, 0, 0))
    chunks = b"".join(png_chunk(*chunk) for chunk in bodies.items())
    file = b"\x89PNG\r\n\x1a\n" + header + chunks + png_chunk(b"IEND", b"")
    tracemalloc.start()
    try:
        read = read_image(file)
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()
    assert read.icc is None and not read.pixels.any()


def test_a_tiff_whose_width_is_many_numbers_takes_no_memory(tmp_path):
    content = bytearray(encode_image(Picture(np.zeros((9, 14, 3), np.uint8)), "TIFF"))
    directory = struct.unpack_from("<I", content, 4)[0] + 2
    for tag, count, value in ((256, 50, 8), (257, 1, 3_000_000)):
        entry = next(at for at in range(directory, len(content), 12) if content[at : at + 2] == struct.pack("<H", tag))
        struct.pack_into("<HII", content, entry + 2, 4, count, value)
    (tmp_path / "bomb.tif").write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(ImageError, match="how large"):
            read_image(bytes(content))
        assert count_pixels(tmp_path / "bomb.tif") == 0
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("orientation", range(10))  # 1 to 8 are known, the others mean nothing
def test_upright_is_what_a_viewer_shows(orientation):
    pixels = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    image = Image.fromarray(pixels)
    image.getexif()[274] = orientation
    shown = np.asarray(ImageOps.exif_transpose(image))
    assert np.array_equal(Picture(pixels, exif=exif_block(orientation)).upright, shown)
    assert np.array_equal(Picture(pixels).upright, pixels)
