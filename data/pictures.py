"""Pictures that are not opened yet, and where they lie: names of data sets to files in one or several folders."""

import base64
import binascii
import functools
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeGuard
from unicodedata import normalize
from urllib.request import url2pathname

from .files import read_picture_file, read_remote_picture
from .remote import below, filesystem, is_below, is_url, is_web, listed, stamp
from .table_cells import cell

ASKED_AT_ONCE = 32  # stamps of pictures on object storage
_COCO = re.compile(r"(?:COCO_[a-z]+\d{4}_)?(\d{12})")


def _part_name(path: str, offset: int | None) -> str:
    return path if offset is None else f"{path}@{offset}"


@dataclass(frozen=True, slots=True)
class FilePicture:
    """A picture file, or `size` bytes of an archive from `offset` on."""

    path: str
    offset: int | None = None
    size: int | None = None

    @property
    def name(self) -> str:
        return _part_name(self.path, self.offset)

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
class RemotePicture:
    """A picture file at an address that fsspec opens, such as `s3://bucket/a.jpg`, or `size` bytes of an archive there
    from `offset` on, which are read as a range."""

    path: str
    offset: int | None = None
    size: int | None = None

    @property
    def name(self) -> str:
        return _part_name(self.path, self.offset)

    def stamp(self) -> tuple[int, int]:
        """Size in bytes and a number of the version that its place tells (ETag, checksum, time): one request.

        Raises:
            OSError: The file is not there, or cannot be asked for.
        """
        size, version = stamp(self.path)
        return (size if self.size is None else self.size), version

    def read(self) -> bytes:
        """The bytes of the picture file.

        Raises:
            OSError: The file cannot be read, is shorter than it was, or has more than 200 MB.
        """
        return read_remote_picture(self.path, self.offset, self.size)


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
        """Size of the table in bytes and its time of modification in ns, or the number of its version at an address.

        Raises:
            OSError: The table is not there any more.
        """
        if is_url(self.path):
            return stamp(self.path)
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
        return _part_name(self.path, self.offset)

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


Picture = FilePicture | RemotePicture | TablePicture | MemoryPicture | EncodedPicture


def stamps(pictures: Sequence[Picture]) -> list[tuple[int, int] | None]:
    """The stamp of each picture; `None` where it is not there. Object storage is asked once for each file, and for
    many at once: an answer takes it tens of milliseconds."""
    urls = list({picture.path for picture in pictures if _is_remote(picture)})
    if not urls:
        return list(map(_stamp, pictures))
    with ThreadPoolExecutor(ASKED_AT_ONCE) as threads:
        files = dict(zip(urls, threads.map(_stamp, map(RemotePicture, urls)), strict=True))
    return [_of_part(picture, files[picture.path]) if _is_remote(picture) else _stamp(picture) for picture in pictures]


def _is_remote(picture: Picture) -> TypeGuard[RemotePicture | TablePicture]:
    return isinstance(picture, RemotePicture) or (isinstance(picture, TablePicture) and is_url(picture.path))


def _of_part(picture: RemotePicture | TablePicture, file: tuple[int, int] | None) -> tuple[int, int] | None:
    """The stamp of a picture from that of its file."""
    if file is None or isinstance(picture, TablePicture) or picture.size is None:
        return file
    return picture.size, file[1]


def _stamp(picture: Picture) -> tuple[int, int] | None:
    try:
        return picture.stamp()
    except (OSError, ValueError):  # the latter of a NUL in a name
        return None


def is_address(name: str) -> bool:
    """Whether a picture's name is one that would have to be fetched: `https://…`, `s3://…`, `data:…`."""
    return is_url(name) or name[:5].lower() == "data:"


def portable_name(name: str) -> str:
    """A picture's name as data files spell it, with `/` between folders and composed letters (NFC): Windows writes
    `\\`, macOS decomposed letters (NFD), and some data sets `file://` addresses."""
    if name.startswith("file://"):
        name = url2pathname(name.removeprefix("file://").removeprefix("localhost"))
    return _composed(name.replace("\\", "/"))


def _composed(name: str) -> str:
    return name if name.isascii() else normalize("NFC", name)


def modified(folder: str) -> int | None:
    """Time of modification of a folder in ns, which changes with the names in it; `None` where it is not there. At an
    address, a number of these names."""
    if is_url(folder):
        return zlib.crc32("\0".join(sorted(listed(folder))).encode("utf-8", "surrogatepass"))
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
        folders: The folders, on this machine or addresses; with none, pictures keep the names they are looked for by.

    Attributes:
        missing: Path to names of the pictures that have been looked for in vain.
        listed: The folders that were looked into, each with its time of modification in ns before that; `None` where
            there is none.

    Raises:
        FileNotFoundError: A folder is not there.
        ImportError: fsspec lacks the driver of an address.
        ValueError: fsspec knows no such addresses.
    """

    def __init__(self, folders: Iterable[str | os.PathLike] = ()):
        self.folders = [os.fspath(folder) for folder in folders]
        for folder in self.folders:
            if is_url(folder):
                filesystem(folder)
            elif not os.path.isdir(folder):
                raise FileNotFoundError(f"The picture folder {folder} does not exist.")
        self.missing: dict[str, tuple[str, ...]] = {}
        self.listed: dict[str, int | None] = {}
        self._entries: dict[str, dict[str, str]] = {}
        self._below_folder: dict[tuple[str, str], dict[str, str]] = {}
        self._below: list[str] | None = None

    def find(self, *names: str) -> FilePicture | RemotePicture:
        """The first of the names, relative or absolute, that is in one of the folders; a COCO picture is looked for
        under all names that COCO gives it.

        A picture that is nowhere is returned under its first name in the first folder: reading it fails, is counted
        and names it, and no other picture takes its place. So is one at the only folder, if that is an address: a
        bucket of 400 million pictures is not listed.

        Raises:
            ValueError: A name is an address outside the folders, which no row of a data file may have opened, or leads
                out of one.
        """
        wanted = [portable_name(name) for name in names]
        if not self.folders:
            return FilePicture(wanted[0])
        for name in wanted:
            if is_url(name):
                return self._addressed(name)
        numbers = {number for name in wanted if (number := coco_number(name)) is not None}
        candidates = [*wanted, *(other for number in numbers for other in coco_names(number))] if numbers else wanted
        if len(self.folders) == len(candidates) == 1 and is_url(self.folders[0]):
            return picture_at(_joined(self.folders[0], wanted[0]))
        for name in candidates:
            for folder in self._searched():
                for inside in _inside(folder, name):
                    if (path := self._path(folder, inside)) is not None:
                        return picture_at(path)
        # A web server lists nothing: there it may be, where no other folder has it.
        folder = next((folder for folder in self.folders if is_web(folder)), self.folders[0])
        path = _joined(folder, wanted[0])
        if not is_web(folder):
            self.missing[path] = names
        return picture_at(path)

    def _addressed(self, url: str) -> RemotePicture:
        if not any(is_url(folder) and is_below(folder, url) for folder in self.folders):
            raise ValueError(
                f"{url!r:.120} is an address, and none is opened that lies in no picture folder: "
                f"`--images {url.rpartition('/')[0]:.80}` (`images` of a data source) allows it; or download the "
                "pictures by img2dataset, and give its folder as `--images`."
            )
        return RemotePicture(url)

    def _searched(self) -> Iterator[str]:
        yield from self.folders
        if self._below is None:
            self._below = [path for folder in self.folders for path in _sub_folders(folder)]
        yield from self._below

    def _path(self, folder: str, name: str) -> str | None:
        """Path of `name` below `folder`, spelt as on the disk."""
        above, last = os.path.split(name)
        place = (folder, above)
        if place not in self._below_folder:
            self._below_folder[place] = self._listed(_joined(folder, above) if above else folder)
        return self._below_folder[place].get(last)

    def _listed(self, folder: str) -> dict[str, str]:
        """Entries of a folder by their composed names, as paths on the disk."""
        # One listing of a folder replaces a look-up on the disk per picture.
        if folder not in self._entries:
            self.listed[folder] = modified(folder)
            self._entries[folder] = self._list(folder)
        return self._entries[folder]

    def _list(self, folder: str) -> dict[str, str]:
        if is_url(folder):
            return {_composed(name): path for name, (path, _) in listed(folder).items()}
        try:
            with os.scandir(folder) as entries:
                return {_composed(entry.name): entry.path for entry in entries}
        except OSError:
            # The folder's own name may be decomposed on the disk, and so may be that of the folder above it.
            above, last = os.path.split(folder)
            path = self._listed(above).get(last) if last and not folder.isascii() else None
            return self._listed(path) if path not in (None, folder) else {}


def picture_at(path: str, offset: int | None = None, size: int | None = None) -> FilePicture | RemotePicture:
    """A picture file, or a member of an archive, by a path that may be an address: of a data file's own place, which
    the user has named, never one that stands in a row ([`PictureFolders.find`] judges those)."""
    return RemotePicture(path, offset, size) if is_url(path) else FilePicture(path, offset, size)


def _joined(folder: str, name: str) -> str:
    """`name` in a folder; an absolute path is a file of this machine, whatever the folder."""
    return below(folder, name) if is_url(folder) and not os.path.isabs(name) else os.path.join(folder, name)


def _sub_folders(folder: str) -> list[str]:
    """Direct sub-folders, by name."""
    if is_url(folder):
        return [path for _, (path, is_folder) in sorted(listed(folder).items()) if is_folder]
    with os.scandir(folder) as entries:
        return [entry.path for entry in sorted(entries, key=lambda entry: entry.name) if entry.is_dir()]
