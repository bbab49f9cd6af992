"""Parquet files as their owners publish them on the Hub."""

import base64
import binascii
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict

from ...data.fields import checked
from ...data.pictures import MemoryPicture, TablePicture


def parquet_files(path: Path, split: str = "test") -> list[Path]:
    """The Parquet files of a split: `path` itself, or those below the folder `path` whose names begin with it.

    Raises:
        FileNotFoundError: There are none.
    """
    files = [path] if path.is_file() else sorted(path.rglob(f"{split}*.parquet"))
    if not files:
        raise FileNotFoundError(f"{path} holds no {split}*.parquet.")
    return files


def configuration_files(path: Path, name: str) -> list[Path]:
    """The Parquet files of a configuration: `path` itself, or those below the folder `path` on whose way its name
    stands, of whatever split.

    Raises:
        FileNotFoundError: There are none.
    """
    files = parquet_files(path, split="")
    if path.is_dir():
        files = [file for file in files if name in file.relative_to(path).as_posix()]
    if not files:
        raise FileNotFoundError(f"{path} holds no Parquet file of the configuration {name}.")
    return files


class TableRow(BaseModel):
    """A row of a Parquet file: its columns are the fields of a sub-class, further ones are passed over."""

    model_config = ConfigDict(arbitrary_types_allowed=True)


Checked = TypeVar("Checked", bound=TableRow)


def rows(path: Path, schema: type[Checked]) -> Iterator[Checked]:
    """Rows of a Parquet file. Pictures, columns of `{"bytes", "path"}` or of lists of them, become [`TablePicture`]s,
    or `None` where a cell is empty; cells with the same bytes become the same picture.

    Raises:
        ValueError: The file is damaged, a needed column is missing, or a cell holds something else than belongs there;
            the message names file, row and column.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (ValueError, OSError):  # of pyarrow, whose own words name no file
        raise ValueError(f"{path} cannot be read as Parquet: is it whole?") from None
    named = {field.alias or name for name, field in schema.model_fields.items()}
    needed = {field.alias or name for name, field in schema.model_fields.items() if field.is_required()}
    if missing := sorted(needed - set(table.column_names)):
        raise ValueError(f"{path} lacks the columns {', '.join(missing)}; it has {', '.join(table.column_names)}.")
    table = table.select([name for name in table.column_names if name in named])
    single = [each.name for each in table.schema if _holds_pictures(each.type)]
    several = [
        each.name for each in table.schema if pa.types.is_list(each.type) and _holds_pictures(each.type.value_type)
    ]
    plain = table.drop_columns([*single, *several])
    first: dict[bytes, TablePicture] = {}

    def picture(content: dict | None, number: int, name: str, position: int | None) -> TablePicture | None:
        if content is None:
            return None
        digest = hashlib.sha256(content["bytes"] or str(content.get("path")).encode()).digest()
        return first.setdefault(digest, TablePicture(str(path), number, name, position))

    for number in range(table.num_rows):
        row = {name: plain[name][number].as_py() for name in plain.column_names}
        for name in single:
            row[name] = picture(table[name][number].as_py(), number, name, None)
        for name in several:
            cells = table[name][number].as_py()
            row[name] = cells and [picture(cell, number, name, place) for place, cell in enumerate(cells)]
        yield checked(schema, row, path, f"row {number}")


def _holds_pictures(kind: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0


def encoded_picture(text: str, name: str) -> MemoryPicture:
    """A picture that a table holds as base64.

    Raises:
        ValueError: It is none.
    """
    try:
        return MemoryPicture(name, base64.b64decode(text, validate=True))
    except binascii.Error:
        raise ValueError(f"{name} is no base64.") from None


def cell_name(picture: TablePicture) -> str:
    """What a picture is called within its benchmark, wherever the file lies."""
    return picture.name.removeprefix(str(Path(picture.path).parent)).lstrip("/\\")
