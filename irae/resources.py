"""What is found by name: the files that travel with the package (weights, data sets, recipes), and users' functions."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Any


def resource_dir(kind: str) -> Path:
    """The folder of "weights", "datasets" or "recipes": inside the installed package, else beside it in a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "_resources" / kind
    return installed if installed.is_dir() else package.parent / kind


def import_function(name: str) -> tuple[Any, bytes]:
    """What `module:function` names, the module found as Python does or in the current folder, and its source.

    Raises:
        Exception, SystemExit: whatever importing it raises.
    """
    module_name, _, function_name = name.partition(":")
    if os.getcwd() not in sys.path:  # the command alone would not look there
        sys.path.insert(0, os.getcwd())
    module = importlib.import_module(module_name)
    source = Path(module.__file__ or "")
    return getattr(module, function_name), source.read_bytes() if source.is_file() else b""
