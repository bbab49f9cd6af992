"""Checks that every way of converting makes before it begins."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def one_of(what: str, name: str, known: Mapping[str, T]) -> T:
    """The value of `name`; raises `ValueError` with all known names where there is none."""
    if name not in known:
        raise ValueError(f"There is no {what} {name!r}: choose one of {', '.join(known)}.")
    return known[name]


def new_path(path: str | os.PathLike) -> Path:
    """The path of something to be made; raises `FileExistsError` where anything but an empty folder is there."""
    path = Path(path)
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise FileExistsError(f"{path} exists already: choose another name or remove it first.")
    return path
