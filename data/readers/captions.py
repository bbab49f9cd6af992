"""COCO-style captions (STAIR Captions, YJ Captions) and MiniGPT-4's stage-2 captions."""

import json
from collections.abc import Iterator
from pathlib import Path

from ..pictures import PictureRoots
from ..rows import Row, caption_row


def coco_names(number: int) -> list[str]:
    """The file names a COCO picture goes by: 2014's, in either split, and 2017's; each bare or in its folder."""
    names = [f"COCO_{split}2014_{number:012d}.jpg" for split in ("train", "val")] + [f"{number:012d}.jpg"]
    folders = ["train2014", "val2014", "train2017", "val2017"]
    return names + [f"{folder}/{name}" for folder in folders for name in names]


def read_coco_captions(path: Path, roots: PictureRoots, source: str) -> Iterator[Row]:
    """STAIR Captions v1.0-1.2, plain or tokenized, and YJ Captions: `{"images": […], "annotations": […]}`.

    Captions are joined to pictures by id. A picture is looked for under its `file_name` and under the names that COCO
    2014 and 2017 give it.

    Raises:
        ValueError: A caption names a picture that the file does not list, or lacks a key.
    """
    content = json.loads(path.read_text(encoding="utf-8-sig"))
    names = {image["id"]: image["file_name"] for image in content["images"]}
    pictures = {number: roots.find(name, *coco_names(number)) for number, name in names.items()}
    for annotation in content["annotations"]:
        try:
            number, caption = annotation["image_id"], annotation["caption"]
            yield caption_row(caption, pictures[number], f"coco:{number}", source)
        except (KeyError, ValueError) as error:
            raise ValueError(f"{path}, annotation {annotation.get('id')}: {_say(error)}") from None


def read_align(path: Path, roots: PictureRoots, source: str) -> Iterator[Row]:
    """MiniGPT-4's stage 2, `cc_sbu_align`: `filter_cap.json` and `image/<id>.jpg` beside it.

    Raises:
        ValueError: A row lacks a key.
    """
    file = path / "filter_cap.json" if path.is_dir() else path
    for number, row in enumerate(json.loads(file.read_text(encoding="utf-8-sig"))["annotations"]):
        try:
            name = f"{row['image_id']}.jpg"
            picture = roots.find(f"image/{name}", name)
            yield caption_row(row["caption"], picture, f"cc_sbu_align:{row['image_id']}", source)
        except (KeyError, ValueError) as error:
            raise ValueError(f"{file}, annotation {number}: {_say(error)}") from None


def _say(error: Exception) -> str:
    return f"{error} is missing." if isinstance(error, KeyError) else str(error)
