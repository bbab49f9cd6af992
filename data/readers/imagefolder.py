"""Folders of pictures with `metadata.jsonl`."""

from collections.abc import Iterator
from pathlib import Path

from ..json_files import json_lines
from ..own_rows import read_row
from ..pictures import PictureFolders
from ..rows import Row, naming_place
from .registry import reader

METADATA = "metadata.jsonl"


def _recognises(path: Path) -> bool:
    return (path / METADATA).is_file() or path.name == METADATA


@reader("imagefolder", f"a folder of pictures with {METADATA}", _recognises)
def read_imagefolder(path: Path, folders: PictureFolders, source: str) -> Iterator[Row]:
    """The `imagefolder` layout of `datasets`: pictures and `metadata.jsonl` with `file_name` and `text`, `caption`,
    `question` and `answer`, or `messages`.

    Raises:
        ValueError: A line lacks something; the message names it.
    """
    folder = path if path.is_dir() else path.parent
    for number, entry in json_lines(folder / METADATA):
        with naming_place(folder / METADATA, f"line {number}"):
            row = read_row(entry, folders, folder, source)
        yield row
