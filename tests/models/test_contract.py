"""The one contract that every invertible part keeps (`irae.models.reversible`)."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from irae.errors import IraeError
from irae.models.blocks import BLOCKS, build_block
from irae.models.irae import IRAE, IRAEConfig, RecoverError
from irae.models.resample import RESAMPLERS, OrthogonalMixing
from irae.models.reversible import Chain, Invertible
from tests.models.conftest import CHANNELS, PARTS, random_condition, random_state, randomise


@pytest.mark.parametrize("name", PARTS)
@settings(max_examples=8, deadline=None)
@given(height=st.integers(1, 3), width=st.integers(1, 3), seed=st.integers(0, 2**31))
def test_inverse_and_forward_undo_each_other(name: str, height: int, width: int, seed: int) -> None:
    torch.manual_seed(seed)
    part = PARTS[name]()
    randomise(part)
    part.double()
    factor = getattr(part, "factor", 1)
    # Resampling parts need multiples of their factor; all others are tested on odd sizes too.
    size = (factor * height, factor * width) if factor > 1 else (2 * height + 1, 2 * width)
    state, cond = random_state(*size, seed=seed), random_condition(*size)
    with torch.no_grad():
        after = part(state, cond)
        assert_close(part.inverse(after, cond), state)
        if factor == 1:
            assert_close(part(part.inverse(state, cond), cond), state)


def test_float32_round_trip(part: Invertible) -> None:
    part.float()
    a, b = random_state(16, 24)
    state, cond = (a.float(), b.float()), random_condition(16, 24).float()
    with torch.no_grad():
        back = part.inverse(part(state, cond), cond)
    assert_close(back, state, tolerance=1e-5)


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e-6])
def test_any_state_has_an_input_whatever_its_size(name: str, dtype: torch.dtype, scale: float) -> None:
    """States are compared in their own precision: rounding is that of the larger of the two."""
    torch.manual_seed(0)
    block = build_block(name, 4).to(dtype)
    with torch.no_grad():
        for parameter in block.parameters():  # nothing but these two bounds what others make of larger weights
            parameter.add_(torch.randn_like(parameter), alpha=1.0 if name in ("lipschitz", "rectifier") else 0.2)
        a, b = (scale * stream[:, :4].to(dtype) for stream in random_state(6, 5))
        before = block.inverse((a, b))
        again = block(before)
    size = max(float(stream.abs().max()) for stream in (*before, a, b))
    for mine, theirs in zip(again, (a, b), strict=True):
        assert float((mine - theirs).abs().max()) <= 200 * torch.finfo(dtype).eps * size


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_couplings_keep_half_precision(dtype: torch.dtype) -> None:
    for name in ("additive", "affine"):
        block = build_block(name, 4).to(dtype)
        state = tuple(stream[:, :4].to(dtype) for stream in random_state(6, 5))
        for result in (block(state), block.inverse(state)):
            assert [stream.dtype for stream in result] == [dtype, dtype]


def test_black_image_comes_back(part: Invertible) -> None:
    """And the other sample of its batch with it: a relative error of nothing is no reason to give up."""
    state, cond = random_state(8, 8), random_condition(8, 8)
    for stream in state:
        stream[0] = 0
    with torch.no_grad():
        assert_close(part.inverse(part(state, cond), cond), state)


def test_part_is_not_the_identity(part: Invertible) -> None:
    state, cond = random_state(8, 8), random_condition(8, 8)
    after = part(state, cond)
    assert (
        after[0].shape != state[0].shape or (after[0] - state[0]).abs().max() + (after[1] - state[1]).abs().max() > 1e-3
    )


def test_jacobian_has_full_rank(part: Invertible) -> None:
    size = getattr(part, "factor", 1) if getattr(part, "factor", 1) > 2 else 2
    state, cond = random_state(size, size, batch=1), random_condition(size, size, batch=1)

    def flat(x: torch.Tensor) -> torch.Tensor:
        a, b = x.view(2, *state[0].shape)
        return torch.cat([stream.flatten() for stream in part((a, b), cond)])

    x = torch.cat([stream.flatten() for stream in state])
    jacobian = torch.autograd.functional.jacobian(flat, x)
    assert jacobian.shape[0] == jacobian.shape[1]
    assert torch.linalg.matrix_rank(jacobian) == len(x)


def test_memory_free_gradients_equal_autograds(part: Invertible) -> None:
    state, cond = random_state(8, 8), random_condition(8, 8)
    plain = gradients(Chain([copy.deepcopy(part)], memory_free=False), state, cond)
    free = gradients(Chain([copy.deepcopy(part)], memory_free=True), state, cond)
    for expected, actual in zip(plain, free, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", [name for name in PARTS if name not in RESAMPLERS])
def test_memory_free_gradients_under_autocast(name: str) -> None:
    torch.manual_seed(0)
    chain = Chain([PARTS[name](), OrthogonalMixing(CHANNELS), PARTS[name]()])
    randomise(chain)
    a, b = random_state(16, 16)
    state, cond = (a.float(), b.float()), random_condition(16, 16).float()
    chain.memory_free = False
    exact, results = gradients(chain, state, cond), {}
    for chain.memory_free in (False, True):
        results[chain.memory_free] = gradients(chain, state, cond, autocast=True)
        with torch.autocast("cpu", torch.bfloat16):
            assert_close(chain.inverse(chain(state, cond), cond), state, tolerance=0.05)
    iterative = any(step.iterative for step in chain)
    for plain, free, reference in zip(results[False], results[True], exact, strict=True):
        # A rebuilt input differs in the last float32 bit, which bf16 rounding may turn into one of its own steps.
        noise = relative_error(plain, reference)
        assert relative_error(free, plain) <= max(2 * noise, 1e-3)
        # Autocast was on; parts whose inverse iterates left it out, and so does the mixing.
        assert noise < 1e-5 if iterative or name == "orthogonal mixing" else True
    if not iterative and name != "orthogonal mixing":
        assert any(relative_error(plain, reference) > 0 for plain, reference in zip(results[False], exact, strict=True))


@pytest.mark.parametrize("name", BLOCKS)
def test_memory_free_gradients_of_shared_and_frozen_parts(name: str) -> None:
    """A block that comes twice, one whose first parameter is frozen, and streams in channels_last."""
    torch.manual_seed(0)
    twice, frozen = (build_block(name, CHANNELS, cond=2) for _ in range(2))
    chain = Chain([twice, frozen, twice]).double()
    randomise(chain)
    next(frozen.parameters()).requires_grad_(False)
    a, b = (stream.to(memory_format=torch.channels_last) for stream in random_state(8, 8))
    found = []
    for chain.memory_free in (False, True):
        found.append(gradients(chain, (a, b), random_condition(8, 8)))
    for expected, actual in zip(*found, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("frozen", [False, True])
def test_a_parameter_changed_before_the_backward_is_noticed(frozen: bool) -> None:
    chain = Chain([build_block("additive", CHANNELS)], memory_free=True)
    parameter = next(chain.parameters()).requires_grad_(not frozen)
    a, b = chain(tuple(stream.float().requires_grad_() for stream in random_state(8, 8)))
    with torch.no_grad():
        parameter.add_(0.05)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (a.sum() + b.sum()).backward()


def test_parameters_exchanged_before_the_backward_are_noticed() -> None:
    chain = Chain([build_block("additive", CHANNELS)], memory_free=True)
    state = tuple(stream.float() for stream in random_state(8, 8))
    others = {name: parameter.detach().clone().requires_grad_() for name, parameter in chain.named_parameters()}
    a, b = torch.func.functional_call(chain, others, (state,))
    with pytest.raises(RuntimeError, match="other parameters"):
        (a.sum() + b.sum()).backward()


def test_a_chain_that_cannot_be_rebuilt_gives_no_wrong_gradients() -> None:
    """The weights magnify rounding errors beyond the input; autograd without the rebuilding does not mind."""
    torch.manual_seed(0)
    chain = Chain([build_block("affine", CHANNELS) for _ in range(12)], memory_free=True)
    for parameter in chain.parameters():
        torch.nn.init.normal_(parameter, 0, 0.3)
    state = tuple(stream.float().requires_grad_() for stream in random_state(8, 8))
    a, b = chain(state)
    with pytest.raises(RuntimeError, match="memory_free=False"):
        (a.sum() + b.sum()).backward()
    chain.memory_free = False
    a, b = chain(state)
    (a.sum() + b.sum()).backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in chain.parameters())


def test_hooks_see_what_they_see_without_rebuilding() -> None:
    """Those of a parameter once, with the whole gradient; those of saved tensors may give copies back."""
    found = []
    for memory_free in (False, True):
        torch.manual_seed(0)
        block = build_block("additive", CHANNELS)
        chain = Chain([block, block], memory_free=memory_free)
        randomise(chain)
        parameter, seen = next(chain.parameters()), list[torch.Tensor]()
        parameter.register_hook(lambda grad, seen=seen: (seen.append(grad), 2 * grad)[1])
        state = tuple(stream.float().requires_grad_() for stream in random_state(8, 8))
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor.clone(), lambda tensor: tensor.clone()):
            a, b = chain(state)
        (a.square().sum() + b.sum()).backward()
        assert parameter.grad is not None and len(seen) == 1
        torch.testing.assert_close(parameter.grad, 2 * seen[0])
        found.append(parameter.grad)
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", BLOCKS)
def test_backward_keeps_no_activation_of_the_blocks(name: str) -> None:
    def saved(blocks: int, memory_free: bool) -> int:
        torch.manual_seed(0)
        chain = Chain([build_block(name, 6) for _ in range(blocks)], memory_free=memory_free)
        own = {parameter.data_ptr() for parameter in chain.parameters()}
        total = 0

        def count(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal total
            total += 0 if tensor.data_ptr() in own else tensor.numel()
            return tensor

        a, b = random_state(16, 16)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            chain((a.float().requires_grad_(), b.float().requires_grad_()))
        return total

    assert saved(8, memory_free=True) == saved(256, memory_free=True)
    assert saved(16, memory_free=False) > 4 * saved(16, memory_free=True)


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("channels", [(14,), (14, 10)])
def test_irae_gives_its_input_back(name: str, channels: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model = IRAE(IRAEConfig(block=name, channels=channels, blocks=(2,) * len(channels))).eval()
    randomise(model)
    images, cond = torch.rand(2, 3, 19, 22), torch.rand(2, 2, 19, 22)
    with torch.no_grad():
        restored, rest = model.restore_with_rest(images, cond)
        back = model.recover(restored, rest, cond)
        assert float((restored - images).abs().max()) > 1e-2
        assert float((back - images).abs().max()) < 1e-4
        with pytest.raises(RecoverError):
            model.recover(restored, rest, cond.flip(-1))


def test_unknown_block_lists_the_registered_ones() -> None:
    with pytest.raises(ValueError, match="additive"):
        build_block("addtive", 8)


@pytest.mark.parametrize(
    "options",
    [{"hidden": -3}, {"depth": 1}, {"depth": -5}, {"subnet": "u", "levels": 0}, {"colour": 1}],
)
def test_options_that_cannot_be_are_one_sentence(options: dict[str, Any]) -> None:
    with pytest.raises(IraeError, match="does not take these options"):
        build_block("additive", 8, **options)
    for name, option in (("midpoint", {"step": -1.0}), ("lipschitz", {"limit": 1.5}), ("rectifier", {"kernel": 2})):
        with pytest.raises(IraeError, match="does not take these options"):
            build_block(name, 8, **option)


def gradients(
    part: Invertible, state: tuple[torch.Tensor, torch.Tensor], cond: torch.Tensor, autocast: bool = False
) -> list[torch.Tensor]:
    """Gradients of a fixed loss: of the state, the condition and the parameters; zeros where there is none."""
    inputs = [tensor.detach().clone().requires_grad_() for tensor in (*state, cond)]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        a, b = part((inputs[0], inputs[1]), inputs[2])
    weight = torch.linspace(-1, 2, a.numel(), dtype=a.dtype).view(a.shape)
    loss = (weight * a).sum() + (b * b).sum()
    wanted = [*inputs, *(parameter for parameter in part.parameters() if parameter.requires_grad)]
    found = torch.autograd.grad(loss, wanted, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(wanted, found, strict=True)]


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual - expected).norm() / expected.norm().clamp_min(1e-12))


def assert_close(
    actual: tuple[torch.Tensor, torch.Tensor], expected: tuple[torch.Tensor, torch.Tensor], tolerance: float = 1e-12
) -> None:
    scale = max(float(stream.abs().max()) for stream in expected)
    for mine, theirs in zip(actual, expected, strict=True):
        assert mine.shape == theirs.shape
        assert float((mine - theirs).abs().max()) <= tolerance * max(scale, 1)
