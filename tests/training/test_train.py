"""Training: it learns, a batch depends on the step alone, and a broken run goes on as if nothing had happened."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from irae.ensemble import VIEWS
from irae.images import Picture, write_image
from irae.journal import FolderLock, JournalError
from irae.models.baselines import BaselineConfig
from irae.models.irae import IRAE
from irae.training.data import PatchBatches, load_training_images
from irae.training.muon import Muon, orthogonalise
from irae.training.recipe import LOSSES, Data, MaskMix, NoiseMix, Optimiser, Recipe, RecipeError, Stage, load_recipe
from irae.training.tasks import TASKS, Denoising
from irae.training.train import Options, Run, make_optimisers, start_from, train
from irae.weights import installed_weights, load_model, load_network, weights_info
from tests.conftest import SMALL
from tests.conftest import TASKS as MODELS


@pytest.fixture
def folder(tmp_path: Path, photo: np.ndarray) -> Path:
    """Three training images and one that is held out."""
    for name, shift in (("a", 0), ("b", 30), ("c", 60), ("held", 90)):
        place = tmp_path / ("holdout" if name == "held" else "images")
        place.mkdir(exist_ok=True)
        write_image(place / f"{name}.png", Picture(np.roll(photo, shift, axis=1)))
    return tmp_path


def recipe(folder: Path, *, steps: int = 8, **changes: object) -> Recipe:
    made = Recipe(
        name="tiny",
        model=SMALL,
        data=Data(sets=(str(folder / "images"),), holdout=str(folder / "holdout")),
        stages=(Stage(steps - 2, 4, 32), Stage(2, 2, 48, "mse")),
    )
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def log(path: Path) -> list[dict[str, str]]:
    with (path / "log.csv").open() as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def test_a_broken_run_goes_on_exactly(folder: Path) -> None:
    whole, broken = folder / "whole", folder / "broken"
    options = Options(precision="fp32", every=2, workers=0)
    train(recipe(folder), whole, options=dataclasses.replace(options, workers=2))
    train(recipe(folder), broken, options=dataclasses.replace(options, max_minutes=0))  # stops after one step
    for left in ("checkpoint.pt", "tiny.safetensors", "log.csv"):
        with pytest.raises(RecipeError, match="--resume"):
            train(recipe(folder), broken, options=options)
        (folder / left).write_bytes(b"")
        with pytest.raises(RecipeError, match=left):
            train(recipe(folder), folder, options=options)
        if left != "checkpoint.pt":
            with pytest.raises(RecipeError, match=f"checkpoint.pt is missing beside {left}"):
                train(recipe(folder), folder, options=dataclasses.replace(options, resume=True))
        (folder / left).unlink()
    resumed = dataclasses.replace(options, resume=True)
    last = train(recipe(folder), broken, options=resumed)
    assert last and train(recipe(folder), broken, options=resumed) == last  # where nothing is left to do
    assert log(broken) == log(whole) and [row["step"] for row in log(whole)] == ["2", "4", "6", "8"]
    end = [load_model(path / "tiny.safetensors").state_dict() for path in (whole, broken)]
    assert all(torch.equal(end[0][name], end[1][name]) for name in end[0])


def test_a_network_without_weights_is_not_trained(folder: Path) -> None:
    with pytest.raises(RecipeError, match="no weights to train"):
        train(recipe(folder, model=dataclasses.replace(SMALL, blocks=(0,))), folder / "run")


def test_two_runs_do_not_share_a_folder(folder: Path) -> None:
    with FolderLock(folder / "run"), pytest.raises(JournalError, match="Another run"):
        train(recipe(folder), folder / "run", options=Options(precision="fp32", workers=0))
    assert not list((folder / "run").iterdir())


def test_a_loss_that_is_not_finite_leaves_the_last_checkpoint(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = Options(precision="fp32", every=2, workers=0)
    train(recipe(folder), folder / "run", options=dataclasses.replace(options, max_minutes=0))
    before = (folder / "run" / "checkpoint.pt").read_bytes()
    monkeypatch.setitem(LOSSES, "l1", lambda restored, clean: (restored - clean).mean() * torch.nan)
    with pytest.raises(RecipeError, match="not finite"):
        train(recipe(folder), folder / "run", options=dataclasses.replace(options, resume=True))
    assert (folder / "run" / "checkpoint.pt").read_bytes() == before


def test_a_checkpoint_of_another_network_is_refused(folder: Path) -> None:
    options = Options(precision="fp32", workers=0, max_minutes=0)
    train(recipe(folder), folder / "run", options=options)
    state = torch.load(folder / "run" / "checkpoint.pt")
    state["model"].popitem()
    torch.save(state, folder / "run" / "checkpoint.pt")
    with pytest.raises(RecipeError, match="damaged"):
        train(recipe(folder), folder / "run", options=dataclasses.replace(options, resume=True))


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_least_at_the_clean_image(name: str) -> None:
    clean, other = torch.rand(2, 2, 3, 4, 4)
    assert LOSSES[name](clean, clean) < LOSSES[name](other, clean) < LOSSES[name](2 * other, clean)


def test_a_checkpoint_of_another_recipe_is_refused(folder: Path) -> None:
    options = Options(precision="fp32", workers=0, max_minutes=0)
    train(recipe(folder, digest="one"), folder / "run", options=options)
    with pytest.raises(ValueError, match="another version of the recipe"):
        train(recipe(folder, digest="two"), folder / "run", options=dataclasses.replace(options, resume=True))


def test_training_improves_on_the_noisy_image(folder: Path) -> None:
    learned = recipe(folder, steps=150, noise=NoiseMix(sigma=(50, 50), shares={"gaussian": 1.0}, files=0.0))
    learned = dataclasses.replace(learned, optimiser=Optimiser(lr=5e-3, warmup=5, average=0.9))
    metrics = train(learned, folder / "run", options=Options(precision="fp32", workers=0))
    assert metrics["psnr_50"] > 16.5  # the noisy image, clipped, has less than 15 dB


def test_a_batch_depends_on_the_step_alone(folder: Path) -> None:
    made = recipe(folder)
    images, held_out = load_training_images(made.data)
    assert len(images) == 3 and list(held_out) == ["held"]
    first, again = PatchBatches(made, images), PatchBatches(made, images)
    first[0]
    assert torch.equal(first[3].damaged, again[3].damaged) and not torch.equal(first[3].damaged, first[4].damaged)
    assert first[3].clean.shape == (4, 3, 32, 32) and first[7].clean.shape == (2, 3, 48, 48)


def test_a_stage_may_have_masks_of_its_own(folder: Path) -> None:
    stages = Stage(1, 2, 32, masks=MaskMix({"random80": 1.0})), Stage(1, 2, 32)
    made = recipe(folder, model=MODELS["inpaint"], stages=stages, masks=MaskMix({"centre": 1.0}))
    batches = PatchBatches(made, load_training_images(made.data)[0])
    middle = slice(8, 24)  # half a side
    assert [float(batches[step].cond[..., middle, middle].sum()) > 0 for step in (0, 1)] == [True, False]
    with pytest.raises(ValueError, match="masks"):
        recipe(folder, stages=stages)


def test_shares_of_files_and_hidden_levels() -> None:
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    mix = NoiseMix(sigma=(10, 60), hidden=0.4, files=0.5)
    clean = torch.full((3, 16, 16), 0.5)
    samples = [Denoising(mix).sample(clean, rng, generator) for _ in range(400)]
    on_levels = [bool(torch.allclose((noisy * 255).round(), noisy * 255, atol=1e-3)) for noisy, _, _ in samples]
    hidden = [float(cond[1].max()) == 0 for _, _, cond in samples]
    assert np.mean(on_levels) == pytest.approx(0.5, abs=0.08)
    assert np.mean(hidden) == pytest.approx(0.4, abs=0.08)
    assert all(
        float(cond.abs().max()) == 0 for (_, _, cond), is_hidden in zip(samples, hidden, strict=True) if is_hidden
    )


def test_learning_rate_rises_then_falls_to_nothing() -> None:
    stages = (Stage(600, 1, 8), Stage(400, 1, 8, "mse"), Stage(500, 1, 8, restart=0.5), Stage(500, 1, 8))
    made = Recipe("x", SMALL, Data(()), stages, optimiser=Optimiser(lr=1.0, warmup=100))
    rates = [made.learning_rate(step) for step in range(2000)]
    assert rates[0] < 0.02 and max(rates) > 0.97 and rates[999] < 1e-4 and np.argmax(rates) == 99
    second = rates[1000:]  # the second cycle is the first one at half the peak
    assert second == pytest.approx([rate / 2 for rate in rates[:1000]])


def test_the_average_does_not_lag_in_short_cycles() -> None:
    stages = (Stage(20_000, 1, 8), Stage(500, 1, 8, restart=0.5))
    made = Recipe("x", SMALL, Data(()), stages, optimiser=Optimiser(average=0.999))
    decays = [made.ema_decay(step) for step in range(20_500)]
    weight = np.prod(decays[20_000:])  # of what was before the cycle
    assert weight < 1e-10 and decays[20_499] < 0.99 and decays[10_000:20_000] == [0.999] * 10_000
    assert decays[20_000:] == decays[:500] == sorted(decays[:500])


def test_orthogonalise_brings_singular_values_near_one() -> None:
    matrices = torch.randn(3, 24, 60, generator=torch.Generator().manual_seed(0))
    for shape in (matrices, matrices.mT):
        values = torch.linalg.svdvals(orthogonalise(shape).float())
        assert values.min() > 0.6 and values.max() < 1.3


def test_every_parameter_has_one_optimiser() -> None:
    model = IRAE(SMALL)
    muon, adam = make_optimisers(model, Optimiser())
    assert isinstance(muon, Muon)
    sizes = [sum(p.numel() for group in o.param_groups for p in group["params"]) for o in (muon, adam)]
    assert sum(sizes) == sum(p.numel() for p in model.parameters())
    assert all(p.ndim == 4 for group in muon.param_groups for p in group["params"])


def test_a_network_without_matrices_is_trained_by_adamw_alone() -> None:
    (adam,) = make_optimisers(torch.nn.Conv2d(3, 1, 3), Optimiser())
    assert isinstance(adam, torch.optim.AdamW)


def test_muon_computes_the_gradients_that_it_is_told_to() -> None:
    weight = torch.nn.Parameter(torch.eye(4))
    optimiser = Muon([weight], lr=0.1)

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = (weight - 1).square().sum()
        loss.backward()
        return loss

    losses = [optimiser.step(closure).item() for _ in range(20)]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", installed_weights())
def test_the_shipped_recipe_is_the_one_of_the_weights(name: str) -> None:
    shipped = load_recipe(Path(__file__).parents[2] / "recipes" / f"{name}.toml")
    assert load_model(name).config == shipped.model
    assert weights_info(name).facts["recipe_sha256"] == shipped.digest
    assert weights_info(name).facts["steps"] == shipped.steps


@pytest.mark.parametrize("task", TASKS)
def test_every_task_trains(folder: Path, task: str) -> None:
    made = recipe(folder, model=MODELS[task], steps=4)
    before = train(made, folder / "short", options=Options(precision="fp32", workers=0, max_minutes=0))
    metrics = train(made, folder / "run", options=Options(precision="fp32", workers=0))
    assert metrics.keys() == before.keys() and all(np.isfinite(list(metrics.values())))
    assert load_model(folder / "run" / "tiny.safetensors").config.task == task
    samples = PatchBatches(made, load_training_images(made.data)[0])
    assert not torch.equal(samples[0].damaged, samples[0].clean)
    assert samples[0].cond.shape[1] == made.model.cond


@pytest.mark.parametrize(
    "content",
    [
        'name = "x"\nstages = [{ steps = 1, batch = 1, patch = 8, loss = "l3" }]\n[model]\n[data]\nsets = []',
        'name = "x"\nstages = []\n[model]\n[noise]\nshares = { snow = 1.0 }\n[data]\nsets = []',
        "name = ",
        'name = "x"',
        'name = "x"\nstages = []\n[model]\nwidth = 3\n[data]\nsets = []',
        "seed = 'one'",
        *(
            f'name = "x"\nstages = [{{ steps = 1, batch = 1, patch = 8 }}]\n{wrong}\n[data]\nsets = []'
            for wrong in (
                "[model]\n[noise]\nshares = 5",
                "[model]\n[noise]\nshares = { gaussian = nan }",
                "[model]\n[noise]\nshares = { gaussian = 'much' }",
                "[model]\n[masks]\nshares = [1]",
                '[model]\ntask = "inpaint"',
                '[model]\ntask = "derain"',
                "[model]\nblocks = [-1]",
                "[model]\nchannels = [12, 96]\nblocks = [1, 1]",
                "[model]\nchannels = [12, 0]\nblocks = [1, 1]",
                "[model]\n[model.block_options]\ncond = 7",
                "[model]\n[noise]\nhidden = 5.0",
                "[model]\n[noise]\nfiles = -1.0",
                "[model]\n[optimiser]\nlr = inf",
            )
        ),
        'name = "x"\nstages = [{ steps = true, batch = 1, patch = 8 }]\n[model]\n[data]\nsets = []',
        'name = "x"\nstages = [{ steps = 1, batch = 1, patch = 8, restart = true }]\n[model]\n[data]\nsets = []',
        'name = "x"\nstages = [{ steps = 1, batch = 1, patch = 8, masks = 3 }]\n[model]\n[data]\nsets = []',
        'name = "x"\nstages = [{ steps = 1, batch = 1, patch = 8, restart = -1e-3 }]\n[model]\n[data]\nsets = []',
        'name = "x"\nstages = [{ steps = 1, batch = 1, patch = 8 }]\n[model]\n[data]\nsets = []\nshrink_most = inf',
    ],
)
def test_a_bad_recipe_is_one_sentence(tmp_path: Path, content: str) -> None:
    (tmp_path / "recipe.toml").write_text(content)
    with pytest.raises(RecipeError, match=r"recipe\.toml"):
        load_recipe(tmp_path / "recipe.toml")


def test_batch_normalisation_has_the_statistics_of_the_averaged_weights(folder: Path) -> None:
    model = BaselineConfig("dncnn", options={"depth": 4, "width": 8})
    made = recipe(folder, model=model, steps=30, optimiser=Optimiser(lr=0.1, average=0.9, algorithm="sgd"))
    train(made, folder / "run", options=Options(precision="fp32", workers=0))
    network = load_network(folder / "run" / "tiny.safetensors")
    batches = PatchBatches(made, load_training_images(made.data)[0])
    layer = next(part for part in network.modules() if isinstance(part, torch.nn.BatchNorm2d))
    seen: list[torch.Tensor] = []
    layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        for step in range(made.steps):
            network(batches[step].damaged, batches[step].cond)
    means = torch.stack([values.mean((0, 2, 3)) for values in seen]).mean(0)
    torch.testing.assert_close(layer.running_mean, means, rtol=0.02, atol=0.01)


def test_a_training_starts_from_weights(folder: Path, weights_file: Path) -> None:
    made = recipe(folder, start=str(weights_file), optimiser=Optimiser(lr=1e-9))
    train(made, folder / "run", options=Options(precision="fp32", workers=0))
    start, end = (load_model(path).state_dict() for path in (weights_file, folder / "run" / "tiny.safetensors"))
    for name, values in start.items():
        torch.testing.assert_close(end[name], values, rtol=1e-3, atol=1e-6)
    for changes in ({"blocks": (0,)}, {"channels": (20,)}):
        other = recipe(folder, start=str(weights_file), model=dataclasses.replace(SMALL, **changes))
        with pytest.raises(RecipeError, match="another network"):
            train(other, folder / "other", options=Options(precision="fp32", workers=0))


@pytest.mark.parametrize("task", ["denoise", "jpeg"])
def test_a_student_comes_near_the_self_ensemble_of_its_teacher(
    folder: Path, task_weights: dict[str, Path], task: str
) -> None:
    weights = str(task_weights[task])
    stages, optimiser = (Stage(60, 4, 32, "mse", teacher=weights),), Optimiser(lr=5e-3, warmup=1, average=0.9)
    made = recipe(folder, model=MODELS[task], stages=stages, optimiser=optimiser)
    train(made, folder / "run", options=Options(precision="fp32", workers=0))
    batch = PatchBatches(made, load_training_images(made.data)[0])[0]
    teacher, student = (load_network(path) for path in (weights, folder / "run" / "tiny.safetensors"))
    with torch.no_grad():
        seen = [
            view.back_batch(teacher(view.of_batch(batch.damaged), view.condition(batch.cond, task))) for view in VIEWS
        ]
        target, answers = torch.stack(seen).mean(0), student(batch.damaged, batch.cond)
    for other in (seen[0], batch.damaged, batch.clean):
        assert (answers - target).square().mean() < 0.2 * (other - target).square().mean()


@pytest.mark.parametrize("task", TASKS)
def test_ragged_patches_have_every_size_that_is_extended_to_their_own(
    folder: Path, task_weights: dict[str, Path], task: str
) -> None:
    """A teacher sees whole patches."""
    stages = (Stage(64, 1, 32, teacher=str(task_weights[task]), ragged=True),)
    run = Run(made := recipe(folder, model=MODELS[task], stages=stages), folder / "run", Options(precision="fp32"))
    seen: dict[str, set[tuple[int, ...]]] = {"student": set(), "teacher": set()}
    (teacher,) = run.teachers.values()
    for name, network in (("student", run.model), ("teacher", teacher)):
        network.register_forward_pre_hook(lambda _, images, name=name: seen[name].add(tuple(images[0].shape[-2:])))
    batch = PatchBatches(made, load_training_images(made.data)[0])[0]
    for _ in range(made.steps):
        run.update(batch)
    multiple = run.model.size_multiple
    assert 1 < multiple <= 8 and seen["teacher"] == {(32, 32)}
    assert seen["student"] == {(32 - lost, 32 - lost) for lost in range(multiple)}


def test_a_teacher_is_for_the_same_task(folder: Path, task_weights: dict[str, Path]) -> None:
    made = recipe(folder, stages=(Stage(2, 4, 32, teacher=str(task_weights["photo"])),))
    with pytest.raises(RecipeError, match="another task"):
        train(made, folder / "run")


@pytest.mark.parametrize("stem", [False, True])
def test_a_deeper_network_begins_where_the_shallower_one_ended(stem: bool) -> None:
    shallow = IRAE(dataclasses.replace(SMALL, stem=stem, task="jpeg"))
    deep = IRAE(dataclasses.replace(SMALL, stem=stem, blocks=(3,)))
    for parameter in shallow.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    start_from(deep, shallow)
    y, cond = torch.rand(2, 3, 16, 16), torch.tensor([0.1, 1.0]).view(1, 2, 1, 1)
    torch.testing.assert_close(deep(y, cond), shallow(y, cond))
    with pytest.raises(RecipeError, match="another network"):
        start_from(shallow, deep)
