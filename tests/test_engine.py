"""What is done to a picture: masks from every source, JPEG files with their tables, and wishes that make no sense."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from skimage.data import astronaut

from irae.degrade import GaussianNoise, VaryingNoise, generator_for
from irae.engine import Engine, Wishes
from irae.errors import IraeError
from irae.images import Picture, read_image, write_image
from irae.jpeg import consistent_share, encode_jpeg, project, standard_tables
from irae.metrics import psnr
from irae.pipeline import restore
from irae.restorer import HOLE_DEPTH, Hints, Restorer, as_pixels, as_tensor
from irae.tiles import reach
from irae.weights import save_weights
from tests.conftest import SMALL, random_model

Pixels = NDArray[Any]


@pytest.fixture(scope="module")
def engines(task_weights: dict[str, Path]) -> dict[str, Engine]:
    """Engines with small random networks, by task."""
    return {task: Engine(path) for task, path in task_weights.items()}


@pytest.fixture
def holes(photo: Pixels) -> NDArray[np.bool_]:
    return np.random.default_rng(0).random(photo.shape[:2]) < 0.3


def inpainted(engine: Engine, picture: Picture, mask: Any, name: str = "") -> tuple[Pixels, Picture]:
    plan = engine.plan(picture, Wishes(mask=mask), name=name)
    return engine.run(plan), plan.picture


@pytest.mark.parametrize("kind", ["rgb", "grey", "16 bit"])
def test_known_pixels_stay_bit_for_bit(
    engines: dict[str, Engine], photo: Pixels, holes: NDArray[np.bool_], kind: str
) -> None:
    pixels = {"grey": photo[..., 1], "16 bit": photo.astype(np.uint16) * 257 + 3}.get(kind, photo)
    result, _ = inpainted(engines["inpaint"], Picture(pixels), holes)
    assert result.dtype == pixels.dtype and np.array_equal(result[~holes], pixels[~holes])
    assert (result[holes] != pixels[holes]).mean() > 0.5
    painted = pixels.copy()
    painted[holes] = 0
    assert np.array_equal(inpainted(engines["inpaint"], Picture(painted), holes)[0], result)


def test_a_mask_has_many_sources(
    engines: dict[str, Engine], photo: Pixels, holes: NDArray[np.bool_], tmp_path: Path
) -> None:
    engine, magenta = engines["inpaint"], np.array([255, 0, 255], np.uint8)
    expected, _ = inpainted(engine, Picture(photo), holes)
    write_image(tmp_path / "photo.png", Picture(holes.astype(np.uint8) * 255))
    for mask in (tmp_path / "photo.png", str(tmp_path / "photo.png"), tmp_path):
        assert np.array_equal(inpainted(engine, Picture(photo), mask, "photo.jpg")[0], expected)
    transparent = Picture(photo, np.where(holes, 0, 255).astype(np.uint8))
    result, picture = inpainted(engine, transparent, "alpha")
    assert np.array_equal(result, expected) and picture.alpha is None  # opaque now
    half = Picture(photo, np.where(holes, 0, 99).astype(np.uint8))
    _, picture = inpainted(engine, half, "alpha")
    assert picture.alpha is not None and np.array_equal(picture.alpha, np.where(holes, 255, 99))
    array = restore(np.dstack((photo, transparent.alpha)), mask="alpha", model=engine.restorer("inpaint").model)
    assert np.array_equal(array[..., :3], expected) and (array[..., 3] == 255).all()
    coloured = photo.copy()
    coloured[holes] = magenta
    assert np.array_equal(inpainted(engine, Picture(coloured), "#ff00ff")[0], expected)
    floats = coloured.astype(np.float32) / np.float32(255)
    filled, _ = inpainted(engine, Picture(floats), "#ff00ff")
    assert np.abs(255 * filled.clip(0, 1) - expected).max() < 0.51


def test_wide_holes_are_filled_from_the_border_inward(engines: dict[str, Engine]) -> None:
    side = 3 * HOLE_DEPTH
    pixels = np.random.default_rng(0).integers(0, 256, (side + 20, side + 20, 3), np.uint8)
    mask = np.zeros(pixels.shape[:2], np.bool_)
    mask[10:-10, 10:-10] = True
    result, _ = inpainted(engines["inpaint"], Picture(pixels), mask)
    assert np.array_equal(result[~mask], pixels[~mask])
    inner = slice(10 + HOLE_DEPTH + 1, -10 - HOLE_DEPTH - 1)
    once = engines["inpaint"].restorer("inpaint").with_rest(pixels, Hints(mask=mask))[0]
    assert not np.array_equal(result[inner, inner], once[inner, inner])
    assert np.array_equal(
        result[10:40, 10:40],
        Restorer(model=engines["inpaint"].restorer("inpaint").model)(pixels, Hints(mask=mask))[10:40, 10:40],
    )


def test_nothing_missing_changes_nothing(engines: dict[str, Engine], photo: Pixels) -> None:
    result, _ = inpainted(engines["inpaint"], Picture(photo), np.zeros(photo.shape[:2], np.bool_))
    assert np.array_equal(result, photo)


@pytest.mark.parametrize("sampling", [(1, 1), (2, 2)])
@pytest.mark.parametrize("grey", [False, True])
def test_a_jpeg_file_is_restored_with_its_own_tables(
    engines: dict[str, Engine], photo: Pixels, sampling: tuple[int, int], grey: bool
) -> None:
    clean = photo[..., 1] if grey else photo
    file = encode_jpeg(clean, standard_tables(20, sampling, grey))
    picture, engine = read_image(file), engines["jpeg"]
    plan = engine.plan(picture, Wishes(), file)
    (step,) = plan.steps
    assert step.hints.tables is not None and step.hints.grid == (0, 0)
    assert np.array_equal(step.hints.tables.luma, standard_tables(20).luma)
    free = engine.run(engine.plan(picture, Wishes(consistent=False), file))
    kept = engine.run(plan)
    assert 1 - consistent_share(kept, file) < 0.2 * (1 - consistent_share(free, file))
    levels = kept.astype(np.float64) / 255
    assert np.abs(project(levels, file) - levels).max() < np.abs(project(free / 255, file) - free / 255).max()


@pytest.mark.parametrize("sampling", [(1, 1), (2, 1), (2, 2)])
@pytest.mark.parametrize("quality", [20, 75])
def test_a_jpeg_gains_whatever_the_resolution_of_its_chroma(sampling: tuple[int, int], quality: int) -> None:
    clean = np.ascontiguousarray(astronaut()[40:232, 130:354])
    file, engine = encode_jpeg(clean, quality, sampling), Engine()
    picture = read_image(file)
    for consistent in (True, False):
        wishes = Wishes("jpeg", consistent=consistent)
        restored = engine.run(engine.plan(picture, wishes, file), wishes)
        assert psnr(restored, clean) > psnr(picture.pixels, clean) + (1 if quality == 20 else 0.5)


def test_a_quality_that_the_user_gives_stands_for_the_tables(engines: dict[str, Engine], photo: Pixels) -> None:
    file = encode_jpeg(photo, 20)
    picture, engine = read_image(file), engines["jpeg"]
    as_png = Picture(picture.pixels)
    with_tables = engine.run(engine.plan(picture, Wishes(consistent=False), file))
    assert np.array_equal(engine.run(engine.plan(as_png, Wishes(jpeg_quality=20))), with_tables)
    blind = engine.restorer("jpeg")(picture.pixels)
    assert not np.array_equal(blind, with_tables)


def test_a_part_of_a_jpeg_is_restored_as_the_whole(engines: dict[str, Engine], photo: Pixels) -> None:
    whole, engine = read_image(encode_jpeg(photo, 20)), engines["jpeg"]
    part = Picture(np.ascontiguousarray(whole.pixels[19:, 5:]))
    restored = engine.run(engine.plan(part, Wishes(task="jpeg")))
    expected = engine.run(engine.plan(Picture(whole.pixels), Wishes(jpeg_quality=20)))
    inside = reach(engine.restorer("jpeg").model)
    assert restored.shape == part.pixels.shape
    assert np.abs(restored[inside:, inside:].astype(int) - expected[19:, 5:][inside:, inside:]).max() <= 1


@pytest.mark.parametrize("task", ["jpeg", "inpaint"])
def test_the_rest_of_every_task_gives_the_input_back(
    engines: dict[str, Engine], photo: Pixels, holes: NDArray[np.bool_], task: str
) -> None:
    if task == "jpeg":
        file = encode_jpeg(photo, 30)
        picture, wishes = read_image(file), Wishes()
    else:
        file, picture, wishes = b"", Picture(photo), Wishes(mask=holes)
    plan = engines[task].plan(picture, wishes, file)
    result, rest = engines[task].run_with_rest(plan)
    assert not np.array_equal(result, picture.pixels)
    assert np.array_equal(engines[task].restorer(task).recover(result, rest), picture.pixels)


def test_auto_leaves_a_clean_picture_alone_and_denoises_a_noisy_one(photo: Pixels) -> None:
    clean = np.ascontiguousarray(astronaut()[::2, ::2])
    noisy = clean + np.random.default_rng(0).normal(0, 25, clean.shape)
    engine = Engine()
    plan = engine.plan(Picture(np.clip(np.rint(noisy), 0, 255).astype(np.uint8)), Wishes())
    (step,) = plan.steps
    assert step.task == "denoise" and step.level == pytest.approx(25, abs=4)
    assert any("25" in sentence or "24" in sentence or "26" in sentence for sentence in plan.found)


def test_strength_mixes_what_goes_in_and_what_comes_out_of_all_steps(photo: Pixels) -> None:
    engine, wishes = Engine("small", "cpu"), Wishes(jpeg_quality=30, sigma=10)
    plan = engine.plan(Picture(photo), wishes)
    full, half = (engine.run(plan, replace(wishes, strength=s)).astype(float) for s in (1.0, 0.5))
    assert [step.task for step in plan.steps] == ["jpeg", "denoise"] and not np.array_equal(full, photo)
    assert np.abs(half - (full + photo) / 2).max() <= 1


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_noise_that_is_not_the_same_everywhere_is_better_found_than_told(dtype: type[np.unsignedinteger[Any]]) -> None:
    clean = astronaut()[::2, ::2].astype(dtype) * (np.iinfo(dtype).max // 255)
    noise, generator = VaryingNoise(low=0, high=50), generator_for("astronaut")
    noisy = as_pixels(noise(as_tensor(clean)[0], generator).image[None], clean)
    engine = Engine("small", "cpu")
    plan = engine.plan(Picture(noisy), Wishes())
    (step,) = plan.steps
    found, told = (engine.restorer("denoise")(noisy, Hints(sigma=level)) for level in (None, step.level))
    assert psnr(found, clean) > psnr(told, clean) + 0.3
    assert np.array_equal(engine.run(plan), found)
    half = engine.restorer("denoise")(noisy, strength=0.5)
    assert np.array_equal(engine.run(plan, Wishes(strength=0.5)), half)


def test_noise_below_a_compression_that_was_taken_out_is_told() -> None:
    clean = np.ascontiguousarray(astronaut()[::2, ::2])
    noisy = as_pixels(GaussianNoise(25)(as_tensor(clean)[0], generator_for("astronaut")).image[None], clean)
    pixels = read_image(encode_jpeg(noisy, 80)).pixels
    first, second = Engine("small", "cpu").plan(Picture(pixels), Wishes()).steps
    assert (first.task, second.task, second.level) == ("jpeg", "denoise", None)
    assert second.hints.sigma == pytest.approx(25, abs=4)


@pytest.mark.parametrize("strength", [1, 0.5])
@pytest.mark.parametrize("known", [True, False], ids=["JPEG", "PNG of a JPEG"])
def test_noise_that_was_compressed_is_taken_out_too(known: bool, strength: float) -> None:
    clean = np.ascontiguousarray(astronaut()[::2, ::2])
    noisy = as_pixels(GaussianNoise(25)(as_tensor(clean)[0], generator_for("astronaut")).image[None], clean)
    file = encode_jpeg(noisy, 95)
    picture, wishes, engine = read_image(file), Wishes(strength=strength), Engine("small", "cpu")
    plan = engine.plan(picture, wishes, file) if known else engine.plan(Picture(picture.pixels), wishes)
    result = engine.run(plan, wishes)
    (step,) = plan.steps
    assert step.task == "denoise" and (step.level is None) == known
    found = engine.restorer("denoise")(picture.pixels, strength=strength)
    assert psnr(found, clean) < psnr(picture.pixels, clean) + 1  # the network takes it for the picture
    assert psnr(result, clean) > psnr(picture.pixels, clean) + 4 * strength
    with_rest, rest = engine.run_with_rest(plan, wishes)
    assert np.array_equal(engine.restorer("denoise").recover(with_rest, rest), picture.pixels)
    assert psnr(with_rest, clean) == pytest.approx(psnr(result, clean), abs=0.01)


@pytest.mark.parametrize("ensemble", [False, True])
def test_strength_mixes_a_jpeg_and_its_restoration(engines: dict[str, Engine], photo: Pixels, ensemble: bool) -> None:
    file = encode_jpeg(photo, 97)
    picture, wishes = read_image(file), Wishes("jpeg", ensemble=ensemble)
    engine = engines["jpeg"]
    plan = engine.plan(picture, wishes, file)
    none, half, full = (engine.run(plan, replace(wishes, strength=s)).astype(float) for s in (0, 0.5, 1))
    inside = (full > 0) & (full < 255)
    assert np.array_equal(none, picture.pixels) and np.abs(full - none).max() > 4
    assert np.abs(half - (full + none) / 2)[inside].max() <= 1


def test_what_follows_a_decompression_is_consistent_with_no_file(photo: Pixels) -> None:
    file = encode_jpeg(photo, 30)
    with pytest.raises(IraeError, match="denoise"):
        Engine("small", "cpu").plan(read_image(file), Wishes(jpeg_quality=30, sigma=10, consistent=True), file)


@pytest.mark.parametrize(
    ("wishes", "word"),
    [
        ({"mask": "nowhere.png"}, "nowhere"),
        ({"mask": "alpha"}, "transparency"),
        ({"mask": "#ff00f"}, "rrggbb"),
        ({"mask": np.ones((120, 157), bool)}, "nothing is known"),
        ({"mask": np.zeros((12, 15), bool)}, "equal"),
        ({"mask": [True, False]}, "shape"),
        ({"consistent": True}, "JPEG file"),
        ({"jpeg_quality": 30.5}, "whole number"),
    ],
)
def test_wishes_that_make_no_sense_are_one_sentence(
    engines: dict[str, Engine], photo: Pixels, wishes: dict[str, Any], word: str
) -> None:
    with pytest.raises(IraeError, match=word) as caught:
        engines["inpaint" if "mask" in wishes else "jpeg"].plan(Picture(photo), Wishes(**wishes))
    assert "\n" not in str(caught.value)


def test_weights_decide_the_task_and_refuse_another(engines: dict[str, Engine], photo: Pixels) -> None:
    assert [step.task for step in engines["jpeg"].plan(Picture(photo), Wishes()).steps] == ["jpeg"]
    with pytest.raises(IraeError, match="'jpeg', not 'denoise'"):
        engines["jpeg"].run(engines["jpeg"].plan(Picture(photo), Wishes(sigma=25, task="denoise")))
    with pytest.raises(IraeError, match="mask"):
        engines["inpaint"].plan(Picture(photo), Wishes())


def test_the_size_chooses_the_weights(
    task_weights: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for task in ("denoise", "jpeg", "photo"):
        shutil.copy(task_weights[task], tmp_path)
    for task in ("denoise", "photo"):
        larger = replace(SMALL, task=task, blocks=(2,))
        save_weights(tmp_path / f"{task}-best.safetensors", larger, random_model(larger).state_dict(), {"steps": 0})
    monkeypatch.setattr("irae.weights.resource_dir", lambda _: tmp_path)
    small, best, default = (Engine(model, "cpu") for model in ("small", "best", None))
    assert best.restorer("denoise").model.config.blocks == (2,)
    assert small.restorer("denoise").model.config.blocks == default.restorer("denoise").model.config.blocks == (1,)
    assert small.weights_digest("denoise") != best.weights_digest("denoise")  # so a journal sees the change
    assert small.weights_digest("jpeg") == best.weights_digest("jpeg")  # which has one size
    assert best.restorer("photo").model.config.blocks == (2,)
    assert small.weights_digest("auto") == best.weights_digest("auto") == small.weights_digest("photo")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_mask_lies_on_the_picture_as_a_viewer_shows_both(
    engines: dict[str, Engine], photo: Pixels, tmp_path: Path, orientation: int
) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    turned = Picture(photo, exif=exif.tobytes().removeprefix(b"Exif\0\0"))
    holes = np.zeros(photo.shape[:2], np.bool_)
    holes[5:20, 30:60] = True
    seen = replace(turned, pixels=holes.astype(np.uint8) * 255).upright
    write_image(tmp_path / "seen.png", Picture(np.ascontiguousarray(seen)))
    write_image(tmp_path / "stored.png", replace(turned, pixels=holes.astype(np.uint8) * 255))
    for name in ("seen.png", "stored.png"):  # painted over what a viewer shows, or made of the file with its EXIF
        (step,) = engines["inpaint"].plan(turned, Wishes(mask=tmp_path / name)).steps
        assert np.array_equal(step.hints.mask, holes)


def test_transparent_white_marks_nothing(engines: dict[str, Engine], photo: Pixels, tmp_path: Path) -> None:
    holes = np.zeros(photo.shape[:2], np.uint8)
    holes[5:20, 30:60] = 255
    write_image(tmp_path / "brush.png", Picture(np.full_like(photo, 255), holes))
    write_image(tmp_path / "black.png", Picture(np.zeros_like(photo), holes))
    (step,) = engines["inpaint"].plan(Picture(photo), Wishes(mask=tmp_path / "brush.png")).steps
    assert np.array_equal(step.hints.mask, holes > 0)
    with pytest.raises(IraeError, match=r"black\.png marks nothing .* transparency does not"):
        engines["inpaint"].plan(Picture(photo), Wishes(mask=tmp_path / "black.png"))


def test_noise_of_level_0_changes_nothing(engines: dict[str, Engine], photo: Pixels) -> None:
    assert engines["denoise"].plan(Picture(photo), Wishes(sigma=0)).steps == ()


def test_a_mask_without_white_is_refused_unless_it_is_black(
    engines: dict[str, Engine], photo: Pixels, tmp_path: Path
) -> None:
    """Files of zeros and ones look black, and are taken for masks that mark nothing."""
    ones = np.eye(*photo.shape[:2], dtype=np.uint8)
    write_image(tmp_path / "ones.png", Picture(ones))
    write_image(tmp_path / "black.png", Picture(0 * ones))
    assert engines["inpaint"].plan(Picture(photo), Wishes(mask=tmp_path / "black.png")).steps == ()
    with pytest.raises(IraeError, match=r"ones\.png marks nothing .* 255, not 1"):
        engines["inpaint"].plan(Picture(photo), Wishes(mask=tmp_path / "ones.png"))
