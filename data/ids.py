"""The one rule of a picture's id, and which Visual Genome pictures are COCO pictures under another number.

Ids carry a namespace, `coco:9` or `vg:2317429`; a picture of neither is known by its data file, `captions:a.png`.
Training sets and evaluation sets are held apart by them, so every reader and every list of ids asks this module.
"""

import functools
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .json_entries import list_entries
from .pictures import coco_number, portable_name

# GQA asks about Visual Genome's pictures under Visual Genome's numbers.
_VISUAL_GENOME = {"vg", "vg_100k", "vg_100k_2", "visual_genome", "visualgenome", "gqa"}


def canonical_id(image_id: object, namespace: str = "coco") -> str:
    """One spelling of an id of COCO or Visual Genome; ids of other namespaces stay as they are.

    `9`, `9.0`, `"000000000009"` and `COCO_val2014_000000000009.jpg` are all `coco:9`. A number without a namespace is
    of `namespace`, COCO's by default; a text without one that is no name of a COCO or Visual Genome picture stays.
    """
    text = str(image_id).strip()
    prefix, separator, rest = text.partition(":")
    if separator:
        number = rest.rpartition("/")[2].partition(".")[0].rpartition("_")[2]
        return f"{prefix}:{int(number)}" if prefix in {"coco", "vg"} and number.isdecimal() else text
    if re.fullmatch(r"\d+(\.0)?", text):
        return f"{namespace}:{int(text.partition('.')[0])}"
    return known_id(text) or text


def known_id(name: str) -> str | None:
    """The id that a picture's name tells: COCO's by its form, Visual Genome's, a number, by a folder of that name."""
    name = portable_name(name)
    if (number := coco_number(name)) is not None:
        return f"coco:{number}"
    *folders, file = name.lower().split("/")
    stem = file.partition(".")[0]
    return f"vg:{int(stem)}" if stem.isdecimal() and not _VISUAL_GENOME.isdisjoint(folders) else None


def image_id(name: str, file: Path) -> str:
    """The id of a picture called `name` in the data file or folder `file`: COCO's or Visual Genome's where its name
    tells one, else the name with that of the file before it."""
    return known_id(name) or f"{_title(file)}:{portable_name(name)}"


def row_ids(
    given: Sequence[object] | None, names: Sequence[str], file: Path, namespace: str = "coco"
) -> tuple[str, ...]:
    """The ids of a row's pictures: those it gives, else what its pictures' names tell.

    Args:
        given: What the row has in `image_ids` or `image_id`.
        names: Names of its pictures.
        file: The data file.
        namespace: Of numbers: Visual Genome's where `coco_id` stands beside them, as in JA-VG-VQA-500; else COCO's.

    Raises:
        ValueError: Ids and pictures differ in number.
    """
    if given is None:
        return tuple(image_id(name, file) for name in names)
    if len(given) != len(names):
        raise ValueError(f"{len(names)} pictures but {len(given)} image ids.")
    ids = [canonical_id(each, namespace) for each in given]
    return tuple(each if ":" in each else f"{_title(file)}:{each}" for each in ids)


@functools.cache
def _title(file: Path) -> str:
    return file.name if file.is_dir() else file.stem


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
        pairs = [(f"vg:{entry['image_id']}", coco_twin(entry["coco_id"])) for entry in list_entries(Path(path))]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} is not Visual Genome's image_data.json: [{{image_id, coco_id}}, …].") from None
    return {own: twin for own, twin in pairs if twin is not None}
