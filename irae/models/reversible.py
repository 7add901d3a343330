"""The contract of every invertible part, and the memory-free backward for a chain of them.

A state is a pair of streams (a, b), each (N, C, H, W). `cond` is side information, known when inverting too.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

State = tuple[Tensor, Tensor]


class Invertible(nn.Module, ABC):
    """A bijection on states: `inverse(forward(s, cond), cond) = s` up to rounding, and the other way round.

    Shape:
        state: two tensors (N, C, H, W). Resampling parts change C, H and W, others keep them.
        cond: (N, K, H', W') or (N, K, 1, 1), or None for parts that take none.

    Attributes:
        two_step: its chain starts from two equal streams, the states before and now of a two-step method or the halves
            of a Hamiltonian system.
        iterative: `inverse` iterates to the precision of the state; the part ignores autocast, whose rounding would
            make it a step function.
    """

    two_step = False
    iterative = False

    @abstractmethod
    def forward(self, state: State, cond: Tensor | None = None) -> State:
        """The state after this part."""

    @abstractmethod
    def inverse(self, state: State, cond: Tensor | None = None) -> State:
        """The state before this part, from the state after it."""

    def forward_(self, state: State, cond: Tensor | None = None) -> State:
        """`forward` for inference, where nobody needs the state any more: it may be overwritten."""
        return self(state, cond)

    def rebuild(self, output: State, cond: Tensor | None = None) -> tuple[State, State]:
        """For the backward pass: the input of `output` as fresh leaves, and the output with a graph from them."""
        with torch.no_grad():
            before = self.inverse(output, cond)
        leaves = (_leaf(before[0]), _leaf(before[1]))
        return leaves, self(leaves, cond)


class HalfStep(Invertible):
    """One stream moves by a message computed from the other, which stays: half of a coupling.

    Args:
        moves: the stream that moves, 0 for a or 1 for b.
        swap: the two then change places, as the states of a two-step method do.
    """

    def __init__(self, moves: int, swap: bool = False) -> None:
        super().__init__()
        self.moves = moves
        self.lands = 1 - moves if swap else moves  # where the moved stream comes out

    @abstractmethod
    def message(self, fixed: Tensor, cond: Tensor | None) -> Tensor:
        """What the fixed stream says; need not be invertible."""

    @abstractmethod
    def apply_message(self, moving: Tensor, message: Tensor) -> Tensor:
        """The moved stream; a bijection of `moving` for every message."""

    def apply_message_(self, moving: Tensor, message: Tensor) -> Tensor:
        """`apply_message`, in place where the step can."""
        return self.apply_message(moving, message)

    @abstractmethod
    def undo_message(self, moved: Tensor, message: Tensor) -> Tensor:
        """The inverse of `apply_message` for the same message."""

    def forward(self, state: State, cond: Tensor | None = None) -> State:
        fixed = state[1 - self.moves]
        return _pair(self.lands, self.apply_message(state[self.moves], self.message(fixed, cond)), fixed)

    def forward_(self, state: State, cond: Tensor | None = None) -> State:
        fixed = state[1 - self.moves]
        return _pair(self.lands, self.apply_message_(state[self.moves], self.message(fixed, cond)), fixed)

    def inverse(self, state: State, cond: Tensor | None = None) -> State:
        fixed = state[1 - self.lands]
        return _pair(self.moves, self.undo_message(state[self.lands], self.message(fixed, cond)), fixed)

    def rebuild(self, output: State, cond: Tensor | None = None) -> tuple[State, State]:
        # The message is the costly part: computed once, it serves the inverse and the graph.
        fixed = _leaf(output[1 - self.lands])
        message = self.message(fixed, cond)
        with torch.no_grad():
            before = self.undo_message(output[self.lands], message)
        moving = _leaf(before)
        return _pair(self.moves, moving, fixed), _pair(self.lands, self.apply_message(moving, message), fixed)


class AdditiveHalfStep(HalfStep):
    """moving + F(fixed)."""

    def __init__(self, net: nn.Module, moves: int, swap: bool = False) -> None:
        super().__init__(moves, swap)
        self.net = net

    def message(self, fixed: Tensor, cond: Tensor | None) -> Tensor:
        return self.net(fixed, cond)

    def apply_message(self, moving: Tensor, message: Tensor) -> Tensor:
        return moving + message.to(moving.dtype)

    def apply_message_(self, moving: Tensor, message: Tensor) -> Tensor:
        return moving.add_(message.to(moving.dtype))

    def undo_message(self, moved: Tensor, message: Tensor) -> Tensor:
        return moved - message.to(moved.dtype)


class Chain(Invertible):
    """Invertible parts one after the other.

    Args:
        parts: the parts in forward order; chains among them are flattened for the memory-free backward.
        memory_free: keep no activation for the backward pass but the last state, and rebuild each part's input
            from its output (Gomez et al. 2017, section 3.2). Costs one more evaluation of each subnet.

    Raises:
        RuntimeError: in the memory-free backward pass: the first state was not rebuilt, as rounding errors grew too
            much, so that gradients would be wrong; or parameters or buffers were changed since the forward pass.
    """

    def __init__(self, parts: Iterable[Invertible], memory_free: bool = False) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.memory_free = memory_free

    def __iter__(self) -> Iterator[Invertible]:
        for part in self.parts:
            assert isinstance(part, Invertible)
            yield part

    def forward(self, state: State, cond: Tensor | None = None) -> State:
        if self.memory_free and torch.is_grad_enabled() and len(self.parts):
            steps = list(_flatten(self))
            return _MemoryFree.apply(steps, *state, cond, *self.parameters(), *self.buffers())
        for part in self:
            state = part(state, cond)
        return state

    def forward_(self, state: State, cond: Tensor | None = None) -> State:
        for part in self:
            state = part.forward_(state, cond)
        return state

    def inverse(self, state: State, cond: Tensor | None = None) -> State:
        for part in reversed(list(self)):
            state = part.inverse(state, cond)
        return state


class _MemoryFree(torch.autograd.Function):
    """A whole chain as one node of the graph. Parameters and `cond` are inputs so that their gradients come back."""

    @staticmethod
    def forward(
        ctx: Any, steps: Sequence[Invertible], a: Tensor, b: Tensor, cond: Tensor | None, *params: Tensor
    ) -> State:
        device = a.device.type
        ctx.autocast = {
            "device_type": device,
            "enabled": torch.is_autocast_enabled(device),
            "dtype": torch.get_autocast_dtype(device),
        }
        ctx.steps, ctx.params = steps, params
        ctx.first = a.mean(1), b.mean(1)
        state = (a, b)
        for step in steps:
            state = step(state, cond)
        ctx.save_for_backward(*state, cond, *params)  # these so that a change to them is noticed
        return state

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        # Whoever hooks into saved tensors may give equal ones back: which parameter is which, `ctx.params` tells.
        a, b, cond, *_ = ctx.saved_tensors
        state, grad_state = (a, b), tuple(grads)
        cond = _leaf(cond) if ctx.needs_input_grad[3] else cond
        shared = (cond,) if ctx.needs_input_grad[3] else ()
        total: dict[Tensor, Tensor] = {}
        given = set(ctx.params)
        for step in reversed(ctx.steps):
            wanted = (*shared, *_trainable(step))
            if not given.issuperset(wanted[len(shared) :]):
                raise RuntimeError("A memory-free chain has other parameters than in its forward pass.")
            # Autocast is off in here: run the subnets as the forward pass did.
            with torch.enable_grad(), torch.autocast(**ctx.autocast):
                before, after = step.rebuild(state, cond)
            with _no_hooks(wanted):
                found = torch.autograd.grad(after, (*before, *wanted), grad_state, allow_unused=True)
            grad_state = tuple(torch.zeros_like(s) if g is None else g for s, g in zip(before, found[:2], strict=True))
            for tensor, grad in zip(wanted, found[2:], strict=True):
                if grad is not None:
                    total[tensor] = total[tensor] + grad if tensor in total else grad
            state = (before[0].detach(), before[1].detach())
        _check_rebuilt(state, ctx.first, ctx.autocast["dtype"] if ctx.autocast["enabled"] else a.dtype)
        grad_cond = total.get(shared[0]) if shared else None
        return None, *grad_state, grad_cond, *(total.get(p) for p in ctx.params)


def _check_rebuilt(state: State, means: State, dtype: torch.dtype) -> None:
    """Raises RuntimeError where a chain's first state was not rebuilt, of which the means over channels were kept; NaN,
    which the gradients show too, passes.
    """
    if not means[0].numel():
        return
    error = max(float((rebuilt.mean(1) - mean).abs().max()) for rebuilt, mean in zip(state, means, strict=True))
    size = max(float(mean.abs().max()) for mean in means)
    if error > 1e-3 + (1e-3 + 16 * torch.finfo(dtype).eps) * size:  # gradients as they should be: 1e-5 at most
        raise RuntimeError(
            f"The input of a memory-free chain came back {error:.2g} off, so that its gradients would be wrong: its "
            "weights magnify rounding errors too much. Use memory_free=False, float64 or smaller weights."
        )


@contextmanager
def _no_hooks(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Keep `autograd.grad` from running hooks of its leaves: they are for the whole gradient, which comes later."""
    hooks = [own for tensor in tensors if (own := tensor._backward_hooks)]
    kept = [dict(own) for own in hooks]
    for own in hooks:
        own.clear()
    try:
        yield
    finally:
        for own, before in zip(hooks, kept, strict=True):
            own.update(before)


def check_condition(cond: Tensor, *sizes: tuple[int, int]) -> None:
    """See that a condition is one value everywhere or a map of one of these sizes (H, W).

    Raises:
        ValueError: it is not.
    """
    size = (cond.shape[-2], cond.shape[-1])
    if size not in ((1, 1), *sizes):
        known = " or ".join(f"{height} x {width}" for height, width in sizes)
        raise ValueError(f"The condition is a map of {size[0]} x {size[1]}: give 1 x 1, or {known} as the image has.")


def match_size(cond: Tensor, x: Tensor) -> Tensor:
    """A condition map averaged down to the resolution of x; (N, K, 1, 1) stays, to be broadcast."""
    if cond.shape[-2:] in ((1, 1), x.shape[-2:]):
        return cond
    return F.adaptive_avg_pool2d(cond, (x.shape[-2], x.shape[-1]))


def required(cond: Tensor | None) -> Tensor:
    """The condition.

    Raises:
        ValueError: there is none.
    """
    if cond is None:
        raise ValueError("This block was built with condition channels: pass `cond`.")
    return cond


def _pair(position: int, stream: Tensor, other: Tensor) -> State:
    """A state with `stream` at `position`."""
    return (stream, other) if position == 0 else (other, stream)


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_()


def _trainable(module: nn.Module) -> list[Tensor]:
    return [p for p in module.parameters() if p.requires_grad]


def _flatten(part: Invertible) -> Iterator[Invertible]:
    if isinstance(part, Chain):
        for inner in part:
            yield from _flatten(inner)
    else:
        yield part
