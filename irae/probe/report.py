"""What a probe found: tables for the terminal, `probe.json`, plots, and one HTML page."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import os
import platform
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import torch
from matplotlib.figure import Figure
from rich import box
from rich.markup import escape
from rich.table import Table

import irae
from irae.files import write_bytes
from irae.probe.estimators import ESTIMATORS
from irae.probe.probe import PARTS, Layer, Report, Settings
from irae.probe.selftest import Outcome

HEADS = (
    "layer",
    "size",
    "of input",
    "of clean",
    "directions lost",
    "decoded input",
    "decoded clean",
    *ESTIMATORS,
    "recovery error",
)
CAUTION = (
    "With fresh noise at each layer a curve need not fall: an invertible rescaling of some values against others can "
    "raise or lower it. "
    "What only falls is what cannot be undone at that precision."
)


def write_report(
    reports: Sequence[Report], settings: Settings, folder: Path, command: str, seconds: float
) -> list[Path]:
    """Write `probe.json`, `probe.html` and the plots into a folder: their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    facts = provenance(settings, command, seconds)
    pictures = {f"{stem}.png": _png(figure) for stem, figure in plots(reports, settings).items()}
    page = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        Path(__file__).with_name("report.html.j2").read_text()
    )
    html = page.render(
        reports=[(report, [(part, rows(report, part)) for part in shown(report)]) for report in reports],
        heads=HEADS,
        plots=[base64.b64encode(data).decode() for data in pictures.values()],
        facts=facts,
        notes=notes(reports, settings),
    )
    contents = {
        "probe.json": json.dumps(as_json(reports, settings, facts), indent=1, allow_nan=False).encode(),
        "probe.html": html.encode(),
        **pictures,
    }
    for name, data in contents.items():
        write_bytes(folder / name, data, overwrite=True)
    return [folder / name for name in contents]


def provenance(settings: Settings, command: str, seconds: float) -> dict[str, str]:
    """What it takes to repeat the probe, as name -> text."""
    return {
        "command": command,
        "seed": str(settings.seed),
        "versions": f"irae {irae.__version__}, torch {torch.__version__}, numpy {np.__version__}, "
        f"Python {platform.python_version()}",
        "hardware": f"{os.cpu_count()} cores, {platform.machine()}, {torch.get_num_threads()} threads",
        "time": f"{seconds:.0f} s; what an earlier run left in the cache costs none",
    }


def as_json(reports: Sequence[Report], settings: Settings, facts: dict[str, str]) -> dict[str, Any]:
    """All that was found but the pictures."""
    layers = [
        {"network": report.name, "layer": layer.name, "depth": layer.depth, "size": layer.size, **layer.values}
        for report in reports
        for layer in report.layers
    ]
    networks = [{"name": r.name, "parameters": r.parameters, "cuts_known": r.whole} for r in reports]
    return {"facts": facts, "settings": dataclasses.asdict(settings), "networks": networks, "layers": layers}


# ------------------------------------------------------------------------------------- tables


def shown(report: Report) -> tuple[str, ...]:
    """The parts that a report has: one where the cuts are not known, or hold nothing but the bare activations."""
    if not report.whole:
        return ("bare",)
    return PARTS if any(layer.waits for layer in report.layers) else PARTS[:1]


def rows(report: Report, part: str, brief: bool = False) -> list[list[str]]:
    """A row for each layer, cells as in `HEADS`; brief: without intervals."""
    return [_row(layer, part, brief) for layer in report.layers]


def _row(layer: Layer, part: str, brief: bool) -> list[str]:
    values = layer.values[part]
    jacobian, decoded, inverse = (values.get(key) or {} for key in ("jacobian", "reconstruction", "inverse"))
    lost = jacobian.get("lost")
    energy = jacobian.get("energy")
    size = layer.size if part == "whole" else layer.size.split(" + ")[0]
    cells = [layer.name, size, *(cell(jacobian.get(key), brief) for key in ("input", "clean"))]
    cells.append("" if not lost else f"{cell(lost, brief, 0)} of {jacobian['directions']}")
    if energy and not brief:
        cells[-1] += f" ({100 * energy['value']:.2g} % of energy)"
    cells += [cell(decoded.get(key), brief) for key in ("input", "clean")]
    for name in ESTIMATORS:
        found = values.get(name)
        cells.append(" / ".join(cell(found[key], brief) for key in ("input", "clean")) if found else "")
    cells.append(f"{inverse['levels']}" + ("" if brief else f" ({inverse['largest']:.1g})") if inverse else "")
    return cells


def cell(value: dict[str, Any] | None, brief: bool = False, digits: int = 2) -> str:
    """A value with its 95 % interval, brief without."""
    if not value:
        return ""
    if brief or value["interval"] is None:
        return f"{value['value']:.{digits}f}"
    low, high = value["interval"]
    return f"{value['value']:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def rich_table(report: Report, part: str) -> Table:
    """A network for the terminal; columns without a value are left out."""
    table = Table(title=escape(f"{report.name}, {TITLES[part]}"), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    lines = rows(report, part, brief=True)
    filled = [i for i in range(len(HEADS)) if any(line[i] for line in lines)]
    for i in filled:
        table.add_column(HEADS[i], justify="right" if i > 1 else "left", overflow="fold")
    for line in lines:
        table.add_row(*(escape(line[i]) for i in filled))
    return table


def self_test_table(outcomes: Sequence[Outcome]) -> Table:
    """Estimate beside truth for the terminal."""
    heads = ("case", "instrument", "estimate", "truth", "tolerance", "")
    table = Table(title="Cases with known answers", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for head in heads:
        table.add_column(head, justify="left" if head in ("case", "instrument", "") else "right")
    for one in outcomes:
        tolerance = f"{one.truth / 3 - one.truth:+.2f}, {one.tolerance:+.2f}" if one.lower else f"{one.tolerance:.2f}"
        cells = f"{one.estimate:.3f}", f"{one.truth:.3f} {one.unit}", tolerance, "" if one.passed else "FAILED"
        table.add_row(one.case, one.instrument, *cells)
    return table


TITLES = {"whole": "all that the rest of the network computes from", "bare": "the bare activation alone"}


def notes(reports: Sequence[Report], settings: Settings) -> list[str]:
    """Sentences that the tables need to be understood."""
    lines = [
        f"{settings.side} x {settings.side} patches of {settings.data} with noise of level {settings.noise:g}; bits "
        f"per pixel, all colours together, of the layer read through noise of 1/{settings.precision:g} of the root of "
        "its whole variance for each value of the input, one for the whole layer, so that constants, copies and "
        "rotations change nothing (rounding to 8 bits has 1/883 of the range).",
        CAUTION,
    ]
    found = [layer.values["whole"] for report in reports for layer in report.layers]
    if "jacobian" in settings.instruments:
        lines.append(
            f"Of input, of clean (image), directions lost: the Jacobian spectrum at {settings.spectra} "
            f"patch{'es' if settings.spectra > 1 else ''}, a local approximation and never a bound; "
            f"{'95 % intervals over patches' if settings.spectra > 1 else 'so without intervals'}. Directions are "
            "those of natural patches."
        )
    if any(not values.get("jacobian", {}).get("method", "exact").startswith("exact") for values in found):
        lines.append(
            "In patches so large the spectrum is estimated (Lanczos), natural patches are taken to vary independently "
            "along cosines, and directions are counted softly: one with singular value s is lost by 1 / (1 + s^2)."
        )
    if "reconstruction" in settings.instruments:
        lines.append(
            f"Decoded: what a small decoder finds, trained on {settings.samples // 2} patches, reported on "
            f"{settings.samples - settings.samples // 2} others, of other images where there are several, but for one. "
            "Of the input a low estimate: a larger decoder may find more. Of the clean image it is the decoder's error "
            "in bits: as images are not normal, it can be more than the information that there is."
        )
    used = [name for name in ESTIMATORS if name in settings.instruments]
    if used:
        lines.append(
            f"{', '.join(used)}: bits (not per pixel) on the input / on the clean image between the first 4 principal "
            "components of patch and layer, the layer read through a fourth of their deviation; estimates with the "
            "limits stated in probe.json. The interval of ksg is too narrow, as its terms depend on each other."
        )
    if any(values.get("inverse") for values in found):
        lines.append(
            "Recovery error: the input from this layer alone, the layers before it run backwards, in 8-bit levels "
            "after rounding (before it), on 64 patches in float32. 0 certifies that nothing of these is lost; all else "
            "here is an estimate. The output of an IRAE is without the rest, so nothing is certified of it."
        )
    for report in reports:
        if not report.whole:
            lines.append(
                f"What else {report.name} computes from is not known: its bare activations alone are measured."
            )
    return lines


# ------------------------------------------------------------------------------------- plots


def plots(reports: Sequence[Report], settings: Settings) -> dict[str, Figure]:
    """File stem -> figure: curves against relative depth, and the information plane; without data none."""
    caption = f"Layers read through noise of 1/{settings.precision:g} of their deviation. {CAUTION}".replace(
        ". ", ".\n"
    )
    figures = {}
    for key, title in (("jacobian", "Jacobian spectrum"), ("reconstruction", "decoder")):
        if any(key in layer.values[part] for report in reports for layer in report.layers for part in shown(report)):
            figures[f"depth-{key}"] = _curves(reports, key, title, caption)
    key = "jacobian" if "depth-jacobian" in figures else "reconstruction"
    if f"depth-{key}" in figures:
        figures["plane"] = _plane(reports, key, caption)
    return figures


def _curves(reports: Sequence[Report], key: str, title: str, caption: str) -> Figure:
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    for axes, target in zip(figure.subplots(1, 2), ("input", "clean"), strict=True):
        for number, report in enumerate(reports):
            for part in shown(report):
                points = [(layer.depth, layer.values[part][key][target]) for layer in report.layers]
                depth, value = [p[0] for p in points], np.array([p[1]["value"] for p in points])
                label = report.name if part == shown(report)[0] else None
                style = {"color": f"C{number}", "linestyle": "-" if part == "whole" else "--"}
                axes.plot(depth, value, marker=".", label=label, **style)
                if all(p[1]["interval"] for p in points):
                    low, high = np.array([p[1]["interval"] for p in points]).T
                    axes.fill_between(depth, low, high, color=f"C{number}", alpha=0.12, linewidth=0)
        axes.set(xlabel="relative depth", ylabel="bits per pixel", title=f"{title}: of the {NAMES[target]}")
        axes.set_ylim(0, 1.08 * axes.dataLim.ymax)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    figure.supxlabel(f"solid: the whole cut, dashed: the bare activation. {caption}", fontsize="x-small")
    return figure


NAMES = {"input": "noisy input", "clean": "clean image"}


def _plane(reports: Sequence[Report], key: str, caption: str) -> Figure:
    figure = Figure(figsize=(6, 5), layout="constrained")
    axes = figure.subplots()
    for number, report in enumerate(reports):
        part = shown(report)[0]
        found = [layer.values[part][key] for layer in report.layers]
        x, y = ([value[target]["value"] for value in found] for target in ("input", "clean"))
        axes.plot(x, y, marker=".", color=f"C{number}", label=report.name, alpha=0.8)
        axes.plot(x[-1:], y[-1:], marker="s", color=f"C{number}")
    axes.set(xlabel="of the noisy input, bits per pixel", ylabel="of the clean image, bits per pixel")
    axes.set_title(f"Information plane ({key}; square: output)", fontsize="medium")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.supxlabel(textwrap.fill(caption, 85), fontsize="x-small")
    return figure


def _png(figure: Figure) -> bytes:
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=130)
    return data.getvalue()
