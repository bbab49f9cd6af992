"""What a killed conversion leaves behind, and how the next one knows that nobody works on it any more."""

import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: no such locks; there a leftover stays until it is removed by hand
    fcntl = None


@contextmanager
def claim(folder: Path) -> Generator[None]:
    """Holds a lock on `folder`, which ends with the process, however that ends."""
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def remove_leftovers(out: Path):
    """Removes the unfinished folders that killed conversions to `out` left behind, but none that is being written."""
    if fcntl is None or not out.absolute().parent.is_dir():
        return
    for folder in out.absolute().parent.glob(f".{out.name}.unfinished-*"):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:
            continue
        finally:
            os.close(descriptor)
