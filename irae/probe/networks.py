"""The networks that are probed, by name: with their weights, untrained, or anyone's."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import tomllib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from irae.errors import one_line, printable
from irae.models.baselines import BASELINES, Baseline, BaselineConfig, Config, build_network, config_class
from irae.models.irae import IRAE
from irae.probe.taps import ProbeError
from irae.resources import import_function, resource_dir
from irae.weights import baseline_weights, installed_weights, load_network, weights_info

UNTRAINED = "-untrained"
TASK = "denoise"


@dataclass(frozen=True)
class Subject:
    """A network to probe.

    Attributes:
        name: as in `--models`.
        model: in evaluation mode, float32.
        cond: it reads a noise level.
        multiple: that its image sides must be of.
        digest: of its class, structure and weights.
    """

    name: str
    model: nn.Module
    cond: bool
    multiple: int
    digest: str


def find_subject(name: str, seed: int = 0) -> Subject:
    """A network by name: "irae", a baseline, either with "-untrained", a weights file, or module:function.

    Args:
        name: of the network; a function without arguments returns the module.
        seed: of untrained weights.

    Raises:
        ProbeError: there is none of this name, or it has no weights.
    """
    if ":" in name:
        return _from_function(name)
    stem = name.removesuffix(UNTRAINED)
    if stem not in ("irae", *BASELINES) and not Path(name).is_file():
        known = ", ".join(("irae", *BASELINES))
        raise ProbeError(
            f"There is no network {printable(name)!r}; choose of {known} (each also with {UNTRAINED}), a weights file, "
            "or module:function."
        )
    if name.endswith(UNTRAINED):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = build_network(_configuration(stem))
        return _subject(name, model.eval().requires_grad_(False))
    path = _weights(stem)
    if path is None:
        recipe = Path("recipes", "baselines", f"{name}-{TASK}.toml")
        there = (resource_dir("recipes").parent / recipe).is_file()
        train = f", or train it with `irae train {recipe}`" if there else ""
        raise ProbeError(f"{name} has no weights for the task '{TASK}': probe {name}{UNTRAINED}{train}.")
    network = load_network(path)
    if network.config.task != TASK:
        raise ProbeError(f"{printable(path)} is for the task '{network.config.task}'; denoisers alone are probed.")
    return _subject(name, network)


def _subject(name: str, model: nn.Module, source: bytes = b"") -> Subject:
    config = getattr(model, "config", "")
    digest = hashlib.sha256(f"{type(model).__name__} {model} {config}".encode() + source + _sources(model))
    for value in model.state_dict().values():
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    cond = isinstance(model, (IRAE, Baseline))
    return Subject(name, model, cond, getattr(model, "size_multiple", 1), digest.hexdigest())


def _sources(model: nn.Module) -> bytes:
    """The files in which the classes of a network and its parts are written, but torch's."""
    files = set[str]()
    for kind in {type(module) for module in model.modules()}:
        with contextlib.suppress(TypeError, OSError):  # written nowhere, such as at a prompt
            if not kind.__module__.startswith("torch.") and (file := inspect.getsourcefile(kind)):
                files.add(file)
    return b"".join(Path(file).read_bytes() for file in sorted(files))


def _weights(name: str) -> Path | None:
    """The installed weights, else those that a training left in `runs/`, else the file of this name."""
    if name == "irae":
        return installed_weights().get(TASK)
    return baseline_weights(f"{name}-{TASK}") or (Path(name) if Path(name).is_file() else None)


def _configuration(name: str) -> Config:
    if name == "irae":
        return weights_info(TASK).config
    recipe = resource_dir("recipes") / "baselines" / f"{name}-{TASK}.toml"
    if not recipe.is_file():
        return BaselineConfig(name)
    values = tomllib.loads(recipe.read_text())["model"]
    return config_class(values)(**values)


def _from_function(name: str) -> Subject:
    try:
        function, source = import_function(name)
        model = function()
    except (Exception, SystemExit) as error:  # the module is anyone's
        raise ProbeError(f"{name!r} cannot be called: {one_line(error)}.") from error
    if not isinstance(model, nn.Module):
        raise ProbeError(f"{name!r} returns no torch module.")
    return _subject(name, model.float().eval().requires_grad_(False), source)
