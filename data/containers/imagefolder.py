"""Folders of pictures with `metadata.jsonl`, `metadata.csv` or `metadata.parquet`."""

import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..remote import RemotePath, listed
from ..splits import training_parts
from .csv_files import csv_rows
from .lines import entries as lines
from .parquet import parquet_rows
from .registry import Entry, container

READ: dict[str, Callable[[Path], Iterator[Entry]]] = {
    "metadata.jsonl": lines,
    "metadata.csv": csv_rows,
    "metadata.parquet": parquet_rows,
}


def _files(path: Path) -> list[Path]:
    """`path` as a metadata file, or those of the folder, or of the folders in it."""
    if not path.is_dir():
        return [path] if path.name in READ else []
    if found := [path / name for name in READ if (path / name).is_file()]:
        return found
    return [folder / name for folder in sorted(_folders(path)) for name in READ if (folder / name).is_file()]


def _folders(path: Path) -> list[Path]:
    if isinstance(path, RemotePath):
        return [path / name for name, (_, is_folder) in listed(str(path)).items() if is_folder]
    with os.scandir(path) as entries:
        return [Path(entry.path) for entry in entries if entry.is_dir()]


def _holds(path: Path) -> bool:
    return bool(_files(path))


def _root(path: Path) -> Path:
    return path if path.is_dir() else path.parent


@container("imagefolder", "a folder of pictures with metadata.jsonl, .csv or .parquet", _holds, _root, _files)
def imagefolder_rows(path: Path) -> Iterator[Entry]:
    """The `imagefolder` layout of `datasets`: `metadata` beside the pictures, or in the folders below, of which only
    `train` is read where there is one. `file_name`, `file_names` and others that end so (`mask_file_name`) are
    relative to its folder. Source: `datasets`' `folder_based_builder.py`.

    Raises:
        ValueError: A folder has metadata twice, which `datasets` refuses too.
    """
    files = _files(path)
    for folder in training_parts(sorted({file.parent for file in files})):
        inside = [file for file in files if file.parent == folder]
        if len(inside) > 1:
            names = " and ".join(sorted(file.name for file in inside))
            raise ValueError(f"{folder} has {names}: which of them is right?")
        above = folder.relative_to(_root(path)).as_posix()
        for entry in READ[inside[0].name](inside[0]):
            yield Entry(entry.file, entry.place, functools.partial(_load, entry, "" if above == "." else f"{above}/"))


def _load(entry: Entry, above: str) -> dict[str, Any]:
    """The entry with all its pictures under `images`, named from the folder that was given."""
    row = entry.load()
    keys = [key for key in row if key.endswith(("file_name", "file_names")) and row[key] not in (None, "")]
    names = [name for key in keys for name in (row[key] if isinstance(row[key], list) else [row[key]])]
    if not names:
        raise ValueError("`file_name` is missing.")
    if wrong := [name for name in names if not isinstance(name, str)]:
        raise ValueError(f"`{keys[0]}` holds {wrong[0]!r:.80}, which is no name.")
    return {key: value for key, value in row.items() if key not in keys} | {"images": [above + name for name in names]}
