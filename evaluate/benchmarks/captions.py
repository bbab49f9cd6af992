"""STAIR Captions and YJ Captions: COCO's caption layout, several reference captions a picture."""

import json
from collections.abc import Iterator
from pathlib import Path

from ...data.ids import canonical_id
from ..items import Item, PictureFolders, ask, require_pictures


def coco_names(number: int) -> list[str]:
    """File names of a COCO picture: 2014's in either split, and 2017's."""
    return [*(f"COCO_{split}2014_{number:012d}.jpg" for split in ("val", "train")), f"{number:012d}.jpg"]


def read_captions(
    path: Path, folders: PictureFolders, prompt: str = "", only: set[str] | None = None
) -> Iterator[Item]:
    """One item a picture of a COCO caption file, `{"images": […], "annotations": […]}`: STAIR Captions v1.0 to v1.2,
    plain or tokenized, and YJ Captions 26k.

    Args:
        prompt: What is asked; the article's prompt is the picture alone.
        only: Image ids to be kept, for instance those of another split of COCO.

    Raises:
        ValueError: The file is of another layout, or none of its pictures has a caption.
        FileNotFoundError: Pictures are missing.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        names = {image["id"]: image["file_name"] for image in content["images"]}
        captions: dict[int, list[str]] = {}
        for annotation in content["annotations"]:
            captions.setdefault(annotation["image_id"], []).append(annotation["caption"].strip())
    except (KeyError, TypeError, ValueError):
        raise ValueError(
            f"{path} is not a COCO caption file: it needs `images` with id and file_name, and `annotations` with "
            "image_id and caption."
        ) from None
    chosen = {number: names[number] for number in names if number in captions}
    if only is not None:
        chosen = {number: name for number, name in chosen.items() if canonical_id(number) in only}
    if not chosen:
        raise ValueError(f"{path} holds no picture with a caption" + (" and a wanted id." if only else "."))
    found = {name: folders.find(name, *coco_names(number)) for number, name in chosen.items()}
    pictures = require_pictures(found, folders)
    for number, name in chosen.items():
        references = tuple(captions[number])
        yield Item(str(number), ask(prompt), (pictures[name],), references, (canonical_id(number),))
