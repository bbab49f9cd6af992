"""Tables of picture addresses, joined with what img2dataset has downloaded."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from ..addresses import address_key, download_advice
from ..downloads import downloads
from ..ids import image_id
from ..pictures import FilePicture, PictureFolders
from ..recognition import seen_keys
from ..row_context import RowContext, rows_in
from ..rows import BadRow, Row
from ..splits import say_once
from .registry import Reader, layout_of, reader

# Keys of rows that name their pictures otherwise: Visual Genome's by ids.
PICTURE_KEYS = {"image", "images", "file_name", "file_names", "qas.question"}


def _recognises(path: Path) -> bool:
    return _layout(seen_keys(path)) is not None


def _layout(keys: frozenset[str]) -> Reader | None:
    """The layout of the rows with pictures in place of addresses; `None` where there are no addresses, or more."""
    column = None if PICTURE_KEYS & keys else address_key(keys)
    return layout_of(frozenset(_renamed(dict.fromkeys(keys), column)) | {"image"}) if column else None


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
    column, layout = address_key(keys), _layout(keys)
    if column is None or layout is None or layout.row is None:
        raise ValueError(f"{path} is no table of picture addresses beside captions, questions or conversations.")
    read_row, found = layout.row, downloads(folders.folders) if folders.folders else None
    if found is not None and not len(found):
        raise ValueError(download_advice(path, keys))
    counts = Counter()

    def read(entry: dict, at: RowContext) -> Row | list[Row | BadRow]:
        address = entry.get(column)
        if not isinstance(address, str) or not address.strip():
            raise ValueError(f"`{column}` is missing.")
        picture = FilePicture(address) if found is None else found.find(address)
        counts[picture is not None] += 1
        if picture is None:
            return []
        return read_row(_renamed(entry, column) | {"image": picture, "image_ids": [image_id(address, at.path)]}, at)

    yield from rows_in(path, read, RowContext(path, folders, source))
    if counts[False] and not counts[True]:
        raise ValueError(f"None of {counts[False]:,} addresses was found. {download_advice(path, keys)}")
    if counts[False]:
        say_once(
            f"{path}: {counts[True]:,} of {counts.total():,} rows have pictures that were downloaded; the others are "
            "left out."
        )


def _renamed(entry: dict, column: str) -> dict:
    return {"text" if key == "TEXT" else key: value for key, value in entry.items() if key != column}
