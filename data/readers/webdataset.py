"""Webdataset shards as img2dataset writes them (MiniGPT-4's stage 1: CC, SBU and LAION)."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast

from pydantic import BaseModel

from ..ids import image_id, known_id
from ..pictures import Picture, PictureFolders
from ..recognition import keys_of
from ..row_context import RowContext
from ..rows import BadRow, Row, caption_row, row_or_fault
from ..splits import training_parts
from ..tar_samples import COMPRESSED, Sample, tar_samples, target_of, unpacked
from .registry import layout_of, reader

ENDINGS = (".tar", *COMPRESSED)


class About(BaseModel):
    """What img2dataset writes beside a picture, as far as it is read."""

    caption: str | None = None
    url: str | None = None


def _shards(path: Path) -> list[Path]:
    every = sorted(path.iterdir()) if path.is_dir() else [path]
    return [shard for shard in every if shard.name.endswith(ENDINGS) and not shard.name.startswith(".")]


def _given(path: Path) -> list[Path]:
    """The shards without those that were unpacked out of others, which change nothing."""
    shards = _shards(path)
    targets = {target_of(shard) for shard in shards if shard.name.endswith(COMPRESSED)}
    return [shard for shard in shards if shard not in targets]


@reader("webdataset", "webdataset tars, of img2dataset and others", lambda path: bool(_shards(path)), files=_given)
def read_webdataset(path: Path, folders: PictureFolders, source: str) -> Iterator[Row | BadRow]:
    """One tar, or every tar of a folder: samples `KEY.jpg` (or png, webp …) with `KEY.json` (`caption`, or a row of
    another layout, such as `conversations`) or `KEY.txt`. Names as of the webdataset library and img2dataset's README.

    Only headers and texts are read here; pictures stay in their shard and are read from there when they are needed,
    in any order; a `.tar.gz`, in which that cannot be, is unpacked once: see [`unpacked`]. A sample without a picture,
    or with an empty caption and nothing else, is no training example and is left out. Ids are COCO's or Visual
    Genome's where the `url` in `KEY.json` tells one.

    Raises:
        ValueError: A shard is damaged.
    """
    seen: set[Path] = set()
    for shard in map(unpacked, training_parts(_shards(path))):
        if shard in seen:  # unpacked before, and beside the compressed one
            continue
        seen.add(shard)
        at = RowContext(path, folders, source, file=shard)
        for sample in tar_samples(shard):
            if isinstance(sample, BadRow):
                yield sample
            elif sample.picture is not None:
                yield from _rows_of(sample, at)


def _rows_of(sample: Sample, at: RowContext) -> list[Row | BadRow]:
    told = row_or_fault(at.file, repr(f"{sample.key}.json"), About.model_validate, sample.about or {})
    if isinstance(told, BadRow):
        return [told]
    place = repr(sample.key)
    made = row_or_fault(at.file, place, _rows, sample, told, replace(at, place=place))
    return made if isinstance(made, list) else [made]


def _rows(sample: Sample, told: About, at: RowContext) -> list[Row | BadRow]:
    about, picture = sample.about or {}, cast(Picture, sample.picture)
    known = known_id(told.url) if told.url else None
    identity = known or image_id(f"{at.file.stem}/{sample.key}", at.path)
    if caption := told.caption or ("" if "caption" in about else sample.text):
        return [caption_row(caption, picture, identity, at.source)]
    layout = layout_of(keys_of(about) - {"caption"} | {"image"})
    if layout is None or layout.row is None:
        return []
    rows = layout.row(about | {"image": picture, "image_ids": [identity]}, at)
    return rows if isinstance(rows, list) else [rows]
