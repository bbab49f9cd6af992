"""Webdataset shards as img2dataset writes them (MiniGPT-4's stage 1: CC, SBU and LAION)."""

from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel

from ..ids import image_id, known_id
from ..pictures import PictureFolders
from ..recognition import keys_of
from ..row_context import RowContext
from ..rows import BadRow, Row, caption_row, row_or_fault
from ..splits import training_parts
from ..tar_samples import COMPRESSED, Sample, tar_samples, unpacked
from .registry import layout_of, reader

ENDINGS = (".tar", *COMPRESSED)


class Caption(BaseModel):
    """What img2dataset writes beside a picture, as far as it is read."""

    caption: str | None = None
    url: str | None = None


def _shards(path: Path) -> list[Path]:
    every = sorted(path.iterdir()) if path.is_dir() else [path]
    return [shard for shard in every if shard.name.endswith(ENDINGS) and not shard.name.startswith(".")]


@reader("webdataset", "webdataset tars, of img2dataset and others", lambda path: bool(_shards(path)))
def read_webdataset(path: Path, folders: PictureFolders, source: str) -> Iterator[Row | BadRow]:
    """One tar, or every tar of a folder: samples `KEY.jpg` (or png, webp …) with `KEY.json` (`caption`, or a row of any
    other layout, such as `conversations`) or `KEY.txt`. Names as of the webdataset library and img2dataset's README.

    Only headers and texts are read here; pictures stay in their shard and are read from there when they are needed,
    in any order; a `.tar.gz`, in which that cannot be, is unpacked once: see [`unpacked`]. A sample without a picture or
    with an empty caption is no training example and is left out. Ids are COCO's or Visual Genome's where the `url` in
    `KEY.json` tells one.

    Raises:
        ValueError: A shard is damaged.
    """
    read = dict.fromkeys(map(unpacked, training_parts(_shards(path))))
    for shard in read:
        at = RowContext(path, folders, source, file=shard)
        for sample in tar_samples(shard):
            if isinstance(sample, BadRow):
                yield sample
            elif sample.picture is not None:
                made = row_or_fault(shard, repr(sample.key), _rows, sample, at, shard)
                yield from made if isinstance(made, list) else [made]


def _rows(sample: Sample, at: RowContext, shard: Path) -> list[Row | BadRow]:
    about = sample.about or {}
    told = Caption.model_validate({key: about.get(key) for key in Caption.model_fields})
    known = known_id(told.url) if told.url else None
    identity = known or image_id(f"{shard.stem}/{sample.key}", at.path)
    if caption := told.caption or ("" if "caption" in about else sample.text):
        return [caption_row(caption, sample.picture, identity, at.source)]
    layout = layout_of(keys_of(about) - {"caption"} | {"image"}) if about else None
    if layout is None or layout.row is None:
        return []
    rows = layout.row(about | {"image": sample.picture, "image_ids": [identity]}, at)
    return rows if isinstance(rows, list) else [rows]
