"""JSON lines of one's own."""

from collections.abc import Iterator
from pathlib import Path

from ..json_files import first_keys, json_lines
from ..own_rows import read_row
from ..pictures import PictureFolders
from ..rows import Row, naming_place
from .registry import reader


def _recognises(path: Path) -> bool:
    keys = first_keys(path)
    return bool(keys & {"messages", "image", "images", "question", "caption"}) and "conversations" not in keys


@reader("jsonl", "JSON lines of one's own: image and caption, question and answer, or messages", _recognises)
def read_jsonl(path: Path, folders: PictureFolders, source: str) -> Iterator[Row]:
    """Lines `{"image", "caption"}`, `{"image", "question", "answer"}` or `{"images": […], "messages": […]}`.

    A line may carry `image_id` or `image_ids`, such as `coco:9`; see [`row_ids`].

    Raises:
        ValueError: A line lacks something; the message names it.
    """
    for number, entry in json_lines(path):
        with naming_place(path, f"line {number}"):
            row = read_row(entry, folders, path, source)
        yield row
