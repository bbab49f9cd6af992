"""What rows are held in, apart from what stands in a row: lines, arrays, tables, folders."""

import importlib
import pkgutil
from pathlib import Path

from .registry import CONTAINERS, Container

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")


def container_of(path: Path) -> Container | None:
    """The container that a file or folder is; `None` where it is none."""
    return next((each for each in CONTAINERS.values() if each.holds(path)), None)
