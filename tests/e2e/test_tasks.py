"""JPEG files, holes and the automatic choice as a user types them, with small random networks."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

from irae.images import Picture, read_image, write_image
from irae.jpeg import encode_jpeg, read_tables, standard_tables
from irae.masks import MASKS
from tests.e2e.conftest import Result, names

Run = Callable[..., Result]


@pytest.fixture
def clean(tmp_path: Path, photo: NDArray[Any]) -> Path:
    path = tmp_path / "photo.png"
    write_image(path, Picture(photo))
    return path


@pytest.mark.parametrize("kind", MASKS)
def test_holes_that_degrade_makes_are_filled(run: Run, clean: Path, task_weights: dict[str, Path], kind: str) -> None:
    assert run("degrade", clean, "--mask", kind).code == 0
    holes, mask_path = clean.with_name("photo.holes.png"), clean.with_name("photo.holes.mask.png")
    mask = read_image(mask_path).pixels > 0
    assert mask.any() and not read_image(holes).pixels[mask].any()
    result = run("restore", holes, "--mask", mask_path, "--model", task_weights["inpaint"], "--explain")
    assert result.code == 0 and "inpainting" in result.out
    restored = read_image(clean.with_name("photo.holes.restored.png")).pixels
    assert np.array_equal(restored[~mask], read_image(clean).pixels[~mask]) and restored[mask].any()


@pytest.mark.parametrize("mirrored", [True, False])
def test_masks_lie_as_the_pictures_do_or_in_one_place(
    run: Run, tmp_path: Path, photo: NDArray[Any], task_weights: dict[str, Path], mirrored: bool
) -> None:
    masks, holes = tmp_path / "masks", {}
    for number, place in enumerate(("one", "two")):
        name = "photo.png" if mirrored else f"{place}.png"
        holes[f"{place}/{name}"] = np.zeros(photo.shape[:2], np.bool_)
        holes[f"{place}/{name}"][40 * number : 40 * number + 20] = True
        for folder, pixels in ((tmp_path / "in", photo), (masks, holes[f"{place}/{name}"].astype(np.uint8) * 255)):
            path = folder / name if folder == masks and not mirrored else folder / place / name
            path.parent.mkdir(parents=True, exist_ok=True)
            write_image(path, Picture(pixels))
    command = ("restore", tmp_path / "in", "-r", "--mask", masks, "--model", task_weights["inpaint"])
    assert run(*command).code == 0
    for name, mask in holes.items():
        changed = (read_image(tmp_path / "in.restored" / name).pixels != photo).any(2)
        assert changed[mask].any() and not changed[~mask].any()
    before = {path: path.read_bytes() for path in masks.rglob("*.png")}
    assert run(*command, "-o", masks, "--overwrite").code == (2 if mirrored else 0)
    assert {path: path.read_bytes() for path in before} == before


def test_why_nothing_was_done_is_said_unasked(run: Run, clean: Path, task_weights: dict[str, Path]) -> None:
    result = run("restore", clean, "--mask-color", "#ff00ff", "--model", task_weights["inpaint"])
    assert result.code == 0 and "Nothing is marked as missing" in result.out


@pytest.mark.parametrize(("subsampling", "sampling"), [("4:2:0", (2, 2)), ("4:4:4", (1, 1))])
def test_a_jpeg_that_degrade_makes_is_restored(
    run: Run, clean: Path, task_weights: dict[str, Path], subsampling: str, sampling: tuple[int, int]
) -> None:
    assert run("degrade", clean, "--jpeg", "20", "--noise", "5", "--subsampling", subsampling).code == 0
    tables = read_tables(clean.with_name("photo.q20.jpg").read_bytes())
    assert np.array_equal(tables.luma, standard_tables(20).luma) and tables.sampling == sampling
    result = run("restore", clean.with_name("photo.q20.jpg"), "--model", task_weights["jpeg"], "--json")
    facts = json.loads(result.out)
    assert result.code == 0 and facts["tasks"] == ["jpeg"] and "tables of the file" in facts["found"][0]
    assert read_image(clean.with_name("photo.q20.restored.png")).pixels.shape == read_image(clean).pixels.shape


def test_a_jpeg_that_degrade_makes_is_shown_as_the_photograph_is(run: Run, tmp_path: Path, photo: NDArray[Any]) -> None:
    exif = Image.Exif()
    exif[274] = 6  # turned by a quarter
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(photo).save(tmp_path / "photo.png", exif=exif, icc_profile=profile)
    assert run("degrade", tmp_path / "photo.png", "--jpeg", "20").code == 0
    made, given = read_image(tmp_path / "photo.q20.jpg"), read_image(tmp_path / "photo.png")
    assert made.icc == given.icc is not None and made.upright.shape == given.upright.shape == (*photo.shape[1::-1], 3)


def test_a_colour_says_what_is_missing(run: Run, tmp_path: Path, task_weights: dict[str, Path]) -> None:
    pixels = np.full((40, 50, 3), 90, np.uint8)
    pixels[10:20, 10:20] = (255, 0, 255)
    write_image(tmp_path / "x.png", Picture(pixels))
    assert run("restore", tmp_path / "x.png", "--mask-color", "#ff00ff", "--model", task_weights["inpaint"]).code == 0
    restored = read_image(tmp_path / "x.restored.png").pixels
    assert (restored[10:20, 10:20] != (255, 0, 255)).any() and (restored[20:] == 90).all()


def test_a_file_that_needs_nothing_stays_as_it_is(run: Run, tmp_path: Path) -> None:
    smooth = np.add.outer(np.arange(128), np.arange(128)).astype(np.uint8) // 2 + 40
    write_image(tmp_path / "smooth.png", Picture(smooth))
    result = run("restore", tmp_path / "smooth.png", "--explain")
    assert result.code == 0 and "nothing to do" in result.out
    assert np.array_equal(read_image(tmp_path / "smooth.restored.png").pixels, smooth)


def jpeg(pixels: NDArray[Any], mode: str = "RGB", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def test_a_progressive_jpeg_is_restored_like_the_baseline_one(
    run: Run, tmp_path: Path, photo: NDArray[Any], task_weights: dict[str, Path]
) -> None:
    for name, progressive in (("baseline", False), ("progressive", True)):
        (tmp_path / f"{name}.jpg").write_bytes(jpeg(photo, quality=30, progressive=progressive))
        assert run("restore", tmp_path / f"{name}.jpg", "--model", task_weights["jpeg"]).code == 0
    restored = [read_image(tmp_path / f"{name}.restored.png").pixels for name in ("baseline", "progressive")]
    assert np.array_equal(*restored)


BAD = {
    "a CMYK JPEG": ["cmyk.jpg"],
    "a JPEG cut in the middle": ["cut.jpg"],
    "a mask of another size": ["good.png", "--mask", "small.png"],
    "an all-white mask": ["good.png", "--mask", "white.png"],
    "a mask that is no image": ["good.png", "--mask", "text.png"],
    "a mask that is missing": ["good.png", "--mask", "missing.png"],
    "a colour that is none": ["good.png", "--mask-color", "pink"],
    "two masks": ["good.png", "--mask", "white.png", "--mask-color", "#ff00ff"],
    "no alpha": ["good.png", "--mask", "alpha"],
    "inpainting without a mask": ["good.png", "--task", "inpaint"],
    "a noise level for JPEG": ["good.png", "--task", "jpeg", "--sigma", "5"],
    "a quality of 0": ["good.png", "--jpeg-quality", "0"],
    "consistent with no JPEG": ["good.png", "--task", "jpeg", "--consistent"],
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence(
    run: Run, tmp_path: Path, photo: NDArray[Any], monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("cmyk.jpg").write_bytes(jpeg(photo, "CMYK"))
    Path("cut.jpg").write_bytes(encode_jpeg(photo, 50)[:2000])
    Path("text.png").write_text("this is no image")
    write_image(Path("good.png"), Picture(photo))
    write_image(Path("small.png"), Picture(np.zeros((5, 5), np.uint8)))
    write_image(Path("white.png"), Picture(np.full(photo.shape[:2], 255, np.uint8)))
    before = names(tmp_path)
    result = run("restore", *BAD[case])
    assert result.code in (1, 2) and result.out == "" and "Traceback" not in result.err
    assert result.err.startswith("Usage") or len(result.err.strip().splitlines()) == 1
    assert names(tmp_path) == before


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--jpeg", "0"],
        ["--mask", "text", "--jpeg", "5"],
        ["--mask", "hole"],
        ["--noise", "300"],
        ["--jpeg", "5", "-o", "x.png"],
        ["--jpeg", "5", "--kind", "camera"],
        ["--noise", "5", "--subsampling", "4:4:4"],
    ],
)
def test_degrade_says_what_is_wrong(run: Run, clean: Path, options: list[str]) -> None:
    result = run("degrade", clean, *options)
    assert result.code == 2 and len(result.err.strip().splitlines()) == 1
    assert names(clean.parent) == {"photo.png"}
