"""The Jacobian spectrum, the decoder and the self-test's cases against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from irae.conditions import noise_condition
from irae.models.irae import IRAE, IRAEConfig
from irae.probe.jacobian import grams, local, local_by_trace, spectral_sums
from irae.probe.patches import Cosines, PrincipalComponents, cut_patches
from irae.probe.reconstruction import component_information
from irae.probe.selftest import FINE, SIGMA, Outcome, White, _decoder, _inverse, _jacobian, layers
from irae.probe.taps import HookedNetwork, ProbeError, tapped


@pytest.mark.parametrize("name", layers())
def test_jacobian_of_layers(name: str) -> None:
    for outcome in _jacobian(name, 0):
        assert outcome.passed, outcome


def test_clean_and_noisy_by_the_closed_form() -> None:
    """T = diag(g) (X + noise) read through sigma, X with variances v: both curves channel by channel."""
    gains, variances = torch.tensor([1.0, 0.01, 30.0]).double(), torch.tensor([4.0, 1.0, 0.25]).double()
    noise, sigma = 0.5, 0.1
    found = local(torch.diag(gains**2), variances, noise, sigma)
    read, blur = gains**2 * (variances + noise**2), gains**2 * noise**2 + sigma**2
    assert found.input_bits == pytest.approx(float((1 + read / sigma**2).log2().sum() / 2))
    assert found.clean_bits == pytest.approx(float((1 + gains**2 * variances / blur).log2().sum() / 2))
    assert found.lost == 1 and found.energy == pytest.approx(1 / 5.25)


def test_gram_of_a_network_is_that_of_autograd() -> None:
    torch.manual_seed(0)
    model = IRAE(IRAEConfig(channels=(12,), block_options={"hidden": 8})).eval().requires_grad_(False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    y, network = torch.rand(1, 3, 4, 4), tapped(model, noise_condition(25), torch.zeros(1, 3, 4, 4))
    jacobian = torch.autograd.functional.jacobian(lambda z: network.cut(z, "encoder block 1.a").bare, y).reshape(-1, 48)
    bare, whole = grams(network, y[0], White(3, 4, 4), ["encoder block 1.a"])["encoder block 1.a"]
    assert torch.allclose(bare.float(), jacobian.T @ jacobian, atol=1e-4)
    assert (whole - bare).diagonal().sum() > 1  # the other stream


def test_matrix_free_agrees_with_exact() -> None:
    """On variances over ten decades, as natural patches have them; the mean of 16 draws."""
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(3, 3, 3, padding=1, bias=False).requires_grad_(False)
    network, prior = HookedNetwork(layer, layer, ()), White(3, 8, 8)
    prior.variances = torch.logspace(2, -8, 192, dtype=torch.float64)
    y = torch.rand(3, 8, 8)
    exact = local(grams(network, y, prior, ["output"])["output"][1], prior.variances, 0.05, 0.01)
    draws = local_by_trace(network, y.expand(16, -1, -1, -1).contiguous(), prior, "output", False, 0.05, 0.01, 30, 0)
    for key, tolerance in (("input_bits", 0.03), ("clean_bits", 0.03), ("lost", 0.05)):
        mean = np.mean([getattr(one, key) for one in draws])
        assert mean == pytest.approx(getattr(exact, key), rel=tolerance), key


def test_lanczos_is_exact_in_as_many_steps_as_dimensions() -> None:
    matrix = torch.diag(torch.arange(1.0, 7).double())
    start = torch.ones(1, 6, dtype=torch.float64)
    (logs,) = spectral_sums(lambda v: v @ matrix, start, [torch.log], 6)
    assert float(logs) == pytest.approx(np.log(720))


@pytest.mark.parametrize("kind", [PrincipalComponents, Cosines])
def test_priors_are_orthonormal(kind) -> None:
    patches = torch.rand(300, 3, 8, 8).cumsum(-1)
    prior = kind(patches)
    coefficients = prior.analyse(patches)
    assert torch.allclose(prior.synthesise(coefficients), patches, atol=1e-4)
    assert torch.allclose(coefficients.double().var(0), prior.variances, rtol=1e-2, atol=1e-4)


def test_information_by_components_of_correlated_pixels() -> None:
    """AR(1) pixels through white noise: 1/2 log2(variance / error) by pixel overstates, by components it does not."""
    torch.manual_seed(0)
    place = torch.arange(64)
    covariance = 0.95 ** (place[:, None] - place).abs()
    x = torch.randn(8000, 64) @ torch.linalg.cholesky(covariance).T
    t = x + 0.3 * torch.randn_like(x)
    gain = covariance @ torch.linalg.inv(covariance + 0.09 * torch.eye(64))
    truth = float(torch.linalg.slogdet(torch.eye(64) + covariance / 0.09)[1]) / 2 / np.log(2)
    images, best = x.view(-1, 1, 8, 8), (t @ gain.T).view(-1, 1, 8, 8)
    found = component_information(images, best, PrincipalComponents(images))
    assert found.bits == pytest.approx(truth, rel=0.03)
    assert found.interval and found.interval[0] < found.bits < found.interval[1]
    by_pixel = component_information(images, best, White(1, 8, 8))
    assert by_pixel.bits > 1.5 * truth


def test_decoder_and_inverse() -> None:
    for name, sigma in (("half of the channels dropped", SIGMA), ("orthogonal mixing", FINE)):
        (decoded,) = _decoder(name, sigma, 0)
        assert decoded.passed, decoded
    assert _inverse(0)[0].passed


def test_an_outcome_outside_fails() -> None:
    assert not Outcome("", "", 1.2, 1.0, 0.1).passed
    assert not Outcome("", "", 0.2, 1.0, 0.1, lower=True).passed
    assert not Outcome("", "", float("nan"), 1.0, 0.1).passed
    assert Outcome("", "", 0.5, 1.0, 0.1, lower=True).passed


def test_patches_that_do_not_fit() -> None:
    with pytest.raises(ProbeError, match="32 x 32"):
        cut_patches([torch.zeros(3, 20, 40)], 32, 4, 0)
