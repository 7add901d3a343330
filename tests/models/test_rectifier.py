"""Rectifier units: what their parametrisation promises, the verdict on invertibility, inverses of whole images."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from irae.inverse import InverseError
from irae.models.rectifier import RectifierBlock, RectifierUnit, is_invertible
from tests.models.conftest import randomise
from tests.models.test_lipschitz import true_norm


def unit(scale: float, padding: str = "before", channels: int = 4, hidden: int = 3, **options: object) -> RectifierUnit:
    """A convolutional unit in float64 with parameters of this size."""
    torch.manual_seed(0)
    made = RectifierUnit(channels, hidden, 3, padding=padding, **options).double()  # type: ignore[arg-type]
    randomise(made, scale)
    return made


@pytest.mark.parametrize("padding", ["before", "after"])
@pytest.mark.parametrize("scale", [0.02, 0.3, 3.0, 100.0])
def test_constraints_hold_for_every_parameter(padding: str, scale: float) -> None:
    made = unit(scale, padding)
    A, B = made.matrices(7, 8)
    M = B @ A
    eye = torch.eye(len(M), dtype=M.dtype)
    core = torch.kron(made._kernels()[2].detach(), torch.eye(56, dtype=M.dtype))
    assert torch.linalg.eigvalsh(core).min() > -1e-12
    torch.testing.assert_close(core, core.mT)
    assert torch.linalg.matrix_norm(M - core, 2) <= 0.5
    assert torch.linalg.eigvalsh(eye + (M + M.mT) / 2).min() >= 0.5
    with torch.no_grad():
        wide = [true_norm(kernel, 9, 9) for kernel in made.weights()]
    assert wide[0] * wide[1] <= 4


@pytest.mark.parametrize("padding", ["before", "after"])
@pytest.mark.parametrize("scale", [0.02, 0.3, 3.0, 100.0])
@pytest.mark.parametrize("core", [0.01, 1.0])
def test_what_is_added_to_a_semidefinite_core_is_bounded(padding: str, scale: float, core: float) -> None:
    made = unit(scale, padding, limit=1e12)
    with torch.no_grad():
        made.read.mul_(core)
        made.write.mul_(core)
        A, B = made.matrices(7, 8)
        at_pixel = made.diagonal(*made._core())
    torch.testing.assert_close(at_pixel, at_pixel.mT)
    assert torch.linalg.eigvalsh(at_pixel).min() >= -1e-12 * at_pixel.abs().max()
    added = torch.linalg.matrix_norm(B @ A - torch.kron(at_pixel, torch.eye(56, dtype=A.dtype)), 2)
    assert added <= 0.5
    assert added > 0.2 or scale < 0.1  # the bound is used where the weights reach it


@pytest.mark.parametrize("padding", ["before", "after"])
def test_one_side_padding_makes_the_product_triangular_from_pixel_to_pixel(padding: str) -> None:
    made = unit(0.3, padding)
    A, B = made.matrices(5, 4)
    blocks = (B @ A).view(3, 20, 3, 20).transpose(1, 2)  # hidden, hidden, pixel, pixel
    later = torch.ones(20, 20).triu(1) if padding == "before" else torch.ones(20, 20).tril(-1)
    assert (blocks * later).abs().max() == 0
    assert (blocks * later.mT).abs().max() > 0
    at_pixel = blocks.diagonal(dim1=2, dim2=3).permute(2, 0, 1)
    assert torch.allclose(at_pixel, made.diagonal(*made.weights()).expand(20, 3, 3))


def test_unit_is_its_formula_and_its_matrices() -> None:
    made = unit(0.3)
    x = torch.randn(2, 4, 5, 6, dtype=torch.float64)
    A, B = made.matrices(5, 6)
    u = x.flatten(1) @ B.mT + made.bias.repeat_interleave(30)
    torch.testing.assert_close(made(x), (x.flatten(1) + u.relu() @ A.mT).view_as(x))


def test_kernel_of_any_odd_size() -> None:
    torch.manual_seed(0)
    made = RectifierUnit(4, 4, kernel=5).double()
    randomise(made, 0.3)
    x = torch.randn(2, 4, 9, 8, dtype=torch.float64)
    torch.testing.assert_close(made.inverse(made(x)), x)
    with pytest.raises(ValueError, match="odd"):
        RectifierUnit(4, 4, kernel=4)


def test_weights_that_are_not_finite_are_refused() -> None:
    made = RectifierUnit(4, 4, kernel=3)
    made(torch.zeros(1, 4, 5, 5))
    with torch.no_grad():
        made.read.fill_(torch.nan)
    assert bool(made(torch.zeros(1, 4, 5, 5)).isnan().any())  # a training that diverged sees it in its loss
    with pytest.raises(ValueError, match="finite"):
        is_invertible(made)


def test_fully_connected_unit_takes_vectors() -> None:
    torch.manual_seed(0)
    made = RectifierUnit(7, 20).double()
    randomise(made, 1.0)
    x = torch.randn(5, 7, dtype=torch.float64)
    y = made(x)
    assert y.shape == x.shape
    torch.testing.assert_close(made.inverse(y), x)
    assert is_invertible(made).answer
    # The point of the tied part: beyond what Picard inverts, so the constraint is not ||B A|| < 1 in disguise.
    found = {solver: made.invert(y, solver=solver) for solver in ("picard", "absolute_value", "newton", "substitution")}
    assert not bool(found.pop("picard").converged.any())
    for result in found.values():
        assert set(result.answer) == {"the input"}
        torch.testing.assert_close(result.x, x, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-5)])
@pytest.mark.parametrize("scale", [0.24, 2.0])
def test_whole_image_comes_back_where_unbounded_taps_lose_it(
    dtype: torch.dtype, tolerance: float, scale: float
) -> None:
    block = RectifierBlock(2, hidden=4)
    torch.manual_seed(0)
    randomise(block, scale)
    block.to(dtype)
    a, b = torch.randn(2, 1, 2, 64, 64, dtype=dtype)
    with torch.no_grad():
        back = block.inverse(block((a, b)))
    assert max(float((back[0] - a).abs().max()), float((back[1] - b).abs().max())) < tolerance


def test_unit_can_take_noise_away() -> None:
    """A unit that can only expand, as with B0 A0 positive semidefinite, leaves it or makes it more."""
    torch.manual_seed(0)
    made = RectifierUnit(4, 16, 3)
    optimiser = torch.optim.Adam(made.parameters(), lr=1e-2)
    for _ in range(100):
        left = made(torch.randn(4, 4, 8, 8)).square().mean()
        optimiser.zero_grad()
        left.backward()
        optimiser.step()
    assert float(left.detach()) < 0.6
    x = torch.randn(1, 4, 8, 8)
    torch.testing.assert_close(made.inverse(made(x).detach()), x, rtol=1e-5, atol=1e-5)


def test_algebraic_condition_alone_is_no_usable_inverse() -> None:
    """B0 A0 = 0 and He's weights: invertible at every size, and lost to rounding at 64 x 64."""
    made = unit(0.4, channels=4, hidden=4, free=True)
    with torch.no_grad():
        made.A_taps[2:, :, -1, -1] = 0
        made.B_taps[:, :2, -1, -1] = 0
        assert float(made.diagonal(*made.weights()).abs().max()) == 0
    assert is_invertible(made).answer
    errors, answers = [], []
    for size in (4, 64):
        x = torch.randn(1, 4, size, size, dtype=torch.float64)
        found = made.invert(made(x).detach())
        errors.append(float((found.x - x).abs().max()))
        answers.append(found.answer[0])
    assert errors[0] < 1e-8
    assert errors[1] > 1
    # The residual is small all the same: only the condition tells.
    assert bool(found.converged)
    sooner = made.invert(made(x).detach(), condition=False)
    assert torch.equal(sooner.x, found.x)
    assert bool(sooner.condition.isnan())
    assert answers == ["the input", "ill conditioned"]
    with pytest.raises(InverseError):
        made.inverse(made(x).detach())


def test_condition_of_the_inverse_does_not_grow_with_the_image() -> None:
    """The worst error growth, from the matrix of the inverse's derivative, against the promise 1 + 4 / (1 - 0.5)."""
    made = unit(1.0, channels=4, hidden=4)
    growth = []
    for size in (2, 6, 12):
        A, B = made.matrices(size, size)
        x = torch.randn(4 * size * size, dtype=torch.float64)
        active = (B @ x + made.bias.detach().repeat_interleave(size * size) > 0).double()
        jacobian = torch.eye(len(x), dtype=torch.float64) + (A * active) @ B
        growth.append(1 / float(torch.linalg.svdvals(jacobian).min()))
    assert max(growth) < 9
    assert growth[2] < 1.5 * growth[1]


def test_verdict_on_small_matrices() -> None:
    eye = torch.eye(2)
    assert is_invertible((0.5 * eye, eye)).answer is True
    assert is_invertible((9.0 * eye, eye)).answer is True
    assert is_invertible((-2.0 * eye, eye)).answer is False
    # A P-matrix without any of the cheap conditions: unit lower triangular with a large entry.
    assert is_invertible((torch.tensor([[0.0, 0.0], [9.0, 0.0]]), eye)).answer is True
    # Triangular in no order, with positive minors, and not definite.
    cyclic = torch.tensor([[0.0, 3.0, 0.0], [0.0, 0.0, 3.0], [3.0, 0.0, 0.0]])
    assert is_invertible((cyclic, torch.eye(3))).answer is True
    assert is_invertible((-cyclic, torch.eye(3))).answer is False  # det(I + M) = 1 - 27


def test_more_hidden_units_than_inputs_need_no_p_matrix() -> None:
    """y = x - 0.8 relu(x - 1) + 0.8 relu(-x - 1) is monotone, and det(I + B A) = -0.6."""
    A, B = torch.tensor([[-0.8, 0.8]]), torch.tensor([[1.0], [-1.0]])
    verdict = is_invertible((A, B))
    assert verdict.answer is None
    assert "rank" in verdict.reason
    x = torch.linspace(-5, 5, 101)
    y = x - 0.8 * (x - 1).relu() + 0.8 * (-x - 1).relu()
    assert bool((y.diff() > 0).all())


def test_large_unit_without_a_sufficient_condition_is_not_known() -> None:
    torch.manual_seed(0)
    verdict = is_invertible((torch.randn(40, 40), torch.randn(40, 40)))
    assert verdict.answer is None
    assert "40" in verdict.reason


def test_verdict_on_convolutions() -> None:
    assert is_invertible(unit(1.0)).answer is True
    assert is_invertible(RectifierBlock(4)).answer is True
    assert is_invertible(unit(0.02, "both", free=True)).answer is True  # by the norms
    assert is_invertible(unit(1.0, "both", free=True)).answer is None
    made = unit(1.0, free=True)
    with torch.no_grad():
        made.A_taps[:, :, -1, -1] = -2 * torch.linalg.pinv(made.B_taps[:, :, -1, -1])
    assert is_invertible(made).answer is False
    with pytest.raises(ValueError, match="rectifier"):
        is_invertible(torch.nn.Linear(2, 2))


def test_non_p_convolution_maps_two_inputs_to_one_output() -> None:
    """I + B0 A0 = -1: the unit is y = x - 2 relu(x) at the first pixel, whatever its other taps are."""
    made = unit(0.3, channels=1, hidden=1, free=True)
    with torch.no_grad():
        made.bias.zero_()
        made.A_taps[:, :, -1, -1], made.B_taps[:, :, -1, -1] = -2.0, 1.0
    assert is_invertible(made).answer is False
    size = 3
    A, B = made.matrices(size, size)
    # Each pixel's own problem has the solutions z and -z for a negative right side: choose other ones pixel by pixel.
    x = torch.zeros(size * size, dtype=torch.float64)
    x[-1] = 1.0
    other = x.clone()
    other[-1] = -1.0
    outputs = [made(candidate.view(1, 1, size, size)) for candidate in (x, other)]
    torch.testing.assert_close(outputs[0], outputs[1])
    assert A.shape == B.shape == (9, 9)
    # Handed to the inverse: never "the input", and the strict one says so or gives a preimage.
    found = made.invert(outputs[0].detach())
    assert found.answer[0] in ("a preimage", "not found")
    assert found.certificate == ("unknown",)


def test_condition_shifts_the_hidden_units() -> None:
    made = unit(0.5, cond=2)
    x, cond = torch.randn(1, 4, 6, 6, dtype=torch.float64), torch.rand(1, 2, 12, 12, dtype=torch.float64)
    with torch.no_grad():
        y = made(x, cond)
        assert float((y - made(x, 0 * cond)).abs().max()) > 1e-3
        torch.testing.assert_close(made.inverse(y, cond), x)
        shift = made.embed(F.avg_pool2d(cond, 2)) + made.bias[:, None, None]  # type: ignore[misc]
        torch.testing.assert_close(made.shift(x, cond), shift)
        with pytest.raises(ValueError, match="cond"):
            made(x)


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="free"):
        RectifierUnit(4, 4, 3, padding="both")
    with pytest.raises(ValueError, match="off_limit"):
        RectifierUnit(4, 4, 3, off_limit=1.0)
    with pytest.raises(ValueError, match="two channels"):
        RectifierUnit(1, 4, 3)
    made, x = unit(0.3), torch.randn(1, 4, 5, 5, dtype=torch.float64)
    with pytest.raises(ValueError, match="solver"):
        made.invert(x, solver="bisection")
    with pytest.raises(ValueError, match="finite"):
        made.inverse(x * torch.nan)
    with pytest.raises(ValueError, match="solver"):
        unit(0.1, "both", free=True).invert(x, solver="substitution")
    with pytest.raises(ValueError, match="A is"):
        is_invertible((torch.ones(2, 3), torch.ones(2, 3)))
