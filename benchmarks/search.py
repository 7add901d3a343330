"""Which network and which recipe learn most in a given time: short runs of variants of a recipe, one table.

    python benchmarks/search.py denoise [--minutes 8] [--seeds 1] [--variants "as it is;width 96"] [--threads 1]
    python benchmarks/search.py denoise --go-on 3e-4 --variants "as it is;MSE"

Every variant is trained for the same time, from scratch or from the shipped weights, its learning rate going down a
cosine, and measured by PSNR on the held-out training images, and on the same made vivid: halved, so that their colour
is as fine as their brightness, which JPEG had taken from them, and twice as saturated. The steps that a variant makes
in that time are measured before.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import torch
import typer
from quality import halved, vivid
from rich.console import Console

from irae.models.baselines import build_network
from irae.training.data import Image, PatchBatches, load_training_images
from irae.training.recipe import Recipe, Stage, load_recipe
from irae.training.train import Options, Run
from irae.weights import mac_per_pixel

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
WARM_UP, TIMED = 5, 15  # steps before and while the time of a step is taken
Changes = Mapping[str, Mapping[str, Any]]  # section of the recipe -> what is other in it


def u(**options: Any) -> dict[str, Any]:
    return {"subnet": "u", **options}


VARIANTS: dict[str, Changes] = {
    "as it is": {},
    # width, depth, levels
    "width 48, 2 blocks": {"model": {"channels": (48,), "blocks": (2,)}},
    "width 96": {"model": {"channels": (96,)}},
    "width 128": {"model": {"channels": (128,)}},
    "2 blocks": {"model": {"blocks": (2,)}},
    "width 96, 2 blocks": {"model": {"channels": (96,), "blocks": (2,)}},
    "2 levels": {"model": {"channels": (48, 96), "blocks": (1, 1)}},
    # the subnet of a coupling
    "plain, 2 convolutions, 3 blocks": {"model": {"blocks": (3,), "block_options": {"depth": 2}}},
    "plain, 3 convolutions, 2 blocks": {"model": {"blocks": (2,), "block_options": {"depth": 3}}},
    "hidden 96": {"model": {"block_options": u(hidden=96)}},
    "dip of 3 convolutions": {"model": {"block_options": u(depth=3)}},
    "dip of 2 levels": {"model": {"block_options": u(levels=2)}},
    "dip of 2 levels, width 128": {"model": {"channels": (128,), "block_options": u(levels=2)}},
    "affine": {"model": {"block": "affine"}},
    # around the blocks
    "no stem": {"model": {"stem": False}},
    "Haar lift": {"model": {"lift": "haar"}},
    "DCT lift": {"model": {"lift": "dct", "channels": (192,)}},
    "mixing": {"model": {"mixing": True}},
    # the optimiser
    "Muon 5e-4": {"optimiser": {"lr": 5e-4}},
    "Muon 2e-3": {"optimiser": {"lr": 2e-3}},
    "Adam 1e-3": {"optimiser": {"algorithm": "adam"}},
    "average over 1,000 steps": {"optimiser": {"average": 0.999}},
    # steps and data
    "batch 16": {"stage": {"batch": 16}},
    "patch 96": {"stage": {"batch": 14, "patch": 96}},
    "patch 48": {"stage": {"batch": 57, "patch": 48}},
    "MSE": {"stage": {"loss": "mse"}},
    "PSNR": {"stage": {"loss": "psnr"}},
    "Charbonnier": {"stage": {"loss": "charbonnier"}},
    "BSD400 alone": {"data": {"sets": ("bsd400",)}},
    "no shrinking": {"data": {"shrink": 0.0}},
    "more shrinking": {"data": {"shrink": 0.5}},
    "no recolouring": {"data": {"recolour": 0.0}},
    "more recolouring": {"data": {"recolour": 0.3}},
}


def main(
    name: Annotated[str, typer.Argument(help="A recipe.")],
    minutes: Annotated[float, typer.Option(help="Of training a run.")] = 8.0,
    seeds: Annotated[int, typer.Option(help="Runs of a variant.")] = 1,
    variants: Annotated[str, typer.Option(help="By name, semicolons between; all that fit by default.")] = "",
    go_on: Annotated[float, typer.Option(help="Begin with the shipped weights, at this peak rate.")] = 0.0,
    threads: Annotated[int, typer.Option(help="Of a CPU.")] = 1,
    device: Annotated[str, typer.Option()] = "cpu",
    precision: Annotated[str, typer.Option(help="bf16 or fp32.")] = "bf16",
    workers: Annotated[int | None, typer.Option(help="Processes that make batches.")] = None,
    compile: Annotated[bool, typer.Option(help="Let torch.compile fuse the network.")] = False,
) -> None:
    """Print a Markdown table, row by row."""
    torch.set_num_threads(threads)
    console = Console(width=200, soft_wrap=True, highlight=False)
    recipe = load_recipe(RECIPES / f"{name}.toml")
    fitting = [key for key, changes in VARIANTS.items() if not go_on or not {"model", "optimiser"} & set(changes)]
    chosen = variants.split(";") if variants else fitting
    if other := [variant for variant in chosen if variant not in fitting]:
        raise typer.BadParameter(f"No variants here, or not of the shipped network and --go-on's rate: {other}.")
    optimiser = replace(recipe.optimiser, lr=go_on or recipe.optimiser.lr)
    recipe = replace(recipe, start=name if go_on else "", optimiser=optimiser)
    training, held_out = load_training_images(recipe.data)
    options = Options(device=device, precision=precision, workers=workers, compile=compile)
    console.print("| variant | parameters | MAC/pixel | steps | PSNR (dB) by seed | mean | vivid |")
    console.print("|---|---|---|---|---|---|---|")
    for variant in chosen:
        trial = changed(recipe, VARIANTS[variant])
        images = training if trial.data.sets == recipe.data.sets else load_training_images(trial.data)[0]
        found = [run(replace(trial, seed=seed), images, held_out, options, minutes) for seed in range(seeds)]
        network = build_network(trial.model)
        size = f"{sum(p.numel() for p in network.parameters()):,d} | {mac_per_pixel(network):,d}"
        scores = ", ".join(" / ".join(f"{value:.3f}" for value in metrics.values()) for _, metrics, _ in found)
        usual, colourful = (
            mean(mean(metrics.values()) for metrics in column) for column in list(zip(*found, strict=True))[1:]
        )
        console.print(f"| {variant} | {size} | {found[0][0]} | {scores} | {usual:.3f} | {colourful:.3f} |")


def changed(recipe: Recipe, changes: Changes) -> Recipe:
    """The recipe with one stage, its first, and what a variant changes."""
    first = recipe.stages[0]
    stage = replace(Stage(1, first.batch, first.patch, first.loss), **changes.get("stage", {}))
    optimiser = replace(recipe.optimiser, average=0.99)
    recipe = replace(recipe, stages=(stage,), optimiser=optimiser)
    sections = {key: replace(getattr(recipe, key), **values) for key, values in changes.items() if key != "stage"}
    return replace(recipe, **sections)


def run(
    recipe: Recipe, training: list[Image], held_out: dict[str, Image], options: Options, minutes: float
) -> tuple[int, dict[str, float], dict[str, float]]:
    """The steps made in the time, and PSNR by trial at their end, on the held-out images and on the same made vivid."""
    steps = max(1, round(60 * minutes / seconds_a_step(recipe, training, options)))
    recipe = replace(recipe, stages=(replace(recipe.stages[0], steps=steps),))
    batches = PatchBatches(recipe, training)
    training_run = Run(recipe, Path(), options)
    for batch in training_run.loader(batches):
        training_run.update(batch)
    colourful = {name: vivid(halved(image)) for name, image in held_out.items()}
    return steps, training_run.measure(held_out, batches), training_run.measure(colourful, batches)


def seconds_a_step(recipe: Recipe, training: list[Image], options: Options) -> float:
    """Measured after a few steps, the making of batches included."""
    recipe = replace(recipe, stages=(replace(recipe.stages[0], steps=WARM_UP + TIMED + 1),))
    trial = Run(recipe, Path(), options)
    batches = trial.loader(PatchBatches(recipe, training))
    for batch in islice(batches, WARM_UP):
        trial.update(batch)
    float(trial.losses[-1])  # a GPU has done them by now
    start = time.monotonic()
    for batch in islice(batches, TIMED):
        trial.update(batch)
    float(trial.losses[-1])
    return (time.monotonic() - start) / TIMED


if __name__ == "__main__":
    typer.run(main)
