"""What a reader is. A file of this folder that registers one is all it takes to add it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..rows import Row


@dataclass(frozen=True)
class Reader:
    """How one layout of data is read.

    Args:
        name: What `format` calls it.
        layout: What a user may know it by.
        recognises: Whether a file or folder is of this layout; looks at names and beginnings only.
        read: Rows of a file or folder; takes its path, the [`PictureFolders`] and the name of the data set.
        options: Further fields of [`DataSource`] that `read` takes.
    """

    name: str
    layout: str
    recognises: Callable[[Path], bool]
    read: Callable[..., Iterator[Row]]
    options: tuple[str, ...] = ()


READERS: dict[str, Reader] = {}


def reader(name: str, layout: str, recognises: Callable[[Path], bool], options: tuple[str, ...] = ()) -> Callable:
    """Registers the function below it; arguments as of [`Reader`]."""

    def register(read: Callable[..., Iterator[Row]]) -> Callable[..., Iterator[Row]]:
        READERS[name] = Reader(name, layout, recognises, read, options)
        return read

    return register
