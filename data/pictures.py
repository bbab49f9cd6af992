"""Pictures that are not opened yet, and where they lie: names of data sets to files in one or several folders."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture that is not opened yet: a file, or `size` bytes of an archive from `offset` on."""

    path: str
    offset: int | None = None
    size: int | None = None

    @property
    def name(self) -> str:
        return self.path if self.offset is None else f"{self.path}@{self.offset}"

    def stamp(self) -> tuple[int, int]:
        """Size in bytes and time of modification in ns: while they stay, the content is taken to stay.

        Raises:
            OSError: The file is not there.
        """
        status = os.stat(self.path)
        return (status.st_size if self.size is None else self.size), status.st_mtime_ns

    def read(self) -> bytes:
        """The bytes of the picture file.

        Raises:
            OSError: The file cannot be read.
        """
        with open(self.path, "rb") as file:
            if self.offset is not None:
                file.seek(self.offset)
            return file.read() if self.size is None else file.read(self.size)


@dataclass(frozen=True, slots=True)
class TablePicture:
    """A picture inside a table of `datasets`: cell `column` of row `row`, its `position`-th picture."""

    path: str
    row: int
    column: str
    position: int
    table: Any = field(compare=False, repr=False)

    @property
    def name(self) -> str:
        return f"{self.path}#{self.row}.{self.position}"

    def stamp(self) -> tuple[int, int]:
        """Size of the table in bytes and its time of modification in ns.

        Raises:
            OSError: The table is not there any more.
        """
        status = os.stat(self.path)
        return status.st_size, status.st_mtime_ns

    def read(self) -> bytes:
        """The bytes of the picture file, from the table or from the path that the table names.

        Raises:
            OSError: The table names a file that cannot be read.
        """
        cell = self.table[self.row][self.column]
        cell = cell[self.position] if isinstance(cell, list) else cell
        return cell["bytes"] if cell["bytes"] is not None else Path(cell["path"]).read_bytes()


class PictureRoots:
    """Folders that are looked through in order.

    Args:
        roots: The folders.

    Raises:
        FileNotFoundError: A folder is not there.
    """

    def __init__(self, roots: Iterable[str | os.PathLike]):
        self.roots = [Path(root) for root in roots]
        for root in self.roots:
            if not root.is_dir():
                raise FileNotFoundError(f"The picture folder {root} does not exist.")
        self._listed: dict[str, frozenset[str]] = {}

    def find(self, *names: str) -> Picture:
        """The first of the names that exists in one of the folders.

        A picture that is nowhere is returned under its first name in the first folder: reading it fails, is counted
        and names it, and no other picture takes its place.
        """
        for name in names:
            for root in self.roots:
                folder, _, file = name.rpartition("/")
                if file in self._files(os.path.join(root, folder)):
                    return Picture(os.path.join(root, name))
        return Picture(os.path.join(self.roots[0], names[0]))

    def _files(self, folder: str) -> frozenset[str]:
        # One listing of a folder replaces a look-up on the disk per picture and root.
        if folder not in self._listed:
            try:
                self._listed[folder] = frozenset(entry.name for entry in os.scandir(folder))
            except OSError:
                self._listed[folder] = frozenset()
        return self._listed[folder]
