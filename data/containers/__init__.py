"""What rows are held in, apart from what stands in a row: lines, arrays, tables, folders."""

import importlib
import pkgutil
from pathlib import Path

from .registry import CONTAINERS, Container

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")


def container_of(path: Path) -> Container | None:
    """The container that a file or folder is, the first by name where several hold it; `None` where it is none."""
    # Not in the order of registration: a container that reads others' files imports, and so registers, them first.
    return next((CONTAINERS[name] for name in sorted(CONTAINERS) if CONTAINERS[name].holds(path)), None)


def files_held(path: Path) -> list[Path]:
    """The files that a container reads, where they are others than the path or those directly below it."""
    holder = container_of(path)
    return holder.files(path) if holder is not None else []
