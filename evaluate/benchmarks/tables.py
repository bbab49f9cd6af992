"""Parquet files as their owners publish them on the Hub."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...data.pictures import TablePicture


def parquet_files(path: Path, split: str = "test") -> list[Path]:
    """The Parquet files of a split: `path` itself, or those below the folder `path` whose names begin with it.

    Raises:
        FileNotFoundError: There are none.
    """
    files = [path] if path.is_file() else sorted(path.rglob(f"{split}*.parquet"))
    if not files:
        raise FileNotFoundError(f"{path} holds no {split}*.parquet.")
    return files


def rows(path: Path, needed: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Rows of a Parquet file. Pictures, columns of `{"bytes", "path"}`, become [`TablePicture`]s, or `None` where a
    cell is empty; cells with the same bytes become the same picture.

    Raises:
        ValueError: A needed column is missing.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    if missing := sorted(set(needed) - set(table.column_names)):
        raise ValueError(f"{path} lacks the columns {', '.join(missing)}; it has {', '.join(table.column_names)}.")
    kinds = {field.name: field.type for field in table.schema}
    pictures = [
        name for name, kind in kinds.items() if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    ]
    plain = table.drop_columns(pictures)
    first: dict[bytes, TablePicture] = {}
    for number in range(table.num_rows):
        row = {name: plain[name][number].as_py() for name in plain.column_names}
        for name in pictures:
            cell = table[name][number]
            if not cell.is_valid:
                row[name] = None
                continue
            content = cell.as_py()
            digest = hashlib.sha256(content["bytes"] or str(content.get("path")).encode()).digest()
            row[name] = first.setdefault(digest, TablePicture(str(path), number, name, None, table))
        yield row


def cell_name(picture: TablePicture) -> str:
    """What a picture is called within its benchmark, wherever the file lies."""
    return f"{Path(picture.path).name}#{picture.row}.{picture.column}"
