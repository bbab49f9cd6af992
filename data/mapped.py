"""Columns of numbers in memory-mapped files: a process holds the pages that it touches, and lets go of them."""

import mmap
from pathlib import Path
from typing import Any

import numpy as np

READS = 64  # of single entries, after which a mapping's pages are let go of: some 200 MB of rows at most


class Mapped:
    """A file, mapped for reading. What has been touched counts as this process's memory, 64 KiB and more around each
    touch as Linux maps it; [`Mapped.touched`] gives it back from time to time; it is mapped anew from the page cache.

    Args:
        path: The file.
    """

    def __init__(self, path: Path):
        self.path, self._reads = path, 0
        with open(path, "rb") as file:
            empty = file.seek(0, 2) == 0  # which no system maps
            self.content: Any = b"" if empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if not empty and hasattr(mmap, "MADV_RANDOM"):
            self.content.madvise(mmap.MADV_RANDOM)

    def touched(self, times: int = 1):
        """Takes note of entries that were read; lets the pages go once they may be many."""
        self._reads += times
        if self._reads >= READS:
            self.let_go()

    def let_go(self):
        """Gives the pages back."""
        self._reads = 0
        if self.content and hasattr(mmap, "MADV_DONTNEED"):
            self.content.madvise(mmap.MADV_DONTNEED)


class Numbers:
    """A column of numbers in a file of them, one after the other.

    Args:
        path: The file, as `ndarray.tofile` writes it.
        dtype: Of the numbers.
    """

    def __init__(self, path: Path, dtype: Any):
        self._file = Mapped(path)
        self.values = np.frombuffer(self._file.content, dtype)

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, where: Any) -> Any:
        """A number, or a copy of some."""
        found = self.values[where].copy()
        self._file.touched()
        return found

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All of them, mapped."""
        return np.array(self.values, dtype) if copy else np.asarray(self.values, dtype)
