"""Weights as safetensors: find, verify, load, save. The header holds the configuration, recipe and metrics.

Never a pickle. A digest of all tensors and of the configuration in the header is checked on load.
"""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from irae.errors import IraeError
from irae.files import write_bytes
from irae.models.baselines import Config, Network, build_network, config_class
from irae.models.irae import IRAE
from irae.resources import resource_dir

FORMAT = "irae-1"
SIZES = ("small", "best")


class WeightsError(IraeError):
    """Weights that are not there, damaged, or not of this project."""


@dataclass(frozen=True)
class WeightsInfo:
    """What a weights file says of itself.

    Attributes:
        name: of the file, without suffix.
        path: of the file.
        config: the architecture.
        facts: recipe digest, steps, hardware, measured quality and the like, as training wrote them.
        card: the Markdown card beside the file, empty where there is none.
    """

    name: str
    path: Path
    config: Config
    facts: dict[str, Any]
    card: str


def installed_weights() -> dict[str, Path]:
    """The weights that travel with the package, by name."""
    paths = resource_dir("weights").glob("*.safetensors")
    return {path.stem: path for path in sorted(paths, key=lambda path: path.stem)}


def weights_of(task: str, size: str) -> str:
    """The name of a task's installed weights of a size; its small ones where it has no others.

    TASK.safetensors are the small ones, TASK-best.safetensors those that take more work a pixel.
    """
    larger = f"{task}-{size}"
    return larger if larger in installed_weights() else task


def find_weights(name_or_path: str | Path) -> Path:
    """The file of installed weights by name, or of any weights by path.

    Raises:
        WeightsError: neither exists; the message lists the installed names.
    """
    installed = installed_weights()
    if str(name_or_path) in installed:
        return installed[str(name_or_path)]
    path = Path(name_or_path)
    if path.is_file():
        return path
    names = ", ".join(installed) or "none"
    raise WeightsError(f"There are no weights {str(name_or_path)!r}; installed are: {names}.")


def baseline_weights(name: str) -> Path | None:
    """Weights at the comparison budget: those installed, else those that a training left in `runs/`."""
    places = resource_dir("weights") / "baselines" / f"{name}.safetensors", Path("runs", name, f"{name}.safetensors")
    return next((path for path in places if path.is_file()), None)


def weights_with_digest(digest: str) -> Path:
    """The installed weights with a digest; raises WeightsError where there are none."""
    for path in installed_weights().values():
        if _read(path, tensors=False)[0]["sha256"] == digest:
            return path
    raise WeightsError("The rest was made with weights that are not installed: name them with --model.")


def save_weights(path: Path, config: Config, state: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Write weights, atomically, floating point tensors in 16 bits."""
    tensors = {
        name: (t.half() if t.is_floating_point() else t).detach().cpu().contiguous() for name, t in state.items()
    }
    header = {
        "format": FORMAT,
        "config": json.dumps(config.to_dict(), sort_keys=True),
        "facts": json.dumps(facts, sort_keys=True),
    }
    header["sha256"] = _digest(header, tensors)
    write_bytes(path, save(tensors, metadata=header), overwrite=True)


def weights_info(name_or_path: str | Path) -> WeightsInfo:
    """What weights say of themselves, without loading the tensors."""
    path = find_weights(name_or_path)
    header, _ = _read(path, tensors=False)
    return _info(path, header)


def load_model(name_or_path: str | Path = "denoise") -> IRAE:
    """The IRAE of installed weights by name, or of a weights file: float32, channels_last, evaluation mode.

    Cached, so that all callers share it: copy it before you change it. `config`, `card` and `digest` tell of it.

    Raises:
        WeightsError: no such weights, a damaged file, one that is not of this project, or a baseline's.
    """
    network = load_network(name_or_path)
    if not isinstance(network, IRAE):
        raise WeightsError(f"{name_or_path} holds a baseline ({network.config.network}), for `irae evaluate` only.")
    return network


def load_network(name_or_path: str | Path) -> Network:
    """As `load_model`, the weights of a baseline too."""
    path = find_weights(name_or_path).resolve()
    stat = path.stat()
    return _load(path, (stat.st_mtime_ns, stat.st_size))


def model_facts(name_or_path: str | Path) -> dict[str, Any]:
    """What there is to know of weights: task, architecture, parameters, multiply-accumulates a pixel, training."""
    info, model = weights_info(name_or_path), load_network(name_or_path)
    return {
        "name": info.name,
        "task": info.config.task,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "mac_per_pixel": mac_per_pixel(model),
        "size_multiple": model.size_multiple,
        "sha256": model.digest,
        **info.facts,
        "config": info.config.to_dict(),
    }


def mac_per_pixel(model: Network) -> int:
    """Multiply-accumulates a pixel of one restoration, counted by torch's FlopCounterMode on 128 x 128 pixels.

    The condition is the largest that the task takes: a map of tables and grid, or of holes, and one noise level.
    """
    config = model.config
    image = torch.zeros(1, config.image_channels, 128, 128)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        size = (128, 128) if config.task in ("jpeg", "inpaint") else (1, 1)
        model(image, torch.zeros(1, config.cond, *size) if config.cond else None)
    return round(counter.get_total_flops() / 2 / 128**2)


@functools.lru_cache(maxsize=4)
def _load(path: Path, version: tuple[int, int]) -> Network:
    header, tensors = _read(path)
    if _digest(header, tensors) != header["sha256"]:
        raise WeightsError(f"The weights {path} are damaged (sha256 differs): get the file again.")
    info = _info(path, header)
    model = build_network(info.config, memory_free=True)
    model.load_state_dict({name: t.float() if t.is_floating_point() else t for name, t in tensors.items()})
    model.card, model.digest = info.card, header["sha256"]
    model.eval().requires_grad_(False)
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _read(path: Path, tensors: bool = True) -> tuple[dict[str, str], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            content = {name: file.get_tensor(name) for name in file.keys()} if tensors else {}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(
            f"{path} is no readable weights file (safetensors): it is damaged or of another kind."
        ) from error
    if header.get("format") != FORMAT or not {"config", "facts", "sha256"} <= set(header):
        raise WeightsError(f"{path} holds no weights of irae.")
    return header, content


def _info(path: Path, header: dict[str, str]) -> WeightsInfo:
    try:
        values, facts = json.loads(header["config"]), json.loads(header["facts"])
        config = config_class(values)(**values)
    except (TypeError, ValueError) as error:
        raise WeightsError(f"The header of {path} is damaged or of another version of irae.") from error
    card = path.with_suffix(".md")
    return WeightsInfo(path.stem, path, config, facts, card.read_text("utf-8", "replace") if card.is_file() else "")


def _digest(header: dict[str, str], tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256((header["config"] + header["facts"]).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
