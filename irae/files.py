"""Files: read with one clear sentence where that fails, and written whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
from pathlib import Path

from irae.errors import IraeError, printable


class FileError(IraeError):
    """A file that cannot be read or written: one sentence that names it and the way out."""


def read_file(path: Path) -> bytes:
    """The content of a file, or a FileError that names it."""
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise FileError(f"{printable(path)} does not exist: check the path") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a valid path"
        raise FileError(f"{printable(path)} cannot be read ({reason}): name another file") from error


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, where they are missing; raises FileError where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise FileError(f"The folder {printable(folder)} cannot be made: {reason(error)}") from error


def write_bytes(path: str | Path, data: bytes, *, overwrite: bool = False) -> None:
    """Write a whole file or nothing: under a hidden name in the same folder first, then put in place.

    Raises FileError when the file exists and overwrite is False, and when it cannot be written.
    """
    try:
        target = Path(os.path.realpath(path))  # a symbolic link stays one
        temporary = target.with_name(f".{secrets.token_hex(8)}.tmp")
        try:
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            (os.replace if overwrite else _put_new)(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
    except FileExistsError as error:
        raise FileError(f"{printable(path)} exists: choose another name or ask to overwrite it") from error
    except (OSError, ValueError) as error:
        raise FileError(f"{printable(path)} cannot be written: {reason(error)}") from error


def _put_new(temporary: Path, target: Path) -> None:
    """Give the file its name; FileExistsError when it is taken, even at the last moment."""
    try:
        os.link(temporary, target)
    except FileExistsError:
        raise
    except OSError:  # no links on this file system: an empty file takes the name first
        target.open("xb").close()
        try:
            os.replace(temporary, target)
        except OSError:
            target.unlink()
            raise


def reason(error: OSError | ValueError) -> str:
    """Why a file cannot be written, and the way out, without a full stop."""
    code = getattr(error, "errno", None)
    if code in (errno.ENOTDIR, errno.EEXIST):
        return "a file is where a folder should be, choose another place"
    if code == errno.ENOENT:
        return "its folder does not exist, create it first"
    if code in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full, make room first"
    if code in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "its folder is write-protected, choose another one"
    return f"{getattr(error, 'strerror', None) or 'not a valid path'}, choose another place"
