"""Webdataset shards as img2dataset writes them (MiniGPT-4's stage 1: CC, SBU and LAION)."""

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

from ..ids import image_id
from ..pictures import FilePicture, PictureFolders
from ..rows import Row, caption_row
from .registry import reader

PICTURES = {"jpg", "jpeg", "png", "webp", "gif", "bmp"}


def _shards(path: Path) -> list[Path]:
    return sorted(path.glob("*.tar")) if path.is_dir() else [path] if path.suffix == ".tar" else []


@reader("webdataset", "webdataset tars of img2dataset", lambda path: bool(_shards(path)))
def read_webdataset(path: Path, folders: PictureFolders, source: str) -> Iterator[Row]:
    """One tar, or every tar of a folder: samples `KEY.jpg` (or png, webp …) with `KEY.json` (`caption`) or `KEY.txt`.

    Only headers and texts are read here; pictures stay in their shard and are read from there when they are needed,
    in any order. A sample without a picture or without a caption is no training example and is left out.

    Raises:
        ValueError: A shard is damaged or is compressed.
    """
    for shard in _shards(path):
        try:
            yield from _read_shard(shard, path, source)
        except tarfile.TarError as error:
            raise ValueError(f"{shard} is not a whole, uncompressed tar: {error}") from None


def _read_shard(shard: Path, path: Path, source: str) -> Iterator[Row]:
    texts: dict[str, str] = {}
    pictures: dict[str, FilePicture] = {}
    with tarfile.open(shard, mode="r:") as tar:
        for member in tar:
            if not member.isfile():
                continue
            # A key is the name up to the first dot of its last part, as the webdataset library splits it.
            folder, _, file = member.name.rpartition("/")
            stem, _, kind = file.partition(".")
            key, kind = f"{folder}/{stem}".lstrip("/"), kind.lower()
            if kind in PICTURES:
                pictures.setdefault(key, FilePicture(str(shard), member.offset_data, member.size))
            elif kind in {"json", "txt"}:
                caption = _caption(tar.extractfile(member).read(), kind)
                if caption and (kind == "json" or key not in texts):
                    texts[key] = caption
    for key, picture in pictures.items():
        if key in texts:
            yield caption_row(texts[key], picture, image_id(f"{shard.stem}/{key}", path), source)


def _caption(content: bytes, kind: str) -> str:
    text = content.decode("utf-8", errors="replace")
    if kind == "json":
        try:
            text = json.loads(text).get("caption") or ""
        except (ValueError, AttributeError):
            return ""
    return text.strip()
