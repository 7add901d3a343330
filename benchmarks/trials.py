"""Which optimiser and initialisation each network takes at the comparison budget: short trials, one table.

    python benchmarks/trials.py [--steps 100] [--networks dncnn-denoise,ffdnet-denoise]

Each network of `recipes/baselines` is trained for a few steps under our settings and under those of its paper, the
learning rate going down a cosine over these steps; PSNR on held-out training images, convolutions in bf16.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from irae.models.baselines import BaselineConfig
from irae.training.data import Image, PatchBatches, load_training_images
from irae.training.recipe import Optimiser, Recipe, Stage, load_recipe
from irae.training.train import Options, Run

RECIPES = Path(__file__).resolve().parents[1] / "recipes" / "baselines"
SETTINGS: dict[str, list[tuple[str, float, str, dict[str, Any]]]] = {  # algorithm, rate, initialisation, options
    "ffdnet-denoise": [
        ("muon", 1e-3, "he", {"norm": False}),
        ("adam", 1e-3, "he", {"norm": False}),
        ("muon", 1e-3, "orthogonal", {"norm": False}),
        ("muon", 1e-3, "orthogonal", {"norm": True}),
        ("adam", 1e-3, "orthogonal", {"norm": True}),
    ],
    "arcnn-jpeg": [
        *((algorithm, 1e-3, init, {}) for algorithm in ("muon", "adam") for init in ("he", "gaussian")),
        ("sgd", 1e-1, "gaussian", {}),
    ],
    "dncnn-denoise": [
        *((algorithm, 1e-3, init, {}) for algorithm in ("muon", "adam") for init in ("residual", "he")),
        ("sgd", 1e-1, "he", {}),
    ],
    **{
        f"unet-{task}": [(algorithm, 1e-3, init, {}) for algorithm in ("muon", "adam") for init in ("residual", "he")]
        for task in ("denoise", "jpeg")
    },
    "twin-denoise": [("muon", 1e-3, "", {}), ("adam", 1e-3, "", {})],
    "irae-denoise": [("muon", 1e-3, "", {}), ("adam", 1e-3, "", {})],
}


def main(
    steps: Annotated[int, typer.Option(help="Of each trial.")] = 100,
    networks: Annotated[str, typer.Option(help="Recipes, commas between.")] = ",".join(SETTINGS),
    batch: Annotated[int, typer.Option(help="Patches of a step.")] = 16,
    patch: Annotated[int, typer.Option(help="Pixels a side.")] = 64,
    held_out: Annotated[int, typer.Option(help="Images to measure on.")] = 8,
) -> None:
    """Train shortly, measure, print a table."""
    table = Table(
        "network", "algorithm", "learning rate", "initialisation", "options", "loss", "PSNR (dB)", "CPU s a step"
    )
    recipes = {name: load_recipe(RECIPES / f"{name}.toml") for name in networks.split(",")}
    training, held = load_training_images(next(iter(recipes.values())).data)  # all recipes name the same images
    few = dict(list(held.items())[:held_out])
    for name, recipe in recipes.items():
        for algorithm, rate, init, more in SETTINGS[name]:
            optimiser = Optimiser(rate, warmup=20, average=0.95, algorithm=algorithm)
            stages = (Stage(steps, batch, patch, recipe.stages[0].loss),)
            model = recipe.model
            if isinstance(model, BaselineConfig):
                model = dataclasses.replace(model, init=init, options={**model.options, **more})
            trial = dataclasses.replace(recipe, model=model, optimiser=optimiser, stages=stages)
            loss, seconds, metrics = run(trial, PatchBatches(trial, training), few)
            psnr = " / ".join(f"{value:.2f}" for value in metrics.values())
            cells = (
                name,
                algorithm,
                f"{rate:g}",
                init or "its own",
                str(more or ""),
                f"{loss:.4f}",
                psnr,
                f"{seconds:.2f}",
            )
            Console(stderr=True).print("  ".join(cells))
            table.add_row(*cells)
    Console(width=120).print(table)


def run(recipe: Recipe, batches: PatchBatches, held_out: dict[str, Image]) -> tuple[float, float, dict[str, float]]:
    """The mean loss of the last steps, CPU seconds a step, and PSNR by trial."""
    training = Run(recipe, Path(), Options(workers=0))
    seconds = 0.0
    for step in range(recipe.steps):
        batch = batches[step]
        start = time.process_time()
        training.update(batch)
        seconds += time.process_time() - start
    return float(torch.stack(training.losses[-20:]).mean()), seconds / recipe.steps, training.measure(held_out, batches)


if __name__ == "__main__":
    typer.run(main)
