"""Layer taps without a change in any network.

A tap is the whole cut: everything from which the rest of the network computes. Both streams of an IRAE, the pending
skips of a U-Net, the input where it is added to the output. The bare activation is its first part.
"""

from __future__ import annotations

import contextlib
import difflib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from irae.errors import IraeError, one_line
from irae.models.baselines import ARCNN, DnCNN, FFDNet, Twin, UNet
from irae.models.blocks import KeepsKnown, ReadImage, WriteImage
from irae.models.irae import IRAE
from irae.models.resample import OrthogonalMixing
from irae.models.reversible import AdditiveHalfStep, Chain, HalfStep, Invertible, State

INPUT, OUTPUT = "input", "output"


class ProbeError(IraeError):
    """A probe that cannot be made as asked."""


class Enough(Exception):
    """Raised by a visitor that needs no further layer."""


@dataclass(frozen=True)
class Cut:
    """What a layer holds.

    Attributes:
        bare: its activation, (N, C, H, W). A network may change it in place later: copy what is to stay.
        also: what else the rest of the network computes from.
    """

    bare: Tensor
    also: tuple[Tensor, ...] = ()

    @property
    def whole(self) -> tuple[Tensor, ...]:
        """All parts, the activation first."""
        return (self.bare, *self.also)


Visit = Callable[[str, Cut], None]


class Tapped(ABC):
    """A network whose layers can be looked at.

    Attributes:
        names: of the layers in order, from "input" to "output"; a dot marks what lies inside a layer.
        whole: the cuts are known; otherwise only bare activations are.
    """

    names: tuple[str, ...]
    whole: bool = True

    @abstractmethod
    def walk(self, y: Tensor, visit: Visit) -> None:
        """Run the network on images (N, C, H, W) and show each layer to `visit` as it is computed."""

    def run(self, y: Tensor, visit: Visit) -> None:
        """`walk`, until the visitor has enough; on a copy of the images, as a network may change its input.

        Raises:
            ProbeError: the network does not take images of this size.
        """
        try:
            self.walk(y.clone(), visit)
        except Enough:
            pass
        except RuntimeError as error:
            size = " x ".join(map(str, y.shape[-2:]))
            raise ProbeError(f"The network does not take images of {size} pixels: {one_line(error)}.") from error

    def cut(self, y: Tensor, name: str) -> Cut:
        """The cut at a layer, its parts copied."""
        found = list[Cut]()

        def visit(layer: str, cut: Cut) -> None:
            if layer == name:
                found.append(Cut(cut.bare.clone(), tuple(part.clone() for part in cut.also)))
                raise Enough

        self.run(y, visit)
        return found[0]

    def depth(self, name: str) -> float:
        """0 for the input to 1 for the output, by the number of layers."""
        return self.names.index(name) / (len(self.names) - 1)

    def choose(self, wanted: Sequence[str] = (), most: int = 0) -> tuple[str, ...]:
        """Layers by name, "all", or where none are wanted the main ones, thinned evenly to `most` where it is not 0; to
        1, the last.

        Raises:
            ProbeError: there is no layer of a name; the message suggests the nearest.
        """
        if list(wanted) == ["all"]:
            return self.names
        for name in wanted:
            if name not in self.names:
                near = difflib.get_close_matches(name, self.names, 1, cutoff=0) or [self.names[0]]
                raise ProbeError(f"There is no layer {name!r}; did you mean {near[0]!r}?")
        names = tuple(wanted) or tuple(name for name in self.names if "." not in name)
        if wanted or not most or len(names) <= most:
            return names
        if most == 1:
            return names[-1:]
        return tuple(names[round(i * (len(names) - 1) / (most - 1))] for i in range(most))


# ------------------------------------------------------------------------------------- the IRAE

Stack = tuple[Tensor, ...]
"""The streams a and b, then the pairs that wait as skips, the latest last."""


@dataclass(frozen=True)
class Step:
    """An invertible step of an IRAE from stack to stack; `moved` is the position of the stream that it changes."""

    name: str
    forward: Callable[[Stack], Stack]
    inverse: Callable[[Stack], Stack]
    moved: int = 1


class TappedIRAE(Tapped):
    """An IRAE after its lift and after each half-step, all streams and skips together.

    Args:
        model: the network.
        cond: its condition, (1, K, 1, 1), or None.
    """

    def __init__(self, model: IRAE, cond: Tensor | None) -> None:
        self.model = model
        self.steps = list(_irae_steps(model, cond))
        self.names = (INPUT, "lift", *(step.name for step in self.steps), OUTPUT)

    def walk(self, y: Tensor, visit: Visit) -> None:
        visit(INPUT, Cut(y))
        stack: Stack = self.model.lift(y)
        visit("lift", _cut(stack, 1))
        for step in self.steps:
            stack = step.forward(stack)
            visit(step.name, _cut(stack, step.moved))
        visit(OUTPUT, Cut(self.model.lift.image((stack[0], stack[1]))))

    def recover(self, stack: Stack, name: str) -> Tensor:
        """The input (N, C, H, W) of a stack that the layer of a name gave, the layers run backwards."""
        for step in reversed(self.steps[: max(self.names.index(name) - 1, 0)]):
            stack = step.inverse(stack)
        return self.model.lift.image((stack[0], stack[1]))

    def stacks(self, y: Tensor) -> Iterator[tuple[str, Stack]]:
        """Each layer's stack but the output's, in order."""
        stack: Stack = self.model.lift(y)
        yield "lift", stack
        for step in self.steps:
            stack = step.forward(stack)
            yield step.name, stack


def _cut(stack: Stack, moved: int) -> Cut:
    return Cut(stack[moved], tuple(part for i, part in enumerate(stack) if i != moved))


def _irae_steps(model: IRAE, cond: Tensor | None) -> Iterator[Step]:
    levels = range(len(model.config.channels))
    for half, chains in (("encoder", list(model.encoder)), ("decoder", list(model.decoder))):
        for level in levels if half == "encoder" else reversed(levels):
            place = f"{half} level {level + 1}" if len(levels) > 1 else half
            down, up = _split(model, level)
            if half == "encoder" and level:
                yield Step(f"{place} squeeze", down, up)
            yield from _chain_steps(chains[level], place, cond)
            if half == "decoder" and level:
                yield Step(f"{place} unsqueeze", up, down)


def _chain_steps(chain: Chain, place: str, cond: Tensor | None) -> Iterator[Step]:
    count = Counter[str]()
    for part in chain:
        kind = _kind(part)
        count[kind] += 1
        name = f"{place} {kind}" if kind == "stem" else f"{place} {kind} {count[kind]}"
        inner = list(part) if isinstance(part, Chain) else [part]
        for i, half_step in enumerate(inner):
            last = i == len(inner) - 1
            yield Step(
                name if last else f"{name}.{chr(ord('a') + i)}",
                partial(_apply, half_step.forward, cond),
                partial(_apply, half_step.inverse, cond),
                half_step.lands if isinstance(half_step, HalfStep) else 1,
            )


def _kind(part: Invertible) -> str:
    if isinstance(part, OrthogonalMixing):
        return "mixing"
    net = part.net if isinstance(part, AdditiveHalfStep) else None
    net = net.net if isinstance(net, KeepsKnown) else net
    return "stem" if isinstance(net, ReadImage | WriteImage) else "block"


def _apply(function: Callable[[State, Tensor | None], State], cond: Tensor | None, stack: Stack) -> Stack:
    return *function((stack[0], stack[1]), cond), *stack[2:]


def _split(model: IRAE, level: int) -> tuple[Callable[[Stack], Stack], Callable[[Stack], Stack]]:
    """The squeeze and split into a level, and its inverse."""
    keep = model.config.channels[level]

    def down(stack: Stack) -> Stack:
        a, b = model.squeeze((stack[0], stack[1]))
        return a[:, :keep], b[:, :keep], *stack[2:], a[:, keep:], b[:, keep:]

    def up(stack: Stack) -> Stack:
        a, b = (torch.cat(pair, 1) for pair in zip(stack[:2], stack[-2:], strict=True))
        return *model.squeeze.inverse((a, b)), *stack[2:-2]

    return down, up


# ------------------------------------------------------------------------------------- networks with hooks


@dataclass(frozen=True)
class Point:
    """Where a network is tapped.

    Attributes:
        name: of the layer.
        module: whose output it is, or with `before` whose input.
        also: earlier points, or "input", from which the rest of the network computes too.
    """

    name: str
    module: nn.Module
    also: tuple[str, ...] = ()
    before: bool = False


class HookedNetwork(Tapped):
    """A network tapped by hooks.

    Args:
        model: the network, called once for each image batch.
        forward: from images (N, C, H, W) to what `model` returns, such as `model` with its condition.
        points: in the order in which they are computed.
        whole: the points say all that the rest of the network computes from.
    """

    def __init__(
        self, model: nn.Module, forward: Callable[[Tensor], Tensor], points: Sequence[Point], whole: bool = True
    ) -> None:
        self.model, self.forward, self.points, self.whole = model, forward, points, whole
        self.names = (INPUT, *(point.name for point in points), OUTPUT)

    def walk(self, y: Tensor, visit: Visit) -> None:
        kept = {INPUT: y}
        needed = {name for point in self.points for name in point.also}

        def look(point: Point, tensor: Tensor) -> None:
            if point.name in needed:
                kept[point.name] = tensor
            visit(point.name, Cut(tensor, tuple(kept[name] for name in point.also)))

        def before(point: Point, module: nn.Module, arguments: tuple[Any, ...]) -> None:
            look(point, arguments[0])

        def after(point: Point, module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
            look(point, output)

        visit(INPUT, Cut(y))
        with contextlib.ExitStack() as stack:
            for point in self.points:
                if point.before:
                    handle = point.module.register_forward_pre_hook(partial(before, point))
                else:
                    handle = point.module.register_forward_hook(partial(after, point))
                stack.callback(handle.remove)
            output = self.forward(y)
        visit(OUTPUT, Cut(output))


def tapped(model: nn.Module, cond: Tensor | None, example: Tensor) -> Tapped:
    """A network with its taps.

    Args:
        model: an IRAE, a network whose class is in `LAYOUTS`, or any module that maps images to images; of the last
            only bare activations are known.
        cond: condition (1, K, 1, 1), None for a network without.
        example: images (N, C, H, W) for one trial run of an unknown network.
    """
    if isinstance(model, IRAE):
        return TappedIRAE(model, cond)
    if type(model) in LAYOUTS:
        return HookedNetwork(model, lambda y: model(y, cond), LAYOUTS[type(model)](model))
    return HookedNetwork(model, model, _leaves(model, example), whole=False)


def _leaves(model: nn.Module, example: Tensor) -> list[Point]:
    """All modules without children that run exactly once and give (N, C, H, W), in the order in which they do."""
    order = list[nn.Module]()

    def note(module: nn.Module, _: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == 4:
            order.append(module)

    with contextlib.ExitStack() as stack:
        for module in model.modules():
            if module is not model and not list(module.children()):
                hook = module.register_forward_hook(note)
                stack.callback(hook.remove)
        with torch.no_grad():
            try:
                output = model(example.clone())
            except Exception as error:  # the network is anyone's
                raise ProbeError(f"The network does not take RGB images: {one_line(error)}.") from error
    if not isinstance(output, Tensor) or output.ndim != 4:
        raise ProbeError("The network gives no images (N, C, H, W).")
    names = {module: name or type(module).__name__ for name, module in model.named_modules()}
    once = [module for module, count in Counter(order).items() if count == 1]
    return [Point(f"{type(module).__name__} {names[module].replace('.', '/')}", module) for module in once]


def _sequential(body: nn.Module, also: tuple[str, ...]) -> list[Point]:
    """Layers of convolution, normalisation and ReLU."""
    kinds = {nn.Conv2d: "convolution", nn.BatchNorm2d: "normalisation", nn.ReLU: "ReLU"}
    modules, points, layer = list(body.children()), list[Point](), 0
    for i, module in enumerate(modules):
        layer += isinstance(module, nn.Conv2d)
        last = i + 1 == len(modules) or isinstance(modules[i + 1], nn.Conv2d)
        points.append(Point(f"layer {layer}" if last else f"layer {layer}.{kinds[type(module)]}", module, also))
    return points


def _unet(model: UNet) -> list[Point]:
    points, downs = list[Point](), [f"down {i + 1}" for i in range(len(model.down) + 1)]

    def inside(name: str, part: nn.Module, also: tuple[str, ...]) -> None:
        kinds = ("convolution 1", "ReLU 1", "convolution 2")
        modules = list(part.children())
        points.extend(Point(f"{name}.{kind}", module, also) for kind, module in zip(kinds, modules, strict=False))
        points.append(Point(name, modules[-1], also))

    for i, part in enumerate((model.first, *model.down)):
        also = (*downs[:i], INPUT)
        if i:
            points.append(Point(f"{downs[i]}.pooled", part, also, before=True))
        inside(downs[i], part, also)
    for i, (up, join) in reversed(list(enumerate(zip(model.up, model.join, strict=True)))):
        points.append(Point(f"up {i + 1}.upsampled", up, (*downs[: i + 1], INPUT)))
        inside(f"up {i + 1}", join, (*downs[:i], INPUT))
    points.append(Point("last convolution", model.last, (INPUT,)))
    return points


def _twin(model: Twin) -> list[Point]:
    """The stream x after each x + F(x); inside F, x waits, and with a stem the image until the end."""
    subnets: list[Any] = list(model.subnets)
    first = model.read if model.read is not None else subnets[0]
    points, image = [Point("lift", first, before=True)], ("lift",) if model.read is not None else ()
    stream = "lift"
    if model.read is not None:
        points.append(Point("stem", model.read, image))
        stream = "stem"
    for i, subnet in enumerate(subnets):
        name, pending = f"block {i + 1}", tuple(dict.fromkeys((stream, *image)))
        middle = [subnet.dip, subnet.last] if hasattr(subnet, "dip") else [*subnet.middle, subnet.last]
        points.append(Point(f"{name}.convolution 1", subnet.first, pending))
        for j, module in enumerate(middle):
            points.append(Point(f"{name}.ReLU {j + 1}", module, pending, before=True))
        points.append(Point(f"{name}.residual", subnet.last, pending))
        following = subnets[i + 1] if i + 1 < len(subnets) else model.write
        if following is not None:
            points.append(Point(name, following, image, before=True))
            stream = name
    return points


LAYOUTS: dict[type[nn.Module], Callable[[Any], list[Point]]] = {
    DnCNN: lambda model: _sequential(model.body, (INPUT,)),
    FFDNet: lambda model: _sequential(model.body, ()),
    ARCNN: lambda model: _sequential(model.body, ()),
    UNet: _unet,
    Twin: _twin,
}
