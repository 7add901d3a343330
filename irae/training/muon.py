"""Muon for convolution weights: momentum, made orthogonal by Newton-Schulz iterations.

Jordan et al. 2024; scaled as in Liu et al. 2025 so that learning rates of AdamW fit. `torch.optim.Muon` takes
matrices only, and one at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class Muon(torch.optim.Optimizer):
    """Muon on weights of two or more dimensions, each taken as a matrix (out, everything else).

    Args:
        params: the weights.
        lr: learning rate; the update's root mean square is about 0.2 lr.
        momentum: of the Nesterov momentum.
    """

    def __init__(self, params: Iterable[Tensor], lr: float = 1e-3, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of all weights that have a gradient; what `closure`, which computes them anew, returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}
            for weight in group["params"]:
                if weight.grad is not None:
                    update = self._momentum(self.state[weight], weight.grad, group["momentum"])
                    by_shape.setdefault(weight.shape, []).append((weight, update))
            for pairs in by_shape.values():
                matrices = torch.stack([update.flatten(1) for _, update in pairs])
                scale = -group["lr"] * 0.2 * max(matrices.shape[-2:]) ** 0.5
                for (weight, _), matrix in zip(pairs, orthogonalise(matrices), strict=True):
                    weight.add_(matrix.view(weight.shape), alpha=scale)
        return loss

    @staticmethod
    def _momentum(state: dict[str, Any], grad: Tensor, momentum: float) -> Tensor:
        buffer = state.setdefault("momentum", torch.zeros_like(grad))
        buffer.lerp_(grad, 1 - momentum)
        return grad.lerp(buffer, momentum)


def orthogonalise(matrices: Tensor, iterations: int = 5) -> Tensor:
    """The nearest semi-orthogonal matrices, roughly: singular values between 0.7 and 1.2.

    The quintic Newton-Schulz iteration of Jordan et al. 2024, with CUDA in bfloat16 as there; a CPU without bfloat16
    takes ten times as long for it as in float32.

    Shape: (N, rows, columns) -> the same.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x.bfloat16() if x.is_cuda else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return (x.mT if tall else x).to(matrices.dtype)
