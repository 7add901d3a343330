"""Quality against work: the networks of an `irae evaluate` report beside what papers report, one plot a task.

    irae evaluate --task denoise,jpeg --models irae,irae-best --settings sigma25,q10 -o report
    python benchmarks/work.py report [-o docs/work.png]

Work is multiply-accumulates a pixel; it says nothing of how well a processor does them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import matplotlib.pyplot as plt
import typer
from matplotlib.ticker import EngFormatter

from irae.evaluation.published import PUBLISHED

# Multiply-accumulates a pixel of published networks, as in the README.
WORK = {
    "DnCNN, blind": 667e3,
    "FFDNet, level given": 213e3,
    "DRUNet, level given": 2.12e6,
    "FBCNN": 2.71e6,
}
SHOWN = {"denoise": ("cbsd68", "sigma25", "CBSD68, noise 25"), "jpeg": ("live1", "q10", "LIVE1, JPEG 10")}


def main(
    report: Annotated[Path, typer.Argument(help="Folder of the report.")],
    output: Annotated[Path, typer.Option("-o", "--output")] = Path("work.png"),
) -> None:
    """Draw the picture."""
    tasks = json.loads((report / "results.json").read_text())["tasks"]
    found = {task["task"]: task for task in tasks if SHOWN.get(task["task"], ("",))[0] == task["data"]}
    figure, axes = plt.subplots(1, len(found), figsize=(4.6 * len(found), 3.4), squeeze=False, layout="constrained")
    for (name, task), axis in zip(found.items(), axes[0], strict=True):
        data, setting, title = SHOWN[name]
        own = [(m["costs"]["macs"], m["psnr"][setting]["value"], m["name"]) for m in task["methods"]]
        known = [p for p in PUBLISHED[data] if p.method in WORK and setting in p.psnr]
        papers = [(WORK[p.method], p.psnr[setting], p.method) for p in known]
        for points, marker, label, beside in (
            (own, "o", "measured", {"ha": "right", "va": "center", "xytext": (-6, 0)}),
            (papers, "s", "published", {"ha": "left", "va": "center", "xytext": (6, 0)}),
        ):
            points = [point for point in points if point[0]]
            axis.scatter(*zip(*[point[:2] for point in points], strict=True), marker=marker, label=label)
            for work, psnr, method in points:
                axis.annotate(method, (work, psnr), textcoords="offset points", fontsize=8, **beside)
        axis.set(xscale="log", xlabel="multiply-accumulates a pixel", ylabel="PSNR (dB)", title=title)
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        axis.margins(0.75, 0.2)
        axis.grid(alpha=0.25)
        axis.legend(fontsize=8)
    figure.savefig(output, dpi=110)


if __name__ == "__main__":
    typer.run(main)
