"""Parquet of one's own, with the pictures in it."""

from collections.abc import Iterator
from pathlib import Path

from ..ids import row_ids
from ..own_rows import make_row
from ..pictures import PictureFolders, TablePicture
from ..rows import Row, naming_place
from .registry import reader


def _files(path: Path) -> list[Path]:
    return sorted(path.glob("*.parquet")) if path.is_dir() else [path] if path.suffix == ".parquet" else []


def _recognises(path: Path) -> bool:
    if not (files := _files(path)):
        return False
    import pyarrow.parquet as pq

    columns = set(pq.read_schema(files[0]).names)
    return not columns.isdisjoint({"images", "image"}) and not columns.isdisjoint(
        {"messages", "question", "caption", "text"}
    )


@reader("parquet", "Parquet with images and messages, or image and caption or question and answer", _recognises)
def read_parquet(path: Path, folders: PictureFolders, source: str) -> Iterator[Row]:
    """Parquet with `messages` and `images` (lists of `datasets.Image`), or `image` and `caption` / `question` and
    `answer`, as trainers of the Hub exchange them; one file, or every file of a folder. Pictures stay in the file
    until they are needed.

    Raises:
        ValueError: A row lacks something; the message names it.
    """
    for file in _files(path):
        yield from _read_table(file, path, source)


def _read_table(file: Path, path: Path, source: str) -> Iterator[Row]:
    import pyarrow.compute as pc
    from datasets import Image, List, load_dataset

    table = load_dataset("parquet", data_files=str(file), split="train")
    column = "images" if "images" in table.column_names else "image"
    if column not in table.column_names:
        raise ValueError(f"{file} has no column `images` or `image`; it has {', '.join(table.column_names)}.")
    several = column == "images"
    # Undecoded, a damaged picture is one bad picture and not the end of the iteration.
    table = table.cast_column(column, List(Image(decode=False)) if several else Image(decode=False))
    texts = table.select_columns([name for name in table.column_names if name != column])
    counts = [None] * len(table)
    if several:
        counts = pc.call_function("list_value_length", [table.data.column(column)]).to_pylist()
    for number, (entry, count) in enumerate(zip(texts, counts, strict=True)):
        positions = list(range(count or 0)) if several else [None]
        pictures = [TablePicture(str(file), number, column, position, table.data) for position in positions]
        with naming_place(file, f"row {number}"):
            names = [f"{file.stem}/{number}.{position or 0}" for position in positions]
            row = make_row(entry, pictures, row_ids(entry, names, path), source)
        yield row
