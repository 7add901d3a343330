"""The Jacobian spectrum: what a layer holds of a patch, to first order around it.

With J = dT/dX, S the covariance of natural patches and N white noise of standard deviation sigma_T on the layer, the
singular values of J S^(1/2) / sigma_T say which directions are read (above 1) and which are lost (below 1). Exact for a
linear layer and normal X; for a network a local approximation, never a bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd import forward_ad

from irae.probe.patches import Prior
from irae.probe.taps import Cut, Enough, Tapped

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Local:
    """What a layer holds around one patch.

    Attributes:
        input_bits: local information on the noisy patch, 1/2 log2 det(I + J S_y J' / sigma_T^2).
        clean_bits: that on the clean patch: the same less 1/2 log2 det(I + s^2 J J' / sigma_T^2), s the input's noise.
        lost: directions of natural patches with a singular value below 1.
        energy: their share of the energy of natural patches, 0 to 1; NaN where it was not computed.
    """

    input_bits: float
    clean_bits: float
    lost: float
    energy: float = math.nan


def grams(network: Tapped, patch: Tensor, prior: Prior, names: Sequence[str]) -> dict[str, Pair]:
    """J'J of layers, in coordinates of the prior, by forward-mode differentiation along each of its directions.

    Principal components as directions grade the matrix, so that float32 is enough: entries are accurate relative to
    their row and column, and so are the eigenvalues (Demmel and Veselic 1992).

    Args:
        patch: (C, H, W), where to differentiate.
        names: of layers.

    Returns:
        layer -> two matrices (d, d): of the bare activation and of the whole cut.
    """
    dims = patch.numel()
    directions = prior.synthesise(torch.eye(dims))
    found = dict[str, Pair]()

    def visit(name: str, cut: Cut) -> None:
        if name in names:
            bare, *also = (_gram(part, dims) for part in cut.whole)
            found[name] = bare, sum(also, bare)
            if len(found) == len(names):
                raise Enough

    with torch.no_grad(), forward_ad.dual_level():
        images = patch.expand(dims, *patch.shape).contiguous()
        network.run(forward_ad.make_dual(images, directions), visit)
    return found


def _gram(part: Tensor, dims: int) -> Tensor:
    tangent = forward_ad.unpack_dual(part).tangent
    if tangent is None:
        return torch.zeros(dims, dims, dtype=torch.float64)
    rows = tangent.flatten(1)
    return (rows @ rows.T).double()


def local(gram: Tensor, variances: Tensor, noise: float, sigma: float) -> Local:
    """The exact spectrum's figures.

    Args:
        gram: J'J, (d, d), along directions of these variances.
        variances: (d,) of natural patches.
        noise: standard deviation of the input's noise, in the units of the patch.
        sigma: sigma_T.
    """
    gram = (gram + gram.T) / (2 * sigma**2)
    values, vectors = torch.linalg.eigh(_scaled(gram, variances))
    lost = values < 1
    energy = (variances[:, None] * vectors[:, lost] ** 2).sum() / variances.sum()
    input_bits = _half_log_det(_scaled(gram, variances + noise**2))
    noise_bits = _half_log_det(gram * noise**2) if noise else 0.0
    return Local(input_bits, input_bits - noise_bits, float(lost.sum()), float(energy))


def _scaled(gram: Tensor, variances: Tensor) -> Tensor:
    scale = variances.sqrt()
    return scale[:, None] * gram * scale


def _half_log_det(matrix: Tensor) -> float:
    """1/2 log2 det(I + matrix)."""
    return float(torch.linalg.slogdet(torch.eye(len(matrix), dtype=matrix.dtype) + matrix)[1]) / 2 / math.log(2)


# ------------------------------------------------------------------------------------- larger patches

Operator = Callable[[Tensor], Tensor]


def spectral_sums(
    operator: Operator, start: Tensor, functions: Sequence[Callable[[Tensor], Tensor]], steps: int
) -> list[Tensor]:
    """start' f(M) start for each row of `start` and each f: Lanczos quadrature (Golub and Meurant 2010, chapter 7).

    With rows of random signs its mean estimates the trace of f(M) (Ubaru, Chen and Saad 2017).

    Args:
        operator: (k, d) -> (k, d), row by row a symmetric matrix M_k times a vector.
        start: (k, d).
        functions: of eigenvalues.
        steps: of Lanczos, each one application of the operator.

    Returns:
        for each function (k,).
    """
    norm = start.double().norm(dim=1, keepdim=True)
    vectors = [start.double() / norm]
    diagonal, beside = list[Tensor](), list[Tensor]()
    for _ in range(min(steps, start.shape[1])):
        product = operator(vectors[-1]).double()
        diagonal.append((product * vectors[-1]).sum(1))
        known = torch.stack(vectors, 1)
        for _ in range(2):  # once leaves rounding
            product = product - torch.einsum("kjd,kj->kd", known, torch.einsum("kjd,kd->kj", known, product))
        beside.append(product.norm(dim=1))
        vectors.append(product / beside[-1].clamp_min(1e-300)[:, None])
    off = torch.stack(beside[:-1], 1) if len(beside) > 1 else start.new_zeros(len(start), 0).double()
    matrix = torch.diag_embed(torch.stack(diagonal, 1))
    values, rotation = torch.linalg.eigh(matrix + torch.diag_embed(off, 1) + torch.diag_embed(off, -1))
    weights = rotation[:, 0] ** 2 * norm**2
    return [(weights * function(values)).sum(1) for function in functions]


def local_by_trace(
    network: Tapped,
    patches: Tensor,
    prior: Prior,
    name: str,
    bare: bool,
    noise: float,
    sigma: float,
    steps: int,
    seed: int,
) -> list[Local]:
    """The figures of `local` without a matrix, estimated with one vector of random signs for each patch.

    Lanczos is slow where eigenvalues lie far apart, so I + M is first divided by its diagonal in coordinates of the
    prior, averaged over directions of similar variance. Directions lost are counted softly, as the trace of (I + M)^-1:
    one with singular value s counts 1 / (1 + s^2).

    Args:
        patches: (k, C, H, W), where to differentiate.
        name: of the layer.
        bare: of its activation alone.
        noise, sigma: see `local`.
        steps: of Lanczos.
        seed: of the signs.
    """
    normal = _normal_operator(network, patches, name, bare)
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, (len(patches), prior.variances.numel()), generator=generator).double() * 2 - 1

    def gram(v: Tensor) -> Tensor:
        return prior.analyse(normal(prior.synthesise(v))).double() / sigma**2

    power = _smooth(signs * gram(signs), prior.variances)

    def half_log_det(variances: Tensor) -> Tensor:
        scaling = (1 + variances * power).rsqrt()
        (traces,) = spectral_sums(_shifted(gram, variances, scaling), signs, [_half_log2], steps)
        return traces - scaling.log2().sum(1)

    scaling = (1 + prior.variances * power).rsqrt()
    shifted = _shifted(gram, prior.variances, scaling)
    (lost,) = spectral_sums(shifted, signs * scaling, [torch.reciprocal], steps)
    input_bits = half_log_det(prior.variances + noise**2)
    noise_bits = half_log_det(torch.full_like(prior.variances, noise**2)) if noise else torch.zeros(len(patches))
    return [
        Local(float(i), float(i - n), float(count)) for i, n, count in zip(input_bits, noise_bits, lost, strict=True)
    ]


def _half_log2(values: Tensor) -> Tensor:
    return values.clamp_min(1e-12).log2() / 2


def _shifted(gram: Operator, variances: Tensor, scaling: Tensor) -> Operator:
    """v -> C (I + D G D) C v with D^2 the variances and C the scaling, both diagonal."""
    scale = variances.sqrt()
    return lambda v: scaling * (scaling * v + scale * gram(scale * scaling * v))


def _smooth(diagonal: Tensor, variances: Tensor, groups: int = 32) -> Tensor:
    """The diagonal (k, d) averaged over all k and over groups of directions of similar variance; positive."""
    power = torch.empty_like(variances)
    for part in variances.argsort().chunk(groups):
        power[part] = diagonal[:, part].mean().clamp_min(1e-6)
    return power.expand_as(diagonal)


def _normal_operator(network: Tapped, patches: Tensor, name: str, bare: bool) -> Operator:
    """v -> J'J v for images v (k, C, H, W): forward mode for J v, reverse mode for J' of it."""
    leaf = patches.clone().requires_grad_()
    cut = network.cut(leaf, name)
    outputs = [cut.bare] if bare else list(cut.whole)

    def apply(v: Tensor) -> Tensor:
        with torch.no_grad(), forward_ad.dual_level():
            dual = network.cut(forward_ad.make_dual(patches, v.to(patches).contiguous()), name)
            parts = [forward_ad.unpack_dual(part) for part in dual.whole[: len(outputs)]]
            tangents = [torch.zeros_like(p.primal) if p.tangent is None else p.tangent.clone() for p in parts]
        live = [i for i, output in enumerate(outputs) if output.requires_grad]  # parts may be constant
        if not live:
            return torch.zeros_like(patches)
        found = [outputs[i] for i in live], [tangents[i] for i in live]
        return torch.autograd.grad(found[0], leaf, found[1], retain_graph=True)[0]

    return apply
