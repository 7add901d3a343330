"""The autoencoder: what comes back, what the rest holds, what is refused."""

from __future__ import annotations

import copy

import pytest
import torch

from irae.models.blocks import BLOCKS
from irae.models.irae import IRAE, IRAEConfig, Lift, RecoverError, Rest
from irae.models.resample import RESAMPLERS
from irae.weights import load_model
from tests.conftest import random_model

CONFIGS = {
    "one level": IRAEConfig(channels=(16,), blocks=(2,)),
    "small U subnets": IRAEConfig(channels=(16,), block_options={"subnet": "u"}),
    "three levels": IRAEConfig(channels=(16, 24, 20), blocks=(1, 1, 2), mixing=True),
    "affine": IRAEConfig(channels=(12,), block="affine"),
    "bijective": IRAEConfig(channels=(6,), blocks=(3,), block="affine", lifted=False),
    "Haar lift": IRAEConfig(channels=(16, 32), blocks=(1, 1), lift="haar", squeeze="unshuffle"),
    "stem": IRAEConfig(channels=(16,), stem=True),
    "stem on two levels": IRAEConfig(channels=(16, 24), blocks=(1, 1), stem=True, block="affine"),
    "DCT lift": IRAEConfig(channels=(192,), lift="dct", block_options={"hidden": 16}),
}


@pytest.fixture(params=CONFIGS)
def model(request: pytest.FixtureRequest) -> IRAE:
    return random_model(CONFIGS[request.param])


def images(height: int, width: int, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return (
        torch.rand(batch, 3, height, width, generator=generator),
        torch.rand(batch, 2, 1, 1, generator=generator),
    )


@pytest.mark.parametrize("size", [(32, 48), (37, 51), (1, 1), (3, 50)])
def test_recover_gives_the_input_back(model: IRAE, size: tuple[int, int]) -> None:
    y, cond = images(*size)
    with torch.no_grad():
        x, rest = model.restore_with_rest(y, cond)
        assert torch.equal(x, model.restore(y, cond))
        assert (model.recover(x, rest, cond) - y).abs().max() < 0.01 / 255
    assert (x - y).abs().max() > 1 / 255  # something happened


@pytest.mark.parametrize("block", ["additive", "affine"])
@pytest.mark.parametrize("stem", [True, False])
def test_known_pixels_stay_and_holes_come_back(block: str, stem: bool) -> None:
    options = {"subnet": "u", "levels": 2}
    config = IRAEConfig("inpaint", block, options, channels=(16,), blocks=(2,), cond=1, keep_known=True, stem=stem)
    model, (y, _) = random_model(config), images(37, 51)
    known = (torch.rand(2, 1, 37, 51, generator=torch.Generator().manual_seed(1)) < 0.6).float()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        low = model.restore(y, known)
    with torch.no_grad():
        x, rest = model.restore_with_rest(y, known)
        assert (model.recover(x, rest, known) - y).abs().max() < 0.01 / 255
    here = known.expand_as(y) == 1
    assert torch.equal(x[here], y[here]) and torch.equal(low[here], y[here])
    assert ((x - y)[~here].abs() > 1e-4).float().mean() > 0.9


def test_decode_of_encode_is_restore(model: IRAE) -> None:
    y, cond = images(33, 20)
    with torch.no_grad():
        code = model.encode(y, cond)
        assert torch.equal(model.decode(code, cond), model.restore(y, cond))
    assert code.size == (33, 20) and len(code.skips) == len(model.config.channels) - 1


def test_image_and_rest_hold_the_elements_of_the_lifted_state(model: IRAE) -> None:
    y, cond = images(37, 51)
    with torch.no_grad():
        x, rest = model.restore_with_rest(y, cond)
    multiple = model.size_multiple
    padded = (-(-37 // multiple) * multiple) * (-(-51 // multiple) * multiple)
    lifted = 2 * model.config.channels[0] * padded // model.lift.squeeze.factor**2
    assert x.numel() + rest.extra.numel() + rest.border.numel() == len(y) * lifted


def test_the_bijective_network_leaves_no_rest_but_the_border() -> None:
    model = random_model(CONFIGS["bijective"])
    y, cond = images(32, 32)
    with torch.no_grad():
        _, rest = model.restore_with_rest(y, cond)
    assert rest.extra.numel() == rest.border.numel() == 0


def test_gradients_of_the_memory_free_network_equal_autograds(model: IRAE) -> None:
    grads = []
    for memory_free in (True, False):
        net = IRAE(model.config, memory_free=memory_free)
        net.load_state_dict(model.state_dict())
        net.double()
        y, _ = images(24, 40)
        cond = torch.rand(2, 2, 24, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        y, cond = y.double().requires_grad_(), cond.requires_grad_()
        net(y, cond).pow(3).sum().backward()
        grads.append([y.grad, cond.grad, *(p.grad for p in net.parameters() if p.grad is not None)])
    for free, plain in zip(*grads, strict=True):
        torch.testing.assert_close(free, plain, rtol=1e-7, atol=1e-9)


def test_another_condition_is_detected() -> None:
    model = random_model(CONFIGS["one level"])
    y, cond = images(32, 32)
    with torch.no_grad():
        x, rest = model.restore_with_rest(y, cond)
        with pytest.raises(RecoverError, match="condition"):
            model.recover(x, rest, cond + 0.1)
        with pytest.raises(RecoverError, match="another"):
            model.recover(x + 0.1, rest, cond)


def test_another_precision_is_refused() -> None:
    model = random_model(CONFIGS["one level"])
    y, cond = images(32, 32)
    with torch.no_grad():
        x, rest = model.restore_with_rest(y, cond)
        with torch.autocast("cpu", torch.bfloat16), pytest.raises(RecoverError, match=r"float32.*bfloat16"):
            model.recover(x, rest, cond)


def test_another_size_or_model_is_refused() -> None:
    model, other = random_model(CONFIGS["one level"]), random_model(CONFIGS["affine"])
    y, cond = images(32, 32)
    with torch.no_grad():
        x, rest = model.restore_with_rest(y, cond)
        for net, image in ((model, x[..., :30]), (other, x)):
            with pytest.raises(RecoverError, match="another size or to another model"):
                net.recover(image, rest, cond)
        with pytest.raises(RecoverError):
            model.recover(x, Rest(rest.extra * torch.nan, rest.border, rest.settings), cond)


@pytest.mark.parametrize("squeeze", RESAMPLERS)
def test_lift_is_injective_and_notices_what_it_did_not_make(squeeze: str) -> None:
    lift = Lift(RESAMPLERS[squeeze](), image_channels=3, channels=200)
    y = torch.rand(1, 3, 16, 16)
    state = lift(y)
    torch.testing.assert_close(lift.inverse(state), y)
    with pytest.raises(RecoverError):
        lift.inverse((state[0] + 0.01, state[1]))


def test_odd_sizes_do_not_need_padding_by_the_caller() -> None:
    model = random_model(CONFIGS["three levels"])
    y, cond = images(37, 51)
    assert model(y, cond).shape == y.shape


@pytest.mark.parametrize(
    "wrong",
    [
        {"channels": (8,)},
        {"channels": (16, 16), "blocks": (1,)},
        {"lift": "wavelet"},
        {"lifted": False, "channels": (16,)},
        {"block": "addtive"},
        {"block": "leapfrog", "stem": True},
    ],
)
def test_a_configuration_that_cannot_be_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        IRAE(IRAEConfig(**wrong))  # type: ignore[arg-type]


@pytest.mark.parametrize("block", BLOCKS)
def test_every_registered_block_works_in_an_irae(block: str) -> None:
    model = random_model(IRAEConfig(channels=(12,), blocks=(2,), block=block))
    y, cond = images(12, 16, batch=1)
    with torch.no_grad():
        x, rest = model.restore_with_rest(y, cond)
        assert (model.recover(x, rest, cond) - y).abs().max() < 0.05 / 255


def test_shipped_weights_recover_odd_sizes_and_have_true_gradients() -> None:
    shipped = load_model("denoise")
    y, _ = images(61, 43, batch=1)
    cond = torch.tensor([25 / 255, 1.0]).view(1, 2, 1, 1)
    with torch.no_grad():
        x, rest = shipped.restore_with_rest(y, cond)
        assert (shipped.recover(x, rest, cond) - y).abs().max() < 0.01 / 255
    grads = []
    for memory_free in (True, False):
        net = copy.deepcopy(shipped).requires_grad_()
        for chain in (*net.encoder, *net.decoder):
            chain.memory_free = memory_free
        net(y, cond).square().sum().backward()
        grads.append(torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None]))
    assert (grads[0] - grads[1]).norm() < 1e-4 * grads[1].norm()
