"""Image restoration with an invertible autoencoder.

    import irae
    clean = irae.restore("noisy.png")            # an array; or irae.restore(array, sigma=25)
    model = irae.load_model("denoise")           # the network itself

Everything heavy is imported at first use, so that `irae --help` answers at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from irae.errors import IraeError

if TYPE_CHECKING:
    from irae.pipeline import restore as restore
    from irae.weights import load_model as load_model

__version__ = "0.1.0"
_LAZY = {"load_model": "irae.weights", "restore": "irae.pipeline"}
__all__ = ["IraeError", "__version__", "load_model", "restore"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'irae' has no attribute {name!r}")
