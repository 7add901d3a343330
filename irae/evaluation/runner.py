"""Scores every method on every image in every setting; what was scored before is read from the cache."""

from __future__ import annotations

import hashlib
import json
import platform
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from irae.datasets import image_paths, is_dataset, load_dataset
from irae.errors import one_line, printable
from irae.evaluation import speed
from irae.evaluation.methods import EvaluationError, Loaded, Method, default_names, find_method
from irae.evaluation.protocols import (
    DEFAULT_DATA,
    DEFAULT_SETTINGS,
    VERSION,
    Image,
    Setting,
    find_setting,
    image_digest,
    is_setting,
)
from irae.files import make_folder, reason
from irae.images import read_image
from irae.restorer import pick_device

Tick = Callable[[int, int, str], None]
"""Told of progress: scores done, scores in all, what is being done."""

NEEDED = 11  # pixels a side, for the window of SSIM; 16 for PSNR-B
CACHE = "cache.jsonl"


@dataclass(frozen=True)
class Request:
    """What is compared.

    Attributes:
        tasks: in order.
        data: names of data sets or folders; each task's own by default.
        models: names of methods; all that there are by default.
        baselines: further ones: weights files, `module:function`.
        settings: each for the task that it belongs to; a task without any has all of its usual ones.
        limit: images of each set, 0 for all.
        timing: measure time and memory too.
        device: where the networks run.
        root: the data root.
    """

    tasks: tuple[str, ...]
    data: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    baselines: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    limit: int = 0
    timing: bool = True
    device: str = "cpu"
    root: Path | None = None


@dataclass(frozen=True)
class Score:
    """One result on one image; `values` as `Setting.score` gives them."""

    data: str
    image: str
    model: str
    task: str
    setting: str
    values: dict[str, float]


@dataclass(frozen=True)
class Costs:
    """Of a method: parameters, multiply-accumulates a pixel, seconds a megapixel, MB; None where not known."""

    parameters: int | None = None
    macs: int | None = None
    seconds: float | None = None
    memory: float | None = None


@dataclass
class Entry:
    """A task on a data set: what was compared, and what came out.

    Attributes:
        paths: of the images, in order.
        settings, methods: what was compared; methods without those that failed.
        scores: (method, setting, image) -> score.
        costs: by method.
        absent: sentences on methods that are not installed.
        failed: by method, the sentence of its error.
        unmeasured: the same for its costs.
        in_set: images of the whole set.
    """

    task: str
    data: str
    paths: list[Path]
    settings: list[Setting]
    methods: list[Method]
    scores: dict[tuple[str, str, str], Score] = field(default_factory=dict)
    costs: dict[str, Costs] = field(default_factory=dict)
    absent: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    unmeasured: dict[str, str] = field(default_factory=dict)
    in_set: int = 0

    def values(self, method: str, setting: str, measure: str = "psnr") -> list[float]:
        """The scores of a method over the images, in their order."""
        return [self.scores[method, setting, path.stem].values[measure] for path in self.paths]


class CacheError(EvaluationError):
    """Results cannot be kept, so a run would be for nothing."""


class Cache:
    """Scores by what they depend on, a line of JSON each, so that a broken run goes on where it stopped."""

    def __init__(self, path: Path) -> None:
        self.path, self.known = path, dict[str, dict[str, Any]]()
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        for line in text.splitlines():
            try:
                entry = json.loads(line)
                self.known[entry["key"]] = entry["values"]
            except (ValueError, TypeError, KeyError):
                continue  # not written to its end
        if text and not text.endswith("\n"):
            with path.open("a") as file:
                file.write("\n")

    def get(self, *parts: object) -> dict[str, Any] | None:
        """The values kept for these parts."""
        return self.known.get(self._key(parts))

    def put(self, values: dict[str, Any], *parts: object) -> None:
        """Keep values."""
        key = self._key(parts)
        self.known[key] = values
        try:
            with self.path.open("a") as file:
                file.write(json.dumps({"key": key, "values": values}) + "\n")
        except OSError as error:
            raise CacheError(f"{printable(self.path)} cannot be written: {reason(error)}.") from error

    @staticmethod
    def _key(parts: tuple[object, ...]) -> str:
        return hashlib.sha256(json.dumps([VERSION, *parts]).encode()).hexdigest()


def run(request: Request, folder: Path, tick: Tick = lambda done, total, what: None) -> list[Entry]:
    """Score what is asked for; the cache lies in `folder`.

    Raises:
        IraeError: an unknown task, data set, method or setting, or nothing to compare.
    """
    for task in request.tasks or ("",):
        if task not in DEFAULT_SETTINGS:
            raise EvaluationError(f"There is no task '{task}'; choose of {', '.join(DEFAULT_SETTINGS)}.")
    pairs = [(task, data) for task in dict.fromkeys(request.tasks) for data in request.data or (DEFAULT_DATA[task],)]
    pick_device(request.device)  # which sees to it that float32 is float32
    entries = [_prepare(task, data, request) for task, data in pairs]
    if not any(entry.methods for entry in entries):
        raise EvaluationError(" ".join(["Nothing can be compared.", *entries[0].absent]))
    for entry in entries:
        for path in entry.paths:
            _check(entry, path, read_image(path).pixels)
    make_folder(folder)
    cache = Cache(folder / CACHE)
    total = sum(len(entry.paths) * len(entry.settings) * len(entry.methods) for entry in entries)
    done = 0
    for entry in entries:
        images = {path.stem: read_image(path).pixels for path in entry.paths}
        entry.settings = _distinct(entry.settings, images)
        for method in list(entry.methods):

            def advance(what: str, method: Method = method) -> None:
                nonlocal done
                done += 1
                tick(done, total, f"{method.name}, {what}")

            try:
                _score(entry, method, images, cache, request.device, advance)
            except CacheError:
                raise
            except (Exception, SystemExit) as error:  # one broken method leaves the others
                entry.methods.remove(method)
                entry.failed[method.name] = one_line(error)
                continue
            try:
                entry.costs[method.name] = _costs(entry, method, images, cache, request)
            except CacheError:
                raise
            except (Exception, SystemExit) as error:  # its scores stand
                entry.unmeasured[method.name] = one_line(error)
    return entries


def _prepare(task: str, data: str, request: Request) -> Entry:
    """What is to be done of a task on a data set; nothing is computed yet."""
    settings = [find_setting(task, name) for name in _own_settings(task, request) or DEFAULT_SETTINGS[task]]
    in_set = image_paths(data, request.root)
    if is_dataset(data):
        load_dataset(data).verify(request.root)  # or figures of others would stand beside those of other images
    paths = in_set[: request.limit or None]
    if not paths:
        raise EvaluationError(f"{printable(data)} holds no images.")
    stems = Counter(path.stem for path in paths)
    if twice := [stem for stem, count in stems.items() if count > 1]:
        raise EvaluationError(
            f"{printable(data)} holds several images named {printable(twice[0])!r}: noise is seeded by the name."
        )
    entry = Entry(task, data, paths, settings, [], in_set=len(in_set))
    for name in dict.fromkeys((*(request.models or default_names(task)), *request.baselines)):
        method = find_method(name, task)
        if isinstance(method, str):
            entry.absent.append(method)
        elif method.name in [other.name for other in entry.methods]:
            raise EvaluationError(f"Two methods are named '{method.name}': rename one of the files.")
        else:
            entry.methods.append(method)
    return entry


def _own_settings(task: str, request: Request) -> list[str]:
    """The settings asked for that belong to a task; refuses those that belong to no task asked for."""
    own = list[str]()
    for name in dict.fromkeys(request.settings):
        fits = [other for other in request.tasks if is_setting(other, name)]
        if not fits:
            find_setting(task, name)
        if task in fits:
            own.append(name)
    return own


def _check(entry: Entry, path: Path, pixels: NDArray[Any]) -> None:
    if pixels.dtype != "uint8":
        raise EvaluationError(f"{printable(path)} has 16 bits: the protocol is for 8-bit images.")
    if min(pixels.shape[:2]) < (16 if entry.task == "jpeg" else NEEDED):
        raise EvaluationError(f"{printable(path)} is too small to be scored.")


def _distinct(settings: list[Setting], images: dict[str, Image]) -> list[Setting]:
    """Of grey images, the settings "-grey" are the same as those without."""
    if any(pixels.ndim == 3 for pixels in images.values()):
        return settings
    names = {setting.name for setting in settings}
    return [s for s in settings if not s.name.endswith("-grey") or s.name.removesuffix("-grey") not in names]


def _score(
    entry: Entry, method: Method, images: dict[str, Image], cache: Cache, device: str, advance: Callable[[str], None]
) -> None:
    """All scores of a method, loaded only where one is missing in the cache."""
    loaded: Loaded | None = None
    for setting in entry.settings:
        for stem, clean in images.items():
            key = method.digest, image_digest(stem, clean), entry.task, setting.name, *_place(device)
            values = cache.get(*key)
            if values is None:
                loaded = loaded or method.load(torch.device(device))
                case = setting.damage(stem, clean)
                values = setting.score(case, loaded.restore(case))
                cache.put(values, *key)
            entry.scores[method.name, setting.name, stem] = Score(
                entry.data, stem, method.name, entry.task, setting.name, values
            )
            advance(setting.title)


def _place(device: str) -> tuple[str, ...]:
    """What tells results of other devices from those of a CPU."""
    return () if device == "cpu" else (device, torch.cuda.get_device_name() if device == "cuda" else "")


def _costs(entry: Entry, method: Method, images: dict[str, Image], cache: Cache, request: Request) -> Costs:
    setting, image = entry.settings[0].name, next(iter(images.values()))
    channels = image.shape[2:]
    work = cache.get(method.digest, entry.task, "work", setting, channels)
    if work is None:
        loaded = method.load(torch.device(request.device))
        network = loaded.network
        parameters = None if network is None else sum(parameter.numel() for parameter in network.parameters())
        work = {"parameters": parameters, "macs": speed.macs(loaded, entry.task, setting, channels)}
        cache.put(work, method.digest, entry.task, "work", setting, channels)
    if not request.timing or method.name == "input":
        return Costs(**work)
    threads = torch.get_num_threads()
    machine = platform.node(), platform.processor(), *_place(request.device)
    key = method.digest, entry.task, "speed", setting, image.shape, request.device, threads, *machine
    found = cache.get(*key)
    if found is None:
        measured = speed.measure_apart(method.spec, entry.task, setting, image, request.device, threads)
        found = {"seconds": measured.seconds, "memory": measured.memory}
        cache.put(found, *key)
    return Costs(**work, **found)
