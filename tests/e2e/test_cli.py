"""The command as a user types it: what is written where, exit codes, and one sentence for bad input."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from irae import cli
from irae.engine import CHOICES
from irae.images import Picture, read_image, write_image
from irae.pipeline import FORMAT_SUFFIXES
from irae.restorer import DEVICES, PRECISIONS
from tests.e2e.conftest import Result, names

Run = Callable[..., Result]


@pytest.fixture
def irae(run: Run, weights_file: Path) -> Run:
    """`irae restore` with the small random network."""
    return lambda *arguments: run("restore", "--model", weights_file, *arguments)


@pytest.fixture
def noisy(tmp_path: Path, photo: NDArray[Any]) -> Path:
    path = tmp_path / "noisy.png"
    write_image(path, Picture(photo))
    return path


def test_one_file_goes_beside_the_input(irae: Run, noisy: Path) -> None:
    before = noisy.read_bytes()
    result = irae(noisy)
    assert result.code == 0 and "noisy.restored.png" in result.out
    assert names(noisy.parent) == {"noisy.png", "noisy.restored.png"}
    assert noisy.read_bytes() == before


def test_an_empty_argument_is_not_the_present_folder(irae: Run, noisy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(noisy.parent)
    result = irae("")
    assert result.code == 2 and "empty" in result.err and len(result.err.splitlines()) == 1
    assert names(noisy.parent) == {"noisy.png"} and not noisy.parent.with_suffix(".restored").exists()


def test_what_exists_is_not_replaced_unless_asked(irae: Run, noisy: Path) -> None:
    irae(noisy)
    again = irae(noisy)
    assert again.code == 1 and "--overwrite" in again.err
    assert irae(noisy, "--overwrite").code == 0
    over_itself = irae(noisy, "-o", noisy, "--overwrite")
    assert over_itself.code == 2 and "never overwritten" in over_itself.err


def test_a_folder_is_mirrored_and_a_bad_file_stops_nothing(irae: Run, tmp_path: Path, photo: NDArray[Any]) -> None:
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    write_image(folder / "a.png", Picture(photo))
    write_image(folder / "b.jpg", Picture(photo))
    write_image(folder / "b.png", Picture(photo))
    write_image(folder / "c.tif", Picture(photo.astype(np.uint16) * 257))
    write_image(folder / "sub" / "d.bmp", Picture(photo))
    (folder / "broken.png").write_text("no image")
    (folder / "notes.txt").write_text("no image")
    result = irae(folder)
    assert result.code == 1 and "broken.png" in result.err and "4 of 5" in result.err
    kept = {".irae-journal.jsonl", "failures.jsonl"}
    assert names(tmp_path / "in.restored") == {"a.png", "b.jpg.png", "b.png", "c.tif"} | kept
    assert irae(folder, "-o", tmp_path / "out", "--recursive", "--format", "png").code == 1
    assert "sub/d.png" in names(tmp_path / "out")


def test_a_second_run_on_one_image_says_that_it_was_done(irae: Run, tmp_path: Path, photo: NDArray[Any]) -> None:
    (tmp_path / "in").mkdir()
    write_image(tmp_path / "in" / "a.png", Picture(photo))
    assert irae(tmp_path / "in").err == ""
    assert irae(tmp_path / "in").err == "0 of 1 images restored; 1 skipped: unchanged.\n"


def test_a_second_run_does_only_what_is_left(irae: Run, tmp_path: Path, photo: NDArray[Any]) -> None:
    folder, results = tmp_path / "in", tmp_path / "in.restored"
    folder.mkdir()
    for name in "abc":
        write_image(folder / f"{name}.png", Picture(photo))
    (folder / "d.png").write_bytes(b"")
    plans = irae(folder, "--dry-run")
    assert plans.code == 0 and plans.out.count("(new)") == 4 and not results.exists()
    assert irae(folder).code == 1
    failures = [json.loads(line) for line in (results / "failures.jsonl").read_text().splitlines()]
    assert [Path(failure["input"]).name for failure in failures] == ["d.png"] and "empty" in failures[0]["error"]
    before = {name: (results / f"{name}.png").stat().st_mtime_ns for name in "abc"}
    write_image(folder / "d.png", Picture(photo), overwrite=True)
    write_image(folder / "b.png", Picture(photo[1:]), overwrite=True)
    (results / "c.png").unlink()
    plans = irae(folder, "--dry-run")
    assert plans.code == 0 and [line.split()[0] for line in plans.out.splitlines()] == [
        "skip",
        "redo",
        "redo",
        "restore",
    ]
    assert "input changed" in plans.out and "not finished" in plans.out
    again = irae(folder)
    assert again.code == 0 and "3 of 4 images restored; 1 skipped: unchanged." in again.err
    assert (results / "a.png").stat().st_mtime_ns == before["a"] and (results / "b.png").stat().st_mtime_ns != before[
        "b"
    ]
    assert not (results / "failures.jsonl").exists()
    changed = irae(folder, "--strength", "0.5", "--dry-run", "--json")
    assert {json.loads(line)["why"] for line in changed.out.splitlines()} == {"strength changed from 1.0 to 0.5"}
    lines = [json.loads(line) for line in irae(folder, "--json").out.splitlines()]
    assert {line["status"] for line in lines} == {"skipped"}
    write_image(results / "a.png", Picture(photo), overwrite=True)
    foreign = irae(folder)
    assert foreign.code == 1 and "--overwrite" in foreign.err
    assert irae(folder, "--overwrite").code == 0


def test_too_many_pixels_are_refused(irae: Run, run: Run, noisy: Path) -> None:
    result = irae(noisy, "--max-pixels", "0.01")
    assert result.code == 1 and "over the limit of 0.01 megapixels" in result.err and len(result.err.splitlines()) == 1
    for command in (("degrade", "--jpeg", "30"), ("recover",)):
        assert "over the limit of 0.01 megapixels" in run(*command, noisy, "--max-pixels", "0.01").err
        assert run(*command, noisy, "--max-pixels", "inf").code == 2


def test_an_interrupted_run_finishes_what_it_began(tmp_path: Path, photo: NDArray[Any], weights_file: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(120):
        write_image(folder / f"{number:03}.png", Picture(photo))
    command = [sys.executable, "-m", "irae.cli", "restore", str(folder), "--model", str(weights_file)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stderr is not None
    first = process.stdout.readline()
    process.send_signal(signal.SIGINT)
    out = first + process.stdout.read()  # not `communicate`, which forgets lines that came with the first one
    err = process.stderr.read()
    assert first and process.wait(timeout=120) == 130
    assert "same command again" in err and "Traceback" not in err
    results = {path.name for path in (tmp_path / "in.restored").glob("*.png")}
    assert len(results) == len(out.splitlines()) < 120
    assert not list((tmp_path / "in.restored").glob(".*.tmp"))
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"{120 - len(results)} of 120 images restored; {len(results)} skipped: unchanged." in done.stderr


def test_output_names_a_file_or_a_folder(irae: Run, noisy: Path, tmp_path: Path) -> None:
    assert irae(noisy, "-o", tmp_path / "deep" / "x.tif").code == 0
    assert irae(noisy, "-o", tmp_path / "folder").code == 0
    assert read_image(tmp_path / "deep" / "x.tif").format == "TIFF"
    assert (tmp_path / "folder" / "noisy.png").is_file()


def test_lossy_formats_become_png(irae: Run, tmp_path: Path, photo: NDArray[Any]) -> None:
    Image.fromarray(photo).save(tmp_path / "a.jpg")
    Image.fromarray(photo).save(tmp_path / "b.webp", quality=80)
    Image.fromarray(photo).save(tmp_path / "c.webp", lossless=True)
    irae(tmp_path / "a.jpg", tmp_path / "b.webp", tmp_path / "c.webp")
    made = names(tmp_path) - {"a.jpg", "b.webp", "c.webp"}
    assert made == {"a.restored.png", "b.restored.png", "c.restored.webp"}


def test_orientation_profile_and_alpha_stay(irae: Run, tmp_path: Path, photo: NDArray[Any]) -> None:
    exif = Image.Exif()
    exif[274] = 6
    alpha = photo[..., 0]
    write_image(tmp_path / "x.png", Picture(photo, alpha, exif=exif.tobytes()))
    irae(tmp_path / "x.png")
    restored = read_image(tmp_path / "x.restored.png")
    assert restored.alpha is not None and np.array_equal(restored.alpha, alpha)
    assert restored.pixels.shape == photo.shape
    assert Image.open(tmp_path / "x.restored.png").getexif()[274] == 6


def test_standard_input_and_output(noisy: Path, weights_file: Path) -> None:
    command = [sys.executable, "-m", "irae.cli", "restore", "-", "--model", str(weights_file)]
    done = subprocess.run(command, input=noisy.read_bytes(), capture_output=True, check=True)
    assert read_image(done.stdout).pixels.shape == read_image(noisy).pixels.shape


def test_standard_output(irae: Run, noisy: Path) -> None:
    assert read_image(irae(noisy, "-o", "-").raw).pixels.shape == read_image(noisy).pixels.shape


def test_json_tells_of_every_file(irae: Run, noisy: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"")
    result = irae(noisy, tmp_path / "bad.png", "--json")
    lines = [json.loads(line) for line in result.out.splitlines()]
    assert [line["status"] for line in lines] == ["restored", "failed"] and result.code == 1
    assert lines[0]["output"].endswith("noisy.restored.png") and "empty" in lines[1]["error"]


def test_compare_shows_both(irae: Run, noisy: Path, tmp_path: Path) -> None:
    assert irae(noisy, "--compare").code == 0
    both, one = read_image(tmp_path / "noisy.restored.png.compare.png").pixels, read_image(noisy).pixels
    assert both.shape[1] > 2 * one.shape[1] and both.shape[0] > one.shape[0]


def test_result_and_comparison_say_what_a_png_says_of_colour(irae: Run, tmp_path: Path, photo: NDArray[Any]) -> None:
    said = {b"cICP": bytes([12, 13, 0, 1])}  # Display P3
    write_image(tmp_path / "wide.png", Picture(photo, png_colour=said))
    assert irae(tmp_path / "wide.png", "--compare").code == 0
    for name in ("wide.restored.png", "wide.restored.png.compare.png"):
        assert read_image(tmp_path / name).png_colour == said


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
def test_keep_rest_and_recover(run: Run, tmp_path: Path, photo: NDArray[Any], suffix: str) -> None:
    original = tmp_path / f"photo{suffix}"
    pixels = photo.astype(np.uint16) * 257 + 5 if suffix == ".tif" else photo
    write_image(original, Picture(pixels))
    assert run("restore", original, "--sigma", "20", "--keep-rest").code == 0
    assert names(tmp_path) == {f"photo{suffix}", f"photo.restored{suffix}", f"photo.restored{suffix}.rest"}
    assert run("recover", tmp_path / f"photo.restored{suffix}").code == 0
    assert np.array_equal(read_image(tmp_path / f"photo.recovered{suffix}").pixels, pixels)
    assert not np.array_equal(read_image(tmp_path / f"photo.restored{suffix}").pixels, pixels)


def test_no_input_is_ever_replaced(irae: Run, run: Run, noisy: Path) -> None:
    before = noisy.read_bytes()
    assert irae(noisy, "--keep-rest").code == 0
    restored = noisy.with_name("noisy.restored.png")
    assert irae(noisy, restored, "--overwrite").code == 2
    for command in (
        ("degrade", noisy, "--noise", "25", "-o", noisy),
        ("recover", restored, "-o", restored),
        ("restore", noisy, "-o", noisy),
    ):
        result = run(*command, "--overwrite")
        assert result.code in (1, 2) and "never overwritten" in result.err
    assert noisy.read_bytes() == before


@pytest.mark.parametrize(
    "arguments",
    [
        ("a.png", "a.restored.png.compare.png", "--compare"),
        ("a.png", "--mask", "mask.png", "-o", "mask.png"),
        ("a.png", "--mask", "mask.png", "-o", "link.png"),
        ("folder/a.png", "folder/a.png.compare.png", "-o", "out", "--compare"),
        ("A.png", "a.png", "-o", "."),
    ],
)
def test_nothing_that_is_read_is_written_over(
    run: Run, tmp_path: Path, photo: NDArray[Any], monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    """Neither a picture that is an input by another name, nor a mask; and no two results under one name."""
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    for name in ("a.png", "A.png", "a.restored.png.compare.png", "folder/a.png", "folder/a.png.compare.png"):
        write_image(name, Picture(photo))
    write_image("mask.png", Picture((photo[..., 0] > 200).astype(np.uint8) * 255))
    Path("link.png").hardlink_to("mask.png")
    before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    result = run("restore", *arguments, "--overwrite")
    assert result.code == 2 and len(result.err.splitlines()) == 1
    assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == before


def test_standard_input_is_not_written_over(noisy: Path, weights_file: Path) -> None:
    command = [sys.executable, "-m", "irae.cli", "restore", "-", "-o", str(noisy), "--overwrite"]
    before = noisy.read_bytes()
    with noisy.open("rb") as file:
        done = subprocess.run([*command, "--model", str(weights_file)], stdin=file, capture_output=True, text=True)
    assert done.returncode == 2 and "never overwritten" in done.stderr
    assert noisy.read_bytes() == before


def test_a_mask_is_not_written_over(noisy: Path, tmp_path: Path, photo: NDArray[Any]) -> None:
    mask = tmp_path / "mask.png"
    write_image(mask, Picture(np.zeros(photo.shape[:2], np.uint8)))
    before = mask.read_bytes()
    command = [sys.executable, "-m", "irae.cli", "restore", "-", "--mask", str(mask), "-o", str(mask), "--overwrite"]
    with noisy.open("rb") as file:
        done = subprocess.run(command, stdin=file, capture_output=True, text=True)
    assert done.returncode == 2 and "never overwritten" in done.stderr
    assert mask.read_bytes() == before


def test_memory_that_does_not_suffice_is_one_sentence(
    run: Run, noisy: Path, weights_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("irae.restorer.Restorer.__call__", fail)
    streamed = run("restore", noisy, "-o", "-", "--model", weights_file)
    assert streamed.code == 2 and streamed.err == "irae: There is not enough memory for this image.\n"
    monkeypatch.setattr("irae.pipeline.recover_file", fail)
    recovered = run("recover", noisy, noisy)
    assert recovered.code == 1 and [line.count("not enough memory") for line in recovered.err.splitlines()] == [1, 1]


def test_a_failed_restore_leaves_nothing_behind(irae: Run, noisy: Path, tmp_path: Path) -> None:
    (tmp_path / "noisy.restored.png.compare.png").touch()
    assert irae(noisy, "--compare", "--keep-rest").code == 1
    assert names(tmp_path) == {"noisy.png", "noisy.restored.png.compare.png"}


def test_inputs_of_one_stem_keep_apart(irae: Run, tmp_path: Path, photo: NDArray[Any]) -> None:
    for name in ("a.png", "a.jpg", "a.tif"):
        write_image(tmp_path / name, Picture(photo))
    assert irae(tmp_path / "a.png", tmp_path / "a.jpg", tmp_path / "a.tif", "--compare").code == 0
    made = {"a.restored.png", "a.jpg.restored.png", "a.restored.tif"}
    assert names(tmp_path) == {"a.png", "a.jpg", "a.tif", *made, *(f"{name}.compare.png" for name in made)}


@pytest.mark.parametrize("output", ["x.tif", "new/x.png"])
def test_standard_input_to_a_file_takes_the_format_of_its_suffix(noisy: Path, weights_file: Path, output: str) -> None:
    command = [sys.executable, "-m", "irae.cli", "restore", "-", "-o", output, "--model", str(weights_file)]
    subprocess.run(command, input=noisy.read_bytes(), check=True, cwd=noisy.parent)
    assert read_image(noisy.parent / output).format == {".tif": "TIFF", ".png": "PNG"}[Path(output).suffix]
    again = subprocess.run(command, input=noisy.read_bytes(), capture_output=True, cwd=noisy.parent)
    assert again.returncode == 2 and b"--overwrite" in again.stderr


def test_a_rest_is_only_kept_beside_the_exact_pixels(run: Run, tmp_path: Path, photo: NDArray[Any]) -> None:
    write_image(tmp_path / "grey.png", Picture(photo[..., 0]))
    for format, code in (("jpeg", 2), ("webp", 1)):  # WebP turns grey into colour, which is seen once it is written
        result = run("restore", tmp_path / "grey.png", "--keep-rest", "--format", format)
        assert result.code == code and "exactly" in result.err
    assert names(tmp_path) == {"grey.png"}


def test_choices_are_those_of_the_library() -> None:
    assert tuple(cli.Task) == CHOICES and tuple(cli.Device) == DEVICES and tuple(cli.Precision) == PRECISIONS
    assert tuple(cli.Format) == tuple(FORMAT_SUFFIXES)


def test_a_file_to_standard_output_keeps_its_name(run: Run, noisy: Path, tmp_path: Path, photo: NDArray[Any]) -> None:
    """Its mask is found by it, and what is wrong with it says whose it is."""
    (tmp_path / "masks").mkdir()
    write_image(tmp_path / "masks" / "noisy.png", Picture(np.zeros(photo.shape[:2], np.uint8)))
    assert run("restore", noisy, "-o", "-", "--mask", tmp_path / "masks").code == 0
    noisy.write_bytes(noisy.read_bytes()[:500])
    assert str(noisy) in run("restore", noisy, "-o", "-").err


def test_recover_without_a_rest_says_so(run: Run, noisy: Path) -> None:
    result = run("recover", noisy)
    assert result.code == 1 and "--keep-rest" in result.err
    folder = run("recover", noisy.parent)
    assert folder.code == 1 and "is a folder" in folder.err and len(folder.err.splitlines()) == 1


def test_results_in_a_folder_hide_no_other_pictures_of_it(irae: Run, tmp_path: Path, photo: NDArray[Any]) -> None:
    (tmp_path / "album").mkdir()
    for name in ("a.png", "b.png", "album/own.png"):
        write_image(tmp_path / name, Picture(photo))
    assert irae(tmp_path / "a.png", tmp_path / "b.png", "-o", tmp_path / "album").code == 0
    listed = irae(tmp_path, "-r", "--dry-run").out
    assert [name for name in ("a.png ", "b.png ", "own.png ") if f"{name}->" in listed] == [
        "a.png ",
        "b.png ",
        "own.png ",
    ]
    assert "album/a.png" not in listed and "album/b.png" not in listed


def test_formats_that_are_not_read_are_counted(irae: Run, noisy: Path, tmp_path: Path) -> None:
    """And do not take the name of the picture beside them, as telephones write both."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.png", "a.HEIC", "notes.txt"):
        shutil.copy(noisy, folder / name)
    result = irae(folder)
    assert result.code == 0 and "1 of 2 images restored; 1 skipped: a format that is not read" in result.err
    assert names(tmp_path / "in.restored") - {".irae-journal.jsonl"} == {"a.png"}
    (folder / "a.png").unlink()
    assert "no PNG, TIFF, JPEG, WebP or BMP" in irae(folder).err


def test_names_that_the_terminal_cannot_show_stop_nothing(noisy: Path, tmp_path: Path, weights_file: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("aЖ.png", "b.png"):
        shutil.copy(noisy, folder / name)
    command = [sys.executable, "-m", "irae.cli", "restore", str(folder), "--model", str(weights_file)]
    done = subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "cp1252"})
    assert done.returncode == 0 and rb"a\u0416.png" in done.stdout
    assert {"aЖ.png", "b.png"} <= names(tmp_path / "in.restored")


def test_a_folder_to_write_to_is_made(irae: Run, run: Run, noisy: Path, tmp_path: Path, weights_file: Path) -> None:
    assert run("degrade", noisy, "--noise", "5", "-o", tmp_path / "one").code == 0
    assert irae(noisy, "--keep-rest").code == 0
    restored = tmp_path / "noisy.restored.png"
    assert "name the image" in run("recover", f"{restored}.rest").err
    assert run("recover", restored, "--model", weights_file, "-o", tmp_path / "two").code == 0
    assert names(tmp_path / "one") == {"noisy.noisy.png"} and names(tmp_path / "two") == {"noisy.recovered.png"}


def test_a_report_replaces_no_file_of_the_users(run: Run, noisy: Path, tmp_path: Path) -> None:
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "results.csv").write_text("mine")
    command = ("evaluate", "--data", noisy.parent, "--models", "input", "-o", tmp_path / "report")
    result = run(*command)
    assert result.code == 2 and "results.csv exists" in result.err and names(tmp_path / "report") == {"results.csv"}


@pytest.mark.parametrize("seed", ["-1", "99999999999999999999"])
@pytest.mark.parametrize("command", [("experiments", "fixed-point"), ("probe",)])
def test_a_seed_that_no_generator_takes_is_refused(run: Run, command: tuple[str, ...], seed: str) -> None:
    result = run(*command, "--quick", "--seed", seed)
    assert result.code == 2 and "--seed" in result.err


def test_degrade_depends_on_name_and_seed(run: Run, noisy: Path, tmp_path: Path) -> None:
    clean = noisy
    assert run("degrade", clean, "--noise", "25").code == 0
    assert run("degrade", clean, "--noise", "25", "-o", tmp_path / "b.png").code == 0
    assert run("degrade", clean, "--noise", "25", "-o", tmp_path / "c.png", "--seed", "1").code == 0
    made = {name: read_image(tmp_path / name).pixels.astype(float) for name in ("noisy.noisy.png", "b.png", "c.png")}
    assert np.array_equal(made["noisy.noisy.png"], made["b.png"])
    assert not np.array_equal(made["b.png"], made["c.png"])
    difference = made["b.png"] - read_image(clean).pixels
    assert 20 < difference.std() < 26


def test_demo_restores_and_draws(run: Run, tmp_path: Path) -> None:
    for wrong in ("nowhere", "jpeg"):
        assert run("demo", "-o", tmp_path / "demo", "--model", wrong).code == 2
    assert names(tmp_path) == set()
    result = run("demo", "-o", tmp_path / "demo")
    assert result.code == 0
    assert names(tmp_path / "demo") == {
        "coffee.png",
        "coffee.noisy.png",
        "coffee.noisy.restored.png",
        "coffee.compare.png",
    }
    again = run("demo", "-o", tmp_path / "demo")
    assert again.code == 2 and "--overwrite" in again.err
    figures = [float(word) for word in result.out.split() if word.replace(".", "").isdigit() and len(word) == 5]
    noisy_psnr, restored_psnr = figures
    assert restored_psnr > noisy_psnr + 8


def test_models_and_info(run: Run) -> None:
    assert "denoise" in run("models").out
    facts = json.loads(run("info", "denoise", "--json").out)
    assert facts["task"] == "denoise" and facts["parameters"] > 1e5 and facts["mac_per_pixel"] > 1e4
    assert "PSNR" in run("info", "denoise").out
    assert run("info", "nothing").code == 2


FAILS = {
    "text named png": ["text.png"],
    "truncated": ["cut.png"],
    "empty": ["empty.png"],
    "output below a file": ["good.png", "-o", "text.png/x.png"],
    "output folder below a file": ["good.png", "-o", "text.png/x"],
    "a mask of another size": ["good.png", "--mask", "small.png"],
    "a name that leaves no room for its results": ["y" * 245 + ".png"],
    "more pixels than are allowed": ["good.png", "--max-pixels", "0.001"],
}
REFUSED = {
    "missing": ["missing.png"],
    "missing, to standard output": ["missing.png", "-o", "-"],
    "folder without images": ["nothing"],
    "unknown output format": ["good.png", "-o", "x.gif"],
    "output and format disagree": ["good.png", "-o", "x.png", "--format", "tiff"],
    "one output file for two inputs": ["good.png", "text.png", "-o", "x.png"],
    "output folder is the input folder": [".", "-o", "."],
    "a very long name": ["x" * 300 + ".png"],
    "the root folder": ["/"],
    "unknown format": ["good.png", "--format", "gif"],
    "negative sigma": ["good.png", "--sigma", "-3"],
    "sigma that is no number": ["good.png", "--sigma", "much"],
    "strength above 1": ["good.png", "--strength", "2"],
    "empty weights": ["good.png", "--model", "zero.safetensors"],
    "unknown weights": ["good.png", "--model", "denose"],
    "unknown task": ["good.png", "--task", "denose"],
    "a mask that is not there": ["good.png", "--mask", "nowhere.png"],
    "a colour without its sign": ["good.png", "--mask-color", "ff00ff"],
    "no limit of pixels": ["good.png", "--max-pixels", "inf"],
    "noise kept to a JPEG": ["good.png", "--sigma", "10", "--consistent"],
    "the rest of eight passes": ["good.png", "--keep-rest", "--ensemble"],
    "a noise level told to the weights of another task": ["good.png", "--model", "jpeg", "--sigma", "25"],
    "the weights of another task": ["good.png", "--model", "inpaint", "--task", "denoise"],
    "inpainting without a mask": ["good.png", "--model", "inpaint"],
    "rest of a JPEG": ["good.png", "--keep-rest", "--format", "jpeg"],
    "a rest without transparency": ["good.png", "--keep-rest", "--mask", "alpha"],
}


@pytest.mark.parametrize("case", [*FAILS, *REFUSED])
def test_bad_input_is_one_sentence(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.png").write_text("this is no image")
    Image.effect_noise((64, 64), 50).save("good.png")
    Path("cut.png").write_bytes(Path("good.png").read_bytes()[:1500])
    Path("empty.png").touch()
    Path("zero.safetensors").touch()
    Path("nothing").mkdir()
    Image.effect_noise((8, 8), 50).save("small.png")
    Image.effect_noise((64, 64), 50).save("y" * 245 + ".png")
    before = names(tmp_path)
    result = run("restore", *(FAILS | REFUSED)[case])
    assert result.code == (1 if case in FAILS else 2)
    assert "Traceback" not in result.err and result.out == ""
    assert result.err.strip() and (result.err.startswith("Usage") or len(result.err.strip().splitlines()) <= 2)
    assert names(tmp_path) == before


@pytest.mark.parametrize("size", [(1, 1), (5000, 3), (3, 5000)])
def test_odd_sizes_are_restored(irae: Run, tmp_path: Path, size: tuple[int, int]) -> None:
    Image.effect_noise(size, 50).convert("RGB").save(tmp_path / "odd.png")
    assert irae(tmp_path / "odd.png").code == 0
    assert Image.open(tmp_path / "odd.restored.png").size == size


def test_help_and_usage_errors_load_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['irae', 'restore', '--sgma', '3']\n"
        "from irae import cli\n"
        "try: cli.main()\n"
        "except SystemExit as end: assert end.code == 2\n"
        "print([name for name in ('torch', 'kornia', 'cv2', 'skimage', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]" and "--sigma" in done.stderr


@pytest.mark.parametrize(
    ("command", "default"),
    [
        ("restore", "beside the input"),
        ("restore", "found"),
        ("recover", "NAME.recovered.png"),
        ("train", "runs/NAME"),
        ("evaluate", "all that are installed"),
        ("probe", "the main ones"),
    ],
)
def test_help_says_what_a_missing_option_stands_for(
    run: Run, monkeypatch: pytest.MonkeyPatch, command: str, default: str
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert f"[default: ({default})]" in run(command, "--help").out


def test_the_file_beside_the_package_runs_it() -> None:
    done = subprocess.run([sys.executable, "cli.py", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("irae ")


def write_recipe(path: Path, noisy: Path, block: str = "additive", steps: int = 2) -> Path:
    """A recipe for a tiny network, and its images beside it."""
    for folder in ("images", "holdout"):
        (path.parent / folder).mkdir(exist_ok=True)
        (path.parent / folder / "photo.png").write_bytes(noisy.read_bytes())
    path.write_text(
        f'name = "tiny"\n[model]\nchannels = [12]\nblock = "{block}"\nblock_options = {{ hidden = 8 }}\n'
        f'[data]\nsets = ["{path.parent}/images"]\nholdout = "{path.parent}/holdout"\n'
        f"[[stages]]\nsteps = {steps}\nbatch = 2\npatch = 32\n"
    )
    return path


def test_a_recipe_trains_weights_that_restore(run: Run, noisy: Path, tmp_path: Path) -> None:
    for block in ("additive", "addtive"):
        write_recipe(tmp_path / f"{block}.toml", noisy, block)
    result = run("train", tmp_path / "additive.toml", "-o", tmp_path / "run", "--workers", "0")
    assert result.code == 0 and "psnr_25" in result.out
    assert names(tmp_path / "run") == {"checkpoint.pt", "log.csv", "tiny.safetensors"}
    assert run("restore", noisy, "--model", tmp_path / "run" / "tiny.safetensors").code == 0
    wrong = run("train", tmp_path / "addtive.toml", "-o", tmp_path / "wrong")
    assert wrong.code == 2 and "choose one of additive" in wrong.err
    assert run("train", tmp_path / "missing.toml").code == 2


def test_shipped_recipes_are_found_from_anywhere(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("train", "recipes/denoise.toml", "--data-root", tmp_path / "nowhere")
    assert result.code == 2 and "nowhere is not a folder" in result.err
    assert "cannot be read" in run("train", "recipes/none.toml").err


def test_an_interrupted_training_goes_on_from_its_last_step(run: Run, noisy: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "tiny.toml", noisy, steps=100_000)
    arguments = ["train", str(recipe), "-o", str(tmp_path / "run"), "--precision", "fp32"]
    process = subprocess.Popen(
        [sys.executable, "-m", "irae.cli", *arguments, "--every", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None and process.stdout.readline().startswith("step 1:")
    os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to the workers too
    err = process.communicate(timeout=120)[1]
    assert process.returncode == 130 and "--resume" in err and "Traceback" not in err
    checkpoint = tmp_path / "run" / "checkpoint.pt"
    done = torch.load(checkpoint)["step"]
    assert run(*arguments, "--resume", "--max-minutes", "0").code == 0
    assert torch.load(checkpoint)["step"] == done + 1


def test_a_training_stopped_in_its_last_step_is_finished(
    run: Run, noisy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write_recipe(tmp_path / "tiny.toml", noisy)
    monkeypatch.setattr(cli, "_interruptible", lambda stop, notice: contextlib.nullcontext(stop()))
    stopped = run("train", recipe, "-o", tmp_path / "run", "--precision", "fp32")
    assert stopped.code == 130 and "1 of 2 steps" in stopped.err
    finished = run("train", recipe, "-o", tmp_path / "run", "--precision", "fp32", "--resume")
    assert finished.code == 0 and "Stopped" not in finished.err


def test_a_card_in_another_encoding_is_read_as_far_as_it_goes(run: Run, weights_file: Path, tmp_path: Path) -> None:
    shutil.copy(weights_file, tmp_path / "x.safetensors")
    (tmp_path / "x.md").write_bytes("# Größe".encode("latin-1"))
    result = run("info", tmp_path / "x.safetensors")
    assert result.code == 0 and "Gr" in result.out
