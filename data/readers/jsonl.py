"""JSON lines of one's own."""

from collections.abc import Iterator
from pathlib import Path

from ..json_files import first_keys, numbered_lines, parse_object
from ..own_rows import read_row
from ..pictures import PictureFolders
from ..rows import BadRow, Row, row_or_fault
from .registry import reader


def _recognises(path: Path) -> bool:
    keys = first_keys(path)
    return bool(keys & {"messages", "image", "images", "question", "caption"}) and "conversations" not in keys


@reader("jsonl", "JSON lines of one's own: image and caption, question and answer, or messages", _recognises)
def read_jsonl(path: Path, folders: PictureFolders, source: str) -> Iterator[Row | BadRow]:
    """Lines `{"image", "caption"}`, `{"image", "question", "answer"}` or `{"images": […], "messages": […]}`.

    A line may carry `image_id` or `image_ids`, such as `coco:9`; see [`row_ids`].
    """
    yield from read_lines(path, folders, source, path)


def read_lines(path: Path, folders: PictureFolders, source: str, named_by: Path) -> Iterator[Row | BadRow]:
    """Rows of a JSON-lines file, whose pictures' ids begin with the name of `named_by`."""

    def read(line: bytes) -> Row:
        return read_row(parse_object(line), folders, named_by, source)

    for number, line in numbered_lines(path):
        yield row_or_fault(path, f"line {number}", read, line)
