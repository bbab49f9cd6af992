"""Ids of pictures out of any file: of the rows of a data file, or of a list of ids."""

import json
import os
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from .ids import canonical_id, coco_twin, known_id
from .json_files import read_json
from .own_rows import picture_names
from .pictures import FilePicture, PictureFolders
from .readers import recognised

_SPLIT = re.compile(r"(train|val|test)(2014|2015|2017)")


def read_ids(path: str | os.PathLike) -> dict[str, str | None]:
    """Ids of pictures in a file, each with the COCO split that the file names for it, such as `train2014`.

    A file that a reader recognises gives the ids of its rows. Any other is a list of ids: one a line, a JSON array or
    `images` of a JSON object, JSON lines, or Parquet. Of objects, `image_ids` or `image_id` count, else what file
    names tell, else `id`; an id beside `coco_id` is Visual Genome's, and both count (JA-VG-VQA-500).

    Raises:
        FileNotFoundError: The file is not there.
        ValueError: It holds no ids.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: a data file or a list of image ids is needed.")
    reader = recognised(path)
    ids: dict[str, str | None] = {}
    if reader is not None:
        for row in reader.read(path, PictureFolders(), path.stem):
            for image_id, picture in zip(row.image_ids, row.pictures, strict=True):
                name = picture.name if isinstance(picture, FilePicture) and picture.offset is None else ""
                ids[image_id] = _split(name) if image_id.startswith("coco:") else None
    if not ids and not path.is_dir():
        ids = {image_id: split for entry in _entries(path) for image_id, split in _ids_of(entry)}
    if not ids:
        raise ValueError(f"{path} holds no image ids: it is neither a data file nor a list of ids.")
    return ids


def unmatched_line(path: str | os.PathLike, unmatched: Sequence[str], ids: Collection[str]) -> str:
    """A sentence about the ids of a list that match no picture of the data."""
    return f"{len(unmatched):,} of {len(ids):,} ids in {path} match no picture, the first is {unmatched[0]}."


def _entries(path: Path) -> Iterable[Any]:
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        wanted = ("image_ids", "image_id", "coco_id", "id", "file_name")
        names = [name for name in wanted if name in pq.read_schema(path).names]
        return pq.read_table(path, columns=names).to_pylist()
    if path.suffix == ".json":
        content = read_json(path)
        return content.get("images", []) if isinstance(content, dict) else content
    return _lines(path)


def _lines(path: Path) -> Iterator[Any]:
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                yield json.loads(line) if path.suffix == ".jsonl" else line.strip()
            except ValueError as error:
                raise ValueError(f"{path}, line {number}, is not JSON: {error}") from None


def _ids_of(entry: Any) -> Iterator[tuple[str, str | None]]:
    if not isinstance(entry, dict):
        yield canonical_id(entry), _split(str(entry))
        return
    names = picture_names(entry)
    split = _split(names[0]) if names else None
    named = [(image_id, _split(name)) for name in names if (image_id := known_id(name))]
    given = next((entry[name] for name in ("image_ids", "image_id") if entry.get(name) is not None), None)
    if given is None and not named:
        given = entry.get("id")
    if given is None:
        yield from named
    else:
        namespace = "vg" if "coco_id" in entry else "coco"
        for each in given if isinstance(given, list) else [given]:
            yield canonical_id(each, namespace), split
    if twin := coco_twin(entry.get("coco_id")):
        yield twin, split


def _split(name: str) -> str | None:
    found = _SPLIT.search(name)
    return found[0] if found else None
