"""STAIR Captions and YJ Captions: COCO's caption layout, several reference captions a picture."""

from collections.abc import Iterator
from pathlib import Path

from ...data.ids import canonical_id
from ...data.json_files import read_json
from ...data.pictures import PictureFolders, coco_names
from ..items import Item, ask
from .registry import Request, benchmark


@benchmark("yj-captions", dataset="YJ Captions 26k", scoring="captions", max_new_tokens=64)
@benchmark("stair-captions", dataset="STAIR Captions v1.2 val", scoring="captions", max_new_tokens=64)
def read_captions(path: Path, folders: PictureFolders, request: Request) -> Iterator[Item]:
    """One item a picture of a COCO caption file, `{"images": […], "annotations": […]}`: STAIR Captions v1.0 to v1.2,
    plain or tokenized, and YJ Captions 26k. The article's prompt is the picture alone.

    Raises:
        ValueError: The file is of another layout.
    """
    try:
        content = read_json(path)
        names = {image["id"]: image["file_name"] for image in content["images"]}
        captions: dict[int, list[str]] = {}
        for annotation in content["annotations"]:
            captions.setdefault(annotation["image_id"], []).append(annotation["caption"].strip())
    except (KeyError, TypeError, ValueError):
        raise ValueError(
            f"{path} is not a COCO caption file: it needs `images` with id and file_name, and `annotations` with "
            "image_id and caption."
        ) from None
    for number in names:
        if number in captions:
            picture = folders.find(names[number], *coco_names(number))
            references = tuple(captions[number])
            yield Item(str(number), ask(request.prompt), (picture,), references, (canonical_id(number),))
