"""Folders of pictures with `metadata.jsonl`."""

from collections.abc import Iterator
from pathlib import Path

from .lines import entries as lines
from .registry import Entry, container

METADATA = "metadata.jsonl"


def _root(path: Path) -> Path:
    return path if path.is_dir() else path.parent


@container(
    "imagefolder",
    f"a folder of pictures with {METADATA}",
    lambda path: (path / METADATA).is_file() or path.name == METADATA,
    root=_root,
)
def entries(path: Path) -> Iterator[Entry]:
    """The `imagefolder` layout of `datasets`: pictures and `metadata.jsonl`."""
    yield from lines(_root(path) / METADATA)
