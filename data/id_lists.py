"""Ids of pictures out of any file: of the rows of a data file, or of a list of ids."""

import os
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from .containers import container_of
from .fields import Id, PictureFields
from .ids import canonical_id, coco_twin, known_id
from .json_entries import list_entries, lists_entries
from .json_files import begins_with, decode, numbered_lines, parse_json
from .pictures import FilePicture, PictureFolders
from .readers import Reader, other_parts, recognised
from .recognition import seen_keys
from .rows import BadRow, row_or_fault

_ID = TypeAdapter(Id)
_SPLIT = re.compile(r"(train|val|test)(2014|2015|2017)")


def read_ids(path: str | os.PathLike) -> dict[str, str | None]:
    """Ids of pictures in a file, each with the COCO split that the file names for it, such as `train2014`.

    A file that a reader recognises gives the ids of its rows, and a folder those of all its parts, `test` and
    `validation` too. Any other is a list of ids: one a line, a JSON array or
    `images` of a JSON object, JSON lines, or Parquet. Of objects, `image_ids` or `image_id` count, else what file
    names tell, else `id`; an id beside `coco_id` is Visual Genome's, and both count (JA-VG-VQA-500).

    Raises:
        FileNotFoundError: The file is not there.
        ValueError: It holds no ids.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: a data file or a list of image ids is needed.")
    ids: dict[str, str | None] = {}
    if reader := recognised(path):
        parts = [path, *other_parts(path, reader)]
        ids = {image_id: split for part in parts for image_id, split in _ids_in(part, reader)}
    if not ids and not path.is_dir():
        for place, entry in _entries(path):
            found = row_or_fault(path, place, _ids_of, entry)
            if isinstance(found, BadRow):
                raise ValueError(found.reason)
            ids |= found
    if not ids:
        raise ValueError(f"{path} holds no image ids: it is neither a data file nor a list of ids.")
    return ids


def _ids_in(path: Path, reader: Reader) -> Iterator[tuple[str, str | None]]:
    """Ids of the rows of a data file, each with its split, and those under `coco_id` beside them."""
    for row in reader.read(path, PictureFolders(), path.stem):
        if isinstance(row, BadRow):
            raise ValueError(row.reason)
        for image_id, picture in zip(row.image_ids, row.pictures, strict=True):
            name = picture.name if isinstance(picture, FilePicture) and picture.offset is None else ""
            yield image_id, _split(name) if image_id.startswith("coco:") else None
    holder = container_of(path)
    if holder is not None and "coco_id" in seen_keys(path):
        twins = (coco_twin(entry.load().get("coco_id")) for entry in holder.entries(path))
        yield from ((twin, None) for twin in twins if twin)


def unmatched_line(path: str | os.PathLike, unmatched: Sequence[str], ids: Collection[str]) -> str:
    """A sentence about the ids of a list that match no picture of the data."""
    return f"{len(unmatched):,} of {len(ids):,} ids in {path} match no picture, the first is {unmatched[0]}."


class ListedPicture(PictureFields):
    """An object of a list of ids."""

    id: Id | None = None


def _entries(path: Path) -> Iterator[tuple[str, Any]]:
    """Entries of a list, each with its place."""
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        try:
            wanted = ListedPicture.model_fields.keys() - {"images", "image"}  # which are pictures there, not names
            names = [name for name in pq.read_schema(path).names if name in wanted]
            entries = pq.read_table(path, columns=names).to_pylist()
        except ValueError:  # of pyarrow, whose own words name no file
            raise ValueError(f"{path} cannot be read as Parquet: is it whole?") from None
        yield from ((f"row {number}", entry) for number, entry in enumerate(entries))
    elif path.suffix == ".json":
        (listed,) = lists_entries(path, "images")
        entries = list_entries(path) if begins_with(path, "[") else listed
        yield from ((f"entry {number}", entry) for number, entry in enumerate(entries))
    else:
        for number, line in numbered_lines(path):
            try:
                yield f"line {number}", parse_json(line) if path.suffix == ".jsonl" else decode(line).strip()
            except ValueError as error:
                raise ValueError(f"{path}, line {number}, {error}") from None


def _ids_of(entry: Any) -> list[tuple[str, str | None]]:
    if not isinstance(entry, dict):
        return [(canonical_id(_ID.validate_python(entry)), _split(str(entry)))]
    listed = ListedPicture.model_validate(entry)
    names = listed.names
    split = _split(names[0]) if names else None
    ids = [(image_id, _split(name)) for name in names if (image_id := known_id(name))]
    given = listed.stated_ids
    if given is None and not ids and listed.id is not None:
        given = [listed.id]
    if given is not None:
        ids = [(canonical_id(each, listed.namespace), split) for each in given]
    if twin := coco_twin(listed.coco_id):
        ids.append((twin, split))
    return ids


def _split(name: str) -> str | None:
    found = _SPLIT.search(name)
    return found[0] if found else None
