"""Figures that papers report, by data set and setting: PSNR in dB of a method, to stand beside ours."""

from __future__ import annotations

from dataclasses import dataclass

UNDERTRAINED = 0.2  # dB below its paper: the network here has not been trained as far as it goes


@dataclass(frozen=True)
class Published:
    """A row of a paper's table.

    Attributes:
        method: as the paper calls it.
        ours: the network here that it belongs to, empty where there is none.
        psnr: by setting.
        source: the paper that tabulates it.
    """

    method: str
    ours: str
    psnr: dict[str, float]
    source: str


SWINIR, FBCNN = "Liang et al., SwinIR, ICCVW 2021", "Jiang et al., FBCNN, ICCV 2021"


def _noise(method: str, ours: str, *values: float) -> Published:
    settings = ("sigma15", "sigma25", "sigma50")
    return Published(method, ours, dict(zip(settings, values, strict=True)), f"{SWINIR}, table 6")


def _jpeg(method: str, ours: str, source: str, kind: str, *values: float | None) -> Published:
    psnr = {f"q{q}{kind}": value for q, value in zip((10, 20, 30, 40), values, strict=False) if value is not None}
    return Published(method, ours, psnr, source)


PUBLISHED: dict[str, tuple[Published, ...]] = {
    "cbsd68": (
        _noise("BM3D", "bm3d", 33.52, 30.71, 27.38),
        _noise("DnCNN, blind", "dncnn", 33.90, 31.24, 27.95),
        _noise("FFDNet, level given", "ffdnet", 33.87, 31.21, 27.96),
        _noise("BRDNet, a network for each level", "", 34.10, 31.43, 28.16),
        _noise("DRUNet, level given", "", 34.30, 31.69, 28.51),
        _noise("SwinIR, a network for each level", "", 34.42, 31.78, 28.56),
    ),
    "live1": (
        _jpeg("QGAC", "", FBCNN, "", 27.62, 29.88, 31.17, 32.05),
        _jpeg("FBCNN", "", FBCNN, "", 27.77, 30.11, 31.43, 32.34),
        _jpeg("ARCNN, a network for each quality", "arcnn", SWINIR, "-grey", 28.96, 31.29, 32.67, 33.63),
        _jpeg("DnCNN-3", "dncnn", SWINIR, "-grey", 29.19, 31.59, 32.98, 33.96),
        _jpeg("QGAC", "", SWINIR, "-grey", 29.53, 31.86, 33.23, None),
        _jpeg("FBCNN", "", FBCNN, "-grey", 29.75, 32.13, 33.54, 34.53),
        _jpeg("DRUNet", "", SWINIR, "-grey", 29.79, 32.17, 33.59, 34.58),
        _jpeg("SwinIR", "", SWINIR, "-grey", 29.86, 32.25, 33.69, 34.67),
    ),
    "classic5": (
        _jpeg("ARCNN, a network for each quality", "arcnn", SWINIR, "", 29.03),
        _jpeg("DnCNN-3", "dncnn", SWINIR, "", 29.40),
        _jpeg("DRUNet", "", SWINIR, "", 30.16),
        _jpeg("SwinIR", "", SWINIR, "", 30.27),
    ),
}
