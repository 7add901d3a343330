"""Memory and time of one training step against depth, for every registered block, memory-free and plain.

After Gomez et al. 2017 (activations need not be kept) and Chang et al. 2018 (arbitrarily deep with little memory).
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from statistics import median
from typing import Any
from weakref import finalize

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from irae.experiments.common import Context, Experiment, Result, Row, log_axis, panels
from irae.models.blocks import BLOCKS, build_block
from irae.models.reversible import Chain

MEGABYTE = 2**20


@dataclass(frozen=True)
class Setup:
    """One chain of blocks, one training step: forward, mean square as the loss, backward; float32.

    Attributes:
        depths: numbers of blocks.
        channels, size, batch: of each of the two streams, (batch, channels, size, size).
        repeats: timed steps after a first one that is not; the median counts.
        patience: seconds; a step that takes longer is timed once.
        most: GiB; a plain step that would take more, by the one before, is left out.
    """

    depths: tuple[int, ...] = (2, 8, 32, 64, 128, 256)
    channels: int = 16
    size: int = 32
    batch: int = 2
    repeats: int = 3
    patience: float = 5.0
    most: float = 6.0


def run(setup: Setup, context: Context) -> Result:
    """Memory and time of a step for each block, way and depth."""
    cells = list(product(BLOCKS, (True, False), setup.depths))
    rows = list[Row]()
    peaks = dict[tuple[str, bool], float]()  # the last peak in MiB, per block
    for name, memory_free, depth in context.track(cells, len(cells), "depth"):
        expected = peaks.get((name, memory_free), 0.0) * depth
        if memory_free or expected < 1024 * setup.most:
            row = measure_step(setup, name, memory_free, depth, context.seed)
            peaks[name, memory_free] = row["peak (MiB)"] / depth
            rows.append(row)
    add_ratios(rows)
    return Result(rows, NOTES, {"plot": plot(rows)})


def measure_step(setup: Setup, name: str, memory_free: bool, depth: int, seed: int) -> Row:
    """Memory and time of one training step of a chain of `depth` blocks."""
    torch.manual_seed(seed)
    chain = Chain([build_block(name, setup.channels) for _ in range(depth)], memory_free=memory_free)
    wake(chain)
    stream = torch.randn(setup.batch, setup.channels, setup.size, setup.size)
    state = stream.requires_grad_(), stream.detach().clone().requires_grad_()  # a = b suits two-step blocks too

    def step() -> None:
        chain.zero_grad(set_to_none=True)
        a, b = chain(state)
        ((a * a).mean() + (b * b).mean()).backward()

    step()  # gradients exist from here on, and lazy parts are set up
    saved = saved_bytes(chain, state)
    with Allocations() as allocations:
        step()
    peak = allocations.peak(without=[p.grad for p in chain.parameters() if p.grad is not None])
    return {
        "block": name,
        "backward": "memory-free" if memory_free else "plain",
        "blocks": depth,
        "saved (MiB)": saved / MEGABYTE,
        "peak (MiB)": peak / MEGABYTE,
        "step (ms)": 1000 * step_seconds(step, setup),
    }


def wake(chain: Chain) -> None:
    """Small random values where a parameter starts at 0: a block that is the identity is inverted for nothing."""
    with torch.no_grad():
        for parameter in chain.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.01)


def saved_bytes(chain: Chain, state: tuple[Tensor, Tensor]) -> int:
    """Bytes that the forward pass keeps for the backward pass beside the parameters, each storage once."""
    own = {parameter.untyped_storage().data_ptr() for parameter in chain.parameters()}
    kept = dict[int, Any]()

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        after = chain(state)
    del after
    return sum(tensor.untyped_storage().nbytes() for pointer, tensor in kept.items() if pointer not in own)


class Allocations(TorchDispatchMode):
    """Counts the storages that operations of torch make, until they are freed; not the scratch space in a kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes = list[int]()  # of each storage made
        self.events = list[tuple[int, bool]]()  # (which storage, made or freed)
        self.alive = dict[int, int]()  # address -> which storage

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = {storage._cdata for storage in _storages((args, kwargs))}
        result = function(*args, **(kwargs or {}))
        for storage in _storages(result):
            if storage._cdata not in given and storage._cdata not in self.alive:
                self.alive[storage._cdata] = len(self.sizes)
                self.events.append((len(self.sizes), True))
                self.sizes.append(storage.nbytes())
                finalize(storage, self._free, storage._cdata)
        return result

    def _free(self, address: int) -> None:
        self.events.append((self.alive.pop(address), False))

    def peak(self, without: Iterable[Tensor]) -> int:
        """The most bytes alive at the same time, without the tensors given, which are alive still."""
        left_out = {self.alive.get(storage._cdata) for storage in _storages(list(without))}
        now = most = 0
        for which, made in self.events:
            if which not in left_out:
                now += self.sizes[which] if made else -self.sizes[which]
                most = max(most, now)
        return most


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def step_seconds(step: Any, setup: Setup) -> float:
    """The median time of a step."""
    times = list[float]()
    while len(times) < setup.repeats and (not times or times[0] < setup.patience):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return median(times)


def add_ratios(rows: list[Row]) -> None:
    """Beside each row its step's time over that of the plain step of the same block and depth."""
    plain = {(row["block"], row["blocks"]): row["step (ms)"] for row in rows if row["backward"] == "plain"}
    for row in rows:
        reference = plain.get((row["block"], row["blocks"]))
        row["time / plain"] = row["step (ms)"] / reference if reference else None


NOTES = [
    "Saved: what the forward pass keeps for the backward pass, parameters left out, counted by "
    "`torch.autograd.graph.saved_tensors_hooks`, each storage once. Peak: the most bytes of tensors made during the "
    "whole step that were alive at the same time, counted at every operation of torch as storages are made and freed; "
    "it holds saved tensors and temporaries, not the parameters and their gradients, which grow with depth in any "
    "case. Scratch space inside a kernel is not seen.",
    "Beside the plain step the memory-free one evaluates each subnet once more, and blocks whose inverse is a "
    "fixed point iterate. Parameters that start at zero are drawn from N(0, 0.01**2), so that there is something "
    "to invert.",
]


def plot(rows: list[Row]) -> Figure:
    """Saved memory, peak and time against depth; a colour for each block, dashed for plain."""
    columns = ("saved (MiB)", "peak (MiB)", "step (ms)")
    figure, axes_row = panels(len(columns))
    for axes, column in zip(axes_row, columns, strict=True):
        for place, name in enumerate(BLOCKS):
            for backward, style in (("memory-free", "o-"), ("plain", "x--")):
                mine = [row for row in rows if row["block"] == name and row["backward"] == backward]
                label = name if backward == "memory-free" else None
                axes.plot(
                    [row["blocks"] for row in mine],
                    [row[column] for row in mine],
                    style,
                    color=f"C{place}",
                    label=label,
                    markersize=4,
                )
        axes.set(xlabel="blocks (dashed: plain)", yscale="log", title=column)
        log_axis(axes, (row["blocks"] for row in rows))
    axes_row[0].legend(fontsize="small")
    return figure


EXPERIMENT = Experiment(
    title="Memory and time of one training step against depth",
    run=run,
    full=Setup(),
    quick=Setup(depths=(2, 8, 32), channels=6, size=16, repeats=1),
    minutes=10,
)
