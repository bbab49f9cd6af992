"""Parquet, with pictures in it or beside it."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from ..pictures import TablePicture
from .registry import Entry, container


def _files(path: Path) -> list[Path]:
    return sorted(path.glob("*.parquet")) if path.is_dir() else [path] if path.suffix == ".parquet" else []


@container("parquet", "Parquet", lambda path: bool(_files(path)))
def entries(path: Path) -> Iterator[Entry]:
    """Rows of one file, or of every file of a folder. Pictures stay in the file until they are needed.

    Raises:
        ValueError: A file is damaged.
    """
    for file in _files(path):
        yield from _entries(file)


def _entries(file: Path) -> Iterator[Entry]:
    from datasets import Image, List, load_dataset

    try:
        table = load_dataset("parquet", data_files=str(file), split="train")
    except Exception as error:  # of several libraries; their own words name their caches
        raise ValueError(f"{file} cannot be read as Parquet ({type(error).__name__}): is it whole?") from None
    pictures: dict[str, bool] = {}
    for column, feature in table.features.items():
        several = isinstance(feature, List)
        if _is_picture(feature.feature if several else feature):
            pictures[column] = several
            # Undecoded, a damaged picture is one bad picture and not the end of the iteration.
            table = table.cast_column(column, List(Image(decode=False)) if several else Image(decode=False))
    texts = table.select_columns([name for name in table.column_names if name not in pictures])
    cells = table.select_columns(list(pictures))
    for number, row in enumerate(texts):
        shown = cells[number] if pictures else {}
        yield Entry(file, f"row {number}", partial(_row, row, shown, file, number))


def _is_picture(feature: Any) -> bool:
    from datasets import Image

    is_struct = isinstance(feature, dict) and set(feature) == {"bytes", "path"}
    return isinstance(feature, Image) or is_struct or getattr(feature, "dtype", None) == "binary"


def _row(row: dict[str, Any], shown: dict[str, Any], file: Path, number: int) -> dict[str, Any]:
    def picture(column: str, position: int | None) -> TablePicture:
        return TablePicture(str(file), number, column, position)

    row = dict(row)
    for column, cell in shown.items():
        if isinstance(cell, list):
            row[column] = [picture(column, position) for position in range(len(cell))]
        else:
            row[column] = None if cell is None else picture(column, None)
    return row
