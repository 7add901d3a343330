"""The command `irae`: parse, call, print. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import io
import json
import math
import os
import shlex
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from irae import __version__
from irae.errors import IraeError, printable

if TYPE_CHECKING:
    from irae.batch import Batch, Outcome

app = typer.Typer(
    name="irae",
    help="Restore images with an invertible autoencoder.\n\n"
    "Exit code 0: all done, 1: a file or another part failed, 2: nothing could start, 130: stopped by Ctrl-C.",
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
out = Console(highlight=False, soft_wrap=True, emoji=False)
err = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)

# What `irae.restorer` and `irae.pipeline` know, which are too heavy to import for a word of help.
Task = StrEnum("Task", "auto denoise photo jpeg inpaint")
Device = StrEnum("Device", "auto cpu cuda mps")
Precision = StrEnum("Precision", "auto fp32 bf16 fp16")
TrainingPrecision = StrEnum("TrainingPrecision", "auto fp32 bf16")
Format = StrEnum("Format", "png tiff jpeg webp bmp")

ModelOption = Annotated[str | None, typer.Option("--model", help="Weights by name (`irae models`) or path.")]
SizeOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="small, best, or weights by name (`irae models`) or path.",
        show_default="small on a CPU, best on a GPU",
    ),
]
DeviceOption = Annotated[Device, typer.Option("--device", help="Where to compute.")]
MaxPixelsOption = Annotated[
    float, typer.Option("--max-pixels", min=0, help="Refuse larger images; in megapixels.", show_default=True)
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace outputs that exist; never an input.")]
RootOption = Annotated[Path | None, typer.Option("--data-root", envvar="IRAE_DATA", help="Where the image sets lie.")]
SeedOption = Annotated[int, typer.Option("--seed", min=0, max=2**32 - 1, help="Of all that is random.")]


def main() -> None:
    """Run the command; what the user can mend is one sentence on stderr and exit code 2."""
    for stream in (sys.stdout, sys.stderr):  # names of files may hold what the terminal does not
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        if "" in sys.argv[1:]:  # which would be the present folder
            raise IraeError("An argument is empty, as a variable of the shell is that was never set.")
        app()
    except IraeError as error:
        _complain(str(error))
        sys.exit(2)
    except BrokenPipeError:
        sys.exit(1)
    except OSError as error:
        _complain(f"{printable(error.filename or 'The system')}: {error.strerror or error}.")
        sys.exit(2)
    except Exception as error:
        from irae.runner import NO_MEMORY, out_of_memory

        if not out_of_memory(error):
            raise
        _complain(NO_MEMORY)
        sys.exit(2)


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    if version:
        print(f"irae {__version__}")
        raise typer.Exit


@app.command()
def restore(
    inputs: Annotated[
        list[Path],
        typer.Argument(help="Image files or folders; - for standard input.", metavar="INPUT...", readable=False),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", help="File or folder to write; - for standard output.", show_default="beside the input"
        ),
    ] = None,
    task: Annotated[
        Task, typer.Option("--task", help="What to restore; auto finds out what each file needs.")
    ] = Task.auto,
    sigma: Annotated[
        float | None,
        typer.Option("--sigma", help="Noise level in 8-bit levels, 0 to 255.", show_default="found"),
    ] = None,
    jpeg_quality: Annotated[
        int | None,
        typer.Option(
            "--jpeg-quality",
            help="Of the JPEG that a PNG once was, 1 to 100; a JPEG file tells its own.",
            show_default="found",
        ),
    ] = None,
    mask: Annotated[
        str | None,
        typer.Option(
            "--mask",
            help="Fill what is missing: a mask file (white = missing), a folder of masks named as the inputs, in the "
            "same sub-folders or in none, or 'alpha' (transparent = missing).",
        ),
    ] = None,
    mask_color: Annotated[
        str | None, typer.Option("--mask-color", help="Fill what has this colour, such as '#ff00ff'.")
    ] = None,
    consistent: Annotated[
        bool | None,
        typer.Option(
            "--consistent/--no-consistent",
            help="Keep to the images that the JPEG file could have come from.",
            show_default="yes, for JPEG files",
        ),
    ] = None,
    strength: Annotated[
        float,
        typer.Option(
            "--strength", help="0 to 1: how much of the change is made; lower keeps more grain.", show_default=True
        ),
    ] = 1.0,
    ensemble: Annotated[
        bool,
        typer.Option("--ensemble", help="Take the mean over all flips and rotations: better, in 8 times the time."),
    ] = False,
    model: SizeOption = None,
    device: DeviceOption = Device.auto,
    precision: Annotated[Precision, typer.Option("--precision", help="How to compute.")] = Precision.auto,
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="Sub-folders too, mirrored.")] = False,
    format: Annotated[
        Format | None,
        typer.Option("--format", help="Format to write.", show_default="the input's; PNG for JPEG and lossy WebP"),
    ] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Also write input and result side by side.")] = False,
    keep_rest: Annotated[
        bool,
        typer.Option("--keep-rest", help="Also write what is left, about 130 bytes a pixel, for `irae recover`."),
    ] = False,
    overwrite: OverwriteOption = False,
    max_pixels: MaxPixelsOption = 200.0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only list what would be done, and why; no image is decoded.")
    ] = False,
    explain: Annotated[bool, typer.Option("--explain", help="Say what was found in each file and decided.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a file on standard output.")] = False,
) -> None:
    """Restore images: PHOTO.png gives PHOTO.restored.png beside it, FOLDER gives FOLDER.restored/.

    Noise, also that of cameras, JPEG compression and, with a mask, holes. Without options each file gets what it needs,
    and one that needs nothing stays as it is.

    A folder of results keeps a journal: the same command again goes on where a run was stopped, tries again what
    failed, and does again only what changed.

    Exit code 0: all done, 1: some files failed, 2: nothing could start, 130: stopped by Ctrl-C.
    """
    from irae.batch import Batch
    from irae.engine import ALPHA, Engine, Wishes, parse_colour
    from irae.files import read_file
    from irae.pipeline import Settings, check_new, is_mask, plan, restore_bytes
    from irae.restorer import OptionError, keep_freed_memory, pick_device
    from irae.runner import Workers, all_of

    if mask is not None and mask_color is not None:
        raise OptionError("Give --mask or --mask-color, not both.")
    if mask_color is not None:
        parse_colour(mask_color)
    missing = mask_color if mask_color is not None else mask if mask in (None, ALPHA) else Path(mask)
    if isinstance(missing, Path) and not missing.exists():
        raise OptionError(f"There is no mask {printable(missing)}.")
    wishes = Wishes(task, sigma, jpeg_quality, missing, consistent, strength, ensemble)
    keep_freed_memory()
    settings = Settings(wishes, keep_rest, compare, overwrite, _pixels(max_pixels))
    if Path("-") in (*inputs, output):
        if len(inputs) != 1 or inputs[0].is_dir() or keep_rest or compare or as_json or dry_run:
            raise OptionError("Standard input and output take one image and nothing beside it.")
        format = _stream_format(output, format)
        source = None if inputs[0] == Path("-") else inputs[0]
        data = sys.stdin.buffer.read() if source is None else read_file(source)
        if output not in (None, Path("-")):
            if is_mask(output, wishes) or _is_standard_input(output):
                raise OptionError(f"{printable(output)} is an input, and inputs are never overwritten.")
            check_new(output, overwrite)
        content, done = restore_bytes(data, Engine(model, device, precision), settings, format, source)
        if explain:
            err.print("\n".join(done.found), markup=False)
        _write_out(content, output, overwrite)
        return
    jobs = plan(inputs, output, recursive, format)
    if dry_run:
        _preview(Batch(jobs, Engine(model, device, precision), settings), as_json)
        return
    with Workers(all_of(pick_device(device))) as workers:
        code = _run(Batch(jobs, Engine(model, device, precision, workers), settings), as_json, explain)
    raise typer.Exit(code)


def _preview(batch: Batch, as_json: bool) -> None:
    """List what would be done and why; exit code 1 where something would be refused."""
    actions = Counter[str]()
    for job, verdict in batch.preview():
        actions[verdict.action] += 1
        if as_json:
            facts = {"input": str(job.source), "output": str(job.target), "status": verdict.action, "why": verdict.why}
            print(json.dumps(facts), flush=True)
        else:
            way = f"{printable(job.source)} -> {printable(job.target)}"
            out.print(f"{verdict.action:<7}  {way}  ({verdict.why})", markup=False)
    err.print(", ".join(f"{count} to {action}" for action, count in actions.items()) + "; nothing was written.")
    if actions["refuse"]:
        raise typer.Exit(1)


def _run(batch: Batch, as_json: bool, explain: bool) -> int:
    """Restore file after file and report each; the exit code."""
    from irae.batch import Failed
    from irae.jpeg import TERMINAL
    from irae.pipeline import Done, Skipped

    done, failed, megapixels, full, start = 0, 0, 0.0, False, time.monotonic()
    skipped = Counter[str]()
    notice = "Finishing the files in flight; Ctrl-C again stops at once."
    with _interruptible(batch.stop, notice) as interrupted, _display(batch) as advance:
        for outcome in batch.run():
            full_now = isinstance(outcome, Failed) and outcome.disk_full
            with TERMINAL:
                if not (full and full_now):  # the others that it hits say no more
                    _report(outcome, as_json, explain)
            full = full or full_now
            if isinstance(outcome, Done):
                done, megapixels = done + 1, megapixels + outcome.megapixels
            elif isinstance(outcome, Skipped):
                skipped[outcome.why] += 1
            else:
                failed += 1
            advance(f"{megapixels / (time.monotonic() - start):.2f} Mpx/s", f"{failed} failed" if failed else "")
    if len(batch.jobs) > 1 or skipped:
        parts = [f"{done} of {len(batch.jobs)} images restored", *(f"{n} skipped: {why}" for why, n in skipped.items())]
        parts += [f"{failed} failed"] if failed else []
        err.print(f"{'; '.join(parts)}.", markup=False)
    left = len(batch.jobs) - done - failed - sum(skipped.values())
    if full or (interrupted and left):
        if all(job.root for job in batch.jobs):
            err.print("Give the same command again to go on: what is finished is not done again.")
        else:
            err.print("Give the same command again for the rest: what is finished will be refused, as it exists.")
    return 130 if interrupted and left else 1 if failed else 0


@contextmanager
def _interruptible(stop: Callable[[], None], notice: str) -> Iterator[list[int]]:
    """Ctrl-C calls `stop` and says so; a second one stops at once. Gives the list of signals that came."""
    from irae.jpeg import TERMINAL

    signals = list[int]()

    def finish() -> None:
        stop()
        with TERMINAL:
            err.print(notice)

    def interrupt(number: int, _: Any) -> None:
        if signals:
            err.show_cursor()
            os._exit(130)
        signals.append(number)
        threading.Thread(target=finish).start()  # which may wait for what the interrupted code holds

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield signals
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _display(batch: Batch) -> Iterator[Any]:
    """A live display on a terminal: files, speed, time left, failures; gives the function that advances it."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("restoring"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[failures]}", style="red"),
    )
    live = err.is_terminal and len(batch.jobs) > 1
    progress = Progress(
        *columns,
        console=err,
        transient=True,
        disable=not live,
        redirect_stdout=bool(sys.stdout and sys.stdout.isatty()),
    )
    with progress:
        task = progress.add_task("", total=len(batch.jobs), speed="", failures="")
        yield lambda speed, failures: progress.update(task, advance=1, speed=speed, failures=failures)


def _report(outcome: Outcome, as_json: bool, explain: bool) -> None:
    from irae.batch import Failed
    from irae.pipeline import Skipped

    job, facts = outcome.job, dict[str, Any]()
    if isinstance(outcome, Failed):
        facts = {"input": str(job.source), "status": "failed", "error": outcome.sentence}
        _complain(outcome.sentence)
    elif isinstance(outcome, Skipped):
        facts = {"input": str(job.source), "output": str(job.target), "status": "skipped", "why": outcome.why}
        if explain and not as_json:
            out.print(f"{printable(job.source)}: skipped, {outcome.why}", markup=False)
    else:
        facts = {
            "input": str(job.source),
            "output": str(job.target),
            "written": [str(path) for path in outcome.written],
            "status": "restored",
            "tasks": list(outcome.tasks),
            "found": list(outcome.found),
            "seconds": round(outcome.seconds, 3),
            "megapixels": round(outcome.megapixels, 3),
        }
        if not as_json:
            way = f"{printable(job.source)} -> {printable(job.target)}"
            out.print(f"{way}  ({outcome.seconds:.1f} s)", markup=False)
            for sentence in outcome.found if explain or not outcome.tasks else ():  # why nothing was done, in any case
                out.print(f"  {sentence}", markup=False)
            for path in outcome.written[1:]:
                out.print(f"  and {printable(path)}", markup=False)
    if as_json:
        print(json.dumps(facts), flush=True)


def _stream_format(output: Path | None, format: Format | None) -> Format | None:
    """The format to write, by the output's suffix where it is a file."""
    from irae.pipeline import file_format
    from irae.restorer import OptionError

    if output in (None, Path("-")):
        return format
    if format not in (None, file_format(output)):
        raise OptionError(f"{printable(output)} is no {format.upper()} file: leave --format out, or name another.")
    return Format(file_format(output))


def _is_standard_input(path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(sys.stdin.fileno()), path.stat())
    except (OSError, ValueError):  # there is no such file, or standard input is none
        return False


def _write_out(data: bytes, output: Path | None, overwrite: bool) -> None:
    from irae.files import make_folder, write_bytes

    if output in (None, Path("-")):
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    else:
        make_folder(output.parent)
        write_bytes(output, data, overwrite=overwrite)


def _complain(sentence: str) -> None:
    err.print(f"irae: {sentence}", markup=False, style="red" if err.is_terminal else None)


@app.command()
def recover(
    restored: Annotated[
        list[Path], typer.Argument(help="Images restored with --keep-rest.", metavar="RESTORED...", readable=False)
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", help="File or folder to write, for one input.", show_default="NAME.recovered.png"
        ),
    ] = None,
    model: ModelOption = None,
    device: DeviceOption = Device.auto,
    overwrite: OverwriteOption = False,
    max_pixels: MaxPixelsOption = 200.0,
) -> None:
    """Give back the damaged image that was restored with --keep-rest, bit for bit."""
    from irae.batch import failure_sentence
    from irae.pipeline import recover_file
    from irae.restorer import OptionError

    if output is not None and len(restored) > 1:
        raise OptionError("One output file takes one input.")
    failed, most = 0, _pixels(max_pixels)
    for path in restored:
        try:
            target = recover_file(path, output, model, device, overwrite, most)
            out.print(f"{printable(path)} -> {printable(target)}", markup=False)
        except Exception as error:  # whatever it is, the other files have nothing to do with it
            failed += 1
            _complain(failure_sentence(error, path))
    if failed:
        raise typer.Exit(1)


@app.command()
def degrade(
    clean: Annotated[Path, typer.Argument(help="A clean image.")],
    noise: Annotated[float | None, typer.Option("--noise", help="Noise level in 8-bit levels, 0 to 255.")] = None,
    jpeg: Annotated[int | None, typer.Option("--jpeg", help="Compress to a JPEG of this quality, 1 to 100.")] = None,
    mask: Annotated[
        str | None,
        typer.Option("--mask", help="Make holes: random50, random80, text, scratches, strokes, rectangles or centre."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="File or folder to write.",
            show_default="NAME.noisy.png, NAME.q30.jpg, NAME.holes.png",
        ),
    ] = None,
    kind: Annotated[
        str, typer.Option("--kind", help="Of the noise: gaussian, varying, poisson or camera.")
    ] = "gaussian",
    subsampling: Annotated[
        str, typer.Option("--subsampling", help="Of the JPEG's chroma: 4:4:4, 4:2:2 or 4:2:0.")
    ] = "4:2:0",
    seed: Annotated[int, typer.Option("--seed", help="Another seed, other noise and holes.")] = 0,
    overwrite: OverwriteOption = False,
    max_pixels: MaxPixelsOption = 200.0,
) -> None:
    """Damage a clean image, to try things out: noise, then holes or JPEG compression.

    What is random depends on the file's name and the seed only. Holes become black, and the mask is written beside.
    """
    from irae.pipeline import Damage, degrade_file

    damage = Damage(noise, kind, mask, jpeg, subsampling, seed)
    for target in degrade_file(clean, output, damage, overwrite, _pixels(max_pixels)):
        out.print(f"{printable(clean)} -> {printable(target)}", markup=False)


@app.command()
def demo(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the pictures.")] = Path("demo"),
    noise: Annotated[float, typer.Option("--noise", help="Noise level in 8-bit levels.")] = 25.0,
    model: SizeOption = None,
    device: DeviceOption = Device.auto,
    overwrite: OverwriteOption = False,
) -> None:
    """Damage a sample photograph, restore it, print PSNR and SSIM before and after, write them side by side."""
    from rich.table import Table

    from irae.demo import run_demo

    result = run_demo(output, noise, model, device, overwrite)
    table = Table(title=f"A cup of coffee, noise level {noise:g}")
    for heading in ("", "PSNR", "SSIM"):
        table.add_column(heading, justify="left" if not heading else "right")
    for row, (psnr, ssim) in result.quality.items():
        table.add_row(row, f"{psnr:.2f} dB", f"{ssim:.4f}")
    out.print(table)
    out.print(f"The pictures side by side: {result.picture}", markup=False)


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="A recipe, such as recipes/denoise.toml.")],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Folder for checkpoint, log and weights.", show_default="runs/NAME"),
    ] = None,
    data_root: RootOption = None,
    device: DeviceOption = Device.auto,
    precision: Annotated[
        TrainingPrecision, typer.Option("--precision", help="Of the convolutions; auto takes the faster one.")
    ] = TrainingPrecision.auto,
    max_minutes: Annotated[float, typer.Option("--max-minutes", help="Stop then, with a checkpoint.")] = math.inf,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint.")] = False,
    every: Annotated[int, typer.Option("--every", min=1, help="Steps between evaluations.")] = 1000,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers", min=0, help="Processes that make batches.", show_default="1; with a GPU all cores but 2"
        ),
    ] = None,
    compile: Annotated[
        bool, typer.Option("--compile", help="Fuse the network by torch.compile: quicker steps, a slower start.")
    ] = False,
) -> None:
    """Train a network from a recipe; weights, checkpoint and a CSV log lie in the output folder.

    Ctrl-C stops after the present step, with a checkpoint for --resume; a second one stops at once. Exit code 130 then.
    """
    from irae.restorer import pick_device, pick_precision
    from irae.training.recipe import find_recipe, load_recipe
    from irae.training.train import Options
    from irae.training.train import train as run
    from irae.weights import weights_info

    loaded = load_recipe(find_recipe(recipe))
    folder = output or Path("runs") / loaded.name
    place = pick_device(device)
    options = Options(place.type, pick_precision(precision, place), max_minutes, resume, every, workers, compile)
    stop = threading.Event()
    with _interruptible(stop.set, "Finishing with a checkpoint; Ctrl-C again stops at once."):
        metrics = run(loaded, folder, data_root, options, stop)
    for name, value in metrics.items():
        out.print(f"{name}: {value:.3f} dB on the held-out images")
    weights = folder / f"{loaded.name}.safetensors"
    out.print(f"Weights: {weights}", markup=False)
    if (step := weights_info(weights).facts["steps"]) < loaded.steps:
        err.print(f"Stopped after {step} of {loaded.steps} steps: the same command with --resume goes on.")
        raise typer.Exit(130 if stop.is_set() else 0)


@app.command()
def experiments(
    name: Annotated[str, typer.Argument(help="fixed-point, mnist, padding, depth or blocks.")],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Folder for table and plot.", show_default="experiments/NAME"),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A look in less than a minute; its figures prove little.")
    ] = False,
    seed: SeedOption = 0,
    data_root: RootOption = None,
) -> None:
    """Test a claim of the published work; table (Markdown, CSV) and plot lie in the output folder."""
    from irae.experiments import Context, find_experiment, rich_table, run_experiment

    experiment = find_experiment(name)
    folder = output or Path("experiments") / name
    if not quick:
        err.print(f"A full run takes about {experiment.minutes:g} minutes on two cores; --quick less than one.")
    setup = experiment.quick if quick else experiment.full
    result = run_experiment(experiment, setup, Context(folder, seed, data_root, err))
    for note in result.notes:
        out.print(note, markup=False)
    out.print(rich_table(experiment.title, result))
    out.print(f"Table and plot: {folder}", markup=False)


@app.command()
def evaluate(
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder for the report and its cache; one for each question.")
    ] = Path("report"),
    task: Annotated[str, typer.Option("--task", help="Of denoise, jpeg, inpaint, photo.")] = "denoise,jpeg,inpaint",
    data: Annotated[
        str,
        typer.Option("--data", help="Image sets by name, or folders; commas between.", show_default="the task's own"),
    ] = "",
    models: Annotated[
        str,
        typer.Option(
            "--models",
            help="Methods, such as irae,irae-best,twin,dncnn,opencv; commas between. A wrong name lists all.",
            show_default="all that are installed",
        ),
    ] = "",
    baseline: Annotated[
        list[str] | None,
        typer.Option(
            "--baseline", help="A further method: a weights file (others' through spandrel), or module:function."
        ),
    ] = None,
    settings: Annotated[
        str,
        typer.Option("--settings", help="Such as sigma25,sigma25-file or q10,q10-grey.", show_default="the usual ones"),
    ] = "",
    limit: Annotated[int, typer.Option("--limit", min=0, help="Only so many images of each set; 0: all.")] = 0,
    speed: Annotated[bool, typer.Option("--speed/--no-speed", help="Measure time and memory of each method.")] = True,
    device: DeviceOption = Device.auto,
    data_root: RootOption = None,
) -> None:
    """Compare the networks with others by one protocol: report.html, report.md, results.json and results.csv.

    A broken run goes on where it stopped, and a further method costs only itself.
    """
    from irae.evaluation import Request, check_folder, failures, run, terminal_tables, write_report
    from irae.restorer import keep_freed_memory, pick_device

    check_folder(output)
    keep_freed_memory()
    place = pick_device(device).type
    further = tuple(baseline or ())
    request = Request(
        _names(task), _names(data), _names(models), further, _names(settings), limit, speed, place, data_root
    )
    with _progress() as tick:
        entries = run(request, output, tick)
    written = write_report(entries, output, ["irae", *sys.argv[1:]], place)
    for table in terminal_tables(entries):
        out.print(table, markup=not isinstance(table, str))
    for path in written:
        out.print(f"Written: {printable(path)}", markup=False)
    failed = [sentence for entry in entries for sentence in failures(entry)]
    for sentence in failed:
        _complain(sentence)
    if failed:
        raise typer.Exit(1)


@app.command()
def probe(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the report and its cache.")] = Path(
        "probe"
    ),
    models: Annotated[
        str,
        typer.Option(
            "--models",
            help="irae, dncnn, ffdnet, arcnn, unet or twin, each also with -untrained; weights files; module:function. "
            "Commas between.",
        ),
    ] = "irae",
    data: Annotated[str, typer.Option("--data", help="Image set by name, or a folder.")] = "cbsd68",
    instruments: Annotated[
        str,
        typer.Option(
            "--instruments",
            help="Of inverse, jacobian, reconstruction, ksg, infonce, smile; commas between.",
            show_default="all but smile",
        ),
    ] = "",
    layers: Annotated[
        str, typer.Option("--layers", help="Layers by name, or all; commas between.", show_default="the main ones")
    ] = "",
    patch: Annotated[int, typer.Option("--patch", min=1, help="Side of the patches in pixels.")] = 16,
    sigma: Annotated[float, typer.Option("--sigma", help="Noise level of the input in 8-bit levels.")] = 25.0,
    precision: Annotated[
        float, typer.Option("--precision", help="A layer is read through noise of 1 / this of its deviation.")
    ] = 255.0,
    quick: Annotated[
        bool, typer.Option("--quick", help="A look in a minute or two a network; intervals are wide.")
    ] = False,
    seed: SeedOption = 0,
    self_test: Annotated[
        bool, typer.Option("--self-test", help="Try all instruments on cases with known answers, and nothing else.")
    ] = False,
    data_root: RootOption = None,
) -> None:
    """Measure how much information each layer keeps: a table, probe.json, plots and probe.html.

    Bits per pixel at a stated precision, of the noisy input and of the clean image. The inverse certifies; all other
    instruments estimate.
    """
    import irae.probe as probing

    start = time.monotonic()
    if self_test:
        with _progress() as tick:
            outcomes = probing.self_test(seed, tick)
        out.print(probing.self_test_table(outcomes))
        failed, below = (sum(each) for each in zip(*((not o.passed, o.lower) for o in outcomes), strict=True))
        bounds, seconds = f"{below} of them as lower bounds, which may fall short", time.monotonic() - start
        out.print(f"{len(outcomes) - failed} of {len(outcomes)} within tolerance ({bounds}), {seconds:.0f} s")
        raise typer.Exit(1 if failed else 0)
    chosen: dict[str, Any] = dict(probing.QUICK) if quick else {}
    for key, text in (("instruments", instruments), ("layers", layers), ("models", models)):
        if text:
            chosen[key] = _names(text)
    settings = probing.Settings(**chosen, data=data, side=patch, noise=sigma, precision=precision, seed=seed)
    with _progress() as tick:
        reports = probing.run(settings, output, data_root, tick)
    seconds = time.monotonic() - start
    written = probing.write_report(reports, settings, output, shlex.join(["irae", *sys.argv[1:]]), seconds)
    for report in reports:
        for part in probing.shown(report):
            out.print(probing.rich_table(report, part))
    for note in probing.notes(reports, settings):
        out.print(note, markup=False)
    for path in written:
        out.print(f"Written: {printable(path)}", markup=False)


def _pixels(megapixels: float) -> int:
    """The pixels of --max-pixels."""
    from irae.restorer import OptionError

    if not math.isfinite(megapixels):
        raise OptionError("The limit of --max-pixels is a number of megapixels.")
    return round(megapixels * 1e6)


def _names(text: str) -> tuple[str, ...]:
    """What stands between commas."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


@contextmanager
def _progress() -> Iterator[Callable[[int, int, str], None]]:
    """A bar on a terminal; gives the function that moves it: steps done, all steps, and what comes next."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        steps = bar.add_task("", total=None)
        yield lambda done, total, what: bar.update(steps, completed=done, total=total, description=what)


@app.command()
def models() -> None:
    """List the installed weights."""
    from rich.table import Table

    from irae.weights import installed_weights, model_facts

    table = Table("name", "task", "parameters", "MAC/pixel", "size")
    table.columns[0].no_wrap = True
    for name, path in installed_weights().items():
        facts = model_facts(name)
        table.add_row(
            name,
            facts["task"],
            f"{facts['parameters']:,}",
            f"{facts['mac_per_pixel']:,}",
            f"{path.stat().st_size / 1e6:.1f} MB",
        )
    out.print(table)


@app.command()
def info(
    name: Annotated[str, typer.Argument(help="Weights by name or path.")],
    as_json: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False,
) -> None:
    """Show what weights say of themselves: architecture, training, quality, and their card."""
    from rich.markdown import Markdown

    from irae.weights import model_facts, weights_info

    facts, card = model_facts(name), weights_info(name).card
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    for key, value in facts.items():
        nested = value.items() if isinstance(value, dict) else ()
        out.print(f"{key.replace('_', ' ')}:{'' if nested else f' {value}'}", markup=False)
        for name, entry in nested:
            out.print(f"  {name}: {entry}", markup=False)
    if card:
        out.print()
        out.print(Markdown(card))


if __name__ == "__main__":
    main()
