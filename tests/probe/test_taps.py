"""Taps: names, whole cuts, and networks left as they were."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from irae.conditions import noise_condition
from irae.models.baselines import BASELINES, BaselineConfig, build_network
from irae.models.irae import IRAE, IRAEConfig
from irae.probe.inverse import recovery
from irae.probe.taps import Cut, ProbeError, TappedIRAE, tapped

COND = noise_condition(25)
CONFIGS = [
    IRAEConfig(channels=(16,), stem=True, block_options={"hidden": 8}),
    IRAEConfig(channels=(12, 24), blocks=(1, 2), mixing=True, block_options={"hidden": 8}),
    IRAEConfig(channels=(12,), block="leapfrog"),
]
OPTIONS = {"dncnn": {"depth": 4, "width": 8}, "ffdnet": {"depth": 4, "width": 8}, "unet": {"channels": (8, 8, 8)}}


def randomised(model: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval().requires_grad_(False)


def baseline(name: str) -> nn.Module:
    options = OPTIONS.get(name, {"channels": 16, "stem": True} if name == "twin" else {})
    return randomised(build_network(BaselineConfig(name, options=options)))


@pytest.fixture
def y() -> Tensor:
    return (torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 255).round() / 255


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: f"{config.block}{config.channels}")
def test_irae_taps(config: IRAEConfig, y: Tensor) -> None:
    model = randomised(IRAE(config))
    network = tapped(model, COND, y)
    assert isinstance(network, TappedIRAE)
    assert torch.equal(network.cut(y, "output").bare, model.restore(y, COND))
    elements = 2 * config.channels[0] * 8 * 8 * 2  # of both streams together, at every layer, skips included
    for name in network.names[1:-1]:
        assert sum(part.numel() for part in network.cut(y, name).whole) == elements, name
    found = dict(recovery(network, y))
    assert list(found) == list(network.names[1:-1])
    assert all(one.levels == 0 and one.largest < 0.1 for one in found.values())


def test_recovery_notices_a_changed_layer(y: Tensor) -> None:
    network = TappedIRAE(randomised(IRAE(CONFIGS[0])), COND)
    name, stack = list(network.stacks(y))[-1]
    assert (network.recover((stack[0], stack[1] + 0.02), name) - y).abs().max() > 1 / 255


@pytest.mark.parametrize("name", BASELINES)
def test_baseline_taps(name: str, y: Tensor) -> None:
    model = baseline(name)
    expected = model(y, COND)
    network = tapped(model, COND, y)
    seen = list[str]()
    network.run(y, lambda layer, cut: seen.append(layer))
    assert tuple(seen) == network.names  # in order, each once
    assert torch.equal(network.cut(y, "output").bare, expected)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_cuts_hold_what_waits(y: Tensor) -> None:
    dncnn, unet = (tapped(baseline(name), COND, y) for name in ("dncnn", "unet"))
    assert torch.equal(dncnn.cut(y, "layer 2").also[0], y)
    assert not tapped(baseline("ffdnet"), COND, y).cut(y, "layer 2").also
    bottom = unet.cut(y, "down 3")
    assert [part.shape[-1] for part in bottom.whole] == [4, 16, 8, 16]  # itself, two skips, the input
    assert torch.equal(bottom.also[0], unet.cut(y, "down 1").bare)
    assert len(unet.cut(y, "up 1").whole) == 2


def test_the_cut_is_enough(y: Tensor) -> None:
    """From the bottom of a U-Net on, the output depends on its cut alone."""
    model = baseline("unet")
    cut = tapped(model, COND, y).cut(y, "down 3")
    x, (first, second, image) = cut.bare, cut.also
    for up, join, skip in zip(reversed(model.up), reversed(model.join), (second, first), strict=True):
        x = join(torch.cat((skip, up(x)), 1))
    assert torch.allclose(image + model.last(x), model(y, COND), atol=1e-6)


def test_anyones_network(y: Tensor) -> None:
    shared = nn.ReLU()
    network = tapped(nn.Sequential(nn.Conv2d(3, 4, 1), shared, nn.Conv2d(4, 3, 1), shared), None, y)
    assert network.names == ("input", "Conv2d 0", "Conv2d 2", "output")  # the ReLU runs twice
    assert not network.whole


def test_layers_by_name(y: Tensor) -> None:
    network = tapped(baseline("dncnn"), COND, y)
    assert network.choose() == ("input", "layer 1", "layer 2", "layer 3", "layer 4", "output")
    assert network.choose(most=3) == ("input", "layer 2", "output")
    assert network.choose(most=1) == ("output",)
    assert network.choose(["layer 2.convolution"]) == ("layer 2.convolution",)
    with pytest.raises(ProbeError, match=r"no layer 'layr 3'; did you mean 'layer 3'"):
        network.choose(["layr 3"])


def test_an_inplace_activation_does_not_reach_the_copy(y: Tensor) -> None:
    convolution = nn.Conv2d(3, 3, 1)
    network = tapped(nn.Sequential(convolution, nn.ReLU(inplace=True)), None, y)
    cut: Cut = network.cut(y, "Conv2d 0")
    assert (cut.bare < 0).any()


def test_a_network_that_changes_its_input_changes_it_for_nobody_else(y: Tensor) -> None:
    class Shifts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution = nn.Conv2d(3, 3, 1)

        def forward(self, image: Tensor) -> Tensor:
            image.sub_(0.5)
            return self.convolution(image)

    before = y.clone()
    network = tapped(Shifts().requires_grad_(False), None, y)
    first, second = (network.cut(y, "Conv2d convolution").bare for _ in range(2))
    assert torch.equal(y, before) and torch.equal(first, second)


def test_a_network_that_gives_no_images_is_refused(y: Tensor) -> None:
    class Pair(nn.Module):
        def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
            return image, image

    with pytest.raises(ProbeError, match="gives no images"):
        tapped(Pair(), None, y)
