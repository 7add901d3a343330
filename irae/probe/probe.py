"""The probe of a network: every instrument on every layer, results kept in a cache."""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import io
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy import stats
from torch import Tensor

from irae import models
from irae.conditions import noise_condition
from irae.files import write_bytes
from irae.probe.estimators import ESTIMATORS, EstimatorError, MutualInformation
from irae.probe.inverse import recovery
from irae.probe.jacobian import Local, grams, local, local_by_trace
from irae.probe.networks import Subject, find_subject
from irae.probe.patches import EXACT, Patches, Prior, cut_patches, large_enough, load_images
from irae.probe.reconstruction import reconstruct
from irae.probe.taps import Cut, ProbeError, Tapped, TappedIRAE, tapped

INSTRUMENTS = ("inverse", "jacobian", "reconstruction", *ESTIMATORS)
PARTS = ("whole", "bare")
PICTURE = 96  # pixels a side
COMPONENTS = 4  # of patch and layer, for the estimators of samples
COARSE = 4.0  # their sigma_T is a fourth of the components' deviation: a few bits, well below the estimators' limits
Progress = Callable[[int, int, str], None]
Values = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """How a probe is made.

    Attributes:
        models: see `irae.probe.networks.find_subject`.
        data: image set by name, or a folder.
        instruments: of `INSTRUMENTS`.
        layers: by name; none: the main ones, thinned to `most`.
        side: of the patches.
        noise: level of the input's noise in 8-bit levels.
        precision: the layer's standard deviation / sigma_T.
        spectra: patches that the Jacobian is taken at.
        lanczos: steps, for patches too large for the exact spectrum.
        samples: patches for decoder and estimators.
        steps: of the decoder's training.
        estimator_steps: of a critic's training.
        images: of the set, 0 for all.
        seed: of all that is random.
    """

    models: tuple[str, ...] = ("irae",)
    data: str = "cbsd68"
    instruments: tuple[str, ...] = ("inverse", "jacobian", "reconstruction", "ksg", "infonce")
    layers: tuple[str, ...] = ()
    most: int = 9
    side: int = 16
    noise: float = 25.0
    precision: float = 255.0
    spectra: int = 4
    lanczos: int = 24
    samples: int = 2048
    steps: int = 200
    estimator_steps: int = 300
    images: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        unknown = set(self.instruments) - set(INSTRUMENTS)
        if unknown:
            raise ProbeError(f"There is no instrument {min(unknown)!r}; choose of {', '.join(INSTRUMENTS)}.")
        if not (0 <= self.noise < math.inf and 0 < self.precision < math.inf and self.side > 0 and self.seed >= 0):
            raise ProbeError(
                "Patches have a pixel at least, noise and seed are not negative, the precision is positive."
            )
        if not (self.models and self.instruments):
            raise ProbeError("Name a network and an instrument at least.")


QUICK = {
    "instruments": ("inverse", "jacobian", "reconstruction", "ksg"),
    "most": 6,
    "spectra": 1,
    "samples": 768,
    "steps": 120,
    "images": 24,
}


@dataclass
class Layer:
    """What was found in a layer; `values` are those of `probe.json`, "whole" and "bare" apart."""

    name: str
    depth: float
    size: str
    values: dict[str, Values] = field(default_factory=lambda: {part: {} for part in PARTS})
    picture: str = ""

    @property
    def waits(self) -> bool:
        """The cut holds more than the bare activation."""
        return " + " in self.size


@dataclass(frozen=True)
class Report:
    """A network and its layers; `whole` is False where only bare activations are known."""

    name: str
    parameters: int
    whole: bool
    layers: list[Layer]


class Cache:
    """Results by a key of everything that they depend on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, key: Any, make: Callable[[], Any]) -> Any:
        """The JSON value of a key, made where it is not there."""
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        path = self.folder / f"{digest[:32]}.json"
        if path.is_file():
            with contextlib.suppress(ValueError):  # a damaged one is made again
                return json.loads(path.read_text())
        value = make()
        self.folder.mkdir(parents=True, exist_ok=True)
        write_bytes(path, json.dumps(value).encode(), overwrite=True)
        return value


def run(
    settings: Settings, folder: Path, root: Path | None = None, progress: Progress = lambda *_: None
) -> list[Report]:
    """Probe networks.

    Args:
        folder: for the cache, `folder/.cache`.
        root: the data root, None for the variable IRAE_DATA.
        progress: called with steps done, all steps, and what comes next.
    """
    subjects = [find_subject(name, settings.seed) for name in settings.models]
    images = load_images(settings.data, root, settings.images)
    bench = Bench(settings, images, Cache(folder / ".cache"))
    probes = [Probe(subject, bench) for subject in subjects]
    total, done = sum(probe.total for probe in probes), 0
    for probe in probes:
        for what in probe.run():
            progress(done, total, f"{probe.subject.name}: {what}")
            done += 1
    return [probe.report() for probe in probes]


class Bench:
    """What all networks are probed with: the same patches, noise and picture."""

    def __init__(self, settings: Settings, images: list[Tensor], cache: Cache) -> None:
        self.settings, self.cache = settings, cache
        side, seed = settings.side, settings.seed
        known = cut_patches(images, side, max(12_000 if 3 * side**2 <= EXACT else 2000, settings.samples), seed + 1)
        self.prior: Prior = known.prior()
        self.patches: Patches = cut_patches(images, side, settings.samples, seed)
        self.noisy = self.patches.noisy(settings.noise, seed)
        self.examples = torch.from_numpy(np.random.default_rng(seed).permutation(settings.samples)[: settings.spectra])
        first = large_enough(images, side)[:1]
        size = PICTURE if min(first[0].shape[-2:]) >= PICTURE and PICTURE % side == 0 else side
        self.picture = cut_patches(first, size, 1, seed).noisy(settings.noise, seed)
        self.some = self.noisy[:: max(1, settings.samples // 256)][:256]  # of all images
        self.digest = hashlib.sha256(self.noisy.numpy().tobytes()).hexdigest()


class Probe:
    """One network on the bench."""

    def __init__(self, subject: Subject, bench: Bench) -> None:
        self.subject, self.bench, self.settings = subject, bench, bench.settings
        if self.settings.side % subject.multiple:
            raise ProbeError(f"{subject.name} takes patches whose side is a multiple of {subject.multiple}.")
        cond = noise_condition(self.settings.noise) if subject.cond else None
        self.network: Tapped = tapped(subject.model, cond, bench.noisy[:1])
        names = self.network.choose(self.settings.layers, self.settings.most)
        self.layers = {name: Layer(name, self.network.depth(name), "") for name in names}
        self.exact = bench.prior.variances.numel() <= EXACT
        kinds = len(self.settings.instruments) - ("inverse" in self.settings.instruments)
        by_patch = self.exact and "jacobian" in self.settings.instruments
        self.total = (kinds - by_patch) * len(names) + (self.settings.spectra if by_patch else 0) + len(names)

    def report(self) -> Report:
        """What was found."""
        parameters = sum(parameter.numel() for parameter in self.subject.model.parameters())
        return Report(self.subject.name, parameters, self.network.whole, list(self.layers.values()))

    def run(self) -> Iterator[str]:
        """Fill the layers, saying before each step what comes."""
        sigmas = {}
        for name, layer in self.layers.items():
            yield f"{name}, its size"
            cut = self._cut(self.bench.some, name)
            layer.size = " + ".join("x".join(map(str, part.shape[1:])) for part in cut.whole)
            sigmas[name] = {part: self._sigma(name, cut, part) for part in PARTS}
            for part in PARTS:
                layer.values[part]["sigma"] = sigmas[name][part]
        if "inverse" in self.settings.instruments:
            self._inverse()
        if "jacobian" in self.settings.instruments:
            yield from self._exact_jacobian(sigmas) if self.exact else self._large_jacobian(sigmas)
        sampled = [name for name in self.settings.instruments if name not in ("inverse", "jacobian")]
        for name in self.layers if sampled else ():
            yield from self._sampled(name, sigmas[name], sampled)

    # ------------------------------------------------------------------------------------- instruments

    def _inverse(self) -> None:
        if isinstance(self.network, TappedIRAE):
            levels = (self.bench.some[::4].clamp(0, 1) * 255).round() / 255
            for name, found in recovery(self.network, levels):
                if name in self.layers:
                    self.layers[name].values["whole"]["inverse"] = asdict(found)

    def _exact_jacobian(self, sigmas: dict[str, dict[str, float]]) -> Iterator[str]:
        found: dict[str, dict[str, list[Local]]] = {name: {part: [] for part in PARTS} for name in self.layers}
        for number, i in enumerate(self.bench.examples.tolist()):
            yield f"Jacobian of patch {number + 1}"
            values = self._cached("jacobian", str(i), self._spectra, i, sigmas)
            for name, parts in values.items():
                for part in PARTS:
                    found[name][part].append(Local(**parts[part]))
        for name, parts in found.items():
            for part in PARTS:
                self.layers[name].values[part]["jacobian"] = self._summary(name, parts[part])

    def _spectra(self, i: int, sigmas: dict[str, dict[str, float]]) -> dict[str, dict[str, Values]]:
        """Layer -> part -> the figures at patch i."""
        prior, noise = self.bench.prior, self.settings.noise / 255
        pairs = grams(self.network, self.bench.noisy[i], prior, list(self.layers))
        result = {}
        for name, (bare, whole) in pairs.items():
            both = local(whole, prior.variances, noise, sigmas[name]["whole"])
            alone = both if bare is whole else local(bare, prior.variances, noise, sigmas[name]["bare"])
            result[name] = {"whole": asdict(both), "bare": asdict(alone)}
        return result

    def _large_jacobian(self, sigmas: dict[str, dict[str, float]]) -> Iterator[str]:
        for name, layer in self.layers.items():
            yield f"{name}, Jacobian"
            for part in PARTS:
                same = part if layer.waits else "whole"
                values = self._cached("jacobian", f"{name} {same}", self._traces, name, same, sigmas[name][same])
                layer.values[part]["jacobian"] = self._summary(name, [Local(**one) for one in values])

    def _traces(self, name: str, part: str, sigma: float) -> list[Values]:
        """The figures at each patch."""
        settings, patches = self.settings, self.bench.noisy[self.bench.examples]
        arguments = name, part == "bare", settings.noise / 255, sigma, settings.lanczos, settings.seed
        return [asdict(one) for one in local_by_trace(self.network, patches, self.bench.prior, *arguments)]

    def _summary(self, name: str, found: Sequence[Local]) -> Values:
        if any(math.isnan(one.input_bits + one.clean_bits + one.lost) for one in found):
            raise ProbeError(f"The Jacobian of the layer {name!r} of {self.subject.name} is not finite.")
        pixels = self.settings.side**2
        return {
            "input": _mean([one.input_bits / pixels for one in found]),
            "clean": _mean([one.clean_bits / pixels for one in found]),
            "lost": _mean([one.lost for one in found]),
            "energy": _mean([one.energy for one in found]),
            "directions": self.bench.prior.variances.numel(),
            "method": "exact" if self.exact else f"Lanczos, {self.settings.lanczos} steps",
        }

    def _sampled(self, name: str, sigmas: dict[str, float], instruments: Sequence[str]) -> Iterator[str]:
        kept: list[Cut] = []

        def cut() -> Cut:  # made once, and only where the cache lacks something
            if not kept:
                kept.append(self._cut(self.bench.noisy, name))
                self._check_finite(name, kept[0])
            return kept[0]

        layer = self.layers[name]
        for instrument in instruments:
            yield f"{name}, {instrument}"
            for part in PARTS if layer.waits else PARTS[:1]:
                what = f"{name} {part}"
                try:
                    if instrument == "reconstruction":
                        found = self._cached(instrument, what, self._decode, name, cut, part, sigmas[part])
                        picture = found.pop("picture")
                        layer.picture = picture if part == "whole" else layer.picture
                    else:
                        found = self._cached(instrument, what, self._estimate, instrument, cut, part)
                except EstimatorError as error:
                    raise EstimatorError(f"{self.subject.name}, {name!r}, {instrument}: {error}") from error
                layer.values[part][instrument] = found
        if not layer.waits:
            layer.values["bare"] = {**layer.values["whole"], **layer.values["bare"]}

    def _decode(self, name: str, cut: Callable[[], Cut], part: str, sigma: float) -> Values:
        bench, settings = self.bench, self.settings
        made = reconstruct(
            _of(cut(), part),
            bench.noisy,
            bench.patches.clean,
            bench.patches.groups,
            bench.prior,
            sigma,
            settings.seed,
            settings.steps,
        )
        pixels = settings.side**2
        with torch.no_grad():
            generator = torch.Generator().manual_seed(settings.seed)
            read = [
                t + sigma * torch.randn(t.shape, generator=generator) for t in _of(self._cut(bench.picture, name), part)
            ]
            picture = made.decoder(read)
        return {
            "input": _information(made.input, pixels),
            "clean": _information(made.clean, pixels),
            "psnr": made.psnr,
            "picture": _png(torch.cat((picture[0, :3], picture[0, 3:]), 2)),
        }

    def _estimate(self, instrument: str, cut: Callable[[], Cut], part: str) -> Values:
        bench, settings = self.bench, self.settings
        layer = torch.cat([tensor.flatten(1) for tensor in _of(cut(), part)], 1)
        half = len(layer) // 2
        if not layer.var(0).any():
            nothing = {"value": 0.0, "interval": None, "limit": None, "n": len(layer) - half}
            return {"input": nothing, "clean": nothing}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            mean = layer[:half].mean(0)
            _, _, directions = torch.pca_lowrank(
                layer[:half] - mean, min(COMPONENTS + 4, *layer[:half].shape), center=False
            )
            t = (layer - mean) @ directions[:, :COMPONENTS]
            t += float(t.var(0).mean().sqrt()) / COARSE * torch.randn_like(t)
        options = {} if instrument == "ksg" else {"steps": settings.estimator_steps}
        result = {}
        for key, patches in (("input", bench.noisy), ("clean", bench.patches.clean)):
            x = bench.prior.analyse(patches)[:, bench.prior.variances.argsort(descending=True)[:COMPONENTS]]
            found = ESTIMATORS[instrument](x.numpy(), t.numpy(), settings.seed, bench.patches.groups, **options)
            result[key] = _information(found)
        return result

    # ------------------------------------------------------------------------------------- helpers

    @torch.no_grad()
    def _cut(self, y: Tensor, name: str) -> Cut:
        pieces = [self.network.cut(piece, name) for piece in y.split(256)]
        return Cut(
            torch.cat([piece.bare for piece in pieces]),
            tuple(torch.cat(parts) for parts in zip(*(piece.also for piece in pieces), strict=True)),
        )

    def _check_finite(self, name: str, cut: Cut) -> None:
        if not all(bool(torch.isfinite(part).all()) for part in cut.whole):
            raise ProbeError(f"The layer {name!r} of {self.subject.name} holds values that are not finite.")

    def _sigma(self, name: str, cut: Cut, part: str) -> float:
        """sigma_T: one for all, a fraction of the root of all elements' variance for each value of the input.

        For each element of the layer instead, elements that are constant would lower it, and bits would appear where
        an image is only lifted to more channels; so, nothing changes by constants, copies and rotations.
        """
        self._check_finite(name, cut)
        values = torch.cat([tensor.flatten(1) for tensor in _of(cut, part)], 1)
        deviation = float((values.double().var(0).sum() / self.bench.prior.variances.numel()).sqrt())
        if deviation == 0 and part == "bare" and cut.also:
            return 1.0  # whatever it is, nothing is read
        if deviation == 0:
            raise ProbeError(f"The layer {name!r} of {self.subject.name} is constant: it holds no information.")
        return deviation / self.settings.precision

    def _cached(self, instrument: str, what: str, make: Callable[..., Any], *arguments: Any) -> Any:
        values = {key: value for key, value in asdict(self.settings).items() if key not in ("models", "instruments")}
        if instrument != "jacobian" or not self.exact:
            values = {key: value for key, value in values.items() if key not in ("layers", "most")}
        key = [_code(), self.subject.digest, self.bench.digest, instrument, what, values]
        return self.bench.cache.get(key, partial(make, *arguments))


def _of(cut: Cut, part: str) -> tuple[Tensor, ...]:
    return cut.whole if part == "whole" else (cut.bare,)


def _mean(values: Sequence[float]) -> Values | None:
    """Mean and 95 % interval by Student's t over patches; None where there is none."""
    if any(math.isnan(value) for value in values):
        return None
    n, mean = len(values), float(np.mean(values))
    half = float(stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / n**0.5) if n > 1 else None
    return {"value": mean, "interval": None if half is None else [mean - half, mean + half], "n": n}


def _information(found: MutualInformation, pixels: int = 1) -> Values:
    """As JSON, in bits a pixel where the pixels are given."""
    limit = None if math.isinf(found.limit) else found.limit / pixels
    interval = found.interval and [end / pixels for end in found.interval]
    return {"value": found.bits / pixels, "interval": interval, "limit": limit, "n": found.n}


@functools.cache
def _code() -> str:
    """A digest of the code that results depend on."""
    digest = hashlib.sha256()
    for place in (Path(__file__).parent, Path(models.__file__).parent):
        for path in sorted(place.glob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _png(image: Tensor) -> str:
    """An image (3, H, W) as a data URI."""
    pixels = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()
