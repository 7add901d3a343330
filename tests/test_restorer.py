"""`irae.restore` on arrays and paths: dtypes, shapes, options, and what is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import irae
import irae.restorer as restorer_module
from irae.errors import IraeError
from irae.images import Picture, write_image
from irae.jpeg import standard_tables
from irae.metrics import psnr, ssim
from irae.models.irae import RecoverError
from irae.restorer import Hints, Restorer

Pixels = NDArray[Any]


def noisy(photo: Pixels, sigma: float = 25) -> Pixels:
    noise = np.random.default_rng(0).normal(0, sigma, photo.shape)
    return np.clip(np.rint(photo + noise), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("sigma", [25, None])
def test_restoring_makes_it_better(photo: Pixels, sigma: float | None) -> None:
    damaged = noisy(photo)
    restored = irae.restore(damaged, sigma=sigma)
    assert psnr(restored, photo) > psnr(damaged, photo) + 6
    assert ssim(restored, photo) > ssim(damaged, photo) + 0.15


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("channels", [None, 1, 2, 3, 4])
def test_dtype_and_shape_stay(photo: Pixels, weights_file: Path, dtype: Any, channels: int | None) -> None:
    image = photo[:17, :23, 0] if channels is None else np.dstack([photo, photo[..., :1]])[:17, :23, :channels]
    image = (image / np.float32(255)).astype(np.float32) if dtype == np.float32 else image.astype(dtype)
    restored = irae.restore(image, model=weights_file)
    assert restored.dtype == image.dtype and restored.shape == image.shape
    if channels in (2, 4):
        assert np.array_equal(restored[..., -1], image[..., -1])


def test_a_level_means_the_same_in_every_dtype(photo: Pixels) -> None:
    damaged = noisy(photo)
    eight = irae.restore(damaged, sigma=25, precision="fp32").astype(float)
    sixteen = irae.restore(damaged.astype(np.uint16) * 257, sigma=25, precision="fp32") / 257
    floating = irae.restore((damaged / np.float32(255)).astype(np.float32), sigma=25) * 255
    assert np.abs(sixteen - eight).max() <= 0.51
    assert np.abs(floating.clip(0, 255) - eight).max() <= 0.51


def test_grey_is_restored_as_grey(photo: Pixels) -> None:
    grey = photo.mean(2).astype(np.uint8)
    damaged = noisy(grey)
    restored = irae.restore(damaged)
    assert restored.ndim == 2 and psnr(restored, grey) > psnr(damaged, grey) + 5


def test_floats_outside_the_range_are_not_clipped(photo: Pixels) -> None:
    image = (photo / np.float32(255)).astype(np.float32)
    assert irae.restore(image + 2, sigma=5).mean() > 1.5


def test_what_needs_nothing_comes_back_as_a_copy() -> None:
    flat = np.full((64, 64, 3), 90, np.uint8)
    restored = irae.restore(flat)
    assert np.array_equal(restored, flat) and not np.shares_memory(restored, flat)
    with pytest.raises(irae.IraeError, match="bool"):
        irae.restore(flat > 0)


def test_a_path_gives_an_array(photo: Pixels, tmp_path: Path, weights_file: Path) -> None:
    write_image(tmp_path / "x.png", Picture(photo))
    assert np.array_equal(irae.restore(tmp_path / "x.png", model=weights_file), irae.restore(photo, model=weights_file))
    write_image(tmp_path / "alpha.png", Picture(photo, photo[..., 0]))
    assert irae.restore(str(tmp_path / "alpha.png"), model=weights_file).shape == (*photo.shape[:2], 4)


def test_strength_mixes_input_and_result(photo: Pixels, weights_file: Path) -> None:
    restorer = Restorer(model=weights_file, precision="fp32")
    assert np.array_equal(restorer(photo, strength=0), photo)
    full, half = restorer(photo).astype(float), restorer(photo, strength=0.5).astype(float)
    inside = (full > 0) & (full < 255)
    assert np.abs(half - (full + photo) / 2)[inside].max() <= 1


@pytest.mark.parametrize("kind", ["rgb", "grey", "16 bit"])
def test_strength_mixes_where_the_grid_of_a_jpeg_begins_anywhere(
    kind: str, photo: Pixels, task_weights: dict[str, Path]
) -> None:
    image = {"rgb": photo, "grey": photo[..., 0], "16 bit": photo.astype(np.uint16) * 257}[kind]
    restorer = Restorer(model=task_weights["jpeg"], precision="fp32")
    hints = Hints(tables=standard_tables(30, grey=kind == "grey"), grid=(3, 5))
    none, half, full = (restorer(image, hints, strength).astype(float) for strength in (0, 0.5, 1))
    inside = (full > 0) & (full < np.iinfo(image.dtype).max)
    assert np.array_equal(none, image) and not np.array_equal(full, image)
    assert np.abs(half - (full + none) / 2)[inside].max() <= 1
    tripled = restorer(image, hints, 0.5, lambda restored: 3 * restored).astype(float)
    assert tripled.mean() > half.mean() + 10


def test_bf16_is_close_to_float32(photo: Pixels) -> None:
    damaged = noisy(photo)
    low, high = (irae.restore(damaged, precision=precision) for precision in ("bf16", "fp32"))
    assert psnr(low, high) > 45


@pytest.mark.parametrize(("seconds", "expected"), [(0.2, "bf16"), (0.9, "fp32"), (1.7, "fp32")])
def test_auto_takes_bf16_only_where_the_processor_is_faster_at_it(
    monkeypatch: pytest.MonkeyPatch, seconds: float, expected: str
) -> None:
    times = {torch.float32: 1.0, torch.bfloat16: seconds}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    monkeypatch.setattr(restorer_module, "_convolution_times", lambda *dtypes: times)
    monkeypatch.setattr(restorer_module, "_fast_bf16", restorer_module._fast_bf16.__wrapped__)
    assert restorer_module.pick_precision("auto", torch.device("cpu")) == expected


@pytest.mark.parametrize("kind", ["rgb", "grey", "16 bit", "half strength"])
def test_the_rest_gives_the_input_back_bit_for_bit(photo: Pixels, kind: str) -> None:
    damaged = noisy(photo)
    image = {"grey": damaged[..., 1], "16 bit": damaged.astype(np.uint16) * 257 + 3}.get(kind, damaged)
    restorer = Restorer()
    restored, rest = restorer.with_rest(image, Hints(sigma=25), 0.5 if kind == "half strength" else 1)
    assert np.array_equal(restorer.recover(restored, rest), image)
    assert not np.array_equal(restored, image)


def test_a_rest_of_another_image_or_model_is_refused(photo: Pixels, weights_file: Path) -> None:
    restorer = Restorer()
    restored, rest = restorer.with_rest(noisy(photo))
    changed = restored.copy()
    changed[5, 5] ^= 8
    for image in (changed, restored[:-2], restored[..., 0]):
        with pytest.raises(RecoverError):
            restorer.recover(image, rest)
    with pytest.raises(RecoverError, match="other weights"):
        Restorer(model=weights_file).recover(restored, rest)
    for damaged in (
        rest[:1000],
        b"",
        rest.replace(b'"precision"', b'"precisiom"'),
        rest.replace(b"sigma", b"sigmb"),
    ):
        with pytest.raises(RecoverError, match="damaged"):
            restorer.recover(restored, damaged)


def test_the_callers_network_stays_where_it_is(photo: Pixels, weights_file: Path) -> None:
    model = irae.load_model(weights_file)
    irae.restore(photo, model=model)
    assert next(model.parameters()).device.type == "cpu"
    elsewhere = copy.deepcopy(model).to("meta")
    with pytest.raises(NotImplementedError):  # a meta tensor has no data to copy; but it was a copy that was to move
        Restorer(model=elsewhere, device="cpu")
    assert next(elsewhere.parameters()).device.type == "meta"


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"sigma": -3}, "255"),
        ({"sigma": "25"}, "one number"),
        ({"sigma": np.full((4, 4), 25.0)}, "one number"),
        ({"sigma": float("nan")}, "255"),
        ({"task": "denose"}, "denoise"),
        ({"device": "gpu"}, "cuda"),
        ({"precision": "int8"}, "bf16"),
        ({"mask": np.zeros((4, 4), bool)}, "equal"),
        ({"mask": "alpha"}, "transparency"),
        ({"mask": "#12345"}, "colour"),
        ({"task": "inpaint"}, "mask"),
        ({"mask": "alpha", "sigma": 5}, "mask"),
        ({"task": "denoise", "jpeg_quality": 10}, "jpeg"),
        ({"jpeg_quality": 101}, "100"),
        ({"consistent": True}, "JPEG file"),
        ({"model": "none"}, "installed"),
    ],
)
def test_bad_options_are_one_sentence(photo: Pixels, options: dict[str, Any], word: str) -> None:
    with pytest.raises(IraeError, match=word) as caught:
        irae.restore(photo, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4), np.int32),
        np.zeros((4, 4, 5), np.uint8),
        np.zeros((0, 4), np.uint8),
        np.zeros(4, np.uint8),
        np.full((4, 4), np.nan, np.float32),
    ],
    ids=["int32", "five channels", "empty", "one-dimensional", "nan"],
)
def test_bad_arrays_are_one_sentence(image: Pixels, weights_file: Path) -> None:
    with pytest.raises(IraeError):
        irae.restore(image, model=weights_file)


def test_load_model_tells_of_itself() -> None:
    model = irae.load_model("denoise")
    assert model is irae.load_model("denoise")
    assert model.config.task == "denoise" and "denoise" in model.card
    with torch.no_grad():
        assert model.restore(torch.rand(1, 3, 8, 8), torch.zeros(1, 2, 1, 1)).shape == (1, 3, 8, 8)


@pytest.mark.parametrize("model", ["denoise", "denoise-best", "photo-best"])
def test_noise_is_taken_out_up_to_the_border_of_any_size(photo: Pixels, model: str) -> None:
    damaged, clean = noisy(photo)[:112, :152], photo[:105, :145]  # the networks work on multiples of 4 and 8
    whole, part = (irae.restore(image, model=model, precision="fp32") for image in (damaged, damaged[:105, :145]))
    assert psnr(part, clean) > psnr(whole[:105, :145], clean) - 0.1
