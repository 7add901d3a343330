"""Calling the command in this process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from irae import cli


class Result:
    """Exit code, standard output and standard error of one call."""

    def __init__(self, code: int, out: bytes, err: bytes) -> None:
        self.code, self.raw, self.out, self.err = code, out, out.decode(errors="replace"), err.decode()


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfdbinary: Any) -> Callable[..., Result]:
    """Call `irae` in this process."""

    def call(*arguments: str | Path) -> Result:
        monkeypatch.setattr(sys, "argv", ["irae", *map(str, arguments)])
        capfdbinary.readouterr()
        with pytest.raises(SystemExit) as exit:
            cli.main()
            sys.exit(0)
        captured = capfdbinary.readouterr()
        code = exit.value.code
        return Result(code if isinstance(code, int) else 0, captured.out, captured.err)

    return call


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
