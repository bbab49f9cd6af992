"""Files on object storage and web servers, by their addresses: `s3://`, `gs://`, `hf://`, `https://` and what else
fsspec knows. Credentials and end points are those of its drivers: their own variables and files, or `FSSPEC_S3_…`."""

import fnmatch
import hashlib
import posixpath
import re
from collections.abc import Iterator
from datetime import datetime
from functools import total_ordering
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO, cast
from urllib.parse import quote, unquote

from ..extras import driver_command

_URL = re.compile(r"(?!file://)[a-z][a-z0-9+.-]+://", re.IGNORECASE)  # one letter is a drive of Windows
# What drivers call the version of a content, the surest first.
_VERSIONS = ("ETag", "etag", "md5Hash", "content_md5", "blob_id", "checksum", "LastModified", "Last-Modified")
_VERSIONS += ("last_modified", "updated", "mtime", "modified", "created")


def is_url(name: str) -> bool:
    """Whether a name is the address of something that is not on this machine."""
    return _URL.match(name) is not None


def is_web(url: str) -> bool:
    """Whether an address is a web server's, which lists nothing."""
    return url.partition("://")[0].lower() in ("http", "https")


def filesystem(url: str) -> tuple[Any, str]:
    """The fsspec file system of an address, and the path in it.

    Raises:
        ImportError: Its driver is not installed; the message says how it is.
        ValueError: fsspec knows no such addresses.
    """
    import fsspec
    from fsspec.registry import known_implementations

    scheme = url.partition("://")[0].lower()
    if scheme not in fsspec.available_protocols():
        raise ValueError(f"{url} is an address of a kind that fsspec does not know: {scheme}.")
    package = known_implementations.get(scheme, {}).get("class", "").partition(".")[0]
    package = "aiohttp" if is_web(url) else package
    if package and find_spec(package) is None:
        raise ImportError(f"{url} needs the package {package}: {driver_command(package)}.")
    opened: Any = fsspec.filesystem(scheme)
    return opened, opened._strip_protocol(url)


def stamp(url: str) -> tuple[int, int]:
    """Size in bytes (0: not said) and a number of the content's version, drawn from what its place tells first of:
    checksum or ETag, time of change. The number is 0 where nothing is told, as by plain web servers.

    Raises:
        OSError: It is not there, or cannot be asked for.
    """
    told = _asked(url, lambda opened, path: opened.info(path))
    if told.get("type") == "directory":
        raise IsADirectoryError(f"{url} is a folder.")
    version = next((told[key] for key in _VERSIONS if told.get(key)), None)
    version = told.get("lfs", {}).get("sha256", version) if isinstance(told.get("lfs"), dict) else version
    if isinstance(version, datetime):
        version = version.timestamp()
    number = (
        int.from_bytes(hashlib.sha256(repr(version).encode()).digest()[:8], "big") >> 1
    )  # a signed column holds it
    return told.get("size") or 0, number if version is not None else 0


def read_url(url: str, start: int, size: int, whole: bool) -> bytes:
    """`size` bytes of a file at an address.

    Args:
        url: The address.
        start: Where they begin.
        size: How many; of a `whole` file, at most.
        whole: Whether the file is asked for as it is, and not a part of it.

    Raises:
        OSError: It cannot be read; a part is not all there.
    """
    read = _streamed if is_web(url) else _cut
    content = _asked(url, lambda opened, path: read(opened, path, start, size, whole))
    if not whole and len(content) != size:
        raise OSError(f"{url} gave {len(content):,} of the {size:,} bytes from {start:,} on: is it the file it was?")
    return content


def _cut(opened: Any, path: str, start: int, size: int, whole: bool) -> bytes:
    return opened.cat_file(path, start=start, end=start + size)


def _streamed(opened: Any, path: str, start: int, size: int, whole: bool) -> bytes:
    """From a web server, which may send without end, or all of a file where a part was asked for."""
    headers = dict(opened.kwargs.get("headers") or {})
    headers |= {} if whole else {"Range": f"bytes={start}-{start + size - 1}"}
    with opened.open(path, "rb", block_size=0, headers=headers) as file:
        if not whole and file.r.status != 206:
            raise OSError("its server sends no parts of files")
        pieces, missing = [], size
        while missing > 0 and (piece := file.read(missing)):
            pieces.append(piece)
            missing -= len(piece)
    return b"".join(pieces)


def _asked(url: str, ask: Any) -> Any:
    """What the file system of an address answers.

    Raises:
        OSError: It cannot answer. Drivers have errors of many kinds, none of which ends a run.
    """
    opened, path = filesystem(url)
    try:
        return ask(opened, path)
    except FileNotFoundError:
        raise FileNotFoundError(f"{url} does not exist.") from None
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise OSError(f"{url} cannot be read: {reason}.") from error


def listed(folder: str) -> dict[str, tuple[str, bool]]:
    """Entries of a folder on object storage: name to address, and whether it is a folder. None where it has none.

    Raises:
        OSError: It cannot be listed.
    """
    if is_web(folder):
        return {}
    try:
        entries = _asked(folder, lambda opened, path: opened.ls(path, detail=True))
    except FileNotFoundError:
        return {}
    names = {posixpath.basename(entry["name"].rstrip("/")): entry["type"] == "directory" for entry in entries}
    return {name: (f"{folder.rstrip('/')}/{name}", is_folder) for name, is_folder in names.items() if name}


def below(folder: str, name: str) -> str:
    """The address of `name` in a folder.

    Raises:
        ValueError: `name` leads out of it.
    """
    if ".." in unquote(name).replace("\\", "/").split("/"):
        raise ValueError(f"{name} leads out of {folder}.")
    if is_web(folder):
        name = quote(name)  # a name of a file: nothing in it is a query
    return f"{folder.rstrip('/')}/{name}"


def is_below(folder: str, url: str) -> bool:
    """Whether an address lies in a folder, at any depth."""
    return url.startswith(folder.rstrip("/") + "/") and ".." not in unquote(url).replace("\\", "/").split("/")


@total_ordering
class RemotePath:
    """A data file or folder at an address: what readers ask a `pathlib.Path`, answered by fsspec.

    Args:
        url: The address.
    """

    def __init__(self, url: str):
        self._url = url.rstrip("/")

    def __str__(self) -> str:
        return self._url

    __fspath__ = __str__

    def __repr__(self) -> str:
        return f"RemotePath({self._url!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemotePath) and self._url == other._url

    def __lt__(self, other: "RemotePath") -> bool:
        return self._url < other._url

    def __hash__(self) -> int:
        return hash(self._url)

    def __truediv__(self, name: str) -> "RemotePath":
        return RemotePath(f"{self._url}/{name}")

    @property
    def name(self) -> str:
        return self._url.rpartition("/")[2]

    @property
    def stem(self) -> str:
        return posixpath.splitext(self.name)[0]

    @property
    def suffix(self) -> str:
        return posixpath.splitext(self.name)[1]

    @property
    def suffixes(self) -> list[str]:
        return Path(self.name).suffixes

    @property
    def parent(self) -> "RemotePath":
        return RemotePath(self._url.rpartition("/")[0])

    def is_dir(self) -> bool:
        return _asked(self._url, lambda opened, path: opened.isdir(path))

    def is_file(self) -> bool:
        return _asked(self._url, lambda opened, path: opened.isfile(path))

    def exists(self) -> bool:
        return _asked(self._url, lambda opened, path: opened.exists(path))

    def stat(self) -> SimpleNamespace:
        """`st_size` and `st_mtime_ns`, a number that stays while the content does; see [`stamp`]."""
        size, version = stamp(self._url)
        return SimpleNamespace(st_size=size, st_mtime_ns=version)

    def iterdir(self) -> Iterator["RemotePath"]:
        return (RemotePath(url) for url, _ in listed(self._url).values())

    def glob(self, pattern: str) -> Iterator["RemotePath"]:
        """Entries of this folder, of none below it, whose names fit."""
        return (each for each in self.iterdir() if fnmatch.fnmatch(each.name, pattern))

    def open_bytes(self) -> BinaryIO:
        """The file, open for reading from its beginning on.

        Raises:
            OSError: It cannot be opened.
        """
        return cast(BinaryIO, _asked(self._url, lambda opened, path: opened.open(path, "rb")))


def data_path(name: str) -> Path:
    """A path that may be an address. It is a [`RemotePath`] then, which readers treat as a path."""
    return cast(Path, RemotePath(name)) if is_url(name) else Path(name)
