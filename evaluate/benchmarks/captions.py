"""STAIR Captions and YJ Captions: COCO's caption layout, several reference captions a picture."""

from collections.abc import Iterator
from pathlib import Path

from ...data.fields import checked
from ...data.ids import canonical_id
from ...data.json_entries import lists_entries
from ...data.pictures import PictureFolders, coco_names
from ...data.readers.coco_captions import CocoCaption, CocoImage
from ..items import Item, ask
from .registry import Request, benchmark


@benchmark("yj-captions", dataset="YJ Captions 26k", scoring="captions", max_new_tokens=64)
@benchmark("stair-captions", dataset="STAIR Captions v1.2 val", scoring="captions", max_new_tokens=64)
def read_captions(path: Path, folders: PictureFolders, request: Request) -> Iterator[Item]:
    """One item a picture of a COCO caption file, `{"images": […], "annotations": […]}`: STAIR Captions v1.0 to v1.2,
    plain or tokenized, and YJ Captions 26k. The article's prompt is the picture alone.

    Raises:
        ValueError: The file is of another layout; the message names entry and field.
    """
    images, annotations = lists_entries(path, "images", "annotations")
    names: dict[int, str] = {}
    for number, each in enumerate(images):
        image = checked(CocoImage, each, path, f"image {number}")
        names[image.id] = image.file_name
    captions: dict[int, list[str]] = {}
    for number, each in enumerate(annotations):
        annotation = checked(CocoCaption, each, path, f"annotation {number}")
        captions.setdefault(annotation.image_id, []).append(annotation.caption.strip())
    for number, name in names.items():
        if number in captions:
            picture = folders.find(name, *coco_names(number))
            references = tuple(captions[number])
            yield Item(str(number), ask(request.prompt), (picture,), references, (canonical_id(number),))
