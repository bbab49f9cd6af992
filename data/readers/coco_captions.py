"""COCO-style captions: STAIR Captions and YJ Captions."""

from collections.abc import Iterator
from pathlib import Path

from ..json_files import begins_with, mentions, read_json
from ..pictures import PictureFolders, coco_names
from ..rows import Row, caption_row, naming_place
from .registry import reader


def _recognises(path: Path) -> bool:
    return begins_with(path, "{") and mentions(path, "images", "annotations", "caption")


@reader("coco-captions", "STAIR Captions, YJ Captions and others in COCO's layout", _recognises)
def read_coco_captions(path: Path, folders: PictureFolders, source: str) -> Iterator[Row]:
    """STAIR Captions v1.0-1.2, plain or tokenized, and YJ Captions: `{"images": […], "annotations": […]}`.

    Captions are joined to pictures by id. A picture is looked for under its `file_name` and under the names that COCO
    2014 and 2017 give it.

    Raises:
        ValueError: A caption names a picture that the file does not list, or lacks a key.
    """
    content = read_json(path)
    with naming_place(path, "images"):
        names = {image["id"]: image["file_name"] for image in content["images"]}
    pictures = {number: folders.find(name, *coco_names(number)) for number, name in names.items()}
    for annotation in content["annotations"]:
        with naming_place(path, f"annotation {annotation.get('id')}"):
            number = annotation["image_id"]
            row = caption_row(annotation["caption"], pictures[number], f"coco:{number}", source)
        yield row
