"""What a reader is. A file of this folder that registers one is all it takes to add it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..containers import files_held
from ..pictures import PictureFolders
from ..recognition import best
from ..row_context import RowContext, RowReader, rows_in
from ..rows import BadRow, Row


@dataclass(frozen=True)
class Reader:
    """How one layout of data is read.

    Args:
        name: What `--reader` calls it.
        layout: What a user may know it by.
        recognises: Whether a file or folder is of this layout; looks at names and beginnings only. `None` for a layout
            of rows, which is known by their keys.
        read: Rows of a file or folder, and faults in place of the bad ones; takes its path, the [`PictureFolders`] and
            the name of the data set.
        options: Further fields of [`DataSource`] that `read` takes.
        keys: Of a layout of rows: the keys that tell it, one set for each of its forms; see [`seen_keys`].
        row: Of a layout of rows: what reads one of them.
        version: Goes up when `read` makes other rows of the same file: tables of rows are made anew.
        files: The files that are read where they are not the path itself or lie deeper than directly below it; else
            none. When one changes, tables of rows are made anew.
    """

    name: str
    layout: str
    recognises: Callable[[Path], bool] | None
    read: Callable[..., Iterator[Row | BadRow]]
    options: tuple[str, ...] = ()
    keys: tuple[frozenset[str], ...] = ()
    row: RowReader | None = None
    version: int = 1
    files: Callable[[Path], list[Path]] = lambda path: []


READERS: dict[str, Reader] = {}


def reader(
    name: str, layout: str, recognises: Callable[[Path], bool], options: tuple[str, ...] = (), **further: Any
) -> Callable:
    """Registers the function below it, which reads files of one layout; arguments as of [`Reader`]."""

    def register(read: Callable[..., Iterator[Row | BadRow]]) -> Callable[..., Iterator[Row | BadRow]]:
        READERS[name] = Reader(name, layout, recognises, read, options, **further)
        return read

    return register


def row_layout(
    name: str, layout: str, keys: Sequence[set[str]], options: tuple[str, ...] = (), **further: Any
) -> Callable:
    """Registers the function below it, which reads one row, out of every container of rows.

    It takes the row's keys and values and the [`RowContext`], returns a [`Row`] or a list of them, with a
    [`BadRow`] for what is wrong in a part of it, and raises ValueError where all of it is. Arguments as of [`Reader`].
    """

    def register(read: RowReader) -> RowReader:
        def read_all(path: Path, folders: PictureFolders, source: str, **given: Any) -> Iterator[Row | BadRow]:
            return rows_in(path, read, RowContext(path, folders, source, given))

        forms = tuple(map(frozenset, keys))
        READERS[name] = Reader(name, layout, None, read_all, options, forms, read, files=files_held, **further)
        return read

    return register


def layout_of(keys: frozenset[str]) -> Reader | None:
    """The layout of rows that keys tell, see [`best`]; `None` where they tell none."""
    name = best(keys, [(each.name, each.keys) for each in READERS.values()])
    return READERS[name] if name else None
