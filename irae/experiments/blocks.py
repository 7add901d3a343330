"""The denoiser with each registered block, and with plain residual blocks, at equal parameters and equal time.

Chang et al. 2018 claim an advantage of reversible blocks with few training data: hence 10 % of the images too.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from irae.experiments.common import Context, Experiment, Result, Row, in_processes, panels
from irae.journal import append_line
from irae.models.baselines import Twin
from irae.models.blocks import BLOCKS
from irae.models.irae import IRAE, IRAEConfig
from irae.training.data import Image, PatchBatches, load_training_images
from irae.training.recipe import LOSSES, Data, NoiseMix, Optimiser, Recipe, Stage, learning_rate_scale
from irae.training.tasks import Denoising
from irae.training.train import evaluate, make_optimisers

PLAIN = "plain twin"
SIGMA = 25
DATA = Data(sets=("bsd400", "imagenet_sample"), shrink=0.0, recolour=0.0, grey=0.0)
NOISE = NoiseMix(sigma=(SIGMA, SIGMA), shares={"gaussian": 1.0}, hidden=0.0, files=0.0)
OPTIMISER = Optimiser(lr=1e-3, warmup=50, average=0.99)


@dataclass(frozen=True)
class Setup:
    """Runs for every block, share of the training images and seed, each on one thread.

    Attributes:
        parameters: that each network has, within 3 %.
        minutes: of training a run, all included but reading the images and the evaluation.
        seeds: runs that differ in initialisation, noise, patches and the images chosen.
        shares: of the training images.
        batch, patch: a training step.
        held_out: images to evaluate on, at most 20.
        processes: runs at a time; 0 to compute in this process.
        most_steps: a run's end where it comes before its time is over, for trials.
    """

    parameters: int = 150_000
    minutes: float = 2.0
    seeds: int = 3
    shares: tuple[float, ...] = (1.0, 0.1)
    batch: int = 8
    patch: int = 48
    held_out: int = 20
    processes: int = 2
    most_steps: int = 1_000_000


@dataclass(frozen=True)
class Design:
    """How a block is used: blocks in each half, its options, and whether `hidden` may differ from the channels."""

    blocks: int = 2
    options: dict[str, Any] = field(default_factory=dict)
    hidden: bool = False


# About as many convolutions one after the other in each network; a block not named here takes Design().
DESIGNS = {
    "additive": Design(1, {"subnet": "u"}, hidden=True),
    "affine": Design(1, {"subnet": "u"}, hidden=True),
    PLAIN: Design(1, {"subnet": "u"}, hidden=True),
    "hamiltonian": Design(3, hidden=True),
    "midpoint": Design(6),
    "leapfrog": Design(6, hidden=True),
    "rectifier": Design(3, hidden=True),
    "lipschitz": Design(3, hidden=True),
}


@dataclass(frozen=True)
class Job:
    """One run: all that its result depends on, and where the images lie."""

    block: str
    share: float
    seed: int
    config: IRAEConfig
    setup: Setup
    root: Path | None

    def key(self) -> str:
        """What tells finished runs apart; how many run at a time, how often and where is not in it."""
        values = dataclasses.asdict(self)
        del values["root"], values["setup"]["processes"], values["setup"]["seeds"], values["setup"]["shares"]
        return json.dumps(values, sort_keys=True)


def run(setup: Setup, context: Context) -> Result:
    """PSNR of every block, by the share of the training images; finished runs are kept in `runs.jsonl`."""
    configs = {name: fit_width(name, setup.parameters) for name in (*BLOCKS, PLAIN)}
    seeds = range(context.seed, context.seed + setup.seeds)
    jobs = [
        Job(name, share, seed, config, setup, context.root)
        for seed in seeds
        for share in setup.shares
        for name, config in configs.items()
    ]
    done = read_runs(context.folder / "runs.jsonl")
    open_jobs = [job for job in jobs if job.key() not in done]
    if len(open_jobs) < len(jobs):
        context.say(f"{len(jobs) - len(open_jobs)} of {len(jobs)} runs were finished before.")
    results = in_processes(train_one, open_jobs, setup.processes)
    for key, found in context.track(results, len(open_jobs), "blocks"):
        done[key] = found
        append_line(context.folder / "runs.jsonl", {"key": key, **found})
    rows = summarise(jobs, done)
    return Result(rows, NOTES, {"plot": plot(rows)})


def read_runs(path: Path) -> dict[str, Row]:
    """Finished runs by their job's key; a line that was not written to its end is left out."""
    done = dict[str, Row]()
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            found = json.loads(line)
        except json.JSONDecodeError:
            continue
        done[found.pop("key")] = found
    return done


def train_one(job: Job) -> tuple[str, Row]:
    """Train one network for its time and evaluate it: the job's key, and PSNR in dB, steps and parameters."""
    torch.manual_seed(job.seed)
    training, held_out = images(job.root)
    rng = np.random.default_rng(job.seed)
    chosen = rng.permutation(len(training))[: max(1, round(job.share * len(training)))]
    stage = Stage(job.setup.most_steps, job.setup.batch, job.setup.patch)
    recipe = Recipe("blocks", job.config, DATA, (stage,), NOISE, optimiser=OPTIMISER, seed=job.seed)
    network = build(job.block, job.config)
    average, steps, loss = fit(network, PatchBatches(recipe, [training[i] for i in chosen]), job.setup)
    few = dict(list(held_out.items())[: job.setup.held_out])
    psnr = evaluate(average, few, {"psnr": Denoising.trial(SIGMA)}, torch.device("cpu"), "fp32")["psnr"]
    return job.key(), {"psnr": psnr, "steps": steps, "loss": loss, "parameters": count(network)}


def fit(network: nn.Module, batches: PatchBatches, setup: Setup) -> tuple[nn.Module, int, float]:
    """Train until the time is over: the averaged network, the steps and the last loss (NaN: it diverged)."""
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(OPTIMISER.average))
    optimisers, start, loss = make_optimisers(network, OPTIMISER), time.monotonic(), math.nan
    for step in range(setup.most_steps + 1):
        over = max((time.monotonic() - start) / (60 * setup.minutes), step / setup.most_steps)
        if over >= 1:
            break
        # The cosine cycle of the recipes, over the time instead of the steps; the warm-up is counted in steps.
        scale = min(1.0, (step + 1) / OPTIMISER.warmup) * learning_rate_scale(round(1000 * over), 1000, 1)
        loss = update(network, optimisers, batches, step, scale)
        if not math.isfinite(loss):
            break
        average.update_parameters(network)
    return average.module, step, loss


def update(
    network: nn.Module, optimisers: list[torch.optim.Optimizer], batches: PatchBatches, step: int, scale: float
) -> float:
    """One training step: the loss."""
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["lr"] = scale * OPTIMISER.lr
        optimiser.zero_grad(set_to_none=True)
    batch = batches[step].to(torch.device("cpu"))
    loss = LOSSES["l1"](network(batch.damaged, batch.cond), batch.clean)
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), OPTIMISER.clip)
    for optimiser in optimisers:
        optimiser.step()
    return float(loss.detach())


@lru_cache(maxsize=1)
def images(root: Path | None) -> tuple[list[Image], dict[str, Image]]:
    """The training and the held-out images, read once in each process."""
    return load_training_images(DATA, root)


def build(name: str, config: IRAEConfig) -> nn.Module:
    """The network of a run."""
    return Twin.like(config) if name == PLAIN else IRAE(config, memory_free=False)


def fit_width(name: str, parameters: int) -> IRAEConfig:
    """The configuration whose number of parameters is nearest: channels, and a hidden width near them if it has one."""
    design = DESIGNS.get(name, Design())
    block = "additive" if name == PLAIN else name

    def config(channels: int, more: int = 0) -> IRAEConfig:
        options = {**design.options, **({"hidden": channels + more} if more else {})}
        return IRAEConfig(block=block, block_options=options, channels=(channels,), blocks=(design.blocks,))

    def distance(candidate: IRAEConfig) -> float:
        return abs(count(build(name, candidate)) / parameters - 1)

    low, high = 12, 256  # 12 channels hold the squeezed image
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(build(name, config(middle))) <= parameters else (low, middle)
    best = min((config(low), config(high)), key=distance)
    if design.hidden and distance(best) > 0.01:
        best = min((config(width, more) for width in (low, high) for more in range(-3, 4)), key=distance)
    return best


def count(network: nn.Module) -> int:
    """Its trained numbers."""
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)


def summarise(jobs: list[Job], done: dict[str, Row]) -> list[Row]:
    """A row for each block and share: mean and spread over the seeds, and the difference from the twin by seed."""
    psnr = {(job.block, job.share, job.seed): done[job.key()]["psnr"] for job in jobs}
    rows = list[Row]()
    for block, share in dict.fromkeys((job.block, job.share) for job in jobs):
        mine = [job for job in jobs if (job.block, job.share) == (block, share)]
        values = [psnr[block, share, job.seed] for job in mine]
        gains = [psnr[block, share, job.seed] - psnr[PLAIN, share, job.seed] for job in mine]
        found = [done[job.key()] for job in mine]
        rows.append(
            {
                "block": block,
                "images (%)": 100 * share,
                "parameters": found[0]["parameters"],
                "channels": mine[0].config.channels[0],
                "blocks": 2 * mine[0].config.blocks[0],
                "steps": round(mean(run["steps"] for run in found)),
                "PSNR (dB)": round(mean(values), 3),
                "spread (dB)": _spread(values),
                "gain over twin (dB)": round(mean(gains), 3),
                "spread of gain (dB)": _spread(gains),
            }
        )
    return rows


def _spread(values: list[float]) -> float | None:
    return round(stdev(values), 3) if len(values) > 1 else None


NOTES = [
    f"Denoising of colour images, Gaussian noise of level {SIGMA}, told to the network; float32. Every run trains for "
    "the same time on one thread, two runs at a time; the learning rate goes down a cosine over that time. PSNR: mean "
    "over centre crops of the held-out training images. Spread: standard deviation over the seeds. Gain: against the "
    "twin of the same seed.",
    "The plain twin has the subnets of the additive IRAE in a plain residual chain, x <- x + F(x). Blocks differ in "
    "how much they compute for each parameter (tied weights are used twice), so the steps that fit into the time "
    "differ too. At 10 % the images are drawn anew for each seed, the same ones for all blocks.",
]


def plot(rows: list[Row]) -> Figure:
    """PSNR with its spread: a panel for each share of the images."""
    shares = list(dict.fromkeys(row["images (%)"] for row in rows))
    figure, axes_row = panels(len(shares), width=5)
    for axes, share in zip(axes_row, shares, strict=True):
        mine = [row for row in rows if row["images (%)"] == share]
        bars = [row["spread (dB)"] or 0.0 for row in mine]
        axes.errorbar([row["PSNR (dB)"] for row in mine], range(len(mine)), xerr=bars, fmt="o", capsize=3)
        axes.set_yticks(range(len(mine)), [row["block"] for row in mine])
        axes.set(title=f"{share:g} % of the training images", xlabel="PSNR (dB)")
        axes.grid(axis="x", alpha=0.3)
    return figure


EXPERIMENT = Experiment(
    title=f"The denoiser with each block at equal parameters and time, noise level {SIGMA}",
    run=run,
    full=Setup(),
    quick=Setup(parameters=60_000, minutes=0.05, seeds=1, shares=(1.0,), held_out=4),
    minutes=55,
)
