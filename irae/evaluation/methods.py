"""What is compared: our networks, baselines, classical methods, and what the user names, behind one interface."""

from __future__ import annotations

import copy
import hashlib
import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from irae.classical import DENOISERS, INPAINTERS, PACKAGES, missing_package
from irae.conditions import fill_holes
from irae.degrade import as_rgb
from irae.errors import IraeError, one_line, printable
from irae.evaluation.protocols import Case, rounded
from irae.models.baselines import BASELINES, Network
from irae.models.irae import IRAE, IRAEConfig
from irae.models.resample import pad_image
from irae.resources import import_function, resource_dir
from irae.restorer import CONDITIONS, Restorer, as_pixels, as_tensor
from irae.weights import baseline_weights, installed_weights, load_network, weights_info

Restore = Callable[[Case], NDArray[Any]]
"""The restored image of a case: as `case.damaged`, float32 in [0, 1] or uint8."""

SHIPPED, BUDGET, CLASSICAL, OTHER = "as shipped", "comparison budget", "classical", "given by the user"
REFERENCES = {BUDGET: "irae-budget"}  # the method that the others are compared with; in all other groups "irae"
SUFFIXES = (".pth", ".pt", ".ckpt", ".safetensors")
BLIND = "-blind"
OWN_NAMES = {f"{name}{blind}" for name in ("irae", "irae-best", "irae-budget") for blind in ("", BLIND)}
SEED = re.compile(r"-seed\d+$")
CLASSICAL_NAMES = {"denoise": tuple(DENOISERS), "jpeg": (), "inpaint": tuple(INPAINTERS), "photo": tuple(DENOISERS)}


class EvaluationError(IraeError):
    """A comparison that cannot be made as asked."""


@dataclass(frozen=True)
class Loaded:
    """A method ready to run: the function, and its network where it is one."""

    restore: Restore
    network: nn.Module | None = None


@dataclass(frozen=True)
class Method:
    """A method for a task.

    Attributes:
        name: as in `--models`.
        group: `SHIPPED`, `BUDGET`, `CLASSICAL` or `OTHER`.
        digest: of all that its results depend on.
        load: makes it ready on a device.
        facts: what its weights say of their training.
        spec: what `find_method` found it by.
        invertible: it is an IRAE.
    """

    name: str
    group: str
    digest: str
    load: Callable[[torch.device], Loaded]
    facts: dict[str, Any] = field(default_factory=dict)
    spec: str = ""
    invertible: bool = False

    @property
    def reference(self) -> str:
        """The name of the method that this one is compared with."""
        return REFERENCES.get(self.group, "irae")


def default_names(task: str) -> list[str]:
    """The methods that are compared where the user names none."""
    sizes = ["irae", *(["irae-best"] if f"{task}-best" in installed_weights() else [])]
    shipped = [f"{name}{blind}" for name in sizes for blind in ("", *(() if task == "inpaint" else (BLIND,)))]
    budget = [name for name in ("irae", *BASELINES) if (resource_dir("recipes") / _recipe(name, task)).is_file()]
    return [
        "input",
        *shipped,
        *(f"{name}-budget" if name == "irae" else name for name in budget),
        *CLASSICAL_NAMES[task],
    ]


def find_method(name: str, task: str) -> Method | str:
    """A method by name, weights file, or `module:function`; a sentence where it is not installed here.

    Raises:
        EvaluationError: there is no such method, or not for this task.
    """
    method = _find(name, task)
    return method if isinstance(method, str) else replace(method, spec=name)


def _find(name: str, task: str) -> Method | str:
    if name == "input":
        return Method(name, CLASSICAL, name, lambda device: Loaded(lambda case: case.damaged))
    if name in DENOISERS or name in INPAINTERS:
        return _classical(name, task)
    if Path(name).suffix.lower() in SUFFIXES:
        return _from_file(Path(name), task)
    if ":" in name:
        return _from_function(name)
    stem = name.removesuffix(BLIND)
    if stem in ("irae", "irae-best"):
        weights = task + stem.removeprefix("irae")
        if weights not in installed_weights():
            there = (resource_dir("recipes") / f"{weights}.toml").is_file()
            train = f": train them with `irae train recipes/{weights}.toml`" if there else ""
            return f"{stem} has no weights for the task '{task}'{train}."
        return _from_weights(name, installed_weights()[weights], task, SHIPPED, name.endswith(BLIND))
    if stem == "irae-budget" or stem in BASELINES:
        network = stem.removesuffix("-budget")
        path = baseline_weights(f"{network}-{task}")
        if path is None:
            return _how_to_train(name, network, task)
        return _from_weights(name, path, task, BUDGET, name.endswith(BLIND))
    known = ", ".join(dict.fromkeys(name for task in CONDITIONS for name in default_names(task)))
    raise EvaluationError(
        f"There is no method '{name}'; choose of {known}, a weights file ({', '.join(SUFFIXES)}) or module:function."
    )


def _recipe(network: str, task: str) -> Path:
    return Path("baselines") / f"{network}-{task}.toml"


def _how_to_train(name: str, network: str, task: str) -> str:
    recipe = _recipe(network, task)
    if not (resource_dir("recipes") / recipe).is_file():
        return f"{name} has no recipe for the task '{task}'."
    return f"{name} has no weights for the task '{task}': train them with `irae train recipes/{recipe}`."


# ------------------------------------------------------------------------------------- networks of this project


def _from_weights(name: str, path: Path, task: str, group: str, blind: bool = False) -> Method | str:
    info = weights_info(path)
    if info.config.task != task:
        return f"{printable(path)} is for the task '{info.config.task}', not '{task}'."

    def load(device: torch.device) -> Loaded:
        network = load_network(path)
        if group != BUDGET and isinstance(network, IRAE):  # as `irae restore` runs it on pixels
            restorer = Restorer(task, network, device.type, "fp32")
            return Loaded(lambda case: restorer(case.damaged, told(case, blind).hints), restorer.model)
        network = copy.deepcopy(network).to(device) if device.type != "cpu" else network
        return Loaded(lambda case: restore(network, told(case, blind)), network)

    facts = {**info.facts, "parameters": sum(parameter.numel() for parameter in load_network(path).parameters())}
    digest, invertible = f"{load_network(path).digest} {group} {blind}", isinstance(info.config, IRAEConfig)
    return Method(name, group, digest, load, facts, invertible=invertible)


def told(case: Case, blind: bool) -> Case:
    """The case as a method is told of it: blind, nothing but the mask."""
    return replace(case, hints=replace(case.hints, sigma=None, tables=None, grid=None)) if blind else case


@torch.no_grad()
def restore(network: Network, case: Case) -> NDArray[np.float32]:
    """The image that a network makes of a case in one pass; known pixels of an image with holes stay."""
    device = next(network.parameters()).device
    image = as_rgb(as_tensor(case.damaged)).to(device)
    rows, columns = (slice(0, side) for side in image.shape[-2:])
    cond = CONDITIONS[network.config.task](case.hints, device, rows, columns)
    if case.hints.mask is not None:
        image = fill_holes(image, cond)
    return merged(network(image, cond), case)


def merged(image: Tensor, case: Case) -> NDArray[np.float32]:
    """An image (1, 3, H, W) as an array like the damaged one, with its known pixels where it has holes."""
    pixels = as_pixels(image, case.damaged)
    mask = case.hints.mask
    if mask is None:
        return pixels
    return np.where(mask if pixels.ndim == 2 else mask[..., None], pixels, case.damaged)


# ------------------------------------------------------------------------------------- classical methods


def _classical(name: str, task: str) -> Method | str:
    if name not in CLASSICAL_NAMES[task]:
        return f"{name} does not do the task '{task}'."
    package = missing_package(name)
    if package:
        return f"{name} needs the package {package}: pip install {package}."

    def denoise(case: Case) -> NDArray[np.float32]:
        assert case.hints.sigma is not None
        return DENOISERS[name](case.damaged, case.hints.sigma)

    def inpaint(case: Case) -> NDArray[np.uint8]:
        assert case.hints.mask is not None
        return INPAINTERS[name](rounded(case.damaged), case.hints.mask)

    source = hashlib.sha256(Path(importlib.import_module("irae.classical").__file__ or "").read_bytes()).hexdigest()
    digest = f"{name} {source} skimage {version('scikit-image')} cv2 {cv2.__version__}"
    further = PACKAGES.get(name, ("", ""))[1]
    digest += f" {further} {version(further)}" if further else ""
    return Method(name, CLASSICAL, digest, lambda device: Loaded(inpaint if task == "inpaint" else denoise))


# ------------------------------------------------------------------------------------- what the user names


def _from_file(path: Path, task: str) -> Method | str:
    """Weights of this project, or through spandrel of anyone's. One of several seeds is at the comparison budget."""
    if not path.is_file():
        raise EvaluationError(f"There is no weights file {printable(path)}.")
    if path.stem in OWN_NAMES:
        raise EvaluationError(f"'{path.stem}' names another method: rename {printable(path)}.")
    if path.suffix.lower() == ".safetensors" and _of_this_project(path):
        return _from_weights(path.stem, path, task, BUDGET if _is_seed(path, task) else OTHER)
    spandrel = _spandrel()

    def load(device: torch.device) -> Loaded:
        try:
            model = spandrel.ModelLoader(device=device).load_from_file(str(path))
        except Exception as error:  # it raises nearly anything on unknown files
            raise EvaluationError(f"spandrel cannot read {printable(path)}: {one_line(error)}") from error
        return Loaded(lambda case: _through_spandrel(model, case), model.model)

    return Method(path.stem, OTHER, hashlib.sha256(path.read_bytes()).hexdigest(), load)


def _is_seed(path: Path, task: str) -> bool:
    """Whether weights are those of another seed at the comparison budget, by their name and the pixels they saw."""
    budget = baseline_weights(f"irae-{task}")
    if not SEED.search(path.stem) or budget is None:
        return False
    seen = [weights_info(weights).facts.get("megapixels_seen") for weights in (path, budget)]
    return seen[0] == seen[1]


def _of_this_project(path: Path) -> bool:
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("format", "").startswith("irae")
    except SafetensorError:
        return True  # damaged: reading it will say so


def _spandrel() -> Any:
    try:
        return importlib.import_module("spandrel")
    except Exception as error:  # a torchvision of another torch fails in many ways
        raise EvaluationError(
            "Weights of other projects are read by spandrel, which needs a torchvision that fits torch: "
            f"pip install 'irae[spandrel]' ({one_line(error)})"
        ) from error


@torch.no_grad()
def _through_spandrel(model: Any, case: Case) -> NDArray[np.float32]:
    """The image of a model that spandrel read, told the mask, and the noise level where the network takes it."""
    image = as_tensor(case.damaged).to(model.device)
    if model.input_channels == 3:
        image = as_rgb(image)
    if image.shape[1] != model.input_channels:
        raise EvaluationError("This network reads grey images: name a grey data set, or a '-grey' setting.")
    if case.hints.mask is not None:
        mask = torch.from_numpy(case.hints.mask).to(image)[None, None]
        return merged(model(image, mask) if model.purpose == "Inpainting" else model(image), case)
    told = model.architecture.id == "DRUNet" or "FDnCNN" in model.tags
    if told and case.hints.sigma is not None:  # spandrel would always say 15
        height, width = image.shape[-2:]
        padded = pad_image(image, -height % 8, -width % 8, "denoise")
        level = torch.full_like(padded[:, :1], case.hints.sigma / 255)
        return as_pixels(model.model(torch.cat((padded, level), 1))[..., :height, :width], case.damaged)
    return as_pixels(model(image), case.damaged)


def _from_function(name: str) -> Method:
    """`module:function`, called as function(damaged, hints): see `Case`; it returns the image as `Restore` says."""
    try:
        function, source = import_function(name)
    except (Exception, SystemExit) as error:  # the module is anyone's
        raise EvaluationError(f"The method '{name}' cannot be imported: {one_line(error)}") from error
    if not callable(function):
        raise EvaluationError(f"'{name}' is no function.")
    digest = hashlib.sha256(source).hexdigest()

    def call(case: Case) -> NDArray[Any]:
        result = np.asarray(function(case.damaged.copy(), copy.deepcopy(case.hints)))
        if result.dtype.kind == "f" and np.nanmax(result, initial=0) > 4:
            raise EvaluationError("The result is float and far above 1: return float in [0, 1], or uint8.")
        return result

    return Method(name, OTHER, f"{name} {digest}", lambda device: Loaded(call))
