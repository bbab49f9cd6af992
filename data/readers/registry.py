"""What a reader is. A file of this folder that registers one is all it takes to add it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..rows import BadRow, Row


@dataclass(frozen=True)
class Reader:
    """How one layout of data is read.

    Args:
        name: What `format` calls it.
        layout: What a user may know it by.
        recognises: Whether a file or folder is of this layout; looks at names and beginnings only.
        read: Rows of a file or folder, and faults in place of the bad ones; takes its path, the [`PictureFolders`] and
            the name of the data set.
        options: Further fields of [`DataSource`] that `read` takes.
        version: Goes up when `read` makes other rows of the same file: tables of rows are made anew.
        files: The files that are read where they are not the path itself or lie deeper than directly below it; else
            none. When one changes, tables of rows are made anew.
    """

    name: str
    layout: str
    recognises: Callable[[Path], bool]
    read: Callable[..., Iterator[Row | BadRow]]
    options: tuple[str, ...] = ()
    version: int = 1
    files: Callable[[Path], list[Path]] = lambda path: []


READERS: dict[str, Reader] = {}


def reader(
    name: str, layout: str, recognises: Callable[[Path], bool], options: tuple[str, ...] = (), **further: Any
) -> Callable:
    """Registers the function below it; arguments as of [`Reader`]."""

    def register(read: Callable[..., Iterator[Row | BadRow]]) -> Callable[..., Iterator[Row | BadRow]]:
        READERS[name] = Reader(name, layout, recognises, read, options, **further)
        return read

    return register
