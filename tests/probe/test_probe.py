"""The probe of whole networks: report, cache, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from irae import cli
from irae.images import Picture, write_image
from irae.probe import EstimatorError, ProbeError, Settings, notes, run, write_report
from irae.probe import probe as probing

SMALL = {"side": 8, "samples": 256, "spectra": 2, "steps": 5, "most": 4}


class Constant(nn.Module):
    """Images of one colour, whatever goes in."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        return 0 * y.nan_to_num() + self.value


def constant() -> nn.Module:
    return Constant(0.5)


def broken() -> nn.Module:
    return Constant(float("nan"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four smooth random images."""
    path = tmp_path_factory.mktemp("images")
    generator = torch.Generator().manual_seed(0)
    for i in range(4):
        coarse = torch.rand(1, 3, 8, 8, generator=generator)
        image = nn.functional.interpolate(coarse, (64, 64), mode="bicubic")[0].clamp(0, 1)
        pixels = (image * 255).byte().permute(1, 2, 0).contiguous().numpy()
        write_image(path / f"{i}.png", Picture(pixels))
    return path


def test_report(folder: Path, weights_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(
        models=(str(weights_file), "ffdnet-untrained"),
        data=str(folder),
        instruments=("inverse", "jacobian", "reconstruction", "ksg"),
        **SMALL,
    )
    steps = list[tuple[int, int]]()
    reports = run(settings, tmp_path, progress=lambda done, total, what: steps.append((done, total)))
    assert [done for done, _ in steps] == list(range(steps[0][1]))  # the bar ends where it says
    files = {path.name for path in write_report(reports, settings, tmp_path, "irae probe", 1.0)}
    assert {"probe.json", "probe.html", "plane.png", "depth-jacobian.png", "depth-reconstruction.png"} <= files
    found = json.loads((tmp_path / "probe.json").read_text())
    ours = [layer for layer in found["layers"] if layer["network"] == str(weights_file)]
    assert [layer["layer"] for layer in ours][:2] == ["input", "lift"]
    assert all(layer["whole"]["inverse"]["levels"] == 0 for layer in ours[1:-1])
    assert "inverse" not in ours[-1]["whole"]  # the output is without the rest
    assert not any("inverse" in layer["whole"] for layer in found["layers"][len(ours) :])  # estimates alone
    clean = [layer["whole"]["jacobian"]["clean"]["value"] for layer in ours]
    assert clean[1] == pytest.approx(clean[0], rel=0.01)  # an invertible layer keeps it, bare or not
    for layer in ours:
        assert {"value", "interval", "n", "limit"} <= set(layer["bare"]["ksg"]["input"])
    assert "never a bound" in (tmp_path / "probe.html").read_text()

    monkeypatch.setattr(probing, "reconstruct", None)  # all is in the cache
    monkeypatch.setattr(probing, "grams", None)
    again = run(settings, tmp_path)
    assert [layer.values for report in again for layer in report.layers] == [
        layer.values for report in reports for layer in report.layers
    ]


def test_large_patches(folder: Path, tmp_path: Path) -> None:
    """Without a matrix, the input's information is nearly that of its variances, which is in closed form; the lift,
    which adds nothing but zeros, holds the same.
    """
    settings = Settings(
        models=("irae-untrained",),
        data=str(folder),
        instruments=("jacobian",),
        layers=("input", "lift"),
        **{**SMALL, "side": 32},
    )
    (report,) = run(settings, tmp_path)
    found = report.layers[0].values["whole"]["jacobian"]
    assert found["method"].startswith("Lanczos")
    assert found["clean"]["interval"][0] <= found["clean"]["value"]
    variances = probing.Bench(settings, probing.load_images(str(folder)), probing.Cache(tmp_path)).prior.variances
    sigma, noise = report.layers[0].values["whole"]["sigma"], 25 / 255
    truth = float((1 + (variances + noise**2) / sigma**2).log2().sum()) / 2 / 32**2
    for layer in report.layers:
        assert layer.values["whole"]["jacobian"]["input"]["value"] == pytest.approx(truth, rel=1e-3)


@pytest.mark.parametrize(
    ("models", "options", "message"),
    [
        ("irae-untrained", {"layers": ("encoder blok 1",)}, "did you mean 'encoder block 1'"),
        ("tests.probe.test_probe:constant", {}, "constant: it holds no information"),
        ("tests.probe.test_probe:broken", {}, "not finite"),
        ("resnet", {}, "no network 'resnet'"),
        ("ffdnet-untrained", {"side": 15}, "multiple of 2"),
    ],
)
def test_refusals(folder: Path, tmp_path: Path, models: str, options: dict, message: str) -> None:
    settings = Settings(models=(models,), data=str(folder), instruments=("jacobian",), **{**SMALL, **options})
    with pytest.raises(ProbeError, match=message):
        run(settings, tmp_path)


def test_too_few_samples(folder: Path, tmp_path: Path) -> None:
    settings = Settings(("ffdnet-untrained",), str(folder), ("ksg",), ("input",), side=8, samples=100)
    with pytest.raises(EstimatorError, match="too few"):
        run(settings, tmp_path)


def test_command(folder: Path, tmp_path: Path) -> None:
    arguments = ["probe", "--models", "tests.probe.test_probe:shrink", "--data", str(folder), "--patch", "8"]
    result = CliRunner().invoke(cli.app, [*arguments, "--quick", "--instruments", "jacobian", "-o", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "bare activation alone" in result.output and "probe.json" in result.output
    assert "all that the rest" not in result.output  # of anyone's network the cuts are not known


def shrink() -> nn.Module:
    return nn.AvgPool2d(2)


def test_an_unknown_instrument() -> None:
    with pytest.raises(ProbeError, match="no instrument 'guess'"):
        Settings(instruments=("guess",))


def test_notes_say_how_exact() -> None:
    assert "1/255" in " ".join(notes([], Settings()))
