"""A JSON array."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from ..json_entries import list_entries
from ..json_files import begins_with
from .registry import Entry, container


@container("array", "a JSON array", lambda path: begins_with(path, "["))
def entries(path: Path) -> Iterator[Entry]:
    """Objects in one array.

    Raises:
        ValueError: The file is not a JSON array.
    """
    for number, value in enumerate(list_entries(path)):
        name = value.get("id") if isinstance(value, dict) else None
        yield Entry(path, f"row {number}" if name is None else f"row {number} (id {name!r:.40})", partial(_row, value))


def _row(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("is not a JSON object.")
    return value
