"""What a container is: what holds rows, whatever their layout. A file of this folder that registers one adds it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple


class Entry(NamedTuple):
    """A row as it is stored.

    Args:
        file: The file it stands in.
        place: Where in it: `line 3`, `row 7`.
        load: Gives its keys and values. What is null counts as absent; pictures that lie in the container are
            [`Picture`]s, those named by path are texts. Raises ValueError where the row cannot be read.
    """

    file: Path
    place: str
    load: Callable[[], dict[str, Any]]


@dataclass(frozen=True)
class Container:
    """How rows are held.

    Args:
        name: A short name.
        title: What a user may know it by.
        holds: Whether a file or folder is such a container; looks at names and beginnings only.
        entries: Its rows one after the other, each parsed when it is asked for.
        root: The file or folder whose name ids of pictures begin with, out of the path that was given.
        files: The files that are read where they lie deeper than directly below the path; else none.
    """

    name: str
    title: str
    holds: Callable[[Path], bool]
    entries: Callable[[Path], Iterator[Entry]]
    root: Callable[[Path], Path]
    files: Callable[[Path], list[Path]]


CONTAINERS: dict[str, Container] = {}


def container(
    name: str,
    title: str,
    holds: Callable[[Path], bool],
    root: Callable[[Path], Path] = lambda path: path,
    files: Callable[[Path], list[Path]] = lambda path: [],
) -> Callable:
    """Registers the function below it, which gives the entries; arguments as of [`Container`]."""

    def register(entries: Callable[[Path], Iterator[Entry]]) -> Callable[[Path], Iterator[Entry]]:
        CONTAINERS[name] = Container(name, title, holds, entries, root, files)
        return entries

    return register
