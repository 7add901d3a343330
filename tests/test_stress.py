"""Long trials, run by `make stress`: damaged files for the reader; training and batches killed at random moments."""

from __future__ import annotations

import io
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.ImageCms import ImageCmsProfile, createProfile

from irae.images import ImageError, Picture, encode_image, read_image
from irae.journal import NAME

pytestmark = pytest.mark.stress


def originals() -> list[bytes]:
    """A small file of every kind that is read."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (9, 14, 3), dtype=np.uint8)
    files = [encode_image(Picture(pixels), kind) for kind in ("PNG", "TIFF", "JPEG", "WEBP", "BMP")]
    deep = pixels.astype(np.uint16) * 257
    files += [encode_image(Picture(deep, deep[..., 0]), kind) for kind in ("PNG", "TIFF")]
    palette = io.BytesIO()
    Image.fromarray(pixels).convert("P").save(palette, "PNG")
    profiled = io.BytesIO()
    Image.fromarray(pixels).save(profiled, "PNG", icc_profile=ImageCmsProfile(createProfile("sRGB")).tobytes())
    return [*files, palette.getvalue(), profiled.getvalue()]


def most_memory() -> int:
    """Bytes that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@settings(max_examples=300_000, deadline=5000, suppress_health_check=list(HealthCheck))
@given(data=st.data(), original=st.sampled_from(originals()))
def test_any_damage_is_read_or_refused(data: st.DataObject, original: bytes) -> None:
    content = bytearray(original)
    for _ in range(data.draw(st.integers(0, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(content)))
    inserted = data.draw(st.binary(max_size=8))
    content[cut:cut] = inserted
    if data.draw(st.booleans()):
        del content[cut + len(inserted) :]
    before = most_memory()  # which hypothesis raises too, file by file
    try:
        picture = read_image(bytes(content), max_pixels=1_000_000)
    except ImageError as error:
        assert "\n" not in str(error)
    else:
        assert picture.pixels.size <= 3_000_000 and picture.pixels.dtype in (np.uint8, np.uint16)
    assert most_memory() - before < 100e6


def test_many_damaged_files_leave_no_memory_behind() -> None:
    """The bound on a whole run, without what hypothesis and the captured log of a test hold of each example."""
    code = """
import logging
import random
from irae.images import ImageError, read_image
from tests.test_stress import most_memory, originals
logging.disable()
chance, files = random.Random(0), originals()
before = most_memory()
for _ in range(300_000):
    content = bytearray(chance.choice(files))
    for _ in range(chance.randrange(7)):
        content[chance.randrange(min(len(content), chance.choice((200, 10_000))))] = chance.randrange(256)
    if chance.random() < 0.3:
        del content[chance.randrange(len(content)) :]
    try:
        read_image(bytes(content), max_pixels=1_000_000)
    except ImageError:
        pass
print(most_memory() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, cwd=Path(__file__).parents[1])
    assert int(done.stdout.split()[-1]) < 500e6


def test_a_training_run_killed_at_random_moments_ends_as_an_undisturbed_one(tmp_path: Path, photo: np.ndarray) -> None:
    for folder in ("images", "holdout"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "photo.png").write_bytes(encode_image(Picture(photo), "PNG"))
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(
        'name = "tiny"\n[model]\nchannels = [12]\nblock_options = { hidden = 8 }\n'
        f'[data]\nsets = ["{tmp_path}/images"]\nholdout = "{tmp_path}/holdout"\n'
        "[[stages]]\nsteps = 4000\nbatch = 2\npatch = 32\n"
    )

    def command(folder: str) -> list[str]:
        options = ["--every", "100", "--precision", "fp32", "--resume", "-o", str(tmp_path / folder)]
        return [sys.executable, "-m", "irae.cli", "train", str(recipe), *options]

    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command("whole"), check=True, capture_output=True, env=environment)
    rng, kills = random.Random(0), 0
    while True:
        process = subprocess.Popen(
            command("killed"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
        )
        time.sleep(rng.uniform(5, 12))
        if process.poll() == 0:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
    assert kills > 0
    whole, killed = ((tmp_path / name / "log.csv").read_text().splitlines() for name in ("whole", "killed"))
    without_seconds = [[row.split(",")[:1] + row.split(",")[2:] for row in log] for log in (whole, killed)]
    assert without_seconds[0] == without_seconds[1]


def test_a_batch_killed_at_random_moments_ends_as_an_undisturbed_one(
    tmp_path: Path, photo: np.ndarray, weights_file: Path
) -> None:
    rng, folder = random.Random(0), tmp_path / "in"
    folder.mkdir()
    for number in range(100):
        height, width = rng.randrange(40, 120), rng.randrange(40, 157)
        (folder / f"{number:03}.png").write_bytes(encode_image(Picture(photo[:height, :width].copy()), "PNG"))

    def command(results: str) -> list[str]:
        return [sys.executable, "-m", "irae.cli", "restore", str(folder), "-o", str(tmp_path / results), *options]

    def begin(results: str) -> None:
        """A folder of results whose journal says that images are cut small, and their tiles restored by threes."""
        (tmp_path / results).mkdir()
        line = {"device": "cpu", "shape": {"tile": 48, "batch": 3, "window": 0}}
        (tmp_path / results / NAME).write_text(json.dumps(line) + "\n")

    options = ["--model", str(weights_file), "--task", "denoise", "--precision", "fp32"]
    begin("whole")
    begin("killed")
    start = time.monotonic()
    subprocess.run(command("whole"), check=True, capture_output=True)
    length = time.monotonic() - start
    results, kills, moments = tmp_path / "killed", 0, list[int]()
    while kills < 20:
        process = subprocess.Popen(command("killed"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(rng.uniform(0.3, 1.0) * length)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
        moments.append(len(list(results.glob("*.png"))))
        if moments[-1] == 100:  # it was quick: all over again, to be killed some more
            shutil.rmtree(results)
            begin("killed")
    assert any(0 < moment < 100 for moment in moments)
    subprocess.run(command("killed"), check=True, capture_output=True)
    whole, killed = ({p.name: p.read_bytes() for p in (tmp_path / f).glob("*.png")} for f in ("whole", "killed"))
    assert len(whole) == 100 and killed == whole
    assert not [path for path in results.iterdir() if path.suffix == ".tmp" or path.name == ".irae-lock"]


def test_a_full_disk_is_one_sentence_and_the_run_goes_on_when_there_is_room(tmp_path: Path, weights_file: Path) -> None:
    """On a small file system of its own, where the system lets a user make one."""
    folder, results = tmp_path / "in", tmp_path / "results"
    folder.mkdir()
    results.mkdir()
    rng = np.random.default_rng(0)
    for number in range(12):
        pixels = rng.integers(0, 256, (100, 100, 3), dtype=np.uint8)
        (folder / f"{number:02}.png").write_bytes(encode_image(Picture(pixels), "PNG"))
    run = f"{sys.executable} -m irae.cli restore {folder} -o {results} --model {weights_file} --task denoise"
    script = (
        f"mount -t tmpfs -o size=200k none {results} || exit 77\n"
        f'{run}; echo "exit $?"; ls -a {results} | grep tmp\n'
        f'mount -o remount,size=20m {results}\n{run}; echo "exit $?"\n'
    )
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True)
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("no file system of one's own here")
    assert done.stderr.count("disk is full") == 1 and "same command again" in done.stderr
    assert "exit 1" in done.stdout and done.stdout.rstrip().endswith("exit 0") and ".tmp" not in done.stdout
    assert "Traceback" not in done.stderr
