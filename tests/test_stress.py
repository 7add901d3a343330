"""Long trials, run by `make stress`: damaged files for the reader, and a training run killed at random moments."""

from __future__ import annotations

import io
import os
import random
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

from irae.images import ImageError, Picture, encode_image, read_image

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
    return [*files, palette.getvalue()]


@settings(max_examples=20_000, deadline=5000, suppress_health_check=list(HealthCheck))
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
    try:
        picture = read_image(bytes(content), max_pixels=1_000_000)
    except ImageError as error:
        assert "\n" not in str(error)
    else:
        assert picture.pixels.size <= 3_000_000 and picture.pixels.dtype in (np.uint8, np.uint16)


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
