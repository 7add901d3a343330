"""Baselines: the contract that all networks share, the twin's equality, and that recipes and weights carry them."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch

from irae.errors import IraeError
from irae.images import Picture, write_image
from irae.models.baselines import BASELINES, INITS, BaselineConfig, Twin, build_network
from irae.models.irae import IRAE, IRAEConfig
from irae.training.data import PatchBatches, load_training_images
from irae.training.recipe import Data, Optimiser, RecipeError, Stage, load_recipe
from irae.training.train import Options, train
from irae.weights import WeightsError, load_model, load_network, mac_per_pixel, model_facts, save_weights, weights_info

RECIPES = sorted((Path(__file__).parents[1] / "recipes" / "baselines").glob("*.toml"))
WEIGHTS = sorted((Path(__file__).parents[1] / "weights" / "baselines").glob("*.safetensors"))
SMALL = {
    "dncnn": {"depth": 4, "width": 8},
    "ffdnet": {"depth": 4, "width": 8},
    "unet": {"channels": [8, 12]},
    "twin": {"channels": 16, "stem": True, "subnet": "u", "hidden": 8},
}
PARAMETERS = {"dncnn-denoise": 668e3, "ffdnet-denoise": 852e3}  # as the papers count them


def config(name: str, task: str = "denoise", cond: int = 2) -> BaselineConfig:
    return BaselineConfig(name, task, cond, SMALL.get(name, {}))


def count(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def shaken(network: torch.nn.Module) -> torch.nn.Module:
    """With random parameters everywhere: what starts at zero would hide a fault."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return network.eval()


@pytest.mark.parametrize("size", [(20, 12), (5, 5), (24, 40)])
@pytest.mark.parametrize("name", ["irae", "ffdnet", "twin"])
def test_a_condition_of_another_size_is_refused(name: str, size: tuple[int, int]) -> None:
    """Sides exchanged among them, which would give another picture and no error."""
    network = IRAE(IRAEConfig()) if name == "irae" else build_network(config(name))
    with pytest.raises(ValueError, match=f"{size[0]} x {size[1]}"):
        network(torch.rand(1, 3, 12, 20), torch.rand(1, 2, *size))


def test_a_condition_of_an_odd_image_lies_where_the_image_does() -> None:
    """A level that jumps: to pad both before or to leave it to the network is the same."""
    network = shaken(build_network(config("twin")))
    y, cond = torch.rand(1, 3, 13, 13), torch.zeros(1, 2, 13, 13)
    cond[..., 7:] = 1
    padded = network(network.padded(y), network.padded(cond))
    assert torch.allclose(network(y, cond), padded[..., :13, :13], atol=1e-5)


@pytest.mark.parametrize("size", [(32, 32), (17, 30), (1, 3)])
@pytest.mark.parametrize("name", BASELINES)
def test_any_size_and_any_condition(name: str, size: tuple[int, int]) -> None:
    network = shaken(build_network(config(name)))
    y = torch.rand(2, 3, *size)
    with torch.no_grad():
        level = torch.tensor([0.1, 1.0]).view(1, 2, 1, 1)
        everywhere, as_map = network(y, level), network(y, level.expand(2, 2, *size))
        other = network(y, 2 * level)
    assert everywhere.shape == y.shape and torch.allclose(everywhere, as_map, atol=1e-5)
    assert torch.equal(everywhere, other) == (name in ("dncnn", "arcnn"))  # these are blind


@pytest.mark.parametrize("task", ["denoise", "jpeg", "inpaint"])
def test_the_twin_equals_the_irae_in_parameters_and_work(task: str) -> None:
    recipes = [load_recipe(path) for path in RECIPES if path.stem in (f"irae-{task}", f"twin-{task}")]
    irae, twin = (build_network(recipe.model) for recipe in recipes)
    assert isinstance(irae, IRAE) and isinstance(twin, Twin)
    assert count(irae) == count(twin) and mac_per_pixel(irae) == mac_per_pixel(twin)
    shipped = load_recipe(RECIPES[0].parents[1] / f"{task}.toml").model
    if task == "inpaint":  # the one that is shipped has 5.7 MB
        assert isinstance(shipped, IRAEConfig)
        shipped = dataclasses.replace(shipped, blocks=(1,), block_options={**shipped.block_options, "levels": 2})
    assert recipes[0].model == shipped


def test_a_twin_of_a_configuration() -> None:
    plain = IRAEConfig(channels=(16,), blocks=(2,), block_options={"subnet": "u", "hidden": 8})
    twin = Twin.like(plain)
    assert count(twin) == count(IRAE(plain)) and twin.config.task == plain.task


def test_the_twin_keeps_known_pixels() -> None:
    network = shaken(build_network(BaselineConfig("twin", "inpaint", 1, {**SMALL["twin"], "keep_known": True})))
    y, known = torch.rand(1, 3, 18, 21), (torch.rand(1, 1, 18, 21) < 0.5).float()
    with torch.no_grad():
        restored = network(y, known)
    assert torch.equal(restored * known, y * known) and not torch.equal(restored, y)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_share_data_and_budget(path: Path) -> None:
    recipe = load_recipe(path)
    task = recipe.model.task
    reference = load_recipe(path.with_name(f"irae-{task}.toml"))
    shipped = load_recipe(path.parents[1] / f"{task}.toml")
    assert recipe.name == path.stem and recipe.stages == (Stage(5000, 16, 64),)
    assert recipe.data == reference.data == shipped.data
    assert recipe.seed == int(path.stem.partition("-seed")[2] or 0)
    hidden = recipe.noise.hidden if recipe.name == "ffdnet-denoise" else reference.noise.hidden  # it cannot be blind
    assert recipe.noise == dataclasses.replace(shipped.noise, hidden=hidden)
    assert (recipe.jpeg, recipe.masks) == (shipped.jpeg, shipped.masks)
    network = build_network(recipe.model)
    if path.stem in PARAMETERS:
        assert count(network) == pytest.approx(PARAMETERS[path.stem], rel=0.01)
    assert 2 * count(network) < 2e6


@pytest.mark.parametrize("path", WEIGHTS, ids=lambda path: path.stem)
def test_shipped_baselines_are_those_of_their_recipes(path: Path) -> None:
    info, recipe = weights_info(path), load_recipe(RECIPES[0].with_name(f"{path.stem}.toml"))
    assert info.config == recipe.model and path.stat().st_size < 2e6
    assert (info.facts["recipe_sha256"], info.facts["steps"]) == (recipe.digest, recipe.steps)


@pytest.fixture
def data(tmp_path: Path, photo: np.ndarray) -> Data:
    for folder, shift in (("images", 0), ("holdout", 40)):
        (tmp_path / folder).mkdir()
        write_image(tmp_path / folder / "a.png", Picture(np.roll(photo, shift, axis=1)))
    return Data(sets=(str(tmp_path / "images"),), holdout=str(tmp_path / "holdout"))


@pytest.mark.parametrize("path", [path for path in RECIPES if "seed" not in path.stem], ids=lambda path: path.stem)
def test_recipes_take_the_batches_of_their_task(path: Path, data: Data) -> None:
    recipe = dataclasses.replace(load_recipe(path), data=data, stages=(Stage(1, 2, 32),))
    batch = PatchBatches(recipe, load_training_images(data)[0])[0]
    with torch.no_grad():
        assert build_network(recipe.model)(batch.damaged, batch.cond).shape == batch.clean.shape


@pytest.mark.parametrize("name", BASELINES)
def test_training_and_weights(name: str, tmp_path: Path, data: Data) -> None:
    recipe = load_recipe(
        next(path for path in RECIPES if path.stem == f"{'arcnn-jpeg' if name == 'arcnn' else name + '-denoise'}")
    )
    recipe = dataclasses.replace(
        recipe,
        model=dataclasses.replace(recipe.model, options=SMALL.get(name, {})),  # type: ignore[arg-type]
        data=data,
        stages=(Stage(2, 2, 32),),
    )
    metrics = train(recipe, tmp_path / "run", options=Options(precision="fp32", workers=0))
    assert all(np.isfinite(list(metrics.values())))
    path = tmp_path / "run" / f"{recipe.name}.safetensors"
    network = load_network(path)
    assert network.config == recipe.model and not network.training and network.digest
    assert model_facts(path)["parameters"] == count(network)
    with pytest.raises(WeightsError, match="irae evaluate"):
        load_model(path)
    batches = PatchBatches(recipe, load_training_images(recipe.data)[0])
    assert network(batches[0].damaged, batches[0].cond).shape == batches[0].clean.shape


@pytest.mark.parametrize("init", INITS)
def test_initialisations(init: str) -> None:
    torch.manual_seed(0)
    weight = build_network(BaselineConfig("dncnn", init=init)).body[2].weight.detach()  # type: ignore[index]
    deviation = {"he": (2 / 576) ** 0.5, "orthogonal": 1 / 24, "gaussian": 1e-3, "residual": (2 / 576) ** 0.5}[init]
    assert float(weight.std()) == pytest.approx(deviation, rel=0.05)


@pytest.mark.parametrize("wrong", [{"network": "dcnn"}, {"network": "dncnn", "init": "luck"}])
def test_unknown_names_list_the_known(wrong: dict[str, str]) -> None:
    with pytest.raises(IraeError, match="choose one of"):
        BaselineConfig(**wrong)  # type: ignore[arg-type]


def test_options_that_a_network_does_not_take() -> None:
    with pytest.raises(IraeError, match="does not take"):
        build_network(BaselineConfig("arcnn", options={"depth": 3}))
    with pytest.raises(IraeError, match="stem"):
        build_network(BaselineConfig("twin", options={"keep_known": True}))


def test_bad_recipes_are_one_sentence(tmp_path: Path) -> None:
    content = RECIPES[0].read_text()
    for old, new in (('network = "arcnn"', 'network = "arcn"'), ('algorithm = "', 'algorithm = "x')):
        (tmp_path / "x.toml").write_text(content.replace(old, new))
        with pytest.raises(RecipeError, match="choose one of"):
            load_recipe(tmp_path / "x.toml")
    assert tomllib.loads(content)["model"]["network"] == "arcnn"


def test_other_algorithms_have_all_parameters() -> None:
    from irae.training.train import make_optimisers

    network = build_network(config("dncnn"))
    for algorithm in ("adam", "sgd"):
        (optimiser,) = make_optimisers(network, Optimiser(algorithm=algorithm))
        assert sum(p.numel() for group in optimiser.param_groups for p in group["params"]) == count(network)


def test_old_headers_load(tmp_path: Path) -> None:
    """Weights of an IRAE say nothing of a network."""
    small = IRAEConfig(channels=(16,))
    save_weights(tmp_path / "x.safetensors", small, IRAE(small).state_dict(), {})
    assert "network" not in small.to_dict() and load_model(tmp_path / "x.safetensors").config == small
