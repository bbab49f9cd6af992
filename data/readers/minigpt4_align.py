"""MiniGPT-4's stage-2 captions."""

from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel

from ..fields import Id
from ..json_entries import lists_entries
from ..json_files import begins_with, mentions
from ..pictures import PictureFolders
from ..rows import BadRow, Row, caption_row, row_or_fault
from .registry import reader

CAPTIONS = "filter_cap.json"


class AlignedCaption(BaseModel):
    """A caption of the file."""

    image_id: Id
    caption: str


def _recognises(path: Path) -> bool:
    if path.is_dir():
        return (path / CAPTIONS).is_file()
    return begins_with(path, "{") and mentions(path, "annotations", "caption") and not mentions(path, "images")


@reader("minigpt4-align", f"MiniGPT-4's cc_sbu_align, {CAPTIONS}", _recognises)
def read_align(path: Path, folders: PictureFolders, source: str) -> Iterator[Row | BadRow]:
    """MiniGPT-4's stage 2, `cc_sbu_align`: `filter_cap.json` and `image/<id>.jpg` beside it.

    Raises:
        ValueError: The file is of another layout.
    """
    file = path / CAPTIONS if path.is_dir() else path

    def read(entry: object) -> Row:
        found = AlignedCaption.model_validate(entry)
        name = f"{found.image_id}.jpg"
        return caption_row(
            found.caption, folders.find(f"image/{name}", name), f"cc_sbu_align:{found.image_id}", source
        )

    (annotations,) = lists_entries(file, "annotations")
    for number, annotation in enumerate(annotations):
        yield row_or_fault(file, f"annotation {number}", read, annotation)
