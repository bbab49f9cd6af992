"""Image ids in one spelling, and which Visual Genome pictures are COCO pictures under another number."""

import json
import os
from pathlib import Path
from typing import Any


def canonical_id(image_id: object, namespace: str = "coco") -> str:
    """`9`, `9.0`, `"000000000009"` and `COCO_val2014_000000000009.jpg` are all `coco:9`."""
    text = str(image_id).strip()
    prefix, separator, number = text.rpartition(":")
    stem = number.removesuffix(".0").rpartition("/")[2].removesuffix(".jpg").rpartition("_")[2]
    number = str(int(stem)) if stem.isdigit() else number
    return f"{prefix if separator else namespace}:{number}"


def coco_twin(coco_id: Any) -> str | None:
    """The COCO id in a `coco_id` column, which holds numbers, `None` and NaN; `None` where there is none."""
    return canonical_id(coco_id) if coco_id is not None and coco_id == coco_id else None


def read_twins(path: str | os.PathLike) -> dict[str, str]:
    """`vg:…` to `coco:…` of the pictures that are in both, from Visual Genome's `image_data.json`.

    About half of Visual Genome's pictures are COCO's, so captions of one leak into questions on the other.

    Raises:
        ValueError: The file is not `image_data.json`.
    """
    try:
        entries = json.loads(Path(path).read_text(encoding="utf-8-sig"))
        pairs = [(f"vg:{entry['image_id']}", coco_twin(entry["coco_id"])) for entry in entries]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} is not Visual Genome's image_data.json: [{{image_id, coco_id}}, …].") from None
    return {own: twin for own, twin in pairs if twin is not None}
