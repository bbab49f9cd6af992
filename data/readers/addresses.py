"""Tables of picture addresses, joined with what img2dataset has downloaded."""

from collections.abc import Iterator
from pathlib import Path

from ..addresses import address_key, download_advice
from ..downloads import Downloads, downloads
from ..ids import image_id
from ..pictures import FilePicture, Picture, PictureFolders
from ..recognition import seen_keys
from ..row_context import RowContext, rows_in
from ..rows import BadRow, Row
from ..splits import say_once
from .registry import layout_of, reader

PICTURE_KEYS = {"image", "images", "file_name", "file_names"}


def _recognises(path: Path) -> bool:
    return _as_with_pictures(seen_keys(path)) is not None


def _as_with_pictures(keys: frozenset[str]) -> frozenset[str] | None:
    """The keys as they would be with pictures in place of addresses; `None` where there are no addresses, or more."""
    column = None if PICTURE_KEYS & keys else address_key(keys)
    changed = {{"TEXT": "text"}.get(key, key) for key in keys} - {column} | {"image"}
    return frozenset(changed) if column and layout_of(frozenset(changed)) else None


@reader("addresses", "tables of picture addresses (DEJIMA, WAON, LAION), once img2dataset has downloaded", _recognises)
def read_addresses(path: Path, folders: PictureFolders, source: str) -> Iterator[Row | BadRow]:
    """A table, JSON lines, JSON, CSV, TSV or Parquet, with addresses of pictures under `url` (or `image_url`, `URL` …)
    and, in the layout of any other row, a caption, a question or a conversation, such as llm-jp/WAON (`url`,
    `caption`, `page_title` …) and MIL-UT/DEJIMA-dataset.

    No address is ever opened. Folders with pictures are those into which img2dataset has downloaded (`--output_format`
    webdataset, files or parquet); rows are joined to them by address, whatever of the table was downloaded. Rows whose
    pictures were not are left out, which a line counts. Ids are COCO's or Visual Genome's where an address tells one,
    else the address. Without folders, as for lists of ids, pictures keep their addresses for names.

    Raises:
        ValueError: Nothing of the table is downloaded; the message has the command of img2dataset for its columns.
    """
    keys = seen_keys(path)
    column, changed = address_key(keys), _as_with_pictures(keys)
    layout = layout_of(changed) if changed else None
    if column is None or layout is None or layout.row is None:
        raise ValueError(f"{path} is no table of picture addresses beside captions, questions or conversations.")
    found = downloads(folders.folders) if folders.folders else None
    if found is not None and not len(found):
        raise ValueError(download_advice(path, keys))
    joined = _Join(found, column)

    def read(entry: dict, at: RowContext) -> list[Row | BadRow]:
        address = entry.get(column)
        if not isinstance(address, str) or not address.strip():
            raise ValueError(f"`{column}` is missing.")
        picture = joined.picture(address)
        if picture is None:
            return []
        rest = {{"TEXT": "text"}.get(key, key): value for key, value in entry.items() if key != column}
        rows = layout.row(rest | {"image": picture, "image_ids": [image_id(address, path)]}, at)
        return rows if isinstance(rows, list) else [rows]

    yield from rows_in(path, read, RowContext(path, folders, source))
    if joined.missing and not joined.there:
        raise ValueError(f"None of {joined.missing:,} addresses was found. {download_advice(path, keys)}")
    if joined.missing:
        say_once(
            f"{path}: {joined.there:,} of {joined.there + joined.missing:,} rows have pictures that were downloaded; "
            "the others are left out."
        )


class _Join:
    """Pictures of addresses, and how many were found."""

    def __init__(self, found: Downloads | None, column: str):
        self.found, self.column = found, column
        self.there = self.missing = 0

    def picture(self, address: str) -> Picture | None:
        picture = FilePicture(address) if self.found is None else self.found.find(address)
        self.there += picture is not None
        self.missing += picture is None
        return picture
