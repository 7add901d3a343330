"""Restores many files: threads read, decode, encode and write while the network works; a journal lets a run go on.

Each file has one thread from its first byte to its last, and all of them hand their windows to the same workers
(`irae.runner.Workers`), so that the device waits for no file.
"""

from __future__ import annotations

import errno
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import cv2

from irae.engine import Engine
from irae.errors import IraeError, printable
from irae.files import read_file
from irae.journal import (
    FAILURES,
    FolderLock,
    Journal,
    JournalError,
    Verdict,
    append_line,
    lists_failures,
    remove_temporaries,
)
from irae.pipeline import (
    BYTES_A_PIXEL,
    Done,
    Gate,
    GateClosed,
    Job,
    Settings,
    Skipped,
    check_outputs,
    judge,
    restore_file,
)
from irae.runner import NO_MEMORY, cores, free_memory, out_of_memory

MOST_THREADS = 16
AHEAD = 4  # files given to each thread before the oldest result is asked for: a large one keeps no others waiting


@dataclass(frozen=True)
class Failed:
    """A file that could not be restored, and why: one sentence."""

    job: Job
    error: Exception

    @property
    def sentence(self) -> str:
        """The error, with the name of the file."""
        return failure_sentence(self.error, self.job.source)

    @property
    def disk_full(self) -> bool:
        """Whether all others would fail too."""
        error: BaseException | None = self.error
        while error is not None:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                return True
            error = error.__cause__
        return False


Outcome = Done | Skipped | Failed


def failure_sentence(error: Exception, source: Path) -> str:
    """Why a file failed, with its name, on one line."""
    text = NO_MEMORY if out_of_memory(error) else " ".join(str(error).split()) or type(error).__name__
    name = printable(source)
    return text if name in str(error) else f"{name}: {text}"


class Batch:
    """A run over files, to be made once.

    Args:
        jobs: the files.
        engine: the networks; its runner is shared by all threads.
        settings: what is done.
        threads: files in flight; by default a few more than there are cores.

    Raises:
        OptionError: an output is an input, that of another job, or cannot hold what is wished; or the engine's weights
            do not do that.
    """

    def __init__(self, jobs: Sequence[Job], engine: Engine, settings: Settings, threads: int | None = None) -> None:
        check_outputs(jobs, settings)
        engine.settle(settings.wishes)
        self.jobs, self.engine, self.settings = jobs, engine, settings
        self.threads = min(threads or min(cores() + 1, MOST_THREADS), max(1, len(jobs)))
        self.gate = Gate(free_memory() // 2 // BYTES_A_PIXEL)
        self.stopping = False
        self.listing = set[Path]()  # the folders whose list of failures is not somebody else's file

    def stop(self) -> None:
        """Begin no further file; those in flight are finished."""
        self.stopping = True
        self.gate.close()

    def run(self) -> Iterator[Outcome]:
        """What became of each file, in the order of the jobs; fewer where the run was stopped or the disk is full.

        A file that fails stops no other one, and is listed in `failures.jsonl` in the folder of results.

        Raises:
            JournalError: before the first outcome: another run is at work in a folder, or it cannot be written.
        """
        roots = sorted({job.root for job in self.jobs if job.root is not None})
        with ExitStack() as stack:
            for root in roots:
                stack.enter_context(FolderLock(root))
            remove_temporaries(job.target.parent for job in self.jobs if job.root is not None)
            journals = {root: Journal(root) for root in roots}
            self.listing = {root for root in roots if lists_failures(root / FAILURES)}
            for root in self.listing:
                (root / FAILURES).unlink(missing_ok=True)
            self._cut_as_before(journals)
            stack.enter_context(_quiet())
            pool = stack.enter_context(ThreadPoolExecutor(self.threads, "file"))
            stack.callback(self.stop)  # before the pool is waited for, also where nobody wants the rest
            waiting: deque[tuple[Job, Future[Outcome | None]]] = deque()
            for job in self.jobs:
                if len(waiting) >= AHEAD * self.threads:
                    yield from self._outcome(*waiting.popleft())
                if self.stopping:
                    break
                waiting.append((job, pool.submit(self._restore, job, journals.get(job.root) if job.root else None)))
            while waiting:
                yield from self._outcome(*waiting.popleft())

    def preview(self) -> Iterator[tuple[Job, Verdict]]:
        """What `run` would do with each file, and why; nothing is written, and no image is decoded."""
        journals = {root: Journal(root) for root in {job.root for job in self.jobs} if root is not None}
        for job in self.jobs:
            try:
                if job.skip:
                    yield job, Verdict("skip", job.skip)
                else:
                    journal = journals.get(job.root) if job.root else None
                    yield job, judge(job, read_file(job.source), self.engine, self.settings, journal)
            except (IraeError, OSError) as error:
                yield job, Verdict("refuse", Failed(job, error).sentence)

    def _restore(self, job: Job, journal: Journal | None) -> Outcome | None:
        if self.stopping:
            return None
        if job.skip:
            return Skipped(job, job.skip)
        try:
            return restore_file(job, self.engine, self.settings, journal, self.gate)
        except GateClosed:
            return None
        except Exception as error:  # whatever it is, the other files have nothing to do with it
            return Failed(job, error.with_traceback(None))

    def _outcome(self, job: Job, future: Future[Outcome | None]) -> Iterator[Outcome]:
        outcome = future.result()
        if isinstance(outcome, Failed):
            if outcome.disk_full:
                self.stop()
            elif job.root in self.listing:
                facts = {"input": str(job.source), "output": str(job.target), "error": outcome.sentence}
                with suppress(JournalError):  # it is reported all the same
                    append_line(job.root / FAILURES, facts)
        if outcome is not None:
            yield outcome

    def _cut_as_before(self, journals: dict[Path, Journal]) -> None:
        """Cut images as the runs did that the journals tell of, so that the same bytes come out."""
        runner = self.engine.runner
        for journal in journals.values():
            if runner is not None and runner.device.type in journal.shape:
                runner.shape = journal.shape[runner.device.type]
                return


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the decoders' warnings off the terminal; the readers do that themselves, but for one thread only."""
    level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        cv2.utils.logging.setLogLevel(level)
