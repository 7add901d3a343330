"""Coupling blocks, the subnets inside them, and the registry of all blocks.

A new block is one class with the contract of `reversible.Invertible` and one line in `BLOCKS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from irae.errors import IraeError
from irae.models.lipschitz import LipschitzBlock
from irae.models.ode import HamiltonianBlock, LeapfrogBlock, MidpointBlock
from irae.models.rectifier import RectifierBlock
from irae.models.reversible import AdditiveHalfStep, Chain, Invertible, match_size, required

Entry = TypeVar("Entry")


class Subnet(nn.Module):
    """What subnets share: the condition is added after the first convolution, by a 1x1 convolution of its own.

    It is averaged to the resolution of the stream.
    """

    first: nn.Conv2d
    embed: nn.Conv2d | None

    def enter(self, x: Tensor, cond: Tensor | None) -> Tensor:
        """(N, channels, H, W) and the condition -> (N, hidden, H, W) after the first ReLU."""
        x = self.first(x)
        if self.embed is not None:
            x = x.add_(self.embed(match_size(required(cond), x)))
        return x.relu_()


class PlainSubnet(Subnet):
    """3x3 convolutions with ReLU between them; the last one starts at zero, so that a block starts as the identity.

    Args:
        channels, out: width of the stream read, and of the message.
        hidden: width between.
        cond: condition channels K, 0 for none.
        depth: number of convolutions, at least 2.

    Shape: (N, channels, H, W), condition (N, K, H', W') with H' >= H or (N, K, 1, 1) -> (N, out, H, W).
    """

    def __init__(self, channels: int, out: int, hidden: int, cond: int = 0, depth: int = 3) -> None:
        super().__init__()
        if depth < 2:
            raise ValueError("`depth` is at least 2: a first and a last convolution.")
        self.first = conv3x3(channels, hidden)
        self.middle = nn.ModuleList(conv3x3(hidden, hidden) for _ in range(depth - 2))
        self.last = conv3x3(hidden, out, zero=True)
        self.embed = nn.Conv2d(cond, hidden, 1, bias=False) if cond else None

    def forward(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        x = self.enter(x, cond)
        for convolution in self.middle:
            x = convolution(x).relu_()
        return self.last(x)


class Dip(nn.Module):
    """Down 2x2, through `depth` convolutions at the lower resolution, up again, added to where it left.

    Args:
        hidden: channels.
        depth: convolutions at each lower resolution.
        levels: how often it goes down; below the first level lies another dip.

    Shape: (N, hidden, H, W) -> the same; odd H and W are padded by replication inside.
    """

    def __init__(self, hidden: int, depth: int, levels: int = 1) -> None:
        super().__init__()
        self.down = nn.Conv2d(hidden, hidden, 2, stride=2)
        self.below = Dip(hidden, depth, levels - 1) if levels > 1 else nn.Identity()
        self.middle = nn.ModuleList(conv3x3(hidden, hidden) for _ in range(depth))
        self.up = nn.Conv2d(hidden, 4 * hidden, 1)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        even = F.pad(x, (0, width % 2, 0, height % 2), mode="replicate") if height % 2 or width % 2 else x
        low = self.below(self.down(even).relu_())
        for convolution in self.middle:
            low = convolution(low).relu_()
        return spread(self.up(low))[..., :height, :width].add_(x).relu_()


class USubnet(Subnet):
    """A small U: a convolution, a dip to lower resolutions, a convolution.

    Twice the receptive field of a plain subnet for the same work, more with each level. The subnet of a coupling need
    not be invertible.

    Args: as `PlainSubnet`; `depth` and `levels`: see `Dip`.

    Shape: as `PlainSubnet`.
    """

    def __init__(self, channels: int, out: int, hidden: int, cond: int = 0, depth: int = 2, levels: int = 1) -> None:
        super().__init__()
        if depth < 0 or levels < 1:
            raise ValueError("`depth` is not negative, and `levels` is at least 1.")
        self.first = conv3x3(channels, hidden)
        self.dip = Dip(hidden, depth, levels)
        self.last = conv3x3(hidden, out, zero=True)
        self.embed = nn.Conv2d(cond, hidden, 1, bias=False) if cond else None
        self.grid = 2**levels

    def forward(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.last(self.dip(self.enter(x, cond)))


class KeepsKnown(nn.Module):
    """A subnet whose message is 0 where a pixel of the image is known, so that a coupling leaves that pixel as it is.

    The image lies unshuffled in the first channels of the stream, colour by colour, and the condition is the mask in
    the same order: a channel for each pixel of a tile, 1 where it is known.

    Args:
        net: the subnet; its message holds one or more values for each channel of the stream.
        colours: channels of the image.
        channels: channels of the stream.
    """

    def __init__(self, net: nn.Module, colours: int, channels: int) -> None:
        super().__init__()
        self.net, self.colours, self.channels = net, colours, channels

    def forward(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        missing = 1 - required(cond).repeat(1, self.colours, 1, 1)
        gate = F.pad(missing, (0, 0, 0, 0, 0, self.channels - missing.shape[1]), value=1.0)
        message = self.net(x, cond)
        return message * gate.repeat(1, message.shape[1] // self.channels, 1, 1).to(message.dtype)


def spread(x: Tensor) -> Tensor:
    """(N, 4 C, H, W) -> (N, C, 2 H, 2 W), channels (row, column, C): a pixel shuffle that stays channels_last."""
    n, c, h, w = x.shape
    tiles = x.permute(0, 2, 3, 1).reshape(n, h, w, 2, 2, c // 4)
    return tiles.permute(0, 1, 3, 2, 4, 5).reshape(n, 2 * h, 2 * w, c // 4).permute(0, 3, 1, 2)


SUBNETS: dict[str, Callable[..., nn.Module]] = {"plain": PlainSubnet, "u": USubnet}


class ReadImage(nn.Module):
    """A convolution of the first channels of a stream, where the image lies."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.width = width
        self.convolution = conv3x3(width, channels)

    def forward(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.convolution(x[:, : self.width])


class WriteImage(nn.Module):
    """A convolution to the first channels of a stream, where the image lies; starts at zero."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.more = channels - width
        self.convolution = conv3x3(channels, width, zero=True)

    def forward(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        return F.pad(self.convolution(x), (0, 0, 0, 0, 0, self.more))


def stem(width: int, channels: int, known: int = 0) -> tuple[AdditiveHalfStep, AdditiveHalfStep]:
    """One convolution between the image and the other stream at each end of an autoencoder.

    The first half-step gives the other stream the features of the image, a' = a + K b; the last one moves the image by
    what the features say. After each the streams change places, so that between them the image is the stream that the
    couplings move first.

    Args:
        width: channels of the squeezed image, the first of stream b.
        channels: channels of each stream.
        known: colours of the image whose known pixels stay (`KeepsKnown`), 0 for none.
    """
    write: nn.Module = WriteImage(width, channels)
    if known:
        write = KeepsKnown(write, known, channels)
    return AdditiveHalfStep(ReadImage(width, channels), 0, swap=True), AdditiveHalfStep(write, 0, swap=True)


class AffineHalfStep(AdditiveHalfStep):
    """moving * s(fixed) + t(fixed), with s in (1 / SCALE_LIMIT, SCALE_LIMIT) and 1 where the subnet says 0."""

    SCALE_LIMIT = 2.0

    def apply_message(self, moving: Tensor, message: Tensor) -> Tensor:
        scale, shift = self._scale_shift(message)
        return (moving * scale + shift).to(moving.dtype)

    def apply_message_(self, moving: Tensor, message: Tensor) -> Tensor:
        scale, shift = self._scale_shift(message)
        return moving.mul_(scale).add_(shift)

    def undo_message(self, moved: Tensor, message: Tensor) -> Tensor:
        scale, shift = self._scale_shift(message)
        return ((moved - shift) / scale).to(moved.dtype)

    def _scale_shift(self, message: Tensor) -> tuple[Tensor, Tensor]:
        raw, shift = message.to(torch.promote_types(message.dtype, torch.float32)).chunk(2, dim=1)
        return self.SCALE_LIMIT ** torch.tanh(raw), shift


class AdditiveCoupling(Chain):
    """a' = a + F(b); b' = b + G(a') (NICE, Dinh et al. 2015; RevNet, Gomez et al. 2017, eq. 5 and 6).

    Args:
        channels: channels of each stream.
        cond: condition channels, 0 for none.
        subnet: "plain" or "u" (`SUBNETS`).
        hidden: width inside the subnets, `channels` by default.
        known: colours of the image whose known pixels stay (`KeepsKnown`), 0 for none; the condition is the mask.
        image: the stream that holds that image, 0 for a or 1 for b.
        options: further arguments of the subnet.

    Shape: a and b (N, channels, H, W), any H and W.
    """

    half_step: type[AdditiveHalfStep] = AdditiveHalfStep
    message_channels = 1  # of the message, for each channel of the stream

    def __init__(
        self,
        channels: int,
        cond: int = 0,
        subnet: str = "plain",
        hidden: int | None = None,
        known: int = 0,
        image: int = 1,
        **options: Any,
    ) -> None:
        out, hidden = self.message_channels * channels, hidden or channels
        nets = [lookup(SUBNETS, subnet, "subnet")(channels, out, hidden, cond, **options) for _ in range(2)]
        if known:
            nets[image] = KeepsKnown(nets[image], known, channels)
        super().__init__(self.half_step(net, moves) for moves, net in enumerate(nets))


class AffineCoupling(AdditiveCoupling):
    """a' = a * s(b) + t(b), then the same for b (RealNVP, Dinh et al. 2017, eq. 7); s bounded to (1/2, 2).

    The error of the inverse grows at most by a factor 2 a half-step. Arguments and shapes: `AdditiveCoupling`.
    """

    half_step = AffineHalfStep
    message_channels = 2


BLOCKS: dict[str, Callable[..., Invertible]] = {
    "additive": AdditiveCoupling,
    "affine": AffineCoupling,
    "hamiltonian": HamiltonianBlock,
    "midpoint": MidpointBlock,
    "leapfrog": LeapfrogBlock,
    "rectifier": RectifierBlock,
    "lipschitz": LipschitzBlock,
}


def build_block(name: str, channels: int, **options: Any) -> Invertible:
    """A reversible block by its registered name.

    Args:
        name: a key of `BLOCKS`.
        channels: channels of each of the two streams.
        options: passed to the block's class.

    Raises:
        IraeError: the name is not registered, or its class does not take these options.
    """
    return build(lookup(BLOCKS, name, "block"), f"block {name!r}", channels, **options)


def build(make: Callable[..., Entry], what: str, *arguments: Any, **options: Any) -> Entry:
    """What a class makes of options from a recipe or a file, or an IraeError that says what is wrong with them."""
    try:
        return make(*arguments, **options)
    except IraeError:
        raise
    except (TypeError, ValueError, IndexError, RuntimeError) as error:  # the last are torch's, for sizes below 1
        reason = " ".join(str(error).split()).rstrip(".")
        raise IraeError(f"The {what} does not take these options: {reason}.") from error


def lookup(registry: Mapping[str, Entry], name: str, kind: str) -> Entry:
    """The entry of a registry, or an IraeError that lists the names there are."""
    if name not in registry:
        raise IraeError(f"There is no {kind} named {name!r}; choose one of {', '.join(sorted(registry))}.")
    return registry[name]


def conv3x3(channels: int, out: int, zero: bool = False) -> nn.Conv2d:
    """A 3x3 convolution with zero padding, He-initialised for ReLU, or zero."""
    convolution = nn.Conv2d(channels, out, 3, padding=1)
    if zero:
        nn.init.zeros_(convolution.weight)
    else:
        nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
    assert convolution.bias is not None
    nn.init.zeros_(convolution.bias)
    return convolution
