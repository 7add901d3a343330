"""The training loop: recipe in, checkpoints, a CSV log and a weights file out."""

from __future__ import annotations

import copy
import csv
import dataclasses
import io
import math
import os
import pickle
import platform
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kornia.metrics
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader

from irae.degrade import from_pixels, to_8bit
from irae.ensemble import VIEWS
from irae.files import write_bytes
from irae.journal import FolderLock
from irae.models.baselines import Network, build_network
from irae.models.irae import IRAE, IRAEConfig
from irae.runner import cores
from irae.training.data import Batch, Image, PatchBatches, load_training_images
from irae.training.muon import Muon
from irae.training.recipe import LOSSES, Optimiser, Recipe, RecipeError
from irae.training.tasks import Trial
from irae.weights import load_network, save_weights

HOLDOUT_CROP = 256
STATISTICS = 50  # batches that batch normalisation's statistics are taken from


@dataclass(frozen=True)
class Options:
    """How to run a recipe here; nothing in it changes the result but rounding, by `device`, `precision` and `compile`.

    Attributes:
        device: "cpu", "cuda" ...
        precision: "bf16" (autocast) or "fp32".
        max_minutes: stop after that time, with a checkpoint.
        resume: go on from the checkpoint, where there is one.
        every: steps between two evaluations on the held-out images, each followed by a checkpoint.
        workers: processes that make batches; by default 1 on a CPU, and on a GPU all cores but two.
        compile: let `torch.compile` fuse the network; on a CPU a step then takes three quarters of the time.
    """

    device: str = "cpu"
    precision: str = "bf16"
    max_minutes: float = math.inf
    resume: bool = False
    every: int = 1000
    workers: int | None = None
    compile: bool = False

    def __post_init__(self) -> None:
        if self.precision not in ("bf16", "fp32"):
            raise RecipeError(f"Training runs in bf16 or fp32, not in {self.precision}.")
        if not self.max_minutes >= 0:
            raise RecipeError(f"A run does not stop after {self.max_minutes:g} minutes: give 0 or more.")


def train(
    recipe: Recipe,
    folder: Path,
    root: Path | None = None,
    options: Options = Options(),
    stop: threading.Event | None = None,
) -> dict[str, float]:
    """Run a recipe; checkpoint, log and weights lie in `folder`.

    Args:
        recipe: what to train.
        folder: for `checkpoint.pt`, `log.csv` and `NAME.safetensors`, made where it is missing.
        root: the data root.
        options: where and how long.
        stop: once it is set, the run stops after the present step, with a checkpoint.

    Returns:
        The metrics of the last evaluation: PSNR in dB on the held-out images by trial.
    """
    deadline = time.monotonic() + 60 * options.max_minutes
    run = Run(recipe, folder, options)
    if options.resume and run.checkpoint.exists():
        run.resume()
    elif existing := [path for path in (run.checkpoint, run.weights, run.table) if path.exists()]:
        if options.resume:
            raise RecipeError(f"{run.checkpoint} is missing beside {existing[0].name}: give another --output.")
        raise RecipeError(f"{existing[0]} exists: give --resume to go on with a run, or another --output.")
    training, held_out = load_training_images(recipe.data, root)
    batches = PatchBatches(recipe, training)
    metrics = run.metrics
    with FolderLock(folder), _progress() as bar:
        task = bar.add_task(recipe.name, total=recipe.steps, completed=run.step, quality="")
        for batch in run.loader(batches):
            run.update(batch)
            bar.update(task, completed=run.step)
            late = time.monotonic() > deadline or (stop is not None and stop.is_set())
            if run.step % options.every == 0 or run.step == recipe.steps or late:
                metrics = run.measure(held_out, batches)
                bar.update(task, quality="  ".join(f"{key} {value:.2f} dB" for key, value in metrics.items()))
                run.save(metrics)
                if not bar.console.is_terminal:
                    bar.console.print(f"step {run.step}: {metrics}")
            if late:
                break
    return metrics


class Run:
    """The state of a training run: network, average, optimisers, step and log."""

    def __init__(self, recipe: Recipe, folder: Path, options: Options) -> None:
        self.recipe, self.options = recipe, options
        self.checkpoint, self.table = folder / "checkpoint.pt", folder / "log.csv"
        self.weights = folder / f"{recipe.name}.safetensors"
        self.device = torch.device(options.device)
        torch.manual_seed(recipe.seed)
        self.model = build_network(recipe.model, recipe.memory_free)
        if recipe.start:
            start_from(self.model, load_network(recipe.start))
        if next(self.model.parameters(), None) is None:
            raise RecipeError("The network has no weights to train: give it blocks or a stem.")
        self.model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.forward = torch.compile(self.model, dynamic=False) if options.compile else self.model
        self.average = AveragedModel(
            self.model, avg_fn=lambda average, weight, _: average.lerp(weight, 1 - recipe.ema_decay(self.step))
        )
        self.teachers = {name: self._load_teacher(name) for name in {stage.teacher for stage in recipe.stages} - {""}}
        self.optimisers = make_optimisers(self.model, recipe.optimiser)
        self.step = 0
        self.seconds = 0.0
        self.log: list[dict[str, float]] = []
        self.losses: list[Tensor] = []

    def _load_teacher(self, name: str) -> Network:
        teacher = load_network(name)
        if teacher.config.task != self.recipe.model.task:
            raise RecipeError(f"The teacher {name} is for another task than {self.recipe.model.task}.")
        return copy.deepcopy(teacher).to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def loader(self, batches: PatchBatches) -> Iterator[Batch]:
        """The batches from the present step on, made in other processes."""
        workers = self.options.workers
        if workers is None:
            workers = 1 if self.device.type == "cpu" else max(1, cores() - 2)
        loader = DataLoader(
            batches,
            batch_size=None,
            sampler=range(self.step, self.recipe.steps),
            num_workers=workers,
            prefetch_factor=4 if workers else None,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=_ignore_interrupts,
        )
        return iter(loader)

    def update(self, batch: Batch) -> None:
        """One step."""
        start = time.monotonic()
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = self.recipe.learning_rate(self.step)
            optimiser.zero_grad(set_to_none=True)
        batch, stage = batch.to(self.device), self.recipe.stage_at(self.step)
        # a size for as many steps as there are views, so that a teacher answers in all of them
        side = stage.patch - (self.step // len(VIEWS) % self.model.size_multiple if stage.ragged else 0)
        with autocast(self.device, self.options.precision):
            restored = self.forward(batch.damaged[..., :side, :side], batch.cond[..., :side, :side])
            target = self._target(batch, stage.teacher)[..., :side, :side]
        loss = LOSSES[stage.loss](restored.float(), target.float())
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.optimiser.clip)
        for optimiser in self.optimisers:
            optimiser.step()
        self.average.update_parameters(self.model)
        self.losses.append(loss.detach())
        self.step += 1
        self.seconds += time.monotonic() - start

    @torch.no_grad()
    def _target(self, batch: Batch, teacher: str) -> Tensor:
        """The clean patches, or a teacher's answers to the damaged ones, seen in one of the eight ways, by turns.

        Over eight steps such answers are the self-ensemble (`irae.ensemble`), which is better than the teacher alone.

        Shape: (N, 3, P, P).
        """
        if not teacher:
            return batch.clean
        view = VIEWS[self.step % len(VIEWS)]
        damaged, cond = view.of_batch(batch.damaged), view.condition(batch.cond, self.recipe.model.task)
        return view.back_batch(self.teachers[teacher](damaged, cond))

    def measure(self, held_out: dict[str, Image], batches: PatchBatches) -> dict[str, float]:
        """Mean PSNR in dB of the averaged weights on held-out images, for each trial of the task."""
        model = self.average.module
        self._take_statistics(model, batches)
        return evaluate(model, held_out, batches.task.trials(), self.device, self.options.precision)

    @torch.no_grad()
    def _take_statistics(self, model: nn.Module, batches: PatchBatches) -> None:
        """Give batch normalisation the statistics of these weights; those of a training lag behind averaged weights."""
        layers = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # the mean over all batches
        for index in range(min(STATISTICS, len(batches)) if layers else 0):
            batch = batches[index].to(self.device)
            with autocast(self.device, self.options.precision):
                model.train()(batch.damaged, batch.cond)

    def save(self, metrics: dict[str, float]) -> None:
        """Write log, weights and checkpoint, each atomically; the checkpoint last.

        The log has a row for every `every` steps and the last one, wherever the run was broken off.

        Raises:
            RecipeError: the loss is not finite; what was saved before stays.
        """
        if self.losses and not bool(torch.stack(self.losses).isfinite().all()):
            raise RecipeError(f"The loss was not finite any more before step {self.step}: try a lower learning rate.")
        if self.step % self.options.every == 0 or self.step == self.recipe.steps:
            mean_loss = float(torch.stack(self.losses).mean()) if self.losses else math.nan
            self.losses.clear()
            self.log.append({"step": self.step, "seconds": round(self.seconds, 1), "loss": mean_loss, **metrics})
            _write_csv(self.table, self.log)
        save_weights(
            self.weights,
            self.recipe.model,
            self.average.module.state_dict(),
            {
                "recipe": self.recipe.name,
                "recipe_sha256": self.recipe.digest,
                "steps": self.step,
                "of_steps": self.recipe.steps,
                "megapixels_seen": round(pixels_seen(self.recipe, self.step) / 1e6),
                "training_seconds": round(self.seconds),
                "hardware": hardware(self.device),
                "holdout_psnr_db": {key: round(value, 3) for key, value in metrics.items()},
            },
        )
        buffer = io.BytesIO()
        torch.save(self._state(), buffer)
        write_bytes(self.checkpoint, buffer.getvalue(), overwrite=True)

    @property
    def metrics(self) -> dict[str, float]:
        """Those of the last row of the log, as `measure` gave them; none before the first."""
        facts = ("step", "seconds", "loss")
        return {key: value for key, value in self.log[-1].items() if key not in facts} if self.log else {}

    def resume(self) -> None:
        """Go on from the checkpoint.

        Raises:
            RecipeError: it is damaged, or of another version of the recipe.
        """
        try:
            state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
            if state["recipe"] == self.recipe.digest:
                self._load(state)
        except (OSError, EOFError, KeyError, TypeError, ValueError, RuntimeError, pickle.UnpicklingError) as error:
            raise RecipeError(f"{self.checkpoint} is damaged: remove it and start again.") from error
        if state["recipe"] != self.recipe.digest:
            raise RecipeError(f"{self.checkpoint} belongs to another version of the recipe: give another --output.")

    def _load(self, state: dict[str, Any]) -> None:
        self.step, self.seconds, self.log = state["step"], state["seconds"], state["log"]
        self.losses = [loss.to(self.device) for loss in state["losses"]]
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        for optimiser, values in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(values)

    def _state(self) -> dict[str, Any]:
        return {
            "recipe": self.recipe.digest,
            "step": self.step,
            "seconds": self.seconds,
            "log": self.log,
            "losses": self.losses,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
        }


def start_from(network: Network, start: Network) -> None:
    """Give a network another's weights, whose task does not matter.

    An IRAE may have more blocks than the other: they lie in the middle, between encoder and decoder, and as new
    couplings begin as the identity, training goes on where the shallower one's ended (Net2Net, Chen et al. 2016).

    Raises:
        RecipeError: the two differ in anything else.
    """
    same = dataclasses.replace(start.config, task=network.config.task)
    if same == network.config:
        network.load_state_dict(start.state_dict())
        return
    if not (isinstance(network, IRAE) and isinstance(start, IRAE)) or not _deeper(network.config, start.config):
        raise RecipeError("The weights that the training starts from are of another network than the recipe's.")
    for own, given in zip(network.encoder, start.encoder, strict=True):
        for part, source in zip(own.parts, given.parts, strict=False):
            part.load_state_dict(source.state_dict())
    for own, given in zip(network.decoder, start.decoder, strict=True):
        for part, source in zip(reversed(own.parts), reversed(given.parts), strict=False):
            part.load_state_dict(source.state_dict())


def _deeper(config: IRAEConfig, other: IRAEConfig) -> bool:
    """Whether the first is the second but for its task and more blocks."""
    same = dataclasses.replace(other, task=config.task, blocks=config.blocks) == config
    return same and all(more >= fewer for more, fewer in zip(config.blocks, other.blocks, strict=True))


def make_optimisers(model: nn.Module, settings: Optimiser) -> list[torch.optim.Optimizer]:
    """Muon for the weights of convolutions, AdamW for biases, vectors and weights with one channel on a side; or the
    settings' other algorithm for all.
    """
    if settings.algorithm == "adam":
        return [torch.optim.Adam(model.parameters(), lr=settings.lr)]
    if settings.algorithm == "sgd":
        return [torch.optim.SGD(model.parameters(), lr=settings.lr, momentum=0.9, weight_decay=1e-4)]
    is_matrix = {p: p.ndim == 4 and min(p.shape[0], p.shape[1]) > 1 for p in model.parameters()}
    matrices = [p for p, matrix in is_matrix.items() if matrix]
    others = [p for p, matrix in is_matrix.items() if not matrix]
    muon = [Muon(matrices, lr=settings.lr)] if matrices else []  # narrow networks have none
    adamw = [torch.optim.AdamW(others, lr=settings.lr, betas=(0.9, 0.95), weight_decay=0.0)] if others else []
    return [*muon, *adamw]


@torch.no_grad()
def evaluate(
    model: nn.Module, images: dict[str, Image], trials: dict[str, Trial], device: torch.device, precision: str
) -> dict[str, float]:
    """Mean PSNR in dB on centre crops of the held-out images, for each trial."""
    model.eval()
    result = {}
    for key, trial in trials.items():
        psnr = []
        for name, image in images.items():
            clean = centre_crop(from_pixels(image), HOLDOUT_CROP)
            damaged, cond = trial(name, clean)
            with autocast(device, precision):
                restored = model(damaged.to(device), cond.to(device))
            psnr.append(kornia.metrics.psnr(to_8bit(restored.float()), clean[None].to(device), 1.0))
        result[key] = float(torch.stack(psnr).mean())
    model.train()
    return result


def centre_crop(image: Tensor, size: int) -> Tensor:
    """The middle of an image (C, H, W), at most `size` high and wide."""
    top, left = (max(0, (side - size) // 2) for side in image.shape[-2:])
    return image[:, top : top + size, left : left + size]


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """bfloat16 in the convolutions for "bf16", nothing for "fp32"."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def pixels_seen(recipe: Recipe, step: int) -> int:
    """Pixels of all patches up to a step."""
    total = 0
    for stage in recipe.stages:
        steps = min(step, stage.steps)
        total += steps * stage.batch * stage.patch**2
        step -= steps
    return total


def hardware(device: torch.device) -> str:
    """What it was trained on, for the card."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{os.cpu_count()} cores, {platform.machine()}"


def _ignore_interrupts(worker: int) -> None:
    """Ctrl-C reaches all processes of a terminal; when a run ends is for the main one to say."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[quality]}"),
    )


def _write_csv(path: Path, rows: list[dict[str, float]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    write_bytes(path, text.getvalue().encode(), overwrite=True)
