"""Tests of irae.jpeg: what is read is what libjpeg wrote, and projection finds images that the file could come from."""

import io
import tempfile

import jpeglib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from scipy.fft import dctn
from skimage.data import astronaut, chelsea, coffee

from irae.errors import IraeError
from irae.images import ImageError, read_image
from irae.jpeg import (
    NARROW,
    JpegTables,
    consistent_share,
    encode_jpeg,
    project,
    read_coefficients,
    read_tables,
    standard_tables,
)

PHOTO = np.ascontiguousarray(chelsea()[60:156, 120:248])  # (96, 128, 3)
SAMPLINGS = [(1, 1), (2, 1), (2, 2)]
SIZES = [(96, 128), (67, 93), (61, 58), (56, 66), (9, 16), (5, 3), (1, 1)]


def by_pillow(pixels, **options):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", **options)
    return file.getvalue()


def cut(size, grey=False):
    return PHOTO[: size[0], : size[1], 1] if grey else PHOTO[: size[0], : size[1]]


def psnr(image, clean):
    """Of an image in [0, 1] against uint8 pixels, in dB."""
    return -10 * np.log10(np.mean((image - clean / 255) ** 2))


def rounded(image):
    return (image.clip(0, 1) * 255).round().astype(np.uint8)


def arithmetic(data):
    """The same file, arithmetic-coded."""
    with tempfile.TemporaryDirectory() as folder, jpeglib.version("turbo210"):
        with open(f"{folder}/huffman.jpg", "wb") as file:
            file.write(data)
        jpeglib.read_dct(f"{folder}/huffman.jpg").write_dct(f"{folder}/arithmetic.jpg", flags=["+ARITH_CODE"])
        with open(f"{folder}/arithmetic.jpg", "rb") as file:
            return file.read()


def same(one, other):
    return (
        (one.shape, one.sampling) == (other.shape, other.sampling)
        and all(np.array_equal(a, b) for a, b in zip(one.levels, other.levels, strict=True))
        and all(np.array_equal(a, b) for a, b in zip(one.steps, other.steps, strict=True))
    )


# --------------------------------------------------------------------------------------- tables, encoding


def test_standard_tables_are_those_of_the_standard_at_quality_50():
    tables = standard_tables(50)
    assert tables.luma[0].tolist() == [16, 11, 10, 16, 24, 40, 51, 61]  # T.81, table K.1: not symmetric
    assert tables.luma[:, 0].tolist() == [16, 12, 14, 14, 18, 24, 49, 72]
    assert tables.chroma[1].tolist() == [18, 21, 26, 66, 99, 99, 99, 99]  # T.81, table K.2


@pytest.mark.parametrize("number, sampling", list(enumerate(SAMPLINGS)))
def test_libjpeg_takes_the_standard_tables(number, sampling):
    for quality in range(1, 101):
        read = read_tables(by_pillow(cut((8, 8)), quality=quality, subsampling=number))
        tables = standard_tables(quality, sampling)
        assert np.array_equal(read.luma, tables.luma) and np.array_equal(read.chroma, tables.chroma)
        assert read.sampling == tables.sampling == sampling


def test_grey_tables():
    read, tables = read_tables(by_pillow(cut((8, 8), grey=True), quality=30)), standard_tables(30, grey=True)
    assert np.array_equal(read.luma, tables.luma)
    assert read.chroma is tables.chroma is None and read.sampling == tables.sampling == (1, 1)


@given(arrays(np.int64, (2, 8, 8), elements=st.integers(1, 4096)), st.sampled_from(SAMPLINGS))
@settings(max_examples=30, deadline=None)
def test_any_tables_are_written_and_read_again(steps, sampling):
    read = read_tables(encode_jpeg(cut((8, 8)), JpegTables(steps[0], steps[1], sampling)))
    assert np.array_equal(read.luma, steps[0]) and np.array_equal(read.chroma, steps[1]) and read.sampling == sampling


def test_encode_is_what_pillow_writes_by_quality():
    assert encode_jpeg(PHOTO, 40) == by_pillow(PHOTO, quality=40, subsampling=2)
    assert encode_jpeg(PHOTO, 40, (1, 1)) == by_pillow(PHOTO, quality=40, subsampling=0)
    grey = PHOTO[..., 1]
    assert same(read_coefficients(encode_jpeg(grey, 40)), read_coefficients(by_pillow(grey, quality=40)))


@pytest.mark.parametrize(
    "arguments",
    [
        (PHOTO, 0),
        (PHOTO, 101),
        (PHOTO, 50, (4, 1)),
        (PHOTO, standard_tables(50, grey=True)),
        (PHOTO, JpegTables(np.zeros((8, 8), int), np.ones((8, 8), int), (1, 1))),
        (PHOTO, JpegTables(np.ones((8, 8), int), np.full((8, 8), 1 << 16), (1, 1))),
    ],
)
def test_wrong_arguments(arguments):
    with pytest.raises(IraeError, match=r": (choose|give|correct) "):
        encode_jpeg(*arguments)


# ------------------------------------------------------------------------------------------- coefficients


@pytest.mark.parametrize("size", SIZES)
def test_luma_coefficients_are_the_quantised_dct(size):
    """Up to libjpeg's integer DCT, of the blocks that the image fills."""
    pixels = cut(size, grey=True)
    file = read_coefficients(encode_jpeg(pixels, 30))
    rows, columns = size[0] // 8, size[1] // 8
    blocks = (pixels[: rows * 8, : columns * 8] - 128.0).reshape(rows, 8, columns, 8).swapaxes(1, 2)
    distance = dctn(blocks, axes=(2, 3), norm="ortho") - file.levels[0][:rows, :columns] * file.steps[0]
    assert file.shape == size and file.levels[0].shape == (-(-size[0] // 8), -(-size[1] // 8), 8, 8)
    assert (np.abs(distance) <= file.steps[0] / 2 + 0.3).all()


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("size", SIZES)
def test_progressive_and_arithmetic_files_hold_the_same(size, sampling):
    baseline = encode_jpeg(cut(size), 60, sampling)
    progressive, coded = encode_jpeg(cut(size), 60, sampling, progressive=True), arithmetic(baseline)
    assert b"\xff\xc2" in progressive and b"\xff\xc9" in coded
    file = read_coefficients(baseline)
    assert same(read_coefficients(progressive), file) and same(read_coefficients(coded), file)
    chroma = tuple(-(-length // (8 * factor)) for length, factor in zip(size, sampling[::-1], strict=True))
    assert file.levels[1].shape == file.levels[2].shape == (*chroma, 8, 8)


def test_two_chroma_tables():
    steps = [np.full((8, 8), step) for step in (10, 20, 30)]
    data = by_pillow(PHOTO, qtables=[table.ravel().tolist() for table in steps])
    file, tables = read_coefficients(data), read_tables(data)
    assert [table[0, 0] for table in file.steps] == [10, 20, 30]
    assert tables.luma[0, 0] == 10 and tables.chroma[0, 0] == 20
    assert consistent_share(PHOTO, data) == 1


def test_many_segments_and_other_images_behind():
    data = encode_jpeg(PHOTO, 50)
    full = data[:2] + b"\xff\xe5\x00\x06\xff\xd8\xff\xd9" * 200 + b"\xff\xfe\x00\x03!" * 100 + data[2:]
    assert same(read_coefficients(full + b"\0" * 50 + encode_jpeg(PHOTO[:8], 10)), read_coefficients(data))


def test_damage_is_not_spoken_of(capfd):
    data = bytearray(encode_jpeg(PHOTO, 75))
    data[len(data) // 2 : len(data) // 2 + 9] = b"\x55" * 9
    assert read_coefficients(bytes(data)).shape == PHOTO.shape[:2]  # Pillow decodes it too
    encode_jpeg(PHOTO, JpegTables(np.full((8, 8), 300), np.full((8, 8), 300), (2, 2)))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("progressive", [False, True])
def test_data_that_libjpeg_stumbles_over_is_refused(progressive, capfd):
    """Pillow decodes it without a word; what comes after the damage is out of place and colour."""
    whole = encode_jpeg(PHOTO, 75, progressive=progressive)
    middle = len(whole) // 2
    for damaged in (whole[:middle] + bytes(200) + whole[middle + 200 :], whole[:middle] + whole[middle + 64 :]):
        assert read_image(damaged).pixels.shape == PHOTO.shape
        with pytest.raises(ImageError, match="damaged"):
            read_coefficients(damaged)
    stray = whole[:-2] + b"\x12\x34" + whole[-2:]  # as some cameras write it
    assert same(read_coefficients(stray), read_coefficients(whole))
    assert capfd.readouterr() == ("", "")


# ------------------------------------------------------------------------------------------------ refusals


def with_byte(data, marker, offset, value):
    at = data.index(marker) + offset
    return data[:at] + bytes([value]) + data[at + 1 :]


def cmyk():
    file = io.BytesIO()
    Image.fromarray(PHOTO).convert("CMYK").save(file, "JPEG")
    return file.getvalue()


SOF, DQT = b"\xff\xc0", b"\xff\xdb"
REFUSED = {
    "CMYK": cmyk(),
    "RGB": by_pillow(PHOTO, keep_rgb=True),
    "rare way": with_byte(encode_jpeg(PHOTO, 50), SOF, 14, 0x21),  # Cb is two times coarser, Cr one
    "zero": with_byte(encode_jpeg(PHOTO, 50), DQT, 7, 0),
    "lacks": with_byte(encode_jpeg(PHOTO, 50), SOF, 12, 3),  # no such table
    "rare kind": with_byte(encode_jpeg(PHOTO, 50), SOF, 4, 12),  # bits
    "no JPEG": b"GIF89a" * 9,
}


@pytest.mark.parametrize("word", REFUSED)
@pytest.mark.parametrize("read", [read_tables, read_coefficients])
def test_refused(read, word):
    with pytest.raises(ImageError, match=rf"^(?=[a-z]).*{word}.*: (convert|get|save) "):
        read(REFUSED[word])


@pytest.mark.parametrize("progressive", [False, True])
def test_truncated_files_are_refused_wherever_they_end(progressive, capfd):
    data = encode_jpeg(PHOTO, 50, progressive=progressive)
    for size in [*range(0, len(data) - 200, 97), len(data) - 50]:
        with pytest.raises(ImageError, match=": get a whole copy"):
            read_coefficients(data[:size])
    assert capfd.readouterr() == ("", "")


def test_damaged_files_end_in_a_result_or_one_sentence(capfd):
    rng = np.random.default_rng(0)
    for kind in range(150):
        data = bytearray(encode_jpeg(PHOTO[:40, :50], 50, SAMPLINGS[kind % 3], progressive=kind % 2 > 0))
        for at in rng.integers(2, len(data), 3):
            data[at] = rng.integers(256)
        try:
            file = read_coefficients(bytes(data))
            assert len(file.levels) == len(file.steps)
        except ImageError as error:
            assert str(error)[0].islower()
    assert capfd.readouterr() == ("", "")


# ---------------------------------------------------------------------------------------------- projection

STARTS = {
    "noise": lambda pixels: pixels / 255 + np.random.default_rng(0).normal(0, 0.05, pixels.shape),
    "black": lambda pixels: np.zeros(pixels.shape),
    "far": lambda pixels: np.random.default_rng(1).normal(0.5, 3, pixels.shape),
}


@pytest.mark.parametrize("width", [1, NARROW])
@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("sampling", ["grey", *SAMPLINGS])
@pytest.mark.parametrize("size", SIZES)
def test_projection_twice_is_once(size, sampling, start, width):
    pixels = cut(size, grey=sampling == "grey")
    file = read_coefficients(encode_jpeg(pixels, 30, None if sampling == "grey" else sampling))
    image = STARTS[start](pixels)
    once = project(image, file, width)
    twice = project(once, file, width)
    whole = size[0] % 16 == size[1] % 16 == 0
    assert once.shape == image.shape and np.abs(once - image).max() > 0.001
    assert np.abs(twice - once).max() < (1e-9 if whole else 0.02 * np.abs(once - image).max())


@pytest.mark.parametrize("sampling", ["grey", *SAMPLINGS])
@pytest.mark.parametrize("size", SIZES)
def test_the_image_that_was_compressed_does_not_move(size, sampling):
    """Up to the rounding of the encoder, which puts few coefficients into the next bin, at most a level away."""
    pixels = cut(size, grey=sampling == "grey")
    file = read_coefficients(encode_jpeg(pixels, 20, None if sampling == "grey" else sampling))
    moved = project(pixels / 255, file) - pixels / 255
    assert np.abs(moved).max() < 0.5 / 255 and (moved == 0).mean() > (0.5 if sampling == "grey" else 0)


@pytest.mark.parametrize("width", [1, NARROW])
@given(arrays(np.float64, (16, 24), elements=st.floats(-1, 2)), st.integers(0, 1000), st.integers(5, 60))
@settings(max_examples=60, deadline=None)
def test_a_point_of_the_set_does_not_move_and_no_point_is_left_farther(width, image, seed, quality):
    """In luma PSNR towards the true image never drops, whatever image it starts from."""
    rng = np.random.default_rng(seed)
    top, left = rng.integers(0, 80), rng.integers(0, 104)
    file = read_coefficients(encode_jpeg(PHOTO[top : top + 16, left : left + 24, 1], quality))
    # a true image that is strictly in the set: in float, without the rounding of the encoder
    levels = file.levels[0] + width * rng.uniform(-0.499, 0.499, file.levels[0].shape)
    basis = dctn(np.eye(8), axes=(0,), norm="ortho")
    blocks = np.einsum("ui,abuv,vj->aibj", basis, levels * file.steps[0], basis)
    true = (blocks.reshape(16, 24) + 128) / 255
    result = project(image, file, width)
    assert np.array_equal(project(true, file, width), true)
    assert np.sum((result - true) ** 2) <= np.sum((image - true) ** 2) * (1 + 1e-12)
    # the angle of a projection on a convex set: no point of it lies beyond the result
    assert np.sum((image - result) * (true - result)) <= 1e-9


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("quality", [5, 20, 60])
def test_psnr_never_drops_where_blocks_are_filled_in_part(size, quality):
    pixels = cut(size, grey=True)
    file = read_coefficients(encode_jpeg(pixels, quality))
    for image in (STARTS["noise"](pixels), STARTS["black"](pixels), read_image(encode_jpeg(pixels, 3)).pixels / 255):
        assert psnr(project(image, file), pixels) > psnr(image, pixels) - 0.001


@pytest.mark.parametrize("quality", [10, 30, 60])
@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("size", [(90, 92), (96, 92), (90, 96)])
def test_psnr_never_drops_where_blocks_repeat_no_border(size, sampling, quality):
    """A lossless crop keeps whole blocks and says in its header how much of them is the picture."""
    height, width = size
    data = bytearray(encode_jpeg(PHOTO[:96, :96], quality, sampling))
    at = data.index(SOF) + 5
    data[at : at + 4] = height.to_bytes(2) + width.to_bytes(2)
    clean = cut(size)
    image = clean / 255 + np.random.default_rng(0).normal(0, 0.02, clean.shape)
    result = project(image, bytes(data))
    assert psnr(result, clean) > psnr(image, clean)
    for edge in (np.s_[-2:], np.s_[:, -4:]):
        assert psnr(result[edge], clean[edge]) > psnr(image[edge], clean[edge]) - 0.05


@pytest.mark.parametrize("quality", [10, 30, 50, 80, 90])
@pytest.mark.parametrize("photo", [astronaut, chelsea, coffee])
def test_rounding_costs_little(photo, quality):
    """A grey photograph, from the file's own decoding and from a good restoration of it, in 8 bits."""
    pixels = photo()[100:260, 100:300, 1]
    data = encode_jpeg(pixels, quality)
    file, decoded = read_coefficients(data), read_image(data).pixels
    near = rounded((2 * pixels.astype(float) + decoded) / 3 / 255)
    for image in (decoded, near):
        projected = rounded(project(image / 255, file))
        assert psnr(projected / 255, pixels) >= psnr(image / 255, pixels) - 0.01


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("size", [(96, 128), (67, 93)])
def test_the_result_compresses_to_the_same_file(size, sampling):
    pixels = cut(size)
    data = encode_jpeg(pixels, 40, sampling)
    image = STARTS["noise"](pixels)
    before, after = consistent_share(rounded(image), data), consistent_share(rounded(project(image, data)), data)
    assert 1 - after < 0.7 * (1 - before)  # rounding throws back about half of what was put on the border of its bin
    narrow = consistent_share(rounded(project(image, data, NARROW)), data)
    assert 1 - narrow < (0.1 if size == (96, 128) else 0.3) * (1 - after)  # blocks filled in part keep their bins
    assert consistent_share(pixels, data) == 1


@pytest.mark.parametrize("width", [0, -1, 1.5, float("nan")])
def test_bins_of_no_width_or_more_than_their_own_are_refused(width):
    with pytest.raises(IraeError, match="give one above 0"):
        project(PHOTO / 255, encode_jpeg(PHOTO, 50), width)


def test_the_type_is_kept():
    data = encode_jpeg(PHOTO, 20)
    image = STARTS["noise"](PHOTO).astype(np.float32)
    result = project(image, data)
    assert result.dtype == np.float32
    assert np.abs(result - project(image.astype(np.float64), data)).max() < 1e-5


def test_other_images_than_the_files_own_are_refused():
    data = encode_jpeg(PHOTO, 50)
    for image in (PHOTO[:-1], PHOTO[..., 0]):
        with pytest.raises(IraeError, match="give the file's own image"):
            project(image / 255, data)
        with pytest.raises(IraeError, match="give the file's own image"):
            consistent_share(image, data)


def test_samplings_that_are_read_but_not_written():
    """4:4:0, which phones make of 4:2:2 by turning it without loss."""
    data = with_byte(encode_jpeg(PHOTO[:8, :8], 50, (2, 1)), SOF, 11, 0x12)
    tables, file = read_tables(data), read_coefficients(data)
    assert tables.sampling == file.sampling == (1, 2)
    assert project(np.zeros((8, 8, 3)), file).shape == (8, 8, 3)
    with pytest.raises(IraeError, match="choose one of these"):
        consistent_share(PHOTO[:8, :8], data)
