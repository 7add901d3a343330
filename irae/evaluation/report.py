"""The report: tables as Markdown, one self-contained HTML page with plots and crops, every score as JSON and CSV."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import os
import platform
import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import jinja2
import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FormatStrFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray
from rich import box
from rich.markup import escape
from rich.table import Table as RichTable

import irae
from irae.errors import one_line, printable
from irae.evaluation.methods import BUDGET, CLASSICAL, SHIPPED, EvaluationError, Method
from irae.evaluation.protocols import DEFINITIONS, Image, Setting, rounded
from irae.evaluation.published import PUBLISHED, UNDERTRAINED
from irae.evaluation.runner import CACHE, Costs, Entry
from irae.evaluation.statistics import Mean, Paired, between_trainings, mean, paired
from irae.files import write_bytes
from irae.images import read_image

REPORT = ("report.html", "report.md", "results.json", "results.csv")
CROP = 128  # pixels a side
FEW = 10  # images; with fewer, bootstrap intervals are too narrow for a verdict
SHOWN = 2  # images that the reference loses most on, and as many that it wins most on
INK = "#0a0b0c"  # of plots; becomes the page's own colour
MEASURES = ("psnr", "ssim", "psnr_b", "psnr_holes")


@dataclass(frozen=True)
class Table:
    """A table of the report, cells as text; the first column is to the left, the others to the right."""

    title: str
    note: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Crop:
    """A part of an image as several methods make it.

    Attributes:
        title: for people.
        panels: caption and PNG as a data URI.
    """

    title: str
    panels: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Section:
    """A task on a data set, as it stands in the report."""

    title: str
    tables: Sequence[Table]
    sentences: Sequence[str]
    plots: Sequence[str] = ()
    crops: Sequence[Crop] = ()


def write_report(entries: Sequence[Entry], folder: Path, command: Sequence[str], device: str) -> list[Path]:
    """Write `report.html`, `report.md`, `results.json` and `results.csv` into a folder: their paths."""
    facts = provenance(command, device)
    sections = []
    for entry in entries:
        pictures, said = list[Crop](), [*failures(entry), *sentences(entry)]
        try:
            pictures = crops(entry, device)
        except (Exception, SystemExit) as error:  # a method that worked before; the scores are worth a report
            said.append(f"There are no crops: {one_line(error)}")
        sections.append(Section(_title(entry), tables(entry), said, plots(entry), pictures))
    template = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        Path(__file__).with_name("report.html.j2").read_text()
    )
    texts = (
        template.render(sections=sections, facts=facts, definitions=DEFINITIONS),
        markdown(sections, facts),
        json.dumps(_finite(as_json(entries, facts)), indent=1, allow_nan=False),
        as_csv(entries),
    )
    for name, text in zip(REPORT, texts, strict=True):
        write_bytes(folder / name, text.encode(errors="backslashreplace"), overwrite=True)  # file names may be anything
    return [folder / name for name in REPORT]


def check_folder(folder: Path) -> None:
    """See that a report replaces no other one's files: those of a folder with an evaluation's cache are its own.

    Raises:
        EvaluationError: it would.
    """
    taken = [folder / name for name in REPORT if (folder / name).exists()]
    if taken and not (folder / CACHE).exists():
        raise EvaluationError(f"{printable(taken[0])} exists, and no evaluation made it: give another --output.")


def provenance(command: Sequence[str], device: str) -> dict[str, str]:
    """What it takes to repeat the report, as name -> text."""
    return {
        "command": shlex.join(command),
        "versions": f"irae {irae.__version__}, torch {torch.__version__}, numpy {np.__version__}, scikit-image "
        f"{version('scikit-image')}, OpenCV {cv2.__version__}, Python {platform.python_version()}",
        "hardware": torch.cuda.get_device_name()
        if device == "cuda"
        else f"{os.cpu_count()} cores, {platform.machine()}, {torch.get_num_threads()} threads",
    }


# ------------------------------------------------------------------------------------- tables


def tables(entry: Entry) -> list[Table]:
    """All tables of an entry; those without rows are left out."""
    budget = [method for method in entry.methods if method.group == BUDGET]
    others = [method for method in entry.methods if method.group != BUDGET]
    made = [
        quality_table("At the comparison budget", entry, budget),
        quality_table("As shipped, classical, and others", entry, others),
        paired_table("Differences at the comparison budget", entry, budget),
        seeds_table(entry, budget),
        paired_table("Differences of the others", entry, others),
        published_table(entry),
        cost_table(entry),
    ]
    return [table for table in made if table.rows]


def quality_table(title: str, entry: Entry, methods: Sequence[Method]) -> Table:
    """Every method in every setting."""
    extra = {"jpeg": " / PSNR-B", "inpaint": " / PSNR of the holes"}.get(entry.task, "")
    head = ["method", "Mpx seen", *(setting.title for setting in entry.settings)]
    rows = [
        [method.name, _seen(method), *(_quality(entry, method.name, setting) for setting in entry.settings)]
        for method in methods
    ]
    note = f"PSNR in dB [95 % interval over {len(entry.paths)} images] / SSIM{extra}. Mpx seen: pixels in training."
    return Table(title, note, head, rows)


def _quality(entry: Entry, method: str, setting: Setting) -> str:
    psnr = mean(entry.values(method, setting.name))
    cell = f"{_interval(psnr)} / {np.mean(entry.values(method, setting.name, 'ssim')):.4f}"
    for measure in ("psnr_b", "psnr_holes"):
        if measure in entry.scores[method, setting.name, entry.paths[0].stem].values:
            cell += f" / {np.mean(entry.values(method, setting.name, measure)):.2f}"
    return cell


def paired_table(title: str, entry: Entry, methods: Sequence[Method]) -> Table:
    """Every method less its reference, image by image."""
    rows = []
    for method in methods:
        found = [difference(entry, method, setting) for setting in entry.settings]
        if all(found) and method.name != "input":
            rows.append([method.name, *(_difference(pair) for pair in found if pair)])
    reference = methods[0].reference if methods else ""
    note = (
        f"PSNR of the method less that of {reference} on the same images, in dB [95 % interval]; images on which the "
        "method is better, of all. Above 0 the method is better."
    )
    return Table(title, note, ["method", *(setting.title for setting in entry.settings)], rows)


def seeds_table(entry: Entry, methods: Sequence[Method]) -> Table:
    """Networks that were trained from several seeds: weights named NETWORK-TASK-seedN beside those of seed 0."""
    seeds = dict[str, list[str]]()
    for method in methods:
        network = re.sub(rf"(-{entry.task}-seed\d+|-budget)$", "", method.name)
        seeds.setdefault(network, []).append(method.name)
    means = {
        network: [[float(np.mean(entry.values(name, setting.name))) for name in names] for setting in entry.settings]
        for network, names in seeds.items()
        if len(names) > 1
    }
    rows = [
        [network, str(len(seeds[network])), *(f"{np.mean(v):.3f} ± {np.std(v, ddof=1):.3f}" for v in found)]
        for network, found in means.items()
    ]
    for network in means if "irae" in means else ():
        if network == "irae":
            continue
        gaps = (between_trainings(*pair) for pair in zip(means[network], means["irae"], strict=True))
        rows.append([f"{network} less irae", "", *(f"{g.value:+.3f} [{g.low:+.3f}, {g.high:+.3f}]" for g in gaps)])
    note = (
        "PSNR in dB: mean and standard deviation over networks trained from different seeds; differences with the "
        "95 % interval of Welch's t test, which counts trainings, not images."
    )
    return Table("Over seeds", note, ["network", "seeds", *(setting.title for setting in entry.settings)], rows)


def difference(entry: Entry, method: Method, setting: Setting) -> Paired | None:
    """A method against its reference; None where that was not run, or is the method itself."""
    if method.reference == method.name or method.reference not in [other.name for other in entry.methods]:
        return None
    return paired(entry.values(method.name, setting.name), entry.values(method.reference, setting.name))


def published_table(entry: Entry) -> Table:
    """What papers report on this data set, ours beside it."""
    whole = len(entry.paths) == entry.in_set
    rows, names = list[Sequence[str]](), [method.name for method in entry.methods if whole]
    papers = PUBLISHED.get(entry.data, ())
    settings = [setting for setting in entry.settings if any(setting.name in paper.psnr for paper in papers)]
    for paper in papers:
        if not set(paper.psnr) & {setting.name for setting in settings}:
            continue
        cells = []
        for setting in settings:
            value, cell = paper.psnr.get(setting.name), ""
            if value is not None:
                cell = f"{value:.2f}"
                if paper.ours in names:
                    ours = float(np.mean(entry.values(paper.ours, setting.name)))
                    flag = ", undertrained" if ours < value - UNDERTRAINED and paper.ours != "bm3d" else ""
                    cell += f" (here {ours:.2f}{flag})"
            cells.append(cell)
        rows.append([paper.method, *cells, paper.source])
    for method in entry.methods if rows and whole else ():
        if method.group == SHIPPED:
            here = (f"{np.mean(entry.values(method.name, setting.name)):.2f}" for setting in settings)
            rows.append([method.name, *here, "measured here"])
    head = ["method", *(setting.title for setting in settings), "reported in"]
    note = (
        "PSNR in dB as papers report it; in brackets what the network of that name reaches here, flagged where it is "
        f"more than {UNDERTRAINED:g} dB behind its paper: it is not trained as far as it goes."
    )
    if not names:
        note += f" {len(entry.paths)} of the {entry.in_set} images are no comparison, so nothing is in brackets."
    return Table("Published figures", note, head, rows)


def cost_table(entry: Entry) -> Table:
    """What every method costs."""
    rows = []
    for method in entry.methods:
        costs = entry.costs.get(method.name, Costs())
        values = (
            _number(costs.parameters, ",d"),
            _number(costs.macs, ",d"),
            _number(costs.seconds, ".2f"),
            _number(costs.memory, ",.0f"),
        )
        if any(values):
            rows.append([method.name, *values])
    height, width = read_image(entry.paths[0]).pixels.shape[:2]
    note = f"In the setting '{entry.settings[0].title}'."
    if entry.task == "inpaint":
        note += (
            " As shipped, irae fills holes wider than 40 pixels in several passes, each of which costs as much again."
        )
    if any(costs.seconds for costs in entry.costs.values()):
        note += (
            f" Each method in a process of its own, on an image of {width} x {height} pixels, float32: median of three "
            "runs; memory beyond what the process held before."
        )
    return Table("Work, time and memory", note, ["method", "parameters", "MAC/pixel", "s/Mpx", "MB"], rows)


def sentences(entry: Entry) -> list[str]:
    """Where a reference loses, what could not be measured, and what is not installed."""
    rivals = [method for method in entry.methods if not method.invertible and method.name != "input"]
    compared = [method for method in rivals if difference(entry, method, entry.settings[0])]
    lost = [
        f"{method.name} ({setting.title}: {pair.difference.value:+.2f} dB)"
        for method in compared
        for setting in entry.settings
        if (pair := difference(entry, method, setting)) and pair.difference.low > 0
    ]
    found = list[str]()
    if compared and len(entry.paths) < FEW:
        found.append(f"{len(entry.paths)} images are too few for intervals: no verdict.")
    elif lost:
        found.append(f"The invertible network loses, beyond the 95 % interval, to: {'; '.join(lost)}.")
    elif compared:
        names = ", ".join(method.name for method in compared)
        found.append(f"The invertible network loses nowhere beyond the 95 % interval, against {names}.")
    if compared and len(entry.paths) >= FEW:
        found.append("These intervals cover the images, not what training the same networks again would change.")
    found += _papers_ahead(entry)
    for method in rivals:
        if method not in compared:
            found.append(f"{method.name} is compared with nothing, as {method.reference} was not run.")
    for method in entry.methods:
        steps, of_steps = method.facts.get("steps"), method.facts.get("of_steps")
        if steps and of_steps and steps < of_steps:
            found.append(f"{method.name} is trained {steps} of {of_steps} steps only.")
    found += [f"What {name} costs could not be measured: {error}" for name, error in entry.unmeasured.items()]
    return found + entry.absent


def failures(entry: Entry) -> list[str]:
    """The methods that failed, and why."""
    return [f"{name} failed: {error}" for name, error in entry.failed.items()]


def _papers_ahead(entry: Entry) -> list[str]:
    """The sentence on papers that report more than the shipped network reaches here, on the whole of a data set."""
    if "irae" not in [method.name for method in entry.methods] or len(entry.paths) < entry.in_set:
        return []
    ours = {setting.name: float(np.mean(entry.values("irae", setting.name))) for setting in entry.settings}
    ahead = []
    for paper in PUBLISHED.get(entry.data, ()):
        gaps = [paper.psnr[name] - ours[name] for name in ours if name in paper.psnr]
        if gaps and max(gaps) > 0:
            ahead.append(f"{paper.method} (up to {max(gaps):.2f} dB)")
    return [f"By their papers' figures, ahead of irae as shipped: {', '.join(ahead)}."] if ahead else []


def terminal_tables(entries: Iterable[Entry]) -> list[RichTable | str]:
    """The mean PSNR of every method and the sentences but those on failures, for the terminal."""
    shown = list[RichTable | str]()
    for entry in entries:
        for group in dict.fromkeys(method.group for method in entry.methods):
            rich = RichTable(
                title=escape(f"{_title(entry)}, {group}: PSNR (dB)"), box=box.SIMPLE_HEAD, title_justify="left"
            )
            rich.add_column("method", no_wrap=True)
            for setting in entry.settings:
                rich.add_column(setting.title, justify="right")
            for method in entry.methods:
                if method.group == group:
                    means = (np.mean(entry.values(method.name, setting.name)) for setting in entry.settings)
                    rich.add_row(escape(method.name), *(f"{value:.2f}" for value in means))
            shown.append(rich)
        shown += sentences(entry)
    return shown


def markdown(sections: Sequence[Section], facts: dict[str, str]) -> str:
    """The report without pictures."""
    lines = ["# Comparison", "", DEFINITIONS, ""]
    for section in sections:
        lines += [f"## {section.title}", "", *(f"- {sentence}" for sentence in section.sentences), ""]
        for table in section.tables:
            lines += [f"### {table.title}", "", table.note, ""]
            lines += [_line(table.head), _line(["---", *["---:"] * (len(table.head) - 1)])]
            lines += [*(_line(row) for row in table.rows), ""]
    return "\n".join([*lines, "## How it was made", "", *(f"- {key}: {value}" for key, value in facts.items()), ""])


def as_json(entries: Sequence[Entry], facts: dict[str, str]) -> dict[str, Any]:
    """What the tables of this run are made from, and every score."""
    return {
        "facts": facts,
        "definitions": DEFINITIONS,
        "tasks": [
            {
                "task": entry.task,
                "data": entry.data,
                "settings": [setting.name for setting in entry.settings],
                "methods": [
                    {
                        "name": method.name,
                        "group": method.group,
                        "training": method.facts,
                        "costs": asdict(entry.costs.get(method.name, Costs())),
                        "psnr": {s.name: asdict(mean(entry.values(method.name, s.name))) for s in entry.settings},
                        "less_reference": {
                            s.name: asdict(pair) for s in entry.settings if (pair := difference(entry, method, s))
                        },
                    }
                    for method in entry.methods
                ],
                "failed": entry.failed,
                "absent": entry.absent,
                "scores": [asdict(score) for score in entry.scores.values() if score.model not in entry.failed],
            }
            for entry in entries
        ],
    }


def as_csv(entries: Sequence[Entry]) -> str:
    """A row for each image, method and setting."""
    text = io.StringIO()
    writer = csv.DictWriter(text, ["image", "model", "task", "setting", *MEASURES, "data"])
    writer.writeheader()
    for entry in entries:
        for score in entry.scores.values():
            if score.model not in entry.failed:
                row = {key: value for key, value in asdict(score).items() if key != "values"}
                writer.writerow({**row, **score.values})
    return text.getvalue()


# ------------------------------------------------------------------------------------- pictures


def plots(entry: Entry) -> list[str]:
    """Quality against time and against parameters, as SVG in the page's colours; none where nothing was measured."""
    setting, made = _typical(entry), list[str]()
    for name, label in (("seconds", "seconds a megapixel"), ("parameters", "parameters"), ("macs", "MAC a pixel")):
        points = [
            (float(cost), float(np.mean(entry.values(method.name, setting.name))), method)
            for method in entry.methods
            if (cost := getattr(entry.costs.get(method.name, Costs()), name))
        ]
        points = [point for point in points if math.isfinite(point[1])]
        if len(points) > 1:
            made.append(_plot(points, label, f"PSNR (dB), {setting.title}"))
    return made


def _plot(points: Sequence[tuple[float, float, Method]], x_label: str, y_label: str) -> str:
    style: dict[Any, Any] = {
        "text.color": INK,
        "axes.edgecolor": INK,
        "axes.labelcolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "axes.formatter.useoffset": False,  # or nearly equal values are told as differences from one of them
    }
    with matplotlib.rc_context({**style, "svg.fonttype": "none", "svg.hashsalt": "irae", "font.size": 9}):
        figure = Figure(figsize=(4.6, 3.4), layout="constrained")
        axes = figure.subplots()
        groups = list(dict.fromkeys(method.group for _, _, method in points))
        for group in groups:
            mine = np.array([(x, y) for x, y, method in points if method.group == group])
            axes.scatter(mine[:, 0], mine[:, 1], s=22, label=group)
        axes.set(xscale="log", xlabel=x_label, ylabel=y_label)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(EngFormatter(sep="") if points[0][0] > 1000 else FormatStrFormatter("%g"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.margins(0.2)
        axes.grid(alpha=0.25)
        if len(groups) > 1:
            axes.legend(fontsize=7, framealpha=0)
        _annotate(axes, points)
        picture = io.StringIO()
        figure.savefig(picture, format="svg", transparent=True, metadata={"Date": None})
    text = picture.getvalue()
    return text[text.index("<svg") :].replace(INK, "currentColor")


def _annotate(axes: Any, points: Sequence[tuple[float, float, Method]]) -> None:
    """Names beside their points, from the lowest up, each moved up past the names that it would lie on."""
    axes.figure.draw_without_rendering()  # so that the extents are the final ones
    taken = list[Any]()
    for x, y, method in sorted(points, key=lambda point: point[1]):
        text = axes.annotate(
            method.name, (x, y), xytext=(4, 3), textcoords="offset points", fontsize=8, parse_math=False
        )
        extent, lift = text.get_window_extent(), 0
        while any(extent.translated(0, lift).overlaps(other) for other in taken):
            lift += 1
        taken.append(extent.translated(0, lift))
        text.set_position((4, 3 + lift * 72 / axes.figure.dpi))


def crops(entry: Entry, device: str) -> list[Crop]:
    """Parts of the images that the reference loses and wins most on against the best other network."""
    networks = [method for method in entry.methods if method.group != CLASSICAL]
    references = [method for method in networks if method.name == method.reference]
    setting = _typical(entry)
    names = [method.name for method in references]
    rivals = [method for method in networks if not method.invertible and method.reference in names]
    rivals = rivals or [m for m in entry.methods if m.group == CLASSICAL and m.name != "input"]
    if not references or not rivals:
        return []
    reference = references[0]
    rival = max(rivals, key=lambda method: float(np.mean(entry.values(method.name, setting.name))))
    reference = next((method for method in references if method.name == rival.reference), reference)
    pairs = zip(entry.values(reference.name, setting.name), entry.values(rival.name, setting.name), strict=True)
    gains = np.array([ours - theirs if ours != theirs else 0.0 for ours, theirs in pairs])
    order = np.argsort(gains, kind="stable")
    picks = dict.fromkeys([*order[:SHOWN], *order[::-1][:SHOWN]])
    shown = [method for method in entry.methods if method in (*networks, rival) or method.name == "input"]
    made = []
    loaded = {method.name: method.load(torch.device(device)) for method in shown}
    for index in picks:
        path = entry.paths[index]
        case = setting.damage(path.stem, read_image(path).pixels)
        results = {method.name: rounded(loaded[method.name].restore(case)) for method in shown}
        sign = 1 if gains[index] < 0 else -1
        part = _where(sign * (_error(results[reference.name], case.clean) - _error(results[rival.name], case.clean)))
        panels = [("clean", _data_uri(case.clean[part]))]
        for name, result in results.items():
            psnr = entry.scores[name, setting.name, path.stem].values["psnr"]
            panels.append((f"{name}, {psnr:.2f} dB", _data_uri(result[part])))
        title = f"{path.stem}, {setting.title}: {reference.name} {gains[index]:+.2f} dB against {rival.name}"
        made.append(Crop(title, panels))
    return made


def _where(score: NDArray[np.float64]) -> tuple[slice, slice]:
    """The part of CROP x CROP pixels with the highest mean of a map (H, W)."""
    height, width = (min(CROP, side) for side in score.shape)
    means = cv2.boxFilter(score, -1, (width, height), anchor=(0, 0), borderType=cv2.BORDER_CONSTANT)
    means = means[: score.shape[0] - height + 1, : score.shape[1] - width + 1]
    top, left = (int(at) for at in np.unravel_index(int(means.argmax()), means.shape))
    return slice(top, top + height), slice(left, left + width)


def _error(image: Image, clean: Image) -> NDArray[np.float64]:
    error = (image.astype(np.float64) - clean) ** 2
    return error if error.ndim == 2 else error.mean(2)


def _data_uri(pixels: Image) -> str:
    encodable = pixels if pixels.ndim == 2 else np.ascontiguousarray(pixels[..., ::-1])
    return "data:image/png;base64," + base64.b64encode(cv2.imencode(".png", encodable)[1].tobytes()).decode()


# ------------------------------------------------------------------------------------- words


TITLES = {"denoise": "Denoising", "jpeg": "JPEG decompression", "inpaint": "Inpainting", "photo": "Photographs"}


def _title(entry: Entry) -> str:
    return f"{TITLES[entry.task]}, {Path(entry.data).resolve().name}"


def _typical(entry: Entry) -> Setting:
    """The setting that plots and crops show: the second one, where there are several."""
    return entry.settings[min(1, len(entry.settings) - 1)]


def _seen(method: Method) -> str:
    return _number(method.facts.get("megapixels_seen"), ",d")


def _number(value: float | None, format: str) -> str:
    return "" if value is None else f"{value:{format}}"


def _interval(found: Mean) -> str:
    return f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]" if found.n > 1 else f"{found.value:.2f}"


def _difference(pair: Paired) -> str:
    found = pair.difference
    interval = f" [{found.low:+.2f}, {found.high:+.2f}]" if found.n > 1 else ""
    return f"{found.value:+.2f}{interval}, {pair.wins}/{pair.images}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _finite(value: Any) -> Any:
    """JSON has no infinities: they become strings."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
