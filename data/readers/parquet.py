"""Parquet of one's own, with the pictures in it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..own_rows import OwnRow, make_row
from ..pictures import PictureFolders, TablePicture
from ..rows import BadRow, Row, row_or_fault
from ..table_cells import parquet_file
from .registry import reader

BATCH_ROWS = 1000


def _files(path: Path) -> list[Path]:
    return sorted(path.glob("*.parquet")) if path.is_dir() else [path] if path.suffix == ".parquet" else []


def _recognises(path: Path) -> bool:
    if not (files := _files(path)):
        return False
    columns = set(parquet_file(files[0]).schema_arrow.names)
    return not columns.isdisjoint({"images", "image"}) and not columns.isdisjoint(
        {"messages", "question", "caption", "text"}
    )


@reader("parquet", "Parquet with images and messages, or image and caption or question and answer", _recognises)
def read_parquet(path: Path, folders: PictureFolders, source: str) -> Iterator[Row | BadRow]:
    """Parquet with `messages` and `images` (lists of `datasets.Image`), or `image` and `caption` / `question` and
    `answer`, as trainers of the Hub exchange them; one file, or every file of a folder. Pictures stay in the file
    until they are needed.

    Raises:
        ValueError: A file is damaged, or its columns hold no pictures.
    """
    for file in _files(path):
        yield from _read_table(file, path, source)


def _read_table(file: Path, path: Path, source: str) -> Iterator[Row | BadRow]:
    table = _opened(file)
    names = table.schema_arrow.names
    column = "images" if "images" in names else "image"
    if column not in names:
        raise ValueError(f"{file} has no column `images` or `image`; it has {', '.join(names)}.")
    kind = table.schema_arrow.field(column).type
    several = column == "images"
    if not _holds_pictures(getattr(kind, "value_type", None) if several else kind):
        raise ValueError(f"{file}: the column `{column}` holds no pictures as `datasets` stores them.")

    def read(number: int, entry: object, positions: list[int | None]) -> Row:
        row = OwnRow.model_validate(entry)
        pictures = [TablePicture(str(file), number, column, position) for position in positions]
        names = [f"{file.stem}/{number}.{position or 0}" for position in positions]
        return make_row(row, pictures, row.ids(names, path), source)

    for number, (entry, count) in enumerate(_entries(file, table, column, several)):
        positions = list(range(count)) if several else [None]
        yield row_or_fault(file, f"row {number}", read, number, entry, positions)


def _opened(file: Path) -> Any:
    try:
        return parquet_file(file)
    except (ValueError, OSError) as error:  # of pyarrow, whose own words name no file
        raise ValueError(f"{file} cannot be read as Parquet ({type(error).__name__}): is it whole?") from None


def _holds_pictures(kind: Any) -> bool:
    """Whether values of a type may be pictures: `{"bytes", "path"}`, or one of the two."""
    import pyarrow as pa

    names = (
        {kind.field(index).name for index in range(kind.num_fields)}
        if pa.types.is_struct(kind or pa.null())
        else set()
    )
    return bool(names & {"bytes", "path"}) or kind in (pa.binary(), pa.large_binary(), pa.string(), pa.large_string())


def _entries(file: Path, table: Any, column: str, several: bool) -> Iterator[tuple[dict[str, Any], int]]:
    """What stands in each row beside its pictures, and how many these are. Of the pictures no bytes are read where
    their number is told by another part of them."""
    leaves = [table.schema.column(index).path for index in range(len(table.schema))]
    of_pictures = [leaf for leaf in leaves if leaf.partition(".")[0] == column]
    wanted = [leaf for leaf in leaves if leaf not in of_pictures]
    wanted += sorted(of_pictures, key=lambda leaf: leaf.endswith(".bytes"))[:1] if several else []
    try:
        for batch in table.iter_batches(BATCH_ROWS, columns=wanted):
            counts = [0] * len(batch)
            if several:
                counts = batch.column(column).value_lengths().to_pylist()
                batch = batch.drop_columns([column])
            entries = batch.to_pylist() if batch.num_columns else [{}] * len(counts)
            yield from ((entry, count or 0) for entry, count in zip(entries, counts, strict=True))
    except (ValueError, OSError) as error:
        raise ValueError(f"{file} cannot be read as Parquet ({type(error).__name__}): is it whole?") from None
