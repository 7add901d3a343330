"""The norm bound of convolutions, and the Lipschitz block: bounded for every parameter, and honest when it fails."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from irae.inverse import InverseError
from irae.models import lipschitz
from irae.models.lipschitz import LipschitzBlock, NormBound, conv_norm_bound
from tests.models.conftest import random_state, randomise


def true_norm(weight: torch.Tensor, height: int, width: int) -> float:
    """The largest singular value of the zero-padded convolution as a matrix."""
    columns = weight.shape[1] * height * width
    basis = torch.eye(columns, dtype=weight.dtype).view(columns, -1, height, width)
    return float(torch.linalg.matrix_norm(F.conv2d(basis, weight, padding="same").flatten(1), 2))


@pytest.mark.parametrize("shape", [(2, 2, 3, 3), (3, 1, 3, 3), (2, 4, 1, 1), (1, 2, 5, 5), (2, 2, 3, 1)])
@pytest.mark.parametrize("seed", range(3))
def test_bound_is_above_the_true_norm_at_every_size_and_near_it(shape: tuple[int, ...], seed: int) -> None:
    torch.manual_seed(seed)
    weight = torch.randn(shape, dtype=torch.float64)
    norms = [true_norm(weight, *size) for size in ((4, 4), (8, 8), (8, 13), (16, 16))]
    for grid in (16, 64):
        assert max(norms) <= float(conv_norm_bound(weight, grid=grid))
    # What is left: 1 % between frequencies, 2 % of the Schatten norm, and what larger images would add.
    assert float(conv_norm_bound(weight, grid=64)) < 1.08 * norms[-1]
    assert norms[0] <= norms[1] <= norms[-1]


def test_bound_is_the_supremum_over_image_sizes_where_that_is_known() -> None:
    # All taps 1: the symbol at frequency 0 is 9, which no image reaches; the reshaped matrix says 3.
    weight = torch.ones(1, 1, 3, 3)
    assert 9 <= float(conv_norm_bound(weight, grid=64)) < 9.1
    assert true_norm(weight, 8, 8) < true_norm(weight, 32, 32) < 9
    assert float(torch.linalg.matrix_norm(weight.flatten(1), 2)) == pytest.approx(3)


def test_bound_holds_between_the_frequencies_of_its_grid() -> None:
    # The worst case: the maximum lies halfway between two frequencies of a grid of 8.
    angle = torch.tensor(torch.pi / 8)
    weight = torch.tensor([angle.cos(), 0.0, angle.cos()]) + torch.tensor([angle.sin(), 0.0, -angle.sin()])
    weight = weight.view(1, 1, 1, 3)
    fine = float(torch.fft.fft(weight.flatten(), 4096).abs().max())
    assert fine <= float(conv_norm_bound(weight, grid=8))


def test_bound_is_differentiable_and_a_zero_kernel_has_a_gradient_too() -> None:
    torch.manual_seed(0)
    weight = torch.randn(2, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(conv_norm_bound, (weight,))
    zero = torch.zeros(2, 3, 3, 3, requires_grad=True)
    norm = conv_norm_bound(zero)
    assert float(norm.detach()) < 1e-6
    assert torch.autograd.grad(norm, zero)[0].isfinite().all()


def test_remembered_frequency_follows_the_kernel() -> None:
    torch.manual_seed(0)
    bound, weight = NormBound(), torch.randn(3, 3, 3, 3)
    for _ in range(4):
        assert float(bound(weight)) == float(bound(weight)) == float(conv_norm_bound(weight))
        weight.data.copy_(torch.randn(3, 3, 3, 3))  # behind autograd's back


@pytest.mark.parametrize("sizes", [(3, 3), (1, 1), (1, 5)])
def test_a_drifting_kernel_keeps_its_bound(sizes: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    bound, weight, looked_at = NormBound(), torch.randn(12, 12, *sizes), list[int]()
    spectrum = lipschitz._spectrum
    monkeypatch.setattr(
        lipschitz, "_spectrum", lambda w, at, grids: looked_at.append(len(at)) or spectrum(w, at, grids)
    )
    for step in range(60):
        value = float(bound(weight))
        looked_at_by_bound = looked_at[:]
        assert value == pytest.approx(float(conv_norm_bound(weight)), rel=1e-5)
        looked_at[:] = looked_at_by_bound
        weight = weight + (0.5 if step % 20 == 19 else 0.003) * torch.randn_like(weight)
    if sizes == (3, 3):
        assert 3 <= looked_at.count(max(looked_at)) < 30  # all frequencies, in fewer than half of the calls


def test_too_coarse_a_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="frequencies"):
        conv_norm_bound(torch.ones(1, 1, 9, 9))


@pytest.mark.parametrize("scale", [0.01, 0.3, 10.0])
def test_lipschitz_constant_is_bounded_for_every_parameter(scale: float) -> None:
    torch.manual_seed(0)
    block = LipschitzBlock(2).double()
    randomise(block, scale)
    first, last = block.weights()
    assert true_norm(first.detach(), 10, 12) * true_norm(last.detach(), 10, 12) <= 0.9
    x = torch.randn(1, 4, 10, 12, dtype=torch.float64)
    with torch.no_grad():
        g = block.branch(x, None)
        near = x + 1e-3 * torch.randn_like(x)
        assert float((g(near) - g(x)).norm()) <= 0.9 * float((near - x).norm())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-5)])
def test_inverse_reaches_the_precision_of_the_dtype_at_the_limit(dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    block = LipschitzBlock(6, limit=0.99).to(dtype)
    randomise(block, 1.0)
    a, b = random_state(32, 32)
    a, b = a.to(dtype), b.to(dtype)
    with torch.no_grad():
        back = block.inverse(block((a, b)))
    assert max(float((back[0] - a).abs().max()), float((back[1] - b).abs().max())) < tolerance


def test_values_that_are_not_finite_are_an_error() -> None:
    block, state = LipschitzBlock(6), random_state(4, 4)
    with pytest.raises(InverseError):
        block.double().inverse((state[0], state[1] * torch.nan))
    with pytest.raises(ValueError, match="between 0 and 1"):
        LipschitzBlock(6, limit=1.0)
