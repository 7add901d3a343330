"""Recipes: one TOML file says everything about a training run, read into frozen dataclasses."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import tomllib
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from torch import Tensor, nn

from irae.conditions import CONDITION_CHANNELS
from irae.degrade import NOISES
from irae.errors import IraeError
from irae.masks import MASKS
from irae.models.baselines import Config, config_class
from irae.models.blocks import lookup
from irae.resources import resource_dir

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": nn.functional.l1_loss,
    "mse": nn.functional.mse_loss,
    "charbonnier": lambda restored, clean: ((restored - clean).square() + 1e-6).sqrt().mean(),
    # the negative PSNR of each patch (HINet, Chen et al. 2021), up to a factor and a floor at 50 dB
    "psnr": lambda restored, clean: ((restored - clean).square().flatten(1).mean(1) + 1e-5).log().mean(),
}
ALGORITHMS = ("muon", "adam", "sgd")


class RecipeError(IraeError):
    """A recipe that cannot be read; the message says what is wrong in it."""


@dataclass(frozen=True)
class Data:
    """Which images, and how patches are cut from them.

    Attributes:
        sets: data sets by name, or folders.
        holdout: the set that is left out of the training and used for choosing.
        shrink: share of the patches that are cut larger and shrunk by area averaging (true colour detail, less
            JPEG residue), by a factor up to `shrink_most`.
        recolour: share of the patches whose saturation, hue and order of channels change.
        grey: share of the patches turned grey.
    """

    sets: tuple[str, ...]
    holdout: str = "holdout"
    shrink: float = 0.5
    shrink_most: float = 2.5
    recolour: float = 0.3
    grey: float = 0.1

    def __post_init__(self) -> None:
        shares = (self.shrink, self.recolour, self.grey)
        if not (all(0 <= share <= 1 for share in shares) and 1 <= self.shrink_most < math.inf):
            raise ValueError("`shrink`, `recolour` and `grey` are between 0 and 1, and `shrink_most` is at least 1.")


@dataclass(frozen=True)
class NoiseMix:
    """How patches are made noisy.

    Attributes:
        sigma: lowest and highest noise level, 8-bit levels, drawn uniformly.
        shares: of each noise model in `irae.degrade.NOISES`.
        hidden: share of the patches whose noise level the network is not told.
        files: share of the patches clipped and rounded to 8 bits, as files are.
    """

    sigma: tuple[float, float] = (0.0, 75.0)
    shares: dict[str, float] = field(default_factory=lambda: {"gaussian": 0.8, "varying": 0.1, "poisson": 0.1})
    hidden: float = 1 / 3
    files: float = 0.5

    def __post_init__(self) -> None:
        _check_shares(self.shares, NOISES, "Noise")
        if len(self.sigma) != 2 or not 0 <= self.sigma[0] <= self.sigma[1] <= 255:
            raise ValueError("The noise levels are two, the lower first, between 0 and 255.")
        if not (0 <= self.hidden <= 1 and 0 <= self.files <= 1):
            raise ValueError("The shares `hidden` and `files` are between 0 and 1.")


@dataclass(frozen=True)
class JpegMix:
    """How patches are compressed.

    Attributes:
        quality: lowest and highest quality of libjpeg, drawn uniformly.
        subsampled: share of 4:2:0; the others are 4:4:4.
        flattened: share whose tables lie between libjpeg's and flat ones.
        twice: share compressed before, at another quality and grid.
        noise: share that carries noise before compression, of up to `noise_most` 8-bit levels; it stays in the target.
        hidden: share whose tables and grid the network is not told.
    """

    quality: tuple[int, int] = (5, 95)
    subsampled: float = 0.7
    flattened: float = 0.2
    twice: float = 0.1
    noise: float = 0.25
    noise_most: float = 8.0
    hidden: float = 1 / 3

    def __post_init__(self) -> None:
        if len(self.quality) != 2 or not 1 <= self.quality[0] <= self.quality[1] <= 100:
            raise ValueError("The JPEG qualities are two, the lower first, between 1 and 100.")
        shares = (self.subsampled, self.flattened, self.twice, self.noise, self.hidden)
        if not (all(0 <= share <= 1 for share in shares) and 0 <= self.noise_most < math.inf):
            raise ValueError("The shares of a JPEG mix are between 0 and 1, and `noise_most` is not negative.")


@dataclass(frozen=True)
class MaskMix:
    """How holes are made.

    Attributes:
        shares: of each mask in `irae.masks.MASKS`.
    """

    shares: dict[str, float] = field(default_factory=lambda: dict.fromkeys(MASKS, 1.0))

    def __post_init__(self) -> None:
        _check_shares(self.shares, MASKS, "Mask")


def _check_shares(shares: Mapping[str, float], known: Collection[str], what: str) -> None:
    values = shares.values()
    if not (shares.keys() <= set(known) and all(0 <= share < math.inf for share in values) and any(values)):
        raise ValueError(f"{what} shares are not negative, not all 0, and of: {', '.join(known)}.")


@dataclass(frozen=True)
class Stage:
    """A part of the run: `steps` steps of `batch` patches of `patch` x `patch` pixels, with a loss of `LOSSES`.

    `restart`, where it is not 0, is the peak learning rate of a new cosine cycle that begins with this stage. `masks`
    takes the place of the recipe's. `teacher` names weights for the same task, whose answers to the damaged patches
    are the targets in place of the clean ones (knowledge distillation, Hinton et al. 2015). `ragged` batches lose, by
    turns, 0, 1, ... of their last rows and columns, up to one less than the multiple that the network needs, so that it
    learns to restore images which it has to extend; a teacher sees them whole.
    """

    steps: int
    batch: int
    patch: int
    loss: str = "l1"
    restart: float = 0.0
    masks: MaskMix | None = None
    teacher: str = ""
    ragged: bool = False

    def __post_init__(self) -> None:
        if min(self.steps, self.batch, self.patch) < 1:
            raise ValueError("A stage has at least one step, patch and pixel.")
        if not 0 <= self.restart < math.inf:
            raise ValueError("The learning rate of a restart is a positive number, or 0 for none.")
        if self.loss not in LOSSES:
            raise ValueError(f"There is no loss {self.loss!r}; choose one of {', '.join(LOSSES)}.")


@dataclass(frozen=True)
class Optimiser:
    """How weights are updated; one cosine cycle over all stages up to a restart.

    Attributes:
        algorithm: "muon" on the convolution weights and AdamW on the rest, or what the papers of the baselines take for
            all of them: "adam", or "sgd" with momentum 0.9 and weight decay 1e-4.
        lr: peak learning rate.
        warmup: steps of linear rise at the beginning of a cycle.
        clip: largest gradient norm.
        average: decay of the weight averaging; (1 + n) / (10 + n) at the step n of a cycle where that is less, so that
            the average of a short cycle does not lag behind (as in TensorFlow's ExponentialMovingAverage).
    """

    lr: float = 1e-3
    warmup: int = 100
    clip: float = 1.0
    average: float = 0.999
    algorithm: str = "muon"

    def __post_init__(self) -> None:
        if not (0 < self.lr < math.inf and self.warmup >= 1 and self.clip > 0 and 0 <= self.average < 1):
            raise ValueError("The optimiser needs lr and clip above 0, warmup from 1, average from 0 to below 1.")
        if self.algorithm not in ALGORITHMS:
            raise ValueError(f"There is no algorithm {self.algorithm!r}; choose one of {', '.join(ALGORITHMS)}.")


@dataclass(frozen=True)
class Recipe:
    """A training run.

    Attributes:
        name: of the weights that it makes.
        model: the architecture: an IRAE, or the baseline that `network` names.
        data, stages, optimiser: see there.
        noise, jpeg, masks: how patches are damaged, one for each task; that of the model's task counts.
        seed: of initialisation and all sampling.
        memory_free: rebuild activations in the backward pass instead of keeping them.
        start: weights, by name or path, that the training starts from, of the same network or one with fewer blocks;
            random ones by default.
        digest: sha256 of the file.
    """

    name: str
    model: Config
    data: Data
    stages: tuple[Stage, ...]
    noise: NoiseMix = NoiseMix()
    jpeg: JpegMix = JpegMix()
    masks: MaskMix = field(default_factory=MaskMix)
    optimiser: Optimiser = Optimiser()
    seed: int = 0
    memory_free: bool = False
    start: str = ""
    digest: str = ""

    def __post_init__(self) -> None:
        if not self.name or Path(self.name).name != self.name:
            raise ValueError(f"The name {self.name!r} cannot be that of a file.")
        if not self.stages or self.seed < 0:
            raise ValueError("A recipe has at least one stage, and its seed is not negative.")
        if self.model.task != "inpaint" and any(stage.masks for stage in self.stages):
            raise ValueError("A stage has masks only where the task is inpainting.")
        channels = lookup(CONDITION_CHANNELS, self.model.task, "task")
        if self.model.cond not in (0, channels):
            raise ValueError(f"The task {self.model.task!r} has cond = {channels}.")
        if self.model.image_channels != 3:
            raise ValueError("Networks are trained on RGB: image_channels is 3.")

    @property
    def steps(self) -> int:
        """Of all stages."""
        return sum(stage.steps for stage in self.stages)

    def stage_at(self, step: int) -> Stage:
        """The stage that a step (from 0) belongs to."""
        for stage in self.stages:
            if step < stage.steps:
                return stage
            step -= stage.steps
        return self.stages[-1]

    def learning_rate(self, step: int) -> float:
        """Of a step (from 0), in the cycle that it belongs to."""
        peak, start, end = self._cycle_at(step)
        return peak * learning_rate_scale(step - start, end - start, self.optimiser.warmup)

    def ema_decay(self, step: int) -> float:
        """The decay of the weight averaging at a step (from 0)."""
        since = step - self._cycle_at(step)[1]
        return min(self.optimiser.average, (1 + since) / (10 + since))

    def _cycle_at(self, step: int) -> tuple[float, int, int]:
        """The peak learning rate, first step and end of the cycle that a step belongs to."""
        peak, start, end = self.optimiser.lr, 0, 0
        for stage in self.stages:
            if stage.restart and end <= step:
                peak, start = stage.restart, end
            elif stage.restart:
                break
            end += stage.steps
        return peak, start, end


def learning_rate_scale(step: int, steps: int, warmup: int) -> float:
    """Linear warm-up times one cosine from 1 to 0 over all steps."""
    return min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * step / steps))


def find_recipe(path: Path) -> Path:
    """The path of a recipe; one that is not there is looked for among the package's own, as `recipes/denoise.toml`."""
    shipped = resource_dir("recipes").parent / path
    return shipped if shipped.is_file() and not path.exists() else path


def load_recipe(path: Path) -> Recipe:
    """Read a recipe.

    Raises:
        RecipeError: the file is missing or not TOML, has an unknown or missing key, or a value of another type.
    """
    try:
        content = path.read_bytes()
        values = tomllib.loads(content.decode())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise RecipeError(f"The recipe {path} cannot be read: {reason}.") from error
    try:
        recipe = _build(Recipe, values)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"The recipe {path} does not hold together: {error}") from error
    assert isinstance(recipe, Recipe)
    return dataclasses.replace(recipe, digest=hashlib.sha256(content).hexdigest())


def _build(kind: Any, value: Any) -> Any:
    """`value`, made of TOML's types, as a dataclass, tuple, dict or number of type `kind`."""
    if kind == Config:
        kind = config_class(value)
    if get_origin(kind) is UnionType:  # of a dataclass and None, which TOML does not have
        kind = get_args(kind)[0]
    if dataclasses.is_dataclass(kind):
        types = get_type_hints(kind)
        unknown = set(value) - set(types)
        if unknown:
            raise ValueError(f"{getattr(kind, '__name__', kind)} has no {', '.join(sorted(unknown))}.")
        fields = dataclasses.fields(kind)
        needed = [f.name for f in fields if f.default is MISSING and f.default_factory is MISSING]
        if missing := [name for name in needed if name not in value]:
            raise ValueError(f"{', '.join(missing)} must be given.")
        return kind(**{key: _build(types[key], item) for key, item in value.items()})  # type: ignore[operator]
    if get_origin(kind) is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{value!r} should be a list.")
        return tuple(_build(get_args(kind)[0], item) for item in value)
    if get_origin(kind) is dict:
        if not isinstance(value, dict):
            raise ValueError(f"{value!r} should be a table.")
        return {key: _build(get_args(kind)[1], item) for key, item in value.items()}
    if isinstance(value, bool) and kind not in (bool, Any):
        raise ValueError(f"{value!r} should be of type {kind.__name__}.")
    if kind is float and isinstance(value, int):
        return float(value)
    if isinstance(kind, type) and kind is not Any and not isinstance(value, kind):
        raise ValueError(f"{value!r} should be of type {kind.__name__}.")
    return value
