"""Degradations: as strong as they say, and the same every time."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from irae.degrade import (
    NOISES,
    CameraNoise,
    GaussianNoise,
    PoissonGaussianNoise,
    VaryingNoise,
    as_rgb,
    from_pixels,
    generator_for,
    to_8bit,
    to_pixels,
)
from irae.metrics import psnr
from tests.test_restorer import Pixels


def grey(value: float = 0.5, channels: int = 3) -> torch.Tensor:
    return torch.full((channels, 200, 200), value)


@pytest.mark.parametrize("name", NOISES)
def test_noise_is_as_strong_as_reported_and_repeats(name: str) -> None:
    noise = NOISES[name].draw(20.0, generator_for("draw"))
    degraded = noise(grey(), generator_for("image"))
    again = noise(grey(), generator_for("image"))
    other = noise(grey(), generator_for("another"))
    assert torch.equal(degraded.image, again.image) and not torch.equal(degraded.image, other.image)
    measured = 255 * (degraded.image - grey()).square().mean().sqrt()
    assert measured == pytest.approx(float(degraded.sigma.square().mean().sqrt()), rel=0.02)
    assert measured == pytest.approx(20, rel=0.6)


def test_gaussian_noise_is_neither_clipped_nor_rounded() -> None:
    image = GaussianNoise(50)(grey(1.0), generator_for("x")).image
    assert image.max() > 1.2 and to_8bit(image).max() == 1
    assert not torch.equal(to_8bit(image), image)


def test_shot_noise_grows_with_the_light() -> None:
    noise = PoissonGaussianNoise(gain=2, read=1)
    for value in (0.1, 0.5, 0.9):
        spread = 255 * (noise(grey(value), generator_for("x")).image - value).std()
        assert spread == pytest.approx((2 * 255 * value + 1) ** 0.5, rel=0.03)


def test_varying_noise_varies_within_its_bounds() -> None:
    sigma = VaryingNoise(5, 40)(grey(), generator_for("x")).sigma
    assert 5 <= sigma.min() < 20 and 25 < sigma.max() <= 40


def test_grey_becomes_three_equal_channels() -> None:
    assert as_rgb(torch.rand(1, 4, 5)).shape == (3, 4, 5)
    assert as_rgb(torch.rand(2, 3, 4, 5)).shape == (2, 3, 4, 5)


@pytest.mark.parametrize("edges", [False, True])
@pytest.mark.parametrize("phase", [(0, 0), (3, 6), (15, 1)])
def test_a_camera_without_noise_shows_the_image(photo: Pixels, edges: bool, phase: tuple[int, int]) -> None:
    clean = from_pixels(photo)
    camera = replace(CameraNoise.draw(0, generator_for("x")), phase=phase, edges=edges, quality=98)
    colour = torch.tensor([0.8, 0.4, 0.1]).view(3, 1, 1).expand(3, 40, 50)
    assert (camera(colour, generator_for("x")).image - colour).abs().max() < 0.02
    plain = replace(camera, sharpening=0.0)(clean, generator_for("x"))
    assert psnr(to_pixels(plain.image), photo) > 30
    assert plain.target is not None and torch.equal(plain.target, clean)
    sharper = replace(camera, sharpening=0.5)(clean, generator_for("x")).target
    assert sharper is not None and sharper.diff().abs().mean() > 1.1 * clean.diff().abs().mean()


def test_camera_noise_is_correlated_between_pixels_and_channels() -> None:
    def correlation(first: torch.Tensor, second: torch.Tensor) -> float:
        return float(torch.corrcoef(torch.stack((first.flatten(), second.flatten())))[0, 1])

    camera = replace(CameraNoise.draw(20, generator_for("x")), sharpening=0.0)
    noise = camera(grey(), generator_for("x")).image - 0.5
    assert correlation(noise[..., 1:], noise[..., :-1]) > 0.2
    assert correlation(noise[0], noise[1]) > 0.2
