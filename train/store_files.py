"""The files of a feature store: in a folder of this machine, or wherever fsspec reads and writes (`s3://`, `gs://` …).

A file appears under its name only when it is complete, is read by ranges, and is never written again.
"""

import os
import tempfile
import weakref
from collections import OrderedDict
from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..checkpoint import finished_file, remove_unfinished

# Far below the 1,024 files that a process may have open, and the 65,530 maps that Linux allows it.
MOST_OPEN = 128
DAMAGED = "damaged-"


class Range(NamedTuple):
    """`length` bytes of a file from `start` on."""

    name: str
    start: int
    length: int


def files_of(folder: str | os.PathLike) -> "LocalFiles | RemoteFiles":
    """The files of a folder, or of a URL that fsspec knows."""
    name = os.fspath(folder)
    if name.startswith("file://"):
        from fsspec.core import url_to_fs

        return LocalFiles(url_to_fs(name)[1])
    return RemoteFiles(name) if "://" in name else LocalFiles(name)


class LocalFiles:
    """Files of a folder on this machine.

    Read by position from a bounded number of open files: a map for each would meet Linux's limit, and what is mapped
    and was looked at counts as memory of the process until the system wants it back.
    """

    def __init__(self, folder: str):
        self.folder = Path(folder)
        self._open: OrderedDict[str, int] = OrderedDict()
        weakref.finalize(self, _close, self._open)

    def names(self) -> list[str]:
        """Names of all files."""
        try:
            with os.scandir(self.folder) as entries:
                return [entry.name for entry in entries if not entry.name.startswith(".")]
        except FileNotFoundError:
            return []

    def read(self, name: str) -> bytes:
        """A whole file."""
        return (self.folder / name).read_bytes()

    def read_ranges(self, ranges: Sequence[Range]) -> list[np.ndarray]:
        """Parts of files, uint8; shorter than asked for where a file ends earlier.

        Raises:
            FileNotFoundError: A file is not there.
        """
        parts = []
        for first in range(0, len(ranges), MOST_OPEN):
            chosen = ranges[first : first + MOST_OPEN]
            opened = [self._descriptor(each.name) for each in chosen]
            if len(chosen) > 1 and hasattr(os, "posix_fadvise"):
                for descriptor, each in zip(opened, chosen, strict=True):  # the disk may fetch all at once
                    os.posix_fadvise(descriptor, each.start, each.length, os.POSIX_FADV_WILLNEED)
            # One piece of memory for all: hundreds of small ones would leave holes between them.
            places = np.cumsum([0, *(each.length for each in chosen)])
            buffer = np.empty(places[-1], np.uint8)
            for number, (descriptor, each) in enumerate(zip(opened, chosen, strict=True)):
                parts.append(_read(descriptor, each.start, buffer[places[number] : places[number + 1]]))
        return parts

    def _descriptor(self, name: str) -> int:
        descriptor = self._open.get(name)
        if descriptor is None:
            descriptor = os.open(self.folder / name, os.O_RDONLY | getattr(os, "O_BINARY", 0))
            if hasattr(os, "posix_fadvise"):  # rows are read in no order: what lies behind one is of no use
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
            self._open[name] = descriptor
            if len(self._open) > MOST_OPEN:
                os.close(self._open.popitem(last=False)[1])
        self._open.move_to_end(name)
        return descriptor

    def write(self, name: str, parts: Sequence[Any]):
        """A file of several buffers, complete or not there.

        Raises:
            OSError: It cannot be written; the message names it.
        """
        with self.writing(name) as temporary, open(temporary, "wb") as file:
            for part in parts:
                file.write(part)

    def writing(self, name: str) -> AbstractContextManager[Path]:
        """A path to write a file to, which appears under its name when it is complete."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return finished_file(self.folder / name)

    def mapped(self, name: str) -> Path:
        """Path of a file, to be memory-mapped."""
        return self.folder / name

    def remove(self, name: str):
        """Removes a file; one that is gone stays gone."""
        (self.folder / name).unlink(missing_ok=True)

    def set_aside(self, name: str) -> str | None:
        """Renames a file, so that nobody takes it for one of the store; `None` if another process has done it.

        Raises:
            OSError: The folder cannot be written.
        """
        if name in self._open:
            os.close(self._open.pop(name))
        try:
            os.rename(self.folder / name, self.folder / f"{DAMAGED}{name}")
        except FileNotFoundError:
            return None
        return f"{DAMAGED}{name}"

    def remove_unfinished(self):
        """Removes what killed processes left half written."""
        remove_unfinished(self.folder)


def _close(opened: dict[str, int]):
    for descriptor in opened.values():
        os.close(descriptor)


def _read(descriptor: int, start: int, buffer: np.ndarray) -> np.ndarray:
    """Fills a buffer from `start` of a file on, and returns as much of it as there was."""
    if hasattr(os, "preadv"):
        done = 0
        while done < len(buffer) and (count := os.preadv(descriptor, [buffer[done:].data], start + done)):
            done += count
        return buffer[:done]
    os.lseek(descriptor, start, os.SEEK_SET)  # Windows, where no forked process shares the position
    return np.frombuffer(os.read(descriptor, len(buffer)), np.uint8)


class RemoteFiles:
    """Files below a URL. Object storage shows an object when it is complete, so nothing is renamed on its way.

    Raises:
        ImportError: fsspec needs another package for this kind of URL.
    """

    def __init__(self, url: str):
        from fsspec.core import url_to_fs

        self.url = url.rstrip("/")
        self.system, self.path = url_to_fs(self.url)

    def _at(self, name: str) -> str:
        return f"{self.path.rstrip('/')}/{name}"

    def names(self) -> list[str]:
        """Names of all files."""
        self.system.invalidate_cache(self.path)
        try:
            return [each.rstrip("/").rpartition("/")[2] for each in self.system.ls(self.path, detail=False)]
        except FileNotFoundError:
            return []

    def read(self, name: str) -> bytes:
        """A whole file."""
        return self.system.cat_file(self._at(name))

    def read_ranges(self, ranges: Sequence[Range]) -> list[np.ndarray]:
        """Parts of files, uint8, asked for all at once.

        Raises:
            FileNotFoundError: A file is not there.
        """
        paths = [self._at(each.name) for each in ranges]
        ends = [each.start + each.length for each in ranges]
        parts = self.system.cat_ranges(paths, [each.start for each in ranges], ends, on_error="return")
        for part in parts:
            if isinstance(part, Exception):
                raise part
        return [np.frombuffer(part, np.uint8) for part in parts]

    def write(self, name: str, parts: Sequence[Any]):
        """A file of several buffers, complete or not there."""
        self.system.makedirs(self.path, exist_ok=True)
        self.system.pipe_file(self._at(name), b"".join(parts))

    @contextmanager
    def writing(self, name: str) -> Generator[Path]:
        """A path on this machine to write a file to, which is sent when it is complete."""
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder) / name
            self.system.makedirs(self.path, exist_ok=True)
            self.system.put_file(str(Path(folder) / name), self._at(name))

    def mapped(self, name: str) -> Path:
        """Path of a copy on this machine, fetched once for all its processes, to be memory-mapped."""
        from huggingface_hub import cached_assets_path

        place = sha256(self.url.encode()).hexdigest()[:16]
        copy = cached_assets_path("jminigpt4", namespace="features", subfolder=place) / name
        if not copy.is_file():
            with finished_file(copy) as temporary:
                self.system.get_file(self._at(name), str(temporary))
            for older in copy.parent.glob("index-*"):
                if older != copy:
                    older.unlink(missing_ok=True)
        return copy

    def remove(self, name: str):
        """Removes a file; one that is gone stays gone."""
        with suppress(FileNotFoundError):
            self.system.rm_file(self._at(name))

    def set_aside(self, name: str) -> str | None:
        """Renames a file, so that nobody takes it for one of the store; `None` if another process has done it."""
        try:
            self.system.mv(self._at(name), self._at(f"{DAMAGED}{name}"))
        except FileNotFoundError:
            return None
        return f"{DAMAGED}{name}"

    def remove_unfinished(self):
        """Nothing is left half written there."""
