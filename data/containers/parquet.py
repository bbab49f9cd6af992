"""Parquet, as `datasets` and the Hub write it."""

from collections.abc import Iterator
from pathlib import Path

from ..arrow_files import table_rows
from ..splits import training_parts
from .registry import Entry, container


def _files(path: Path) -> list[Path]:
    """Shards of a folder, or of its folder `data`, where the Hub keeps them; or the file."""
    if not path.is_dir():
        return [path] if path.suffix == ".parquet" else []
    return sorted(path.glob("*.parquet")) or sorted((path / "data").glob("*.parquet"))


@container("parquet", "Parquet, a file or a folder of them", lambda path: bool(_files(path)), files=_files)
def parquet_rows(path: Path) -> Iterator[Entry]:
    """Rows of a Parquet file, or of every file of a folder: of its part `train` where it has several parts. Pictures
    stay in the file until they are needed.

    Raises:
        ValueError: A file is damaged.
    """
    for file in training_parts(_files(path)):
        for number, entry in table_rows(file):
            yield Entry(file, f"row {number}", entry.copy)
