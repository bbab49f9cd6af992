"""JSON and JSON lines on disk: read, and known by their beginning without being read."""

import json
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def read_json(path: Path) -> Any:
    """The value in a JSON file.

    Raises:
        ValueError: It is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None


def json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers (from 1) and objects of a JSON-lines file; empty lines are passed over.

    Raises:
        ValueError: A line is not a JSON object.
    """
    # Not `splitlines`, which also parts lines at characters such as U+2028 that may stand in a JSON text.
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}, line {number}, is not JSON: {error}") from None
            if not isinstance(row, dict):
                raise ValueError(f"{path}, line {number}, is not a JSON object.")
            yield number, row


def first_keys(path: Path) -> frozenset[str]:
    """Keys of the first object of a JSON-lines file; none where it is no such file."""
    if path.suffix != ".jsonl" or path.is_dir():
        return frozenset()
    try:
        return next((frozenset(row) for _, row in json_lines(path)), frozenset())
    except ValueError:
        return frozenset()


def begins_with(path: Path, opening: str, key: str = "") -> bool:
    """Whether the value of a `.json` file begins with `opening`, `[` or `{`, and has `key` near its beginning."""
    if path.suffix != ".json" or path.is_dir():
        return False
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        start = file.read(1 << 16).lstrip()
    return start.startswith(opening) and (not key or f'"{key}"' in start)


def mentions(path: Path, *keys: str) -> bool:
    """Whether all the keys stand somewhere in a file. Parsing hundreds of MB is left to the reader."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return all(content.find(f'"{key}"'.encode()) >= 0 for key in keys)
