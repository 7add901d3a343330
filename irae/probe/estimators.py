"""Mutual information of samples, behind one interface: `estimate(x, t)` of arrays (n, dims), in bits.

Mutual information does not change when a coordinate is mapped one to one, so each coordinate is first made normal by
its ranks: heavy tails and scales then matter to no estimator. Learned estimators train on the first half of the
samples and report on the second.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from scipy.special import digamma
from scipy.stats import norm, rankdata
from torch import Tensor, nn
from torch.nn import functional as F

from irae.errors import IraeError

Samples = NDArray[np.floating]
Groups = NDArray[np.integer]

LEAST = 200  # samples; with fewer, intervals are as wide as the estimates
NEIGHBOURS = 3  # k of KSG, between bias and variance (Kraskov et al. 2004, section III)
MOST_NEIGHBOURS = 4000  # samples for KSG: neighbour counts cost n^2 in many dimensions
CLIP = 5.0  # tau of SMILE in nats (Song and Ermon 2020, section 5)
NEGATIVES = 4096  # held-out samples that are compared with each other: InfoNCE cannot exceed log2 of it
RESAMPLES = 1000
LEAST_GROUPS = 5  # for an interval


class EstimatorError(IraeError):
    """Samples that no estimate can be made of."""


@dataclass(frozen=True)
class MutualInformation:
    """An estimate of mutual information.

    Attributes:
        bits: the estimate.
        interval: 95 %, by the bootstrap over the samples that are reported on; it tells nothing of the bias. None where
            they belong to fewer than `LEAST_GROUPS` groups.
        limit: in bits, what the estimator cannot exceed with so many samples; SMILE should not be trusted beyond it.
        n: samples reported on.
    """

    bits: float
    interval: tuple[float, float] | None
    limit: float
    n: int

    def __str__(self) -> str:
        interval = f" [{self.interval[0]:.2f}, {self.interval[1]:.2f}]" if self.interval else ""
        return f"{self.bits:.2f}{interval} bits"


Estimator = Callable[..., MutualInformation]


def ksg(x: Samples, t: Samples, seed: int = 0, groups: Groups | None = None) -> MutualInformation:
    """Nearest neighbours (Kraskov, Stoegbauer and Grassberger 2004, eq. 8). Needs samples that grow as 2 to the bits.

    Args:
        x, t: (n, dims) each, any units; of more than `MOST_NEIGHBOURS` samples a random part is taken.
        seed: of that choice and of the bootstrap.
        groups: (n,) which samples belong together (patches of one image), for the bootstrap.
    """
    x, t, groups = _prepare(x, t, groups)
    random = np.random.default_rng(seed)
    if len(x) > MOST_NEIGHBOURS:
        part = random.choice(len(x), MOST_NEIGHBOURS, replace=False)
        x, t, groups = x[part], t[part], groups[part]
    n = len(x)
    x, t = (z + 1e-10 * random.standard_normal(z.shape) for z in (x, t))  # no ties
    radius = cKDTree(np.hstack((x, t))).query(np.hstack((x, t)), NEIGHBOURS + 1, p=np.inf)[0][:, -1]
    inside = [cKDTree(z).query_ball_point(z, radius * (1 - 1e-12), p=np.inf, return_length=True) for z in (x, t)]
    terms = (digamma(NEIGHBOURS) + digamma(n) - digamma(inside[0]) - digamma(inside[1])) / math.log(2)
    limit = float(digamma(n) - digamma(NEIGHBOURS)) / math.log(2)  # no neighbour closer than the k-th in x or t alone
    return MutualInformation(float(terms.mean()), _bootstrap(terms[:, None], np.mean, groups, random), limit, n)


def info_nce(
    x: Samples, t: Samples, seed: int = 0, groups: Groups | None = None, steps: int = 400, batch: int = 512
) -> MutualInformation:
    """A learned lower bound (van den Oord et al. 2018, eq. 4): which t of a batch belongs to this x?

    Args:
        x, t: (n, dims) each, any units; the first half trains the critic.
        seed: of training and bootstrap.
        groups: (n,) which samples belong together, for the bootstrap.
        steps, batch: of the training.
    """

    def loss(scores: Tensor) -> Tensor:
        return F.cross_entropy(scores, torch.arange(len(scores)))

    critic, held_x, held_t, held_groups = _train(x, t, groups, loss, seed, steps, batch)
    size = min(NEGATIVES, len(held_x))
    terms = list[Tensor]()
    with torch.no_grad():
        for start in range(0, len(held_x) - size + 1, size):
            scores = critic(held_x[start : start + size], held_t[start : start + size])
            terms.append(scores.diagonal() - scores.logsumexp(1) + math.log(size))
    values = torch.cat(terms).double().numpy()[:, None] / math.log(2)
    interval = _bootstrap(values, np.mean, held_groups[: len(values)], np.random.default_rng(seed))
    return MutualInformation(float(values.mean()), interval, math.log2(size), len(values))


def smile(
    x: Samples, t: Samples, seed: int = 0, groups: Groups | None = None, steps: int = 400, batch: int = 512
) -> MutualInformation:
    """The Donsker-Varadhan value of a learned density ratio, clipped (Song and Ermon 2020, eq. 13).

    Not a bound: clipping trades variance for bias. The limit stated is that of any lower bound that holds whatever the
    distribution is, log2 n (McAllester and Stratos 2020). Arguments: `info_nce`.
    """

    def loss(scores: Tensor) -> Tensor:
        n = len(scores)
        others = F.softplus(scores).sum() - F.softplus(scores.diagonal()).sum()
        return F.softplus(-scores.diagonal()).mean() + others / (n * (n - 1))

    critic, held_x, held_t, held_groups = _train(x, t, groups, loss, seed, steps, batch)
    size = min(NEGATIVES, len(held_x))
    with torch.no_grad():
        scores = critic(held_x[:size], held_t[:size]).double()
    ratio = scores.clamp(-CLIP, CLIP).exp()
    others = (ratio.sum(1) - ratio.diagonal()) / (size - 1)
    terms = torch.stack((scores.diagonal(), others), 1).numpy()

    def value(terms: Samples) -> float:
        return float((terms[:, 0].mean() - np.log(terms[:, 1].mean())) / math.log(2))

    interval = _bootstrap(terms, value, held_groups[:size], np.random.default_rng(seed))
    return MutualInformation(value(terms), interval, math.log2(size), size)


ESTIMATORS: dict[str, Estimator] = {"ksg": ksg, "infonce": info_nce, "smile": smile}


class Critic(nn.Module):
    """Scores of all pairs, f(x) . g(t) + u(x) + v(t); f, g, u and v are a linear map and a small network each.

    Shape: (n, dims of x), (n, dims of t) -> (n, n), row i for x_i.
    """

    def __init__(self, x_dims: int, t_dims: int, hidden: int = 64) -> None:
        super().__init__()
        features = max(16, min(x_dims, t_dims))
        self.encoders = nn.ModuleList(_Encoder(dims, hidden, features + 1) for dims in (x_dims, t_dims))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        f, g = (encode(z) for encode, z in zip(self.encoders, (x, t), strict=True))
        return torch.addmm(f[:, :1] + g[:, :1].T, f[:, 1:], g[:, 1:].T)


class _Encoder(nn.Module):
    def __init__(self, dims: int, hidden: int, out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dims, out)
        self.curved = nn.Sequential(
            nn.Linear(dims, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, out)
        )
        last = self.curved[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)  # what is linear is learned first

    def forward(self, z: Tensor) -> Tensor:
        return self.linear(z) + self.curved(z)


def _train(
    x: Samples, t: Samples, groups: Groups | None, loss: Callable[[Tensor], Tensor], seed: int, steps: int, batch: int
) -> tuple[Critic, Tensor, Tensor, Groups]:
    """A critic trained on the first half of the samples, and the other half.

    An eighth of the first half is kept aside, to stop where training goes on to learn samples by heart.
    """
    x, t, groups = _prepare(x, t, groups)
    half = len(x) // 2
    a, b = (torch.from_numpy(z).float() for z in (x, t))
    seen = half - half // 8
    batch = min(batch, seen)
    best, kept = math.inf, dict[str, Tensor]()
    torch.set_flush_denormal(True)  # scores of unlikely pairs underflow, and denormal numbers are slow
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        critic = Critic(a.shape[1], b.shape[1])
        optimiser = torch.optim.AdamW(critic.parameters(), lr=3e-3, weight_decay=0.1)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, steps, pct_start=0.1)
        for step in range(steps):
            part = torch.randint(seen, (batch,))
            optimiser.zero_grad()
            loss(critic(a[part], b[part])).backward()
            optimiser.step()
            schedule.step()
            if (step + 1) % max(steps // 10, 1) == 0:
                with torch.no_grad():
                    aside = float(loss(critic(a[seen:half][:1024], b[seen:half][:1024])))
                if aside < best:
                    best, kept = aside, {name: value.clone() for name, value in critic.state_dict().items()}
    torch.set_flush_denormal(False)
    critic.load_state_dict(kept)
    return critic.eval(), a[half:], b[half:], groups[half:]


def _prepare(x: Samples, t: Samples, groups: Groups | None) -> tuple[Samples, Samples, Groups]:
    """The normal scores of checked samples; coordinates that are constant hold nothing and are left out."""
    x, t = (np.asarray(z, np.float64) for z in (x, t))
    if x.ndim != 2 or t.ndim != 2 or len(x) != len(t):
        raise EstimatorError(f"Samples are two arrays (n, dims) of one length, not {x.shape} and {t.shape}.")
    if len(x) < LEAST:
        raise EstimatorError(f"{len(x)} samples are too few for an estimate: give at least {LEAST}.")
    scores = []
    for name, z in (("x", x), ("t", t)):
        if not np.isfinite(z).all():
            raise EstimatorError(f"{name} holds values that are not finite: no information can be told of them.")
        varies = z.min(0) < z.max(0)
        if not varies.any():
            raise EstimatorError(f"{name} is constant: it holds no information.")
        scores.append(norm.ppf((rankdata(z[:, varies], axis=0) - 0.5) / len(z)))
    return scores[0], scores[1], np.arange(len(x)) if groups is None else np.asarray(groups)


def _bootstrap(
    terms: Samples, value: Callable[[Samples], float], groups: Groups, random: np.random.Generator
) -> tuple[float, float] | None:
    """The 95 % interval of a value of terms (n, k), drawn again by whole groups; None of too few groups."""
    order = np.argsort(groups, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)
    if len(members) < LEAST_GROUPS:
        return None
    resamples = RESAMPLES if len(members) < 10_000 else RESAMPLES // 5
    single = len(members) == len(terms)
    values = []
    for _ in range(resamples):
        drawn = random.integers(len(members), size=len(members))
        values.append(value(terms[drawn if single else np.concatenate([members[i] for i in drawn])]))
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
