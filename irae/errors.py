"""The base of all errors that are the user's to mend; the command prints their one sentence and no traceback."""

from __future__ import annotations

from os import PathLike


class IraeError(ValueError):
    """Something that cannot be done as asked: one clear sentence with the way out."""


def printable(path: str | PathLike[str]) -> str:
    """A path as it can be shown: quoted where it holds line breaks or bytes that are no text."""
    return str(path) if str(path).isprintable() else repr(str(path))


def one_line(error: BaseException) -> str:
    """The kind and text of an error, in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())
