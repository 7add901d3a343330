"""IRAE, the Invertible Restoring Autoencoder: an invertible encoder, a code, an invertible decoder.

After Liu et al., "Are Deep Neural Architectures Losing Information? Invertibility Is Indispensable", ICONIP 2020. The
image stream carries the input to the output, so the blocks learn the residual; what is not the image at the end is the
rest, from which the input comes back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from irae.errors import IraeError
from irae.models.blocks import BLOCKS, USubnet, build_block, lookup, stem
from irae.models.resample import RESAMPLERS, OrthogonalMixing, Resample, pad_image
from irae.models.reversible import Chain, Invertible, State, check_condition

Step = Callable[[State, Tensor | None], State]


@dataclass(frozen=True)
class IRAEConfig:
    """All that builds an IRAE; stored in the header of its weights.

    Attributes:
        task: what the weights are for: "denoise", "photo", "jpeg" or "inpaint".
        block: a name registered in `irae.models.blocks.BLOCKS`.
        block_options: further arguments of the block (subnet, hidden, depth ...).
        channels: channels of each stream at each level, from the image down. One entry: one scale; more: a U, each
            squeeze followed by a split whose other part waits as an invertible skip.
        blocks: blocks at each level, in the encoder and again in the decoder.
        lift: "unshuffle", "haar" or "dct", the squeeze of the image into channels.
        squeeze: the same choice between levels.
        stem: one convolution between the image and the other stream at each end (`irae.models.blocks.stem`). Worth
            0.1 dB at the same number of steps (docs/model.md).
        mixing: an orthogonal 1x1 mixing after each block.
        lifted: True: a = 0, b = [S(y), 0] (two-step blocks: a = b). False: the bijective setting of the paper,
            [b, a] = S(y) with nothing added, so `channels[0]` must be half of the squeezed image's channels.
        cond: condition channels. For "denoise" and "photo" 2: noise level / 255, and 1 where it is known. For "jpeg"
            see `irae.conditions.jpeg_condition`. For "inpaint" 1: the mask, 1 where a pixel is known.
        keep_known: the condition is the mask of known pixels, and these come out as they went in. One level, lifted by
            "unshuffle", additive or affine couplings without mixing.
        image_channels: channels of the image.
    """

    task: str = "denoise"
    block: str = "additive"
    block_options: dict[str, Any] = field(default_factory=dict)
    channels: tuple[int, ...] = (64,)
    blocks: tuple[int, ...] = (1,)
    lift: str = "unshuffle"
    squeeze: str = "haar"
    stem: bool = False
    mixing: bool = False
    lifted: bool = True
    cond: int = 2
    image_channels: int = 3
    keep_known: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", tuple(self.channels))
        object.__setattr__(self, "blocks", tuple(self.blocks))
        if not self.channels or len(self.channels) != len(self.blocks):
            raise IraeError("`channels` and `blocks` need one entry for each level.")
        if min(self.blocks) < 0:
            raise IraeError("The number of blocks of a level is not negative.")
        for name in (self.lift, self.squeeze):
            if name not in RESAMPLERS:
                raise IraeError(f"There is no squeeze named {name!r}; choose one of {', '.join(RESAMPLERS)}.")
        squeezed = self.image_channels * RESAMPLERS[self.lift]().factor ** 2
        if self.lifted and self.channels[0] < squeezed:
            raise IraeError(f"The first level needs at least {squeezed} channels to hold the squeezed image.")
        if not self.lifted and 2 * self.channels[0] != squeezed:
            raise IraeError(f"Without the lift the first level has exactly {squeezed / 2:g} channels.")
        wide = [channels * RESAMPLERS[self.squeeze]().factor ** 2 for channels in self.channels]
        if not all(0 < keep <= most for keep, most in zip(self.channels[1:], wide, strict=False)):
            raise IraeError(f"A level has from 1 to as many channels as the squeeze of the one above gives: {wide}.")
        if reserved := {"name", "channels", "cond", "known", "image"} & self.block_options.keys():
            raise IraeError(f"`block_options` has no {', '.join(sorted(reserved))}: other fields say that.")
        if self.stem and not self.lifted:
            raise IraeError("A stem needs the lift: without it no stream is free for the features.")
        if self.stem and getattr(lookup(BLOCKS, self.block, "block"), "two_step", False):
            raise IraeError(f"The block {self.block!r} starts from two equal streams, which a stem makes different.")
        plain = self.lift == "unshuffle" and len(self.channels) == 1 and not self.mixing and self.lifted
        if self.keep_known and not (plain and self.block in ("additive", "affine") and self.cond == 1):
            raise IraeError("Known pixels are kept by couplings on one lifted, unshuffled, unmixed level only.")

    def to_dict(self) -> dict[str, Any]:
        """A dictionary of plain values that `IRAEConfig(**...)` reads."""
        return asdict(self)


@dataclass(frozen=True)
class Code:
    """What the encoder makes of an image: everything, in other coordinates.

    Attributes:
        streams: the pair at the deepest level, (N, channels[-1], h, w) each.
        skips: for each level above, from the image down, the pair set aside by its split.
        size: (H, W) of the image before padding.
    """

    streams: State
    skips: tuple[State, ...]
    size: tuple[int, int]


@dataclass(frozen=True)
class Rest:
    """What is left beside the restored image: with it, the input comes back.

    Its elements and the image's together are those of the lifted, padded state.

    Attributes:
        extra: all channels of the final state but the image's, (N, 2 * channels[0] - squeezed, h, w).
        border: the pixels of the padded image outside the image, (N, C, pixels).
        settings: the arithmetic that made it, such as "float32 on cpu".
    """

    extra: Tensor
    border: Tensor
    settings: str


class RecoverError(IraeError):
    """The rest does not belong to this image, condition, model or arithmetic."""


class Lift(nn.Module):
    """The injection of an image into a state, a = 0, b = [S(y), 0]; where S(y) is wider than a stream, [b, a] = S(y).

    Args:
        squeeze: S.
        image_channels: C, channels of the image.
        channels: channels of each stream.
        twice: a = b = [S(y), 0], where two-step blocks start (`Invertible.two_step`); no effect on the bijection.

    Shape: (N, C, H, W), H and W multiples of the squeeze's factor -> two of (N, channels, H / factor, W / factor).
    """

    TOLERANCE = 1e-3  # a quarter of an 8-bit level; what does not belong together is off by far more

    def __init__(self, squeeze: Resample, image_channels: int, channels: int, twice: bool = False) -> None:
        super().__init__()
        self.squeeze, self.channels = squeeze, channels
        self.width = image_channels * squeeze.factor**2
        self.twice = twice and self.width <= channels

    def forward(self, y: Tensor) -> State:
        first = _channels_last(self.squeeze.squeeze(y))
        if self.width > self.channels:
            b, a = first.chunk(2, 1)
            return _channels_last(a), _channels_last(b)
        b = F.pad(first, (0, 0, 0, 0, 0, self.channels - self.width))
        return b.clone() if self.twice else torch.zeros_like(b), b

    def inverse(self, state: State) -> Tensor:
        """The image of a state that `forward` made.

        Raises:
            RecoverError: channels that the lift set to 0, or to the image again, are not.
        """
        y, extra = self.split(state)
        error = float((extra - self.split(self(y))[1]).abs().max()) if extra.numel() else 0.0
        if not error <= self.TOLERANCE:
            raise RecoverError(
                f"The input does not come back (lifted channels are off by {error:.2g}): the rest belongs to another "
                "image, condition, model or arithmetic."
            )
        return y

    def image(self, state: State) -> Tensor:
        """The image that a state holds, (N, C, H, W)."""
        a, b = state
        first = b if self.width <= self.channels else torch.cat((b, a), 1)
        return self.squeeze.unsqueeze(first[:, : self.width])

    def split(self, state: State) -> tuple[Tensor, Tensor]:
        """The image that a state holds, and all its other channels."""
        return self.image(state), torch.cat((state[1], state[0]), 1)[:, self.width :]

    def join(self, image: Tensor, extra: Tensor) -> State:
        """The state that `split` took apart."""
        b, a = torch.cat((self.squeeze.squeeze(image), extra), 1).chunk(2, 1)
        return _channels_last(a), _channels_last(b)


class Levels(nn.ModuleList):
    """The chains of blocks of one half of the autoencoder, from the image's scale down."""

    def __iter__(self) -> Iterator[Chain]:
        return cast(Iterator[Chain], super().__iter__())


class IRAE(nn.Module):
    """An invertible restoring autoencoder.

    Shape:
        images: (N, 3, H, W), any H and W, nominally in [0, 1], not clipped.
        cond: (N, config.cond, H, W) or (N, config.cond, 1, 1), see `irae.conditions`; or at the resolution of the
            lifted, padded image, unless known pixels are kept. ValueError for another size.

    Forward hooks of blocks run where gradients are on; without them streams are overwritten in place, and
    `irae.probe.taps` reads the layers.

    Args:
        config: the architecture.
        memory_free: rebuild activations in the backward pass instead of keeping them; slower, and the memory of a
            training step does not grow with the number of blocks.
    """

    card: str = ""  # what its weights' card says, where they were loaded from a file
    digest: str = ""  # of those weights

    def __init__(self, config: IRAEConfig, memory_free: bool = True) -> None:
        super().__init__()
        self.config = config
        twice = getattr(lookup(BLOCKS, config.block, "block"), "two_step", False)
        self.lift = Lift(RESAMPLERS[config.lift](), config.image_channels, config.channels[0], twice)
        self.squeeze = RESAMPLERS[config.squeeze]()
        known = config.image_channels if config.keep_known else 0
        ends = stem(self.lift.width, config.channels[0], known) if config.stem else ()
        encoder, decoder = ([_blocks(config, level) for level in range(len(config.channels))] for _ in range(2))
        encoder[0], decoder[0] = [*ends[:1], *encoder[0]], [*decoder[0], *ends[1:]]
        self.encoder, self.decoder = (
            Levels(Chain(parts, memory_free=memory_free) for parts in half) for half in (encoder, decoder)
        )
        grid = max((module.grid for module in self.modules() if isinstance(module, USubnet)), default=1)
        self.size_multiple = self.lift.squeeze.factor * self.squeeze.factor ** (len(config.channels) - 1) * grid

    def forward(self, y: Tensor, cond: Tensor | None = None) -> Tensor:
        """`restore`."""
        return self.restore(y, cond)

    def encode(self, y: Tensor, cond: Tensor | None = None) -> Code:
        """The code of an image; `decode` makes the restored image of it."""
        return self._descend(self.lift(self._pad(y)), list(self.encoder), cond, _size(y))

    def decode(self, code: Code, cond: Tensor | None = None) -> Tensor:
        """The restored image of a code, not clipped."""
        return _crop(self.lift.image(self._ascend(code, list(self.decoder), cond)), code.size)

    def restore(self, y: Tensor, cond: Tensor | None = None) -> Tensor:
        """The restored image, not clipped."""
        return _crop(self.lift.image(self._final(y, cond)), _size(y))

    def restore_with_rest(self, y: Tensor, cond: Tensor | None = None) -> tuple[Tensor, Rest]:
        """The restored image and what is left beside it; `recover` gives y back from the two."""
        size = _size(y)
        with _reproducible():
            padded, extra = self.lift.split(self._final(y, cond))
        return _crop(padded, size), Rest(extra, padded[..., _border(padded, size)], _settings(y))

    @torch.no_grad()
    def recover(self, x: Tensor, rest: Rest, cond: Tensor | None = None) -> Tensor:
        """The image y whose `restore_with_rest(y, cond)` gave x and the rest.

        With additive couplings in float32 the largest error is around 1e-4 of an 8-bit level.

        Raises:
            RecoverError: the rest was made with another arithmetic, or does not belong to x, `cond` or this model.
        """
        if rest.settings != _settings(x):
            raise RecoverError(
                f"The rest was made in {rest.settings} and this is {_settings(x)}: use the same precision and device."
            )
        size = _size(x)
        padded = self._pad(x).clone()
        border = _border(padded, size)
        factor, channels = self.lift.squeeze.factor, 2 * self.config.channels[0] - self.lift.width
        shape = (len(x), channels, padded.shape[-2] // factor, padded.shape[-1] // factor)
        if rest.extra.shape != shape or rest.border.shape != (*x.shape[:2], int(border.sum())):
            raise RecoverError("The rest belongs to an image of another size or to another model.")
        padded[..., border] = rest.border
        with _reproducible():
            state = self.lift.join(padded, rest.extra)
            code = self._descend(state, [chain.inverse for chain in self.decoder], cond, size)
            state = self._ascend(code, [chain.inverse for chain in self.encoder], cond)
            return _crop(self.lift.inverse(state), size)

    def _final(self, y: Tensor, cond: Tensor | None) -> State:
        """The last state. Nobody else sees those before it: where no gradient needs them, they are overwritten."""
        keep = torch.is_grad_enabled()
        encoder, decoder = (
            [chain if keep else chain.forward_ for chain in half] for half in (self.encoder, self.decoder)
        )
        code = self._descend(self.lift(self._pad(y)), encoder, cond, _size(y))
        return self._ascend(code, decoder, cond)

    def _descend(self, state: State, levels: Sequence[Step], cond: Tensor | None, size: tuple[int, int]) -> Code:
        """Down the levels, blocks first, then squeeze and split: the code of an image of a size."""
        skips, cond = list[State](), self._prepare(cond, size)
        for level, blocks in enumerate(levels):
            if level:
                wide, keep = self.squeeze(state), self.config.channels[level]
                state = wide[0][:, :keep], wide[1][:, :keep]
                skips.append((wide[0][:, keep:], wide[1][:, keep:]))
            state = blocks(state, cond)
        return Code(state, tuple(skips), size)

    def _ascend(self, code: Code, levels: Sequence[Step], cond: Tensor | None) -> State:
        """Up the levels: blocks, then join and unsqueeze."""
        state, cond = code.streams, self._prepare(cond, code.size)
        for level in reversed(range(len(levels))):
            state = levels[level](state, cond)
            if level:
                pairs = zip(state, code.skips[level - 1], strict=True)
                a, b = (torch.cat(pair, 1) for pair in pairs)
                state = self.squeeze.inverse((a, b))
        return state

    def _pad(self, image: Tensor) -> Tensor:
        """The image padded to a multiple of `size_multiple`."""
        below, right = (-side % self.size_multiple for side in _size(image))
        return _channels_last(pad_image(image, below, right, self.config.task))

    def _prepare(self, cond: Tensor | None, size: tuple[int, int]) -> Tensor | None:
        """The condition at the resolution of the first level: averaged, or unshuffled where each pixel counts.

        Raises:
            ValueError: it is of another size than image and first level.
        """
        if cond is None:
            return None
        factor, everywhere = self.lift.squeeze.factor, cond.shape[-2:] == (1, 1)
        height, width = (-(-side // self.size_multiple) * self.size_multiple // factor for side in size)
        check_condition(cond, size, *[(height, width)] * (not self.config.keep_known))
        if self.config.keep_known:
            return cond.repeat(1, factor**2, 1, 1) if everywhere else self.lift.squeeze.squeeze(self._pad(cond))
        return cond if everywhere or cond.shape[-2:] != size else F.avg_pool2d(self._pad(cond), factor)


def _blocks(config: IRAEConfig, level: int) -> list[Invertible]:
    """The blocks of one level of one half."""
    options, cond = config.block_options, config.cond
    if config.keep_known:
        cond = cond * RESAMPLERS[config.lift]().factor ** 2
        options = {**options, "known": config.image_channels, "image": 0 if config.stem else 1}
    parts = list[Invertible]()
    for _ in range(config.blocks[level]):
        parts.append(build_block(config.block, config.channels[level], cond=cond, **options))
        if config.mixing:
            parts.append(OrthogonalMixing(config.channels[level]))
    return parts


def _size(image: Tensor) -> tuple[int, int]:
    return image.shape[-2], image.shape[-1]


def _channels_last(x: Tensor) -> Tensor:
    """In the layout of the convolutions: to add two streams of different layouts takes ten times as long."""
    return x.contiguous(memory_format=torch.channels_last)


def _crop(image: Tensor, size: tuple[int, int]) -> Tensor:
    return image[..., : size[0], : size[1]]


def _border(padded: Tensor, size: tuple[int, int]) -> Tensor:
    """The mask (H, W) of the padding's pixels."""
    mask = torch.ones(padded.shape[-2:], dtype=torch.bool, device=padded.device)
    mask[: size[0], : size[1]] = False
    return mask


def _settings(image: Tensor) -> str:
    """The arithmetic that a rest belongs to: subnets computed otherwise would not give the same input back."""
    device = image.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else image.dtype
    return f"{str(dtype).removeprefix('torch.')} on {device}"


def _reproducible() -> AbstractContextManager[None]:
    """The same sums every time on a GPU: no TF32, no choice of algorithm by timing."""
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
