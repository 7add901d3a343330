"""Comparison: the protocol, what statistics say, and a report in which a broken method fails alone."""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import ttest_ind
from skimage.metrics import structural_similarity

from irae import cli
from irae.datasets import DatasetError, image_paths, load_dataset
from irae.evaluation import Request, report, run
from irae.evaluation.methods import (
    BUDGET,
    OTHER,
    SHIPPED,
    EvaluationError,
    Loaded,
    Method,
    default_names,
    find_method,
    told,
)
from irae.evaluation.protocols import DEFAULT_SETTINGS, find_setting
from irae.evaluation.runner import Entry, Score
from irae.evaluation.statistics import mean, paired
from irae.images import Picture, read_image, write_image
from irae.metrics import psnr, ssim
from irae.models.baselines import BaselineConfig, build_network
from irae.restorer import Hints
from irae.weights import save_weights

HERE = "tests.test_evaluation"
CLEAN: dict[tuple[int, ...], NDArray[Any]] = {}  # by shape: what `perfect` knows
SEEN: list[NDArray[Any]] = []


def perfect(damaged: NDArray[Any], hints: Hints) -> NDArray[Any]:
    SEEN.append(damaged)
    return CLEAN[damaged.shape]


def again(damaged: NDArray[Any], hints: Hints) -> NDArray[Any]:
    return perfect(damaged, hints)


def broken(damaged: NDArray[Any], hints: Hints) -> NDArray[Any]:
    raise RuntimeError("it fell\napart")


def tires(damaged: NDArray[Any], hints: Hints) -> NDArray[Any]:
    """Fails from its third image on, when the scores are made and the crops are drawn."""
    SEEN.append(damaged)
    if len(SEEN) > 2:
        raise RuntimeError("enough for today")
    return damaged


def in_255(damaged: NDArray[Any], hints: Hints) -> NDArray[Any]:
    return np.asarray(damaged * 255, np.float32)


def wrong_size(damaged: NDArray[Any], hints: Hints) -> NDArray[Any]:
    return damaged[1:]


@pytest.fixture
def folder(tmp_path: Path, photo: NDArray[Any]) -> Path:
    """Two images to compare on."""
    place = tmp_path / "images"
    place.mkdir()
    for name, pixels in (("a", photo[:64, :80]), ("b", photo[40:, :64])):
        write_image(place / f"{name}.png", Picture(pixels))
        CLEAN[pixels.shape] = pixels
    SEEN.clear()
    return place


@pytest.mark.parametrize("shape", [(40, 50), (40, 50, 3)])
def test_psnr_and_ssim_agree_with_scikit_image(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.integers(256, size=shape, dtype=np.uint8) for _ in range(2))
    assert psnr(a, b) == pytest.approx(10 * math.log10(255**2 / np.mean((a.astype(float) - b) ** 2)), abs=1e-6)
    planes = [(a, b)] if len(shape) == 2 else [(a[..., c], b[..., c]) for c in range(3)]
    options: dict[str, Any] = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    each = [structural_similarity(x, y, data_range=255, **options) for x, y in planes]
    assert ssim(a, b) == pytest.approx(np.mean(each), abs=1e-6)


@pytest.mark.parametrize("task", DEFAULT_SETTINGS)
@pytest.mark.parametrize("grey", [False, True])
def test_damage_depends_on_the_name_alone(task: str, grey: bool, photo: NDArray[Any]) -> None:
    clean = np.ascontiguousarray(photo[..., 0]) if grey else photo
    for name in DEFAULT_SETTINGS[task]:
        setting = find_setting(task, name)
        first, second = setting.damage("x", clean), setting.damage("x", clean)
        assert np.array_equal(first.damaged, second.damaged) and first.damaged.dtype == np.float32
        assert first.damaged.shape == first.clean.shape
        assert (
            task == "jpeg" or name == "centre" or not np.array_equal(first.damaged, setting.damage("y", clean).damaged)
        )
        score = setting.score(first, first.clean)
        assert score["psnr"] == math.inf and score["ssim"] == pytest.approx(1)


def test_noise_is_float_or_as_in_a_file(photo: NDArray[Any]) -> None:
    floats, file = (find_setting("denoise", name).damage("x", photo).damaged for name in ("sigma50", "sigma50-file"))
    assert floats.min() < 0 and np.std((floats - photo / 255) * 255) == pytest.approx(50, rel=0.02)
    assert np.allclose(file * 255, np.rint(file * 255), atol=1e-4) and 0 <= file.min() <= file.max() <= 1
    assert np.allclose(file, floats.clip(0, 1), atol=0.5 / 255 + 1e-6)


@pytest.mark.skipif("IRAE_DATA" not in os.environ, reason="IRAE_DATA does not say where the images are")
@pytest.mark.parametrize(("name", "want"), [("q10", 25.69), ("q40-grey", 32.35)])
def test_jpegs_measure_as_everywhere(name: str, want: float) -> None:
    setting = find_setting("jpeg", name)
    cases = [setting.damage(path.stem, read_image(path).pixels) for path in image_paths("live1")]
    assert np.mean([setting.score(case, case.damaged)["psnr"] for case in cases]) == pytest.approx(want, abs=0.006)


def test_means_differences_and_wins() -> None:
    rng = np.random.default_rng(0)
    reference = rng.normal(30, 3, 40).tolist()
    better = [value + 0.1 + noise for value, noise in zip(reference, rng.normal(0, 0.05, 40), strict=True)]
    spread, pair = mean(better), paired(better, reference)
    assert spread.low < spread.value < spread.high and spread.high - spread.low > 1
    assert 0 < pair.difference.low < 0.1 < pair.difference.high < 0.15  # far less than the spread over images
    assert pair.wins == sum(a > b for a, b in zip(better, reference, strict=True)) and pair.images == 40
    endless = paired([math.inf, 30.0], [math.inf, 29.0])
    assert endless.difference.value == 0.5 and endless.wins == 1
    assert mean([math.inf, 30.0]).high == math.inf


def test_a_broken_method_fails_alone_and_a_perfect_one_is_infinite(folder: Path, tmp_path: Path) -> None:
    baselines = (f"{HERE}:perfect", f"{HERE}:broken", f"{HERE}:wrong_size")
    request = Request(("denoise",), (str(folder),), ("input", "tv"), baselines, ("sigma25",), timing=False)
    (entry,) = run(request, tmp_path / "report")
    assert [method.name for method in entry.methods] == ["input", "tv", f"{HERE}:perfect"]
    assert entry.values(f"{HERE}:perfect", "sigma25") == [math.inf] * 2
    assert entry.values(f"{HERE}:perfect", "sigma25", "ssim") == pytest.approx([1, 1])
    assert "it fell apart" in entry.failed[f"{HERE}:broken"] and "shape" in entry.failed[f"{HERE}:wrong_size"]
    assert all(
        tv > noisy for tv, noisy in zip(entry.values("tv", "sigma25"), entry.values("input", "sigma25"), strict=True)
    )
    report.write_report([entry], tmp_path / "report", ["irae", "evaluate"], "cpu")
    text = (tmp_path / "report" / "report.md").read_text()
    assert "it fell apart" in text and "inf" in text
    assert json.loads((tmp_path / "report" / "results.json").read_text())["tasks"][0]["failed"]


def test_a_report_without_crops_is_one_all_the_same(folder: Path, tmp_path: Path) -> None:
    request = Request(("denoise",), (str(folder),), ("irae",), (f"{HERE}:tires", f"{HERE}:in_255"), ("sigma25",))
    (entry,) = run(replace(request, timing=False), tmp_path)
    assert "in [0, 1]" in entry.failed[f"{HERE}:in_255"]
    report.write_report([entry], tmp_path, ["irae", "evaluate"], "cpu")
    text = (tmp_path / "report.md").read_text()
    assert "enough for today" in text and f"| {HERE}:tires |" in text
    assert "2 images are too few for intervals" in text and "loses" not in text


def test_what_was_scored_is_not_scored_again(folder: Path, tmp_path: Path) -> None:
    request = Request(("denoise",), (str(folder),), ("input",), (f"{HERE}:perfect",), ("sigma25",), timing=False)
    ticks: list[tuple[int, int, str]] = []
    first = run(request, tmp_path, lambda *tick: ticks.append(tick))
    assert len(SEEN) == 2 and ticks[-1][:2] == (4, 4)
    cache = tmp_path / "cache.jsonl"
    cache.write_text(cache.read_text() + '{"key": "cut o')
    assert run(request, tmp_path)[0].scores == first[0].scores and len(SEEN) == 2
    run(replace(request, baselines=(f"{HERE}:perfect", f"{HERE}:again")), tmp_path)
    assert len(SEEN) == 4  # one more method costs only itself
    assert all(np.array_equal(a, b) for a, b in zip(SEEN[:2], SEEN[2:], strict=True))  # and sees the same noise
    run(replace(request, baselines=(f"{HERE}:perfect", f"{HERE}:again")), tmp_path)
    assert len(SEEN) == 4  # also the one that was written after the broken line
    write_image(folder / "a.png", Picture(CLEAN[64, 80, 3][::-1]), overwrite=True)
    run(request, tmp_path)
    assert len(SEEN) == 5


@pytest.mark.parametrize("task", DEFAULT_SETTINGS)
def test_our_networks_and_weights_files(folder: Path, tmp_path: Path, task: str) -> None:
    cond = {"denoise": 2, "photo": 2, "jpeg": 36, "inpaint": 1}[task]
    small = BaselineConfig("unet", task, cond, {"channels": [8, 12]})
    save_weights(tmp_path / "mine.safetensors", small, build_network(small).state_dict(), {"megapixels_seen": 3})
    setting = DEFAULT_SETTINGS[task][0]
    request = Request((task,), (str(folder),), ("input",), (str(tmp_path / "mine.safetensors"),), (setting,))
    (entry,) = run(request, tmp_path / "report")
    assert not entry.failed and [method.name for method in entry.methods] == ["input", "mine"]
    costs = entry.costs["mine"]
    assert costs.parameters and costs.macs and costs.seconds and (costs.memory is not None or sys.platform != "linux")
    assert ("psnr_holes" in entry.scores["mine", setting, "a"].values) == (task == "inpaint")
    assert "| mine | 3 |" in report.markdown([report.Section("x", report.tables(entry), ())], {})


def test_blind_is_told_nothing_but_the_mask(photo: NDArray[Any]) -> None:
    for task, names in DEFAULT_SETTINGS.items():
        case = find_setting(task, names[0]).damage("x", photo)
        hints = told(case, blind=True).hints
        assert hints == Hints(mask=case.hints.mask) and told(case, blind=False) is case


def test_what_is_not_installed_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("irae.evaluation.methods.resource_dir", lambda kind: Path(__file__).parents[1] / kind)
    monkeypatch.setattr("irae.evaluation.methods.baseline_weights", lambda name: None)
    for task in DEFAULT_SETTINGS:
        absent = [found for name in default_names(task) if isinstance(found := find_method(name, task), str)]
        trainable = {"denoise": 5, "jpeg": 5, "inpaint": 3, "photo": 0}
        assert sum("irae train recipes/baselines/" in sentence for sentence in absent) == trainable[task]


def test_a_gap_to_a_paper_is_flagged(folder: Path) -> None:
    paths = sorted(folder.iterdir())
    setting = find_setting("denoise", "sigma25")
    for psnr_here, flagged in ((31.1, False), (30.9, True)):
        method = Method("dncnn", BUDGET, "", lambda device: Loaded(lambda case: case.damaged))
        scores = {
            ("dncnn", "sigma25", path.stem): Score(
                "cbsd68", path.stem, "dncnn", "denoise", "sigma25", {"psnr": psnr_here}
            )
            for path in paths
        }
        (row,) = (
            r
            for r in report.published_table(
                Entry("denoise", "cbsd68", paths, [setting], [method], scores, in_set=len(paths))
            ).rows
            if "DnCNN" in r[0]
        )
        assert ("undertrained" in row[1]) == flagged and f"31.24 (here {psnr_here:.2f}" in row[1]


def test_seeds_are_summed_up(folder: Path) -> None:
    paths, setting = sorted(folder.iterdir()), find_setting("denoise", "sigma25")
    means = {"irae-budget": 30.0, "irae-denoise-seed1": 30.2, "twin": 29.0, "twin-denoise-seed1": 29.1, "unet": 28.0}
    methods = [Method(name, BUDGET, "", lambda device: Loaded(lambda case: case.damaged)) for name in means]
    scores = {
        (name, "sigma25", path.stem): Score("x", path.stem, name, "denoise", "sigma25", {"psnr": value})
        for name, value in means.items()
        for path in paths
    }
    table = report.seeds_table(Entry("denoise", "x", paths, [setting], methods, scores), methods)
    assert table.rows[:2] == [["irae", "2", "30.100 ± 0.141"], ["twin", "2", "29.050 ± 0.071"]]
    gap = ttest_ind([29.0, 29.1], [30.0, 30.2], equal_var=False).confidence_interval(0.95)
    assert table.rows[2:] == [["twin less irae", "", f"-1.050 [{gap.low:+.3f}, {gap.high:+.3f}]"]]


def test_an_irae_is_no_rival_of_the_irae(tmp_path: Path, weights_file: Path) -> None:
    shutil.copy(weights_file, tmp_path / "mine-seed7.safetensors")
    method = find_method(str(tmp_path / "mine-seed7.safetensors"), "denoise")
    assert isinstance(method, Method) and method.group == OTHER  # it did not see what the budget's networks saw
    assert method.invertible
    twin = find_method("twin", "denoise")
    assert isinstance(twin, Method) and not twin.invertible


def test_papers_ahead_are_named(folder: Path) -> None:
    paths, setting = sorted(folder.iterdir()), find_setting("denoise", "sigma25")
    method = Method("irae", SHIPPED, "", lambda device: Loaded(lambda case: case.damaged), invertible=True)
    scores = {
        ("irae", "sigma25", path.stem): Score("cbsd68", path.stem, "irae", "denoise", "sigma25", {"psnr": 31.5})
        for path in paths
    }
    entry = Entry("denoise", "cbsd68", paths, [setting], [method], scores, in_set=2)
    (sentence,) = report.sentences(entry)
    assert "DRUNet" in sentence and "SwinIR" in sentence and "DnCNN" not in sentence
    assert ["irae", "31.50", "measured here"] in report.published_table(entry).rows
    entry.in_set = 68
    assert not report.sentences(entry)  # two images are no comparison
    entry.failed, entry.unmeasured = {"mine": "it fell apart"}, {"irae": "spawn failed: no memory"}
    assert report.failures(entry) == ["mine failed: it fell apart"]
    assert report.sentences(entry) == ["What irae costs could not be measured: spawn failed: no memory"]
    assert report.terminal_tables([entry])[-1] == report.sentences(entry)[0]


def test_a_data_set_is_meant_by_its_name_and_its_files_are_checked(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "._a.png").write_bytes(b"of another system")
    (folder / "more.png").mkdir()
    assert [path.name for path in image_paths(str(folder))] == ["a.png", "b.png"]
    monkeypatch.chdir(tmp_path)
    dataset = load_dataset("cbsd68")
    for place in (tmp_path / "cbsd68", tmp_path / dataset.folder):
        place.mkdir(parents=True)
        for name in dataset.files:
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / "a.png", place / name)
    assert image_paths("cbsd68", tmp_path)[0].is_relative_to(tmp_path / dataset.folder)
    with pytest.raises(DatasetError, match="is not the file of cbsd68"):
        run(Request(("denoise",), ("cbsd68",), ("input",), root=tmp_path), tmp_path / "report")


def test_a_cache_that_cannot_be_written_ends_the_run(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "report" / "cache.jsonl").mkdir(parents=True)
    with pytest.raises(EvaluationError, match="cannot be written"):
        run(Request(("denoise",), (str(folder),), ("input",), timing=False), tmp_path / "report")


def test_spandrel_reads_published_weights(tmp_path: Path, photo: NDArray[Any]) -> None:
    torch = pytest.importorskip("torch")
    try:
        import spandrel  # noqa: F401
    except Exception as error:
        pytest.skip(f"spandrel does not import here: {error}")
    network = build_network(BaselineConfig("dncnn"))
    layers = [m for m in network.body if isinstance(m, torch.nn.Conv2d)]  # type: ignore[union-attr]
    state = {
        f"model.{2 * i}.{kind}": getattr(layer, kind) for i, layer in enumerate(layers) for kind in ("weight", "bias")
    }
    torch.save(state, tmp_path / "dncnn.pth")  # as published: normalisation merged
    method = find_method(str(tmp_path / "dncnn.pth"), "denoise")
    assert isinstance(method, Method)
    case = find_setting("denoise", "sigma25").damage("x", photo)
    assert method.load(torch.device("cpu")).restore(case).shape == photo.shape


# ------------------------------------------------------------------------------------- the command


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def irae(monkeypatch: pytest.MonkeyPatch, capfd: Any, tmp_path: Path) -> Run:
    """Call `irae evaluate` in this process: exit code, standard output and standard error."""

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["irae", "evaluate", "-o", str(tmp_path / "report"), *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as exit:
            cli.main()
            sys.exit(0)
        captured = capfd.readouterr()
        return int(exit.value.code or 0), captured.out, captured.err

    return call


def test_the_report_is_complete_and_stands_alone(irae: Run, folder: Path, tmp_path: Path) -> None:
    options = "--task", "denoise", "--models", "input,irae,irae-blind,tv,wavelet", "--settings", "sigma15,sigma50"
    code, out, _ = irae("--data", folder, *options, "--no-speed", "--device", "cpu")
    assert (
        code == 0 and "report.html" in out and "comparison" in (tmp_path / "report" / "report.md").read_text().lower()
    )
    page = (tmp_path / "report" / "report.html").read_text()
    for part in ("<svg", "data:image/png;base64,", "irae-blind", "95 %", "color-scheme", "width=device-width"):
        assert part in page
    for other in ("<script", "<link", 'src="http', "@import"):
        assert other not in page
    rows = list(csv.DictReader((tmp_path / "report" / "results.csv").open()))
    assert list(rows[0])[:6] == ["image", "model", "task", "setting", "psnr", "ssim"]
    methods = {row["model"] for row in rows}
    assert {"input", "irae", "irae-blind", "tv"} <= methods and len(rows) == 2 * 2 * len(methods)
    facts = json.loads((tmp_path / "report" / "results.json").read_text())["facts"]
    assert "irae evaluate" in facts["command"] and "torch" in facts["versions"]


BAD = {
    "unknown task": ["--task", "sharpen"],
    "no task": ["--task", ""],
    "unknown data set": ["--data", "cbsd69"],
    "unknown method": ["--models", "dcnn"],
    "unknown setting": ["--settings", "sigma"],
    "noise level out of range": ["--settings", "sigma300"],
    "missing weights file": ["--baseline", "missing.pth"],
    "missing module": ["--baseline", "no_such_module:function"],
    "missing function": ["--baseline", "math:restore"],
    "no function": ["--baseline", "math:pi"],
    "damaged weights": ["--baseline", "bad.pth"],
    "empty folder": ["--data", "."],
    "nothing installed": ["--models", "telea"],
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence(irae: Run, case: str, folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    (tmp_path / "empty" / "bad.pth").write_bytes(b"no weights")
    arguments = BAD[case] if case in ("empty folder", "unknown data set") else ["--data", str(folder), *BAD[case]]
    code, out, err = irae("--task", "denoise", "--models", "input", "--no-speed", "--data-root", tmp_path, *arguments)
    assert code != 0 and "Traceback" not in err + out
    sentence = err.strip()
    assert sentence.startswith("irae: ") and "\n" not in sentence


def test_each_task_takes_its_own_settings(folder: Path, tmp_path: Path) -> None:
    request = Request(("jpeg", "inpaint"), (str(folder),), ("input",), settings=("q10", "q10-grey"), timing=False)
    jpeg, inpaint = run(request, tmp_path)
    assert [setting.name for setting in jpeg.settings] == ["q10", "q10-grey"]
    assert [setting.name for setting in inpaint.settings] == list(DEFAULT_SETTINGS["inpaint"])
