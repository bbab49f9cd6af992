"""MiniGPT-4's stage-2 captions."""

from collections.abc import Iterator
from pathlib import Path

from ..json_files import begins_with, mentions, read_json
from ..pictures import PictureFolders
from ..rows import Row, caption_row, naming_place
from .registry import reader

CAPTIONS = "filter_cap.json"


def _recognises(path: Path) -> bool:
    if path.is_dir():
        return (path / CAPTIONS).is_file()
    return begins_with(path, "{") and mentions(path, "annotations", "caption") and not mentions(path, "images")


@reader("minigpt4-align", f"MiniGPT-4's cc_sbu_align, {CAPTIONS}", _recognises)
def read_align(path: Path, folders: PictureFolders, source: str) -> Iterator[Row]:
    """MiniGPT-4's stage 2, `cc_sbu_align`: `filter_cap.json` and `image/<id>.jpg` beside it.

    Raises:
        ValueError: A row lacks a key.
    """
    file = path / CAPTIONS if path.is_dir() else path
    for number, annotation in enumerate(read_json(file)["annotations"]):
        with naming_place(file, f"annotation {number}"):
            name = f"{annotation['image_id']}.jpg"
            picture = folders.find(f"image/{name}", name)
            row = caption_row(annotation["caption"], picture, f"cc_sbu_align:{annotation['image_id']}", source)
        yield row
