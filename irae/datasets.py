"""Image sets by manifest: what they are, where from, on what terms, and which files belong to them.

The images are not part of the project: they are found under a data root (`--data-root`, or `IRAE_DATA`).
"""

from __future__ import annotations

import hashlib
import os
import tomllib
from dataclasses import dataclass
from pathlib import Path

from irae.errors import IraeError
from irae.images import is_image_path
from irae.resources import resource_dir


class DatasetError(IraeError):
    """An image set or one of its files is not there."""


@dataclass(frozen=True)
class Dataset:
    """A manifest `datasets/NAME.toml`.

    Attributes:
        name, title: for people.
        folder: below the data root.
        source, licence: where the images come from, and on what terms.
        files: path below `folder` -> sha256 of the file.
    """

    name: str
    title: str
    folder: str
    source: str
    licence: str
    files: dict[str, str]

    def paths(self, root: Path | None = None) -> list[Path]:
        """The files, in the manifest's order.

        Raises:
            DatasetError: no data root is known, or a file is missing.
        """
        folder = data_root(root) / self.folder
        paths = [folder / name for name in self.files]
        missing = [path for path in paths if not path.is_file()]
        if missing:
            raise DatasetError(
                f"{len(missing)} of {len(paths)} files of {self.name} are missing, first {missing[0]}: "
                f"get them from {self.source}."
            )
        return paths

    def verify(self, root: Path | None = None) -> None:
        """Check every file against its sha256; raises DatasetError naming the first that differs."""
        for path, expected in zip(self.paths(root), self.files.values(), strict=True):
            if hashlib.sha256(path.read_bytes()).hexdigest() != expected:
                raise DatasetError(f"{path} is not the file of {self.name}: its sha256 differs from the manifest's.")


def data_root(root: Path | None = None) -> Path:
    """The folder with the image sets: `root`, else the variable IRAE_DATA."""
    if root is None:
        if "IRAE_DATA" not in os.environ:
            raise DatasetError("Say where the image sets are: --data-root FOLDER, or the variable IRAE_DATA.")
        root = Path(os.environ["IRAE_DATA"])
    if not root.is_dir():
        raise DatasetError(f"The data root {root} is not a folder.")
    return root


def load_dataset(name: str) -> Dataset:
    """The manifest of a set by name; raises DatasetError with the names there are."""
    manifests = _manifests()
    if name not in manifests:
        raise DatasetError(f"There is no data set {name!r}; choose a folder or one of {', '.join(manifests)}.")
    return Dataset(name=name, **tomllib.loads(manifests[name].read_text()))


def is_dataset(name_or_folder: str) -> bool:
    """Whether it is the name of a set; a folder of that name is meant by "./NAME"."""
    return name_or_folder in _manifests()


def _manifests() -> dict[str, Path]:
    return {path.stem: path for path in sorted(resource_dir("datasets").glob("*.toml"))}


def image_paths(name_or_folder: str, root: Path | None = None) -> list[Path]:
    """The images of a set by its manifest's name, or of any folder, hidden ones left out, sorted by name."""
    folder = Path(name_or_folder)
    if is_dataset(name_or_folder) or not folder.is_dir():
        return load_dataset(name_or_folder).paths(root)
    found = (path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    return sorted(path for path in found if is_image_path(path))
