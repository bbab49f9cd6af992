"""COCO-style captions: STAIR Captions and YJ Captions."""

from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel

from ..fields import Name, Number
from ..json_entries import lists_entries
from ..json_files import begins_with, mentions
from ..pictures import FilePicture, PictureFolders, coco_names
from ..rows import BadRow, Row, caption_row, row_or_fault
from .registry import reader


class CocoImage(BaseModel):
    """A picture of the file."""

    id: Number
    file_name: Name


class CocoCaption(BaseModel):
    """A caption of one of them."""

    image_id: Number
    caption: str


def _recognises(path: Path) -> bool:
    return begins_with(path, "{") and mentions(path, "images", "annotations", "caption")


@reader("coco-captions", "STAIR Captions, YJ Captions and others in COCO's layout", _recognises)
def read_coco_captions(path: Path, folders: PictureFolders, source: str) -> Iterator[Row | BadRow]:
    """STAIR Captions v1.0-1.2, plain or tokenized, and YJ Captions: `{"images": […], "annotations": […]}`.

    Captions are joined to pictures by id. A picture is looked for under its `file_name` and under the names that COCO
    2014 and 2017 give it.

    Raises:
        ValueError: The file is of another layout.
    """
    images, annotations = lists_entries(path, "images", "annotations")
    pictures: dict[int, FilePicture] = {}
    for place, each in enumerate(images):
        image = row_or_fault(path, f"image {place}", CocoImage.model_validate, each)
        if isinstance(image, BadRow):
            yield image
        else:
            pictures[image.id] = folders.find(image.file_name, *coco_names(image.id))

    def read(entry: object) -> Row:
        found = CocoCaption.model_validate(entry)
        if found.image_id not in pictures:
            raise ValueError(f"`image_id` {found.image_id} is none of the file's images.")
        return caption_row(found.caption, pictures[found.image_id], f"coco:{found.image_id}", source)

    for place, each in enumerate(annotations):
        name = each.get("id", place) if isinstance(each, dict) else place
        yield row_or_fault(path, f"annotation {name!r:.40}", read, each)
