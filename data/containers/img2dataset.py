"""What img2dataset has downloaded into files or Parquet; its tars are read by the reader `webdataset`."""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..addresses import address_key
from ..downloads import Shard, picture_of, shard_of, shard_rows, shard_tables
from ..ids import known_id
from .registry import Entry, container

# What img2dataset writes beside the columns that it was given.
OWN_COLUMNS = {"key", "status", "error_message", "width", "height", "original_width", "original_height", "exif"}
OWN_COLUMNS |= {"md5", "sha256", "sha512"}


def _holds(path: Path) -> bool:
    tables = shard_tables(path)
    if not tables or any(path.glob("*.tar")):
        return False
    try:
        return shard_of(tables[0]) is not None
    except ValueError:
        return False


@container("img2dataset", "what img2dataset downloads as files or Parquet", _holds, files=shard_tables)
def img2dataset_rows(path: Path) -> Iterator[Entry]:
    """Successful downloads of `--output_format files` (`00000/000000000.jpg` beside `00000.parquet`) or `parquet`
    (`jpg` in `00000.parquet`), each with its caption and the columns of `--save_additional_columns`; layout as of
    rom1504/img2dataset, `README.md` and `writer.py`.

    Raises:
        ValueError: A Parquet file is damaged or of another layout.
    """
    for table in shard_tables(path):
        shard = shard_of(table)
        if shard is None:
            raise ValueError(f"{table} has no pictures beside it: neither {table.stem}.tar nor a folder {table.stem}.")
        for number, row in shard_rows(table):
            yield Entry(table, f"row {number}", functools.partial(_load, row, shard, number))


def _load(row: dict[str, Any], shard: Shard, number: int) -> dict[str, Any]:
    address = row.get(address_key(row) or "")
    known = known_id(address) if isinstance(address, str) else None
    entry = {key: value for key, value in row.items() if key not in OWN_COLUMNS and key != "url"}
    # As Parquet the caption stands in a column of its own beside the address's.
    caption = {"caption": row["txt"]} if row.get("caption") is None and row.get("txt") else {}
    picture = {"image": picture_of(shard, number, int(row["key"]))}
    return entry | caption | picture | ({"image_ids": [known]} if known else {})
