"""Where the files that travel with the package lie: weights, data set manifests, recipes."""

from __future__ import annotations

from pathlib import Path


def resource_dir(kind: str) -> Path:
    """The folder of "weights", "datasets" or "recipes": inside the installed package, else beside it in a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "_resources" / kind
    return installed if installed.is_dir() else package.parent / kind
