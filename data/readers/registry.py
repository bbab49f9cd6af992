"""What a reader is. A file of this folder that registers one is all it takes to add it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

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
    """

    name: str
    layout: str
    recognises: Callable[[Path], bool]
    read: Callable[..., Iterator[Row | BadRow]]
    options: tuple[str, ...] = ()


READERS: dict[str, Reader] = {}


def reader(name: str, layout: str, recognises: Callable[[Path], bool], options: tuple[str, ...] = ()) -> Callable:
    """Registers the function below it; arguments as of [`Reader`]."""

    def register(read: Callable[..., Iterator[Row | BadRow]]) -> Callable[..., Iterator[Row | BadRow]]:
        READERS[name] = Reader(name, layout, recognises, read, options)
        return read

    return register
