"""Blocks from differential equations: adjoints, the stability bounds, deep chains, and where chains start."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F

from irae.models.irae import IRAE, IRAEConfig, RecoverError
from irae.models.ode import (
    HamiltonianBlock,
    LeapfrogBlock,
    MidpointBlock,
    TiedConvolution,
)
from irae.models.reversible import Chain, HalfStep, Invertible
from tests.models.conftest import randomise
from tests.models.test_lipschitz import true_norm

BLOCKS: dict[str, Callable[..., Invertible]] = {
    "hamiltonian": HamiltonianBlock,
    "midpoint": MidpointBlock,
    "leapfrog": LeapfrogBlock,
}


def images(seed: int = 0) -> torch.Tensor:
    return torch.randn(1, 4, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_formulas() -> None:
    """The blocks against their equations, written with the matrix of the convolution and its transpose."""
    torch.manual_seed(0)
    a, b = torch.randn(2, 1, 2, 5, 5, dtype=torch.float64)
    hamiltonian, leapfrog, midpoint = (
        HamiltonianBlock(2, hidden=3).double(),
        LeapfrogBlock(2, hidden=3).double(),
        MidpointBlock(2).double(),
    )
    for block in (hamiltonian, leapfrog, midpoint):
        randomise(block, 0.1)

    def matrix(kernel: torch.Tensor) -> torch.Tensor:
        basis = torch.eye(50, dtype=torch.float64).view(50, 2, 5, 5)
        return F.conv2d(basis, kernel, padding=1).flatten(1).mT

    def force(net: TiedConvolution, x: torch.Tensor) -> torch.Tensor:
        K = matrix(net.kernel())
        return (K.mT @ net.activation(K @ x.flatten() + net.bias.repeat_interleave(25))).view_as(x)

    steps = list(hamiltonian)
    new_a = a + 0.25 * force(steps[0].net, b)
    torch.testing.assert_close(hamiltonian((a, b)), (new_a, b - 0.25 * force(steps[1].net, new_a)))
    torch.testing.assert_close(leapfrog((a, b)), (b, 2 * b - a - 0.25 * force(leapfrog.net, b)))
    K = matrix(midpoint.net.weight)
    torch.testing.assert_close(matrix(midpoint.net.kernel()), K - K.mT)
    turned = torch.tanh((K - K.mT) @ b.flatten() + midpoint.net.bias.repeat_interleave(25)).view_as(b)
    torch.testing.assert_close(midpoint((a, b)), (b, a + 0.5 * turned))


@pytest.mark.parametrize("scale", [0.05, 1.0, 100.0])
@pytest.mark.parametrize("step", [0.1, 1.0])
def test_stability_bounds_hold_for_every_parameter(scale: float, step: float) -> None:
    torch.manual_seed(0)
    blocks = {name: make(3, step=step).double() for name, make in BLOCKS.items()}
    norms = {}
    for name, block in blocks.items():
        randomise(block, scale)
        nets = [module for module in block.modules() if isinstance(module, TiedConvolution)]
        norms[name] = [true_norm(net.kernel().detach(), 12, 12) for net in nets]
    (k1, k2), (midpoint,), (leapfrog,) = norms["hamiltonian"], norms["midpoint"], norms["leapfrog"]
    assert step**2 * k1**2 * k2**2 < 4
    assert step * midpoint <= 1
    assert step**2 * leapfrog**2 < 4
    if scale == 100:  # the bounds are not far off either
        assert min(step * k1**2, step * midpoint, step**2 * leapfrog**2) > 0.75


@pytest.mark.parametrize("name", BLOCKS)
def test_long_chain_of_one_large_block_stays_bounded(name: str) -> None:
    torch.manual_seed(0)
    block = BLOCKS[name](4, activation="tanh").double()
    randomise(block, 3.0)
    for module in block.modules():
        if isinstance(module, TiedConvolution):
            torch.nn.init.zeros_(module.bias)
    start = images() * 1e-6  # so small that tanh is linear: the worst case for stability
    state, largest = (start, start), 0.0
    with torch.no_grad():
        for _ in range(500):
            state = block(state)
            largest = max(largest, float(state[1].norm() / start.norm()))
        assert largest < 3
        for _ in range(500):
            state = block.inverse(state)
    assert float((state[1] - start).norm() / start.norm()) < 1e-9


@pytest.mark.parametrize("name", BLOCKS)
def test_chain_without_the_bound_blows_up(name: str) -> None:
    """So that the test before this one tests something: the same blocks with the bound ten times as wide."""
    torch.manual_seed(0)
    block = BLOCKS[name](4, activation="tanh").double()
    randomise(block, 3.0)
    for module in block.modules():
        if isinstance(module, TiedConvolution):
            torch.nn.init.zeros_(module.bias)
            module.limit *= 10
    start = images() * 1e-6
    state = start, start
    with torch.no_grad():
        for _ in range(20):
            state = block(state)
    assert float(state[1].norm() / start.norm()) > 100


@pytest.mark.parametrize("name", BLOCKS)
def test_deep_chain_of_different_blocks_is_inverted(name: str) -> None:
    torch.manual_seed(0)
    blocks = [BLOCKS[name](4) for _ in range(128)]
    for block in blocks:
        randomise(block, 0.1)
    chain, x = Chain(blocks).double(), images()
    with torch.no_grad():
        after = chain((x, x))
        back = chain.inverse(after)
    assert float(after[1].norm() / x.norm()) < 30
    assert max(float((back[0] - x).abs().max()), float((back[1] - x).abs().max())) < 1e-9


def test_two_step_chain_from_equal_streams_has_no_velocity() -> None:
    """With next to no force leapfrog keeps a state that starts at rest, and drifts off from one that does not."""
    torch.manual_seed(0)
    chain, x = Chain(LeapfrogBlock(4, step=1e-4) for _ in range(32)).double(), images()
    with torch.no_grad():
        resting, drifting = chain((x, x))[1], chain((torch.zeros_like(x), x))[1]
    assert float((resting - x).norm() / x.norm()) < 1e-3
    assert float(drifting.norm() / x.norm()) > 30


def test_swap_of_a_half_step_changes_where_the_streams_come_out_only() -> None:
    torch.manual_seed(0)
    plain, swapped = MidpointBlock(4).double(), MidpointBlock(4).double()
    swapped.load_state_dict(plain.state_dict())
    plain.lands = plain.moves
    a, b = images(0), images(1)
    assert isinstance(swapped, HalfStep)
    assert all(map(torch.equal, swapped((a, b)), plain((a, b))[::-1]))
    torch.testing.assert_close(swapped.inverse((b, a)), plain.inverse((a, b)))


def test_subnet_is_evaluated_once_in_the_memory_free_backward() -> None:
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    for make in BLOCKS.values():
        chain = Chain([make(4), make(4)], memory_free=True)
        nets = [module for module in chain.modules() if isinstance(module, TiedConvolution)]
        for net in nets:
            net.register_forward_hook(count)
        a, b = chain((images().float(), images().float()))
        calls = 0
        (a.sum() + (b * b).sum()).backward()
        assert calls == len(nets)


@pytest.mark.parametrize("name", BLOCKS)
def test_irae_starts_both_streams_from_the_image_and_checks_both(name: str) -> None:
    torch.manual_seed(0)
    model = IRAE(IRAEConfig(block=name, channels=(14,), cond=0))
    y = torch.rand(1, 3, 8, 8)
    a, b = model.lift(y)
    assert torch.equal(a, b)
    assert torch.equal(b[:, :12], F.pixel_unshuffle(y, 2))
    assert torch.equal(model.lift.inverse((a, b)), y)
    for channel in (0, 13):  # the copy of the image, and a channel of zeros
        wrong = a.clone()
        wrong[:, channel] += 0.01
        with pytest.raises(RecoverError):
            model.lift.inverse((wrong, b))


def test_bad_options_say_what_to_do() -> None:
    with pytest.raises(ValueError, match="hidden"):
        MidpointBlock(4, hidden=8)
    with pytest.raises(ValueError, match="tanh"):
        LeapfrogBlock(4, activation="gelu")
    for make in BLOCKS.values():
        with pytest.raises(ValueError, match="positive"):
            make(4, step=0.0)
    with pytest.raises(ValueError, match="cond"):
        HamiltonianBlock(4, cond=2)((images().float(), images().float()))
