"""What a run wrote into a folder and from what, so that the next run goes on there; and one run at a time in a folder.

An entry is written before its files are put in place, with their digests. So a file is finished when it is there and
its digest is the entry's, whenever the run ended.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from irae.errors import IraeError, printable
from irae.files import make_folder, reason
from irae.runner import Shape

NAME, LOCK, FAILURES = ".irae-journal.jsonl", ".irae-lock", "failures.jsonl"
_TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.tmp")


class JournalError(IraeError):
    """A folder that cannot keep a journal, or in which another run is at work."""


@dataclass(frozen=True)
class Entry:
    """What one file was made from, and what was written.

    Attributes:
        output: the image, a path below the folder; it names the entry.
        input: digest of the input's bytes.
        options: what was asked for.
        weights: digests of the weights that were used, by task.
        written: digests of all files written, by their paths below the folder.
    """

    output: str
    input: str
    options: dict[str, Any]
    weights: dict[str, str]
    written: dict[str, str]


@dataclass(frozen=True)
class Verdict:
    """What is to be done for a file, "restore", "redo", "skip" or "refuse", and why."""

    action: str
    why: str


class Journal:
    """The journal of a folder. Reading it makes nothing; the file is made with the first entry.

    Args:
        folder: where the results lie.

    Raises:
        JournalError: it cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.shape = folder, dict[str, Shape]()
        self._path = folder / NAME
        self._entries: dict[str, list[Entry]] = {}
        self._writing = threading.Lock()
        try:
            lines = self._path.read_bytes().splitlines() if self._path.exists() else []
        except OSError as error:
            raise JournalError(f"{printable(self._path)} cannot be read ({error.strerror}).") from error
        for line in lines:
            try:
                values = json.loads(line)
                if "shape" in values:
                    self.shape[values["device"]] = Shape(**values["shape"])
                else:
                    self._keep(Entry(**values))
            except (ValueError, TypeError, KeyError):  # the run was killed while it wrote this line
                continue

    @property
    def results(self) -> set[Path]:
        """All files that runs wrote."""
        return {self.folder / name for entries in self._entries.values() for entry in entries for name in entry.written}

    def judge(
        self,
        paths: Sequence[Path],
        content: bytes,
        options: Mapping[str, Any],
        digest_of: Callable[[str], str],
        overwrite: bool = False,
    ) -> Verdict:
        """Whether a file is to be restored.

        Args:
            paths: what would be written, first the image.
            content: of the input.
            options: what is asked for.
            digest_of: the digest of the weights of a task.
            overwrite: files that no run wrote may be replaced.
        """
        entries = self._entries.get(self.name(paths[0]), [])
        found = {self.name(path): digest_file(path) for path in paths if os.path.exists(path)}
        known = {item for entry in entries for item in entry.written.items()}
        if foreign := [name for name, seen in found.items() if (name, seen) not in known]:
            if not overwrite:
                path = printable(self.folder / foreign[0])
                return Verdict("refuse", f"{path} exists: give --overwrite to replace it.")
            return Verdict("restore", "what exists is replaced")
        if not entries:
            return Verdict("restore", "new")
        last = entries[-1]
        changes = [] if last.input == digest(content) else ["the input changed"]
        changes += _differences(last.options, options)
        changes += [f"the weights for {task} changed" for task, old in last.weights.items() if digest_of(task) != old]
        if not changes and last.written != found:
            changes = ["it was not finished"]
        return Verdict("redo", ", ".join(changes)) if changes else Verdict("skip", "unchanged")

    def outdated(self, output: str, written: Mapping[str, str]) -> list[Path]:
        """What the last run wrote for an image beside what is written for it now, such as a rest that fits no more.

        Args:
            output: the name of the entry.
            written: names and digests of what is written now; a file that was changed since is nobody's to remove.
        """
        last = self._entries.get(output, [])[-1:]
        before = {self.folder / name: seen for entry in last for name, seen in entry.written.items()}
        return [p for p, seen in before.items() if self.name(p) not in written and digest_file(p) == seen]

    def record(self, entry: Entry) -> None:
        """Add an entry; call it before the files are put in place.

        Raises:
            JournalError: it cannot be written; a full disk is its cause's errno.
        """
        self._write(asdict(entry))
        self._keep(entry)

    def record_shape(self, device: str, shape: Shape) -> None:
        """Remember how images are cut on a type of device."""
        if self.shape.get(device) != shape:
            self.shape[device] = shape
            self._write({"device": device, "shape": asdict(shape)})

    def name(self, path: Path) -> str:
        """A path below the folder as entries name it."""
        return path.relative_to(self.folder).as_posix()

    def _keep(self, entry: Entry) -> None:
        self._entries.setdefault(entry.output, []).append(entry)

    def _write(self, values: dict[str, Any]) -> None:
        with self._writing:
            make_folder(self.folder)
            append_line(self._path, values)


class FolderLock:
    """Keeps other runs off a folder while it is held; a context manager. The lock of a run that died holds nobody.

    Args:
        folder: where results are written; made where it is missing.

    Raises:
        JournalError: on entering: another run is at work there, or the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path = folder / LOCK
        self._file: int | None = None

    def __enter__(self) -> FolderLock:
        make_folder(self.folder)
        try:
            import fcntl
        except ImportError:  # a system without locks that end with their process
            return self
        while True:
            try:
                file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
            except OSError as error:
                raise JournalError(f"{printable(self.folder)} cannot be written: {reason(error)}.") from error
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                other = os.read(file, 20).decode(errors="replace").strip()
                os.close(file)
                raise JournalError(
                    f"Another run (process {other or 'unknown'}) writes to {printable(self.folder)}: "
                    "wait for it, or give another --output."
                ) from error
            except OSError:  # a file system without locks
                os.close(file)
                return self
            if _is_at(file, self._path):
                break
            os.close(file)  # the other run ended just now and took its lock away
        os.ftruncate(file, 0)
        os.write(file, f"{os.getpid()}\n".encode())
        self._file = file
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._path.unlink(missing_ok=True)
            os.close(self._file)
            self._file = None


def remove_temporaries(folders: Iterable[Path]) -> None:
    """Remove what killed runs left half written; call it while the folders are locked."""
    for folder in set(folders):
        for path in folder.iterdir() if folder.is_dir() else ():
            if _TEMPORARY.fullmatch(path.name):
                path.unlink(missing_ok=True)


def append_line(path: Path, values: Mapping[str, Any]) -> None:
    """Add a line of JSON to a file, and see that it is on the disk.

    Raises:
        JournalError: it cannot be written.
    """
    line = json.dumps(values).encode() + b"\n"
    try:
        with open(path, "a+b") as file:
            if file.tell() and (file.seek(-1, os.SEEK_END), file.read())[1] != b"\n":
                line = b"\n" + line  # after a line that a killed run did not finish
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise JournalError(f"{printable(path)} cannot be written: {reason(error)}.") from error


def lists_failures(path: Path) -> bool:
    """Whether a file is a list of failures, or is not there; any other file of that name is somebody else's."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return not os.path.lexists(path)
    return not lines or any(_is_failure(line) for line in lines)


def _is_failure(line: bytes) -> bool:
    try:
        return set(json.loads(line)) == {"input", "output", "error"}
    except (ValueError, TypeError):  # no JSON, as the line that a killed run did not finish, or another kind of it
        return False


def _is_at(file: int, path: Path) -> bool:
    """Whether an open file still has its name."""
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except OSError:
        return False


def digest(content: bytes) -> str:
    """SHA-256 in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def digest_file(path: Path) -> str:
    """SHA-256 of a file; empty where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The options that changed, one phrase each."""
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return [f"{name.replace('_', ' ')} changed from {old.get(name)} to {new.get(name)}" for name in names]
