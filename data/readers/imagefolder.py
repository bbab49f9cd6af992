"""Folders of pictures with `metadata.jsonl`."""

from collections.abc import Iterator
from pathlib import Path

from ..pictures import PictureFolders
from ..rows import BadRow, Row
from .jsonl import read_lines
from .registry import reader

METADATA = "metadata.jsonl"


def _recognises(path: Path) -> bool:
    return (path / METADATA).is_file() or path.name == METADATA


@reader("imagefolder", f"a folder of pictures with {METADATA}", _recognises)
def read_imagefolder(path: Path, folders: PictureFolders, source: str) -> Iterator[Row | BadRow]:
    """The `imagefolder` layout of `datasets`: pictures and `metadata.jsonl` with `file_name` and `text`, `caption`,
    `question` and `answer`, or `messages`.
    """
    folder = path if path.is_dir() else path.parent
    yield from read_lines(folder / METADATA, folders, source, folder)
