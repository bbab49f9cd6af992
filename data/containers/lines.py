"""JSON lines."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from ..files import open_regular
from ..json_files import numbered_lines, parse_object
from .registry import Entry, container

BEGINNING = 1 << 20  # bytes in which a `.json` file that holds lines has more than one


def _holds(path: Path) -> bool:
    if path.is_dir() or path.suffix not in (".jsonl", ".ndjson", ".json"):
        return False
    return path.suffix != ".json" or _is_lines(path)


def _is_lines(path: Path) -> bool:
    """Whether a `.json` file is lines of objects after all, as some exporters name them."""
    with open_regular(path) as file:
        first, _, second = file.read(BEGINNING).partition(b"\n")
    if not first.lstrip(b"\xef\xbb\xbf").startswith(b"{") or not second.lstrip().startswith(b"{"):
        return False
    try:
        return isinstance(json.loads(first.decode("utf-8-sig")), dict)
    except (ValueError, RecursionError):
        return False


@container("lines", "JSON lines", _holds)
def entries(path: Path) -> Iterator[Entry]:
    """Objects, one a line."""
    for number, line in numbered_lines(path):
        yield Entry(path, f"line {number}", partial(parse_object, line))
