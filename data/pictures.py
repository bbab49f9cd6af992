"""Pictures that are not opened yet, and where they lie: names of data sets to files in one or several folders."""

import base64
import binascii
import functools
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from unicodedata import normalize
from urllib.request import url2pathname

from .files import read_picture_file
from .table_cells import cell

_COCO = re.compile(r"(?:COCO_[a-z]+\d{4}_)?(\d{12})")


@dataclass(frozen=True, slots=True)
class FilePicture:
    """A picture file, or `size` bytes of an archive from `offset` on."""

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
            OSError: The file cannot be read, is no regular file, or has more than 200 MB.
        """
        return read_picture_file(self.path, self.offset or 0, self.size)


@dataclass(frozen=True, slots=True)
class TablePicture:
    """A picture in a table, as `datasets` stores it: a cell `{"bytes", "path"}`, or one of a cell's list of them.

    Args:
        path: File of the table.
        row, column: The cell.
        position: Which picture of a list; `None` where the cell is the picture.

    The file is opened when a picture of it is read, and by row groups: see [`cell`].
    """

    path: str
    row: int
    column: str
    position: int | None = None

    @property
    def name(self) -> str:
        return f"{self.path}#{self.row}.{self.column}" + ("" if self.position is None else f".{self.position}")

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
            OSError: The cell is empty, or names a file that cannot be read.
        """
        found = cell(self.path, self.stamp(), self.row, self.column)
        content = (found if self.position is None else found.values[self.position]).as_py() or {}
        if isinstance(content, bytes | str):  # a column of files' bytes or names, which `datasets` takes as well
            content = {"bytes": content} if isinstance(content, bytes) else {"path": content}
        if content.get("bytes") is not None:
            return content["bytes"]
        if not content.get("path"):
            raise FileNotFoundError(f"{self.name} holds no picture.")
        return read_picture_file(content["path"])


@dataclass(frozen=True, slots=True)
class MemoryPicture:
    """The bytes of a picture file that another program has given."""

    name: str
    content: bytes = field(repr=False)

    def stamp(self) -> tuple[int, int]:
        """Size in bytes and checksum."""
        return len(self.content), zlib.crc32(self.content)

    def read(self) -> bytes:
        """The bytes of the picture file."""
        return self.content


@dataclass(frozen=True, slots=True)
class EncodedPicture:
    """A picture in base64 in a JSON file: `size` bytes of text from `offset` on."""

    path: str
    offset: int
    size: int

    @property
    def name(self) -> str:
        return f"{self.path}@{self.offset}"

    def stamp(self) -> tuple[int, int]:
        """Size of the text in bytes and time of modification of the file in ns.

        Raises:
            OSError: The file is not there any more.
        """
        return self.size, os.stat(self.path).st_mtime_ns

    def read(self) -> bytes:
        """The bytes of the picture file.

        Raises:
            OSError: As of [`FilePicture`], or the text is not base64.
        """
        text = read_picture_file(self.path, self.offset, self.size)
        try:
            return base64.b64decode(json.loads(b'"%b"' % text), validate=True)
        except (binascii.Error, ValueError):
            raise OSError(f"{self.name} is not base64.") from None


Picture = FilePicture | TablePicture | MemoryPicture | EncodedPicture


def is_address(name: str) -> bool:
    """Whether a picture's name is one that would have to be fetched: `https://…`, `s3://…`, `data:…`."""
    return re.match(r"(?i)(?!file:)[a-z][a-z0-9+-]+://|data:", name) is not None


def portable_name(name: str) -> str:
    """A picture's name as data files spell it, with `/` between folders and composed letters (NFC): Windows writes
    `\\`, macOS decomposed letters (NFD), and some data sets `file://` addresses."""
    if name.startswith("file://"):
        name = url2pathname(name.removeprefix("file://").removeprefix("localhost"))
    return _composed(name.replace("\\", "/"))


def _composed(name: str) -> str:
    return name if name.isascii() else normalize("NFC", name)


def modified(folder: str) -> int | None:
    """Time of modification of a folder in ns, which changes with the names in it; `None` where it is not there."""
    try:
        return os.stat(folder).st_mtime_ns
    except OSError:
        return None


def coco_number(name: str) -> int | None:
    """9 of `COCO_val2014_000000000009.jpg` (2014) and of `000000000009.jpg` (2017); `None` for other file names."""
    found = _COCO.fullmatch(name.rpartition("/")[2].partition(".")[0])
    return int(found[1]) if found else None


def coco_names(number: int) -> list[str]:
    """The file names a COCO picture goes by: 2014's in either split, and 2017's."""
    return [f"COCO_train2014_{number:012d}.jpg", f"COCO_val2014_{number:012d}.jpg", f"{number:012d}.jpg"]


def _inside(folder: str, name: str) -> Iterator[str]:
    """A name as it may be found in a folder: whole, and without the folders before it where `folder` ends with them.
    `gqa/images/1.jpg` is `1.jpg` in `/data/gqa/images`."""
    yield name
    first, _, below = name.partition("/")
    above = _parts(folder)
    if below and first in above:
        parts = name.split("/")
        for count in range(1, len(parts)):
            if above[-count:] == parts[:count]:
                yield "/".join(parts[count:])


@functools.lru_cache(maxsize=1024)
def _parts(folder: str) -> list[str]:
    return portable_name(folder).rstrip("/").split("/")


class PictureFolders:
    """Folders that are looked through in order, and after them their direct sub-folders: Visual Genome's pictures lie
    in two, COCO's in one for each split. A name may begin with the folder's own: see [`_inside`].

    Args:
        folders: The folders; with none, pictures keep the names they are looked for by.

    Attributes:
        missing: Path to names of the pictures that have been looked for in vain.
        listed: The folders that were looked into, each with its time of modification in ns before that; `None` where
            there is none.

    Raises:
        FileNotFoundError: A folder is not there.
    """

    def __init__(self, folders: Iterable[str | os.PathLike] = ()):
        self.folders = [os.fspath(folder) for folder in folders]
        for folder in self.folders:
            if not os.path.isdir(folder):
                raise FileNotFoundError(f"The picture folder {folder} does not exist.")
        self.missing: dict[str, tuple[str, ...]] = {}
        self.listed: dict[str, int | None] = {}
        self._entries: dict[str, dict[str, str]] = {}
        self._below_folder: dict[tuple[str, str], dict[str, str]] = {}
        self._below: list[str] | None = None

    def find(self, *names: str) -> FilePicture:
        """The first of the names, relative or absolute, that is in one of the folders; a COCO picture is looked for
        under all names that COCO gives it.

        A picture that is nowhere is returned under its first name in the first folder: reading it fails, is counted
        and names it, and no other picture takes its place.
        """
        wanted = [portable_name(name) for name in names]
        if not self.folders:
            return FilePicture(wanted[0])
        numbers = {number for name in wanted if (number := coco_number(name)) is not None}
        for name in [*wanted, *(other for number in numbers for other in coco_names(number))] if numbers else wanted:
            for folder in self._searched():
                for below in _inside(folder, name):
                    if (path := self._path(folder, below)) is not None:
                        return FilePicture(path)
        path = os.path.join(self.folders[0], wanted[0])
        self.missing[path] = names
        return FilePicture(path)

    def _searched(self) -> Iterator[str]:
        yield from self.folders
        if self._below is None:
            self._below = [
                entry.path
                for folder in self.folders
                for entry in sorted(os.scandir(folder), key=lambda entry: entry.name)
                if entry.is_dir()
            ]
        yield from self._below

    def _path(self, folder: str, name: str) -> str | None:
        """Path of `name` below `folder`, spelt as on the disk."""
        above, last = os.path.split(name)
        place = (folder, above)
        if place not in self._below_folder:
            self._below_folder[place] = self._listed(os.path.join(folder, above) if above else folder)
        return self._below_folder[place].get(last)

    def _listed(self, folder: str) -> dict[str, str]:
        """Entries of a folder by their composed names, as paths on the disk."""
        # One listing of a folder replaces a look-up on the disk per picture.
        if folder not in self._entries:
            self.listed[folder] = modified(folder)
            self._entries[folder] = self._list(folder)
        return self._entries[folder]

    def _list(self, folder: str) -> dict[str, str]:
        try:
            with os.scandir(folder) as entries:
                return {_composed(entry.name): entry.path for entry in entries}
        except OSError:
            # The folder's own name may be decomposed on the disk, and so may be that of the folder above it.
            above, last = os.path.split(folder)
            path = self._listed(above).get(last) if last and not folder.isascii() else None
            return self._listed(path) if path not in (None, folder) else {}
