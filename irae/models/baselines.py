"""Networks to compare with, as in their papers, which have no inverse; and what builds any network.

A new baseline is one class with `forward(y, cond) -> image` and one line in `BASELINES`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from irae.errors import IraeError
from irae.models.blocks import SUBNETS, KeepsKnown, ReadImage, WriteImage, build, conv3x3, lookup
from irae.models.irae import IRAE, IRAEConfig
from irae.models.resample import Unshuffle, pad_image
from irae.models.reversible import check_condition, required


@dataclass(frozen=True)
class BaselineConfig:
    """All that builds a baseline; stored in the header of its weights.

    Attributes:
        network: a name registered in `BASELINES`.
        task: what the weights are for: "denoise", "photo", "jpeg" or "inpaint".
        cond: condition channels of the task, see `IRAEConfig`; a blind network is given them too, and leaves them.
        options: further arguments of the network's class (depth, width ...).
        init: of all convolutions but transposed ones: a name in `INITS`; by default, and of transposed ones always,
            that of the network's class.
    """

    network: str
    task: str = "denoise"
    cond: int = 2
    options: dict[str, Any] = field(default_factory=dict)
    init: str = ""
    image_channels: ClassVar[int] = 3

    def __post_init__(self) -> None:
        lookup(BASELINES, self.network, "network")
        if self.init:
            lookup(INITS, self.init, "initialisation")

    def to_dict(self) -> dict[str, Any]:
        """A dictionary of plain values that `BaselineConfig(**...)` reads."""
        return asdict(self)


class Baseline(nn.Module):
    """A network that restores an image and keeps nothing else.

    Shape:
        images: (N, 3, H, W), any H and W, nominally in [0, 1], the result not clipped.
        cond: (N, config.cond, H, W) or (N, config.cond, 1, 1), as for `IRAE`.
    """

    config: BaselineConfig
    size_multiple = 1
    card: str = ""  # what its weights' card says, where they were loaded from a file
    digest: str = ""  # of those weights

    def padded(self, image: Tensor) -> Tensor:
        """The image padded to a multiple of `size_multiple`."""
        height, width = image.shape[-2:]
        return pad_image(image, -height % self.size_multiple, -width % self.size_multiple, self.config.task)

    def halved(self, cond: Tensor, y: Tensor) -> Tensor:
        """The condition of an image at half its resolution.

        Raises:
            ValueError: it is of another size than the image.
        """
        check_condition(cond, (y.shape[-2], y.shape[-1]))
        return cond if cond.shape[-2:] == (1, 1) else F.avg_pool2d(self.padded(cond), 2)


class DnCNN(Baseline):
    """Convolutions with batch normalisation that predict the noise (Zhang et al., "Beyond a Gaussian denoiser", IEEE
    TIP 2017, section III): blind, so the condition is not read.

    Args:
        depth: convolutions: 17 for one noise level, 20 in the blind colour network (CDnCNN-B) and in DnCNN-3.
        width: channels between.
    """

    def __init__(self, cond: int = 0, depth: int = 20, width: int = 64) -> None:
        super().__init__()
        self.body = plain_body(3, 3, depth, width, norm=True)

    def forward(self, y: Tensor, cond: Tensor | None = None) -> Tensor:
        return y + self.body(y)


class FFDNet(Baseline):
    """A denoiser at half resolution that reads a noise level map and predicts the image (Zhang et al., "FFDNet: toward
    a fast and flexible solution for CNN based image denoising", IEEE TIP 2018, section III-A).

    Of the condition it reads the noise level alone; it does not work blind.

    Args:
        depth, width: convolutions and channels between: 12 and 96 in colour.
        norm: batch normalisation between them, as in the paper; its released weights have it merged, and the authors'
            later PyTorch code trains without.
    """

    size_multiple = 2

    def __init__(self, cond: int = 2, depth: int = 12, width: int = 96, norm: bool = True) -> None:
        super().__init__()
        self.body = plain_body(4 * 3 + 1, 4 * 3, depth, width, norm)

    def forward(self, y: Tensor, cond: Tensor | None = None) -> Tensor:
        small = F.pixel_unshuffle(self.padded(y), 2)
        level = self.halved(required(cond)[:, :1], y).expand(len(y), 1, *small.shape[-2:])
        return crop_as(F.pixel_shuffle(self.body(torch.cat((small, level.to(small.dtype)), 1)), 2), y)


class ARCNN(Baseline):
    """Four convolutions against JPEG artefacts (Dong et al., "Compression artifacts reduction by a deep convolutional
    network", ICCV 2015, section 3): features 9x9, enhancement 7x7, mapping 1x1, reconstruction 5x5. Blind.

    The paper restores luma alone and crops at each convolution; here RGB, padded with zeros.
    """

    def __init__(self, cond: int = 0) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 64, 9, padding=4),
            nn.ReLU(inplace=True),
            nn.Conv2d(64, 32, 7, padding=3),
            nn.ReLU(inplace=True),
            nn.Conv2d(32, 16, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(16, 3, 5, padding=2),
        )

    def forward(self, y: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.body(y)


class UNet(Baseline):
    """A U with skips (Ronneberger et al., "U-Net", MICCAI 2015, section 2), padded with zeros so that nothing is
    cropped; it reads image and condition and predicts the difference to the image, as is usual in restoration.

    Args:
        channels: of each level, from the image down.
    """

    def __init__(self, cond: int = 0, channels: tuple[int, ...] = (32, 64, 96, 128)) -> None:
        super().__init__()
        self.cond, self.size_multiple = cond, 2 ** (len(channels) - 1)
        pairs = list(pairwise(channels))
        self.first = twice_conv3x3(3 + cond, channels[0])
        self.down = nn.ModuleList(twice_conv3x3(wide, deep) for wide, deep in pairs)
        self.up = nn.ModuleList(nn.ConvTranspose2d(deep, wide, 2, stride=2) for wide, deep in pairs)
        self.join = nn.ModuleList(twice_conv3x3(2 * wide, wide) for wide, _ in pairs)
        self.last = nn.Conv2d(channels[0], 3, 1)

    def forward(self, y: Tensor, cond: Tensor | None = None) -> Tensor:
        x = y
        if self.cond:
            x = torch.cat((y, required(cond).to(y.dtype).expand(len(y), -1, *y.shape[-2:])), 1)
        x, skips = self.first(self.padded(x)), []
        for down in self.down:
            skips.append(x)
            x = down(F.max_pool2d(x, 2))
        for up, join, skip in reversed(list(zip(self.up, self.join, skips, strict=True))):
            x = join(torch.cat((skip, up(x)), 1))
        return y + crop_as(self.last(x), y)


class Twin(Baseline):
    """The subnets of an additive IRAE in a plain residual chain: one stream, x <- x + F(x), which has no inverse.

    As many parameters and as much work as the IRAE of the same configuration.

    Args:
        channels, subnet, stem: as in `IRAEConfig` and its `block_options`; one scale.
        blocks: in each half of the IRAE; the twin has four subnets for each.
        hidden: width inside the subnets, `channels` by default.
        keep_known: the condition is the mask of known pixels, and these come out as they went in.
        options: further arguments of the subnet.
    """

    size_multiple = 2

    def __init__(
        self,
        cond: int = 2,
        channels: int = 64,
        blocks: int = 1,
        subnet: str = "plain",
        hidden: int | None = None,
        stem: bool = False,
        keep_known: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        if keep_known and not stem:
            raise IraeError("Known pixels are kept by a twin with a stem only.")
        self.channels, self.squeeze, self.keep_known = channels, Unshuffle(), keep_known
        width, cond = 12, 4 * cond if keep_known else cond
        make = lookup(SUBNETS, subnet, "subnet")
        read, write = (ReadImage(width, channels), WriteImage(width, channels)) if stem else (None, None)
        self.read = read
        self.subnets = nn.ModuleList(
            make(channels, channels, hidden or channels, cond, **options) for _ in range(4 * blocks)
        )
        self.write = KeepsKnown(write, 3, channels) if write and keep_known else write

    @classmethod
    def like(cls, config: IRAEConfig) -> Twin:
        """The twin of an IRAE of one scale with additive couplings."""
        (channels,), (blocks,) = config.channels, config.blocks
        own = {"channels": channels, "blocks": blocks, "stem": config.stem, "keep_known": config.keep_known}
        twin = build_network(BaselineConfig("twin", config.task, config.cond, {**own, **config.block_options}))
        assert isinstance(twin, cls)
        return twin

    def forward(self, y: Tensor, cond: Tensor | None = None) -> Tensor:
        squeezed = self.squeeze.squeeze(self.padded(y))
        image = F.pad(squeezed, (0, 0, 0, 0, 0, self.channels - squeezed.shape[1]))
        image = image.contiguous(memory_format=torch.channels_last)
        if cond is not None:
            cond = self._unshuffled(cond) if self.keep_known else self.halved(cond, y)
        x = image if self.read is None else self.read(image)
        for subnet in self.subnets:
            x = x + subnet(x, cond)
        x = x if self.write is None else image + self.write(x, cond)
        return crop_as(self.squeeze.unsqueeze(x[:, : squeezed.shape[1]]), y)

    def _unshuffled(self, known: Tensor) -> Tensor:
        """The mask of known pixels (N, 1, H, W) or (N, 1, 1, 1), a channel for each pixel of a tile of 2 x 2."""
        everywhere = known.shape[-2:] == (1, 1)
        return known.repeat(1, 4, 1, 1) if everywhere else self.squeeze.squeeze(self.padded(known))


BASELINES: dict[str, Callable[..., Baseline]] = {
    "dncnn": DnCNN,
    "ffdnet": FFDNet,
    "arcnn": ARCNN,
    "unet": UNet,
    "twin": Twin,
}

INITS: dict[str, Callable[[Tensor], Tensor]] = {
    "he": partial(nn.init.kaiming_normal_, nonlinearity="relu"),  # He et al. 2015: DnCNN, U-Net
    "orthogonal": nn.init.orthogonal_,  # Saxe et al. 2014: FFDNet
    "gaussian": partial(nn.init.normal_, std=1e-3),  # ARCNN
    "residual": partial(nn.init.kaiming_normal_, nonlinearity="relu"),  # ours: and 0 in the last convolution
}

Config = IRAEConfig | BaselineConfig
Network = IRAE | Baseline


def config_class(values: dict[str, Any]) -> type[Config]:
    """The class of a configuration of these values: a baseline's one names its network."""
    return BaselineConfig if "network" in values else IRAEConfig


def build_network(config: Config, memory_free: bool = False) -> Network:
    """The network of a configuration, its weights drawn anew.

    Raises:
        IraeError: an option that the network does not take.
    """
    if isinstance(config, IRAEConfig):
        return IRAE(config, memory_free)
    network = build(BASELINES[config.network], f"network {config.network!r}", config.cond, **config.options)
    network.config = config
    if config.init:
        initialise([module for module in network.modules() if isinstance(module, nn.Conv2d)], config.init)
    return network


def initialise(convolutions: Sequence[nn.Conv2d], init: str) -> None:
    """Draw the weights of convolutions, given in order; biases become 0.

    "residual" leaves the last one at 0, so that a network that predicts the difference starts as the identity.
    """
    for convolution in convolutions:
        INITS[init](convolution.weight)
        if convolution.bias is not None:
            nn.init.zeros_(convolution.bias)
    if init == "residual":
        nn.init.zeros_(convolutions[-1].weight)


def plain_body(channels: int, out: int, depth: int, width: int, norm: bool) -> nn.Sequential:
    """`depth` 3x3 convolutions with ReLU between; with `norm`, batch normalisation before each ReLU but the first."""
    if depth < 2:
        raise ValueError("`depth` is at least 2: a first and a last convolution.")
    layers: list[nn.Module] = [conv3x3(channels, width), nn.ReLU(inplace=True)]
    for _ in range(depth - 2):
        layers.append(conv3x3(width, width))
        if norm:
            layers.append(nn.BatchNorm2d(width))
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers, conv3x3(width, out))


def twice_conv3x3(channels: int, out: int) -> nn.Sequential:
    """Two 3x3 convolutions, each followed by ReLU."""
    return nn.Sequential(conv3x3(channels, out), nn.ReLU(inplace=True), conv3x3(out, out), nn.ReLU(inplace=True))


def crop_as(image: Tensor, like: Tensor) -> Tensor:
    """The part of a padded image that lies where `like` was."""
    return image[..., : like.shape[-2], : like.shape[-1]]
