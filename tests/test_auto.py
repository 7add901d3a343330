"""What a picture needs: noise levels and grids are found where they are, and nothing where there is nothing."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from skimage.data import astronaut, coffee
from skimage.transform import downscale_local_mean

import irae
from irae.auto import (
    LEAST_GRID,
    Need,
    blockiness,
    decide,
    equal_quality,
    estimate_compression,
    estimate_jpeg_noise,
    estimate_noise,
)
from irae.degrade import from_pixels, photographed, to_pixels
from irae.images import Picture, read_image
from irae.jpeg import JpegTables, encode_jpeg, standard_tables
from irae.metrics import psnr
from irae.restorer import Restorer


@pytest.fixture(scope="module", params=[astronaut, coffee], ids=lambda image: image.__name__)
def clean(request: pytest.FixtureRequest) -> NDArray[Any]:
    """A photograph at half its size, about (250, 280, 3), uint8: without a trace of the JPEG that it once was."""
    return np.rint(downscale_local_mean(request.param(), (2, 2, 1))).astype(np.uint8)


def noisy(image: NDArray[Any], sigma: float) -> NDArray[Any]:
    """Clipped and rounded, as a file is."""
    noise = np.random.default_rng(0).standard_normal(image.shape)
    return np.rint(image + sigma * noise).clip(0, 255).astype(np.uint8)


def compressed(image: NDArray[Any], quality: int) -> NDArray[Any]:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.array(Image.open(file))


@pytest.mark.parametrize("sigma", [5, 15, 25, 50])
def test_noise_level_of_a_clipped_file(clean: NDArray[Any], sigma: float) -> None:
    assert estimate_noise(noisy(clean, sigma)) == pytest.approx(sigma, rel=0.1)


@pytest.mark.parametrize("sigma", [10, 25])
def test_noise_level_of_a_grey_file(clean: NDArray[Any], sigma: float) -> None:
    grey = noisy(clean[..., 1], sigma)
    assert estimate_noise(grey) == pytest.approx(sigma, rel=0.3)  # fine texture passes for noise more easily
    assert estimate_noise(np.dstack([grey] * 3)) == estimate_noise(grey)


def test_noise_level_is_in_8_bit_levels_whatever_the_dtype(clean: NDArray[Any]) -> None:
    image = noisy(clean, 15)
    level = estimate_noise(image)
    assert estimate_noise(image.astype(np.uint16) * 257) == pytest.approx(level, abs=0.01)
    assert estimate_noise(image.astype(np.float32) / 255) == pytest.approx(level, abs=0.01)


def test_a_clean_photograph_is_left_alone(clean: NDArray[Any]) -> None:
    decision = decide(Picture(clean))
    assert decision.steps == () and "nothing to do" in decision.found


@pytest.mark.parametrize("shape", [(1, 1), (7, 300, 3), (23, 23), (64, 64, 3)])
@pytest.mark.parametrize("value", [0, 128])
def test_a_picture_with_nothing_in_it_is_left_alone(shape: tuple[int, ...], value: int) -> None:
    image = np.full(shape, value, np.uint8)
    assert estimate_noise(image) == 0 and blockiness(image).score < LEAST_GRID
    assert decide(Picture(image)).steps == ()
    assert decide(Picture(image, format="JPEG"), standard_tables(50)).steps[0].task == "jpeg"


def test_drawings_are_left_alone(clean: NDArray[Any]) -> None:
    """Few colours, or cells of 8 x 8 pixels, which a grid of JPEG blocks would look like."""
    grey = clean[..., 1]
    bayer = np.array([[0, 8, 2, 10], [12, 4, 14, 6], [3, 11, 1, 9], [15, 7, 13, 5]]).repeat(4, 0).repeat(4, 1)
    threshold = np.resize(np.tile(bayer[::4, ::4], (64, 64)), grey.shape) * 16
    art = np.random.default_rng(0).choice(np.arange(6) * 50, (32, 32, 3)).astype(np.uint8)
    drawings = {
        "dithered": (grey > threshold).astype(np.uint8) * 255,
        "dithered colours": (clean > threshold[..., None]).astype(np.uint8) * 255,
        "halftone": (grey // 64 * 85).astype(np.uint8),
        "pixel art": np.where(art > 100, 255, art // 100 * 80).repeat(4, 0).repeat(4, 1).astype(np.uint8),
        "enlarged": clean[:40, :40].repeat(8, 0).repeat(8, 1),
        "enlarged, 16 bits": clean[:40, :40].repeat(8, 0).repeat(8, 1).astype(np.uint16) * 257,
    }
    for name, pixels in drawings.items():
        assert decide(Picture(pixels), photo=lambda part: part).steps == (), name


def test_few_colours_are_no_reason_to_leave_a_small_noisy_picture_alone() -> None:
    rng = np.random.default_rng(0)
    for shape, sigma in (((32, 32, 3), 10), ((64, 64), 10)):
        noisy = np.clip(np.rint(128 + rng.normal(0, sigma, shape)), 0, 255).astype(np.uint8)
        assert [step.task for step in decide(Picture(noisy)).steps] == ["denoise"]


def test_a_noisy_photograph_is_denoised_at_its_level(clean: NDArray[Any]) -> None:
    decision = decide(Picture(noisy(clean, 20)))
    (step,) = decision.steps
    assert step == Need("denoise", sigma=step.sigma) and step.sigma == pytest.approx(20, rel=0.1)
    assert f"{step.sigma:.1f}" in decision.found


@pytest.mark.parametrize("offset", [(0, 0), (3, 5), (7, 1)])
@pytest.mark.parametrize("quality", [10, 50, 90])
def test_grid_and_quality_of_a_png_that_was_a_jpeg(clean: NDArray[Any], offset: tuple[int, int], quality: int) -> None:
    image = compressed(clean, quality)[8 - offset[0] :, 8 - offset[1] :]
    grid = blockiness(image)
    assert grid.offset == offset and grid.score > 2 * LEAST_GRID
    like = estimate_compression(image, offset)
    assert like.libjpeg and like.quality == pytest.approx(quality, abs=3)
    assert decide(Picture(image)).steps[0] == Need("jpeg", offset=offset, quality=like.quality)


@pytest.mark.parametrize("step", [8, 40])
def test_tables_that_are_not_libjpegs_are_noticed(clean: NDArray[Any], step: int) -> None:
    flat = np.full((8, 8), step)
    image = read_image(encode_jpeg(clean, JpegTables(flat, flat, (2, 2)))).pixels
    assert not estimate_compression(image, (0, 0)).libjpeg
    assert decide(Picture(image)).steps == (Need("jpeg", offset=(0, 0), quality=None),)


@pytest.mark.parametrize("sigma", [0, 5, 40])
def test_no_grid_where_there_is_none(clean: NDArray[Any], sigma: float) -> None:
    assert blockiness(noisy(clean, sigma)).score < LEAST_GRID / 2


def test_a_jpeg_file_is_judged_by_its_tables(clean: NDArray[Any]) -> None:
    strong = decide(Picture(compressed(clean, 40), format="JPEG"), standard_tables(40))
    assert strong.steps == (Need("jpeg", offset=(0, 0), quality=40),)
    assert "Quality 40" in strong.found
    light = decide(Picture(compressed(clean, 96), format="JPEG"), standard_tables(96))
    assert light.steps == ()


@pytest.mark.parametrize("quality", [60, 90])
def test_noise_below_the_compression_is_found(clean: NDArray[Any], quality: int) -> None:
    image, tables = compressed(noisy(clean, 20), quality), standard_tables(quality)
    assert estimate_jpeg_noise(image, tables.luma) == pytest.approx(20, rel=0.2)
    assert estimate_noise(image) < 5  # what is left of it is not white any more
    decision = decide(Picture(image, format="JPEG"), tables)
    assert [step.task for step in decision.steps] == ["jpeg", "denoise"]
    assert decision.steps[1].sigma == pytest.approx(20, rel=0.2)


def test_the_blocks_of_lossy_webp_are_not_taken_for_jpeg(clean: NDArray[Any]) -> None:
    file = io.BytesIO()
    Image.fromarray(clean).save(file, "WEBP", quality=50)
    decision = decide(read_image(file.getvalue()))
    assert decision.steps == () and "once" not in decision.found


@pytest.mark.parametrize("quality", [90, 95])
def test_noise_is_found_where_colours_were_halved(clean: NDArray[Any], quality: int) -> None:
    """Lossy WebP takes the noise out of the colours, and none of the clean picture's detail passes for it."""

    def as_webp(pixels: NDArray[Any]) -> Picture:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "WEBP", quality=quality)
        return read_image(file.getvalue())

    assert decide(as_webp(clean)).steps == ()
    (step,) = decide(as_webp(noisy(clean, 25))).steps
    assert step.task == "denoise" and step.sigma == pytest.approx(25, rel=0.2)


def test_a_picture_too_small_to_measure_says_so() -> None:
    strip = np.random.default_rng(0).integers(0, 256, (7, 600, 3), np.uint8)
    assert "Too small" in decide(Picture(strip)).found


def test_quality_of_tables() -> None:
    assert [equal_quality(standard_tables(q).luma) for q in (1, 10, 49, 50, 75, 95, 100)] == [
        1,
        10,
        49,
        50,
        75,
        95,
        100,
    ]
    assert equal_quality(standard_tables(80).luma.T) == 80


def test_camera_noise_is_told_from_white_noise(clean: NDArray[Any]) -> None:
    photo = Restorer("photo")
    camera = to_pixels(photographed(from_pixels(clean), 20, "x").image)
    decision = decide(Picture(camera), photo=photo)
    assert decision.steps == (Need("photo"),) and "camera" in decision.found
    assert decide(Picture(camera, format="JPEG"), standard_tables(85), photo=photo).steps == (Need("photo"),)
    assert decide(Picture(camera, format="JPEG"), standard_tables(30), photo=photo).steps[0].task == "jpeg"
    for image in (clean, noisy(clean, 20), compressed(clean, 80), camera[:9, :9]):
        assert decide(Picture(image), photo=photo) == decide(Picture(image))


def test_a_photograph_is_restored_by_its_own_network(clean: NDArray[Any]) -> None:
    camera = to_pixels(photographed(from_pixels(clean), 20, "x").image)
    assert (
        psnr(irae.restore(camera), clean) > max(psnr(camera, clean), psnr(irae.restore(camera, "denoise"), clean)) + 3
    )
