"""Webdataset shards as img2dataset writes them (MiniGPT-4's stage 1: CC, SBU and LAION)."""

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from pydantic import BaseModel

from ..files import open_regular
from ..ids import image_id
from ..json_files import decode, parse_object
from ..pictures import Picture, PictureFolders, picture_at
from ..rows import BadRow, Row, caption_row, row_or_fault
from .registry import reader

PICTURES = {"jpg", "jpeg", "png", "webp", "gif", "bmp"}
TEXT_ENDINGS = {"json", "txt"}
MAX_TEXT = 1_000_000  # bytes


class Caption(BaseModel):
    """What img2dataset writes beside a picture, as far as it is read."""

    caption: str | None = None


def _shards(path: Path) -> list[Path]:
    return sorted(path.glob("*.tar")) if path.is_dir() else [path] if path.suffix == ".tar" else []


@reader("webdataset", "webdataset tars of img2dataset", lambda path: bool(_shards(path)))
def read_webdataset(path: Path, folders: PictureFolders, source: str) -> Iterator[Row | BadRow]:
    """One tar, or every tar of a folder: samples `KEY.jpg` (or png, webp …) with `KEY.json` (`caption`) or `KEY.txt`.

    Only headers and texts are read here; pictures stay in their shard and are read from there when they are needed,
    in any order. A sample without a picture or with an empty caption is no training example and is left out.

    Raises:
        ValueError: A shard is damaged or is compressed.
    """
    for shard in _shards(path):
        try:
            yield from _read_shard(shard, path, source)
        except tarfile.TarError as error:
            raise ValueError(f"{shard} is not a whole, uncompressed tar: {error}") from None


def _read_shard(shard: Path, path: Path, source: str) -> Iterator[Row | BadRow]:
    texts: dict[str, str | BadRow] = {}
    pictures: dict[str, Picture] = {}
    with open_regular(shard) as file, tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            if member.size < 0:
                raise ValueError(f"{shard} is not a whole tar: {member.name!r:.80} has a size below zero.")
            if not member.isfile():
                continue
            # A key is the name up to the first dot of its last part, as the webdataset library splits it.
            folder, _, name = member.name.rpartition("/")
            stem, _, kind = name.partition(".")
            key, kind = f"{folder}/{stem}".lstrip("/"), kind.lower()
            if kind not in PICTURES | TEXT_ENDINGS:
                continue
            fault = _fault(member, kind)
            if fault:
                yield BadRow(str(shard), member.name, f"{shard}, {member.name!r:.80}: {fault}")
            elif kind in PICTURES:
                pictures.setdefault(key, picture_at(str(shard), member.offset_data, member.size))
            elif kind == "json" or key not in texts:
                content = cast(IO[bytes], tar.extractfile(member)).read()
                texts[key] = row_or_fault(shard, f"{member.name!r:.80}", _caption, content, kind)

    def read(key: str) -> Row:
        return caption_row(cast(str, texts[key]), pictures[key], image_id(f"{shard.stem}/{key}", path), source)

    for text in texts.values():
        if isinstance(text, BadRow):
            yield text
    for key in pictures:
        if texts.get(key) and not isinstance(texts[key], BadRow):
            yield row_or_fault(shard, repr(key), read, key)


def _fault(member: tarfile.TarInfo, kind: str) -> str:
    if member.issparse():
        return f"a sparse file, which unpacks to {member.size:,} bytes, is not read."
    if not member.name.isprintable():  # bytes that are no UTF-8 among them
        return "its name is not UTF-8, or holds control characters."
    if kind in TEXT_ENDINGS and member.size > MAX_TEXT:
        return f"its text has {member.size:,} bytes; at most {MAX_TEXT:,} are read."
    return ""


def _caption(content: bytes, kind: str) -> str:
    if kind == "txt":
        return decode(content)
    return Caption.model_validate(parse_object(content)).caption or ""
