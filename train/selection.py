"""Which pictures are trained on: exclusion lists, and the split for validation. By picture, never by row."""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

from ..data.ids import canonical_id, coco_twin, read_twins
from ..data.rows import Group, Row


class CocoTwins:
    """Which Visual Genome pictures are COCO pictures: about half are, so captions of one leak into questions on the
    other.

    Args:
        path: Visual Genome's `image_data.json`: `[{"image_id": …, "coco_id": … or null}]`.

    Raises:
        ValueError: The file is not `image_data.json`.
    """

    def __init__(self, path: str | os.PathLike | None = None):
        self.of = read_twins(path) if path else {}

    def identity(self, image_id: str) -> str:
        """One id for a picture, whichever data set it comes from: its COCO id where it has one."""
        return self.of.get(image_id, image_id)


def read_ids(path: str | os.PathLike, namespace: str = "coco") -> set[str]:
    """Image ids from a file: one id a line, a JSON array of ids or of objects, JSON lines, or Parquet.

    Of objects, `image_id` is taken as Visual Genome's where `coco_id` stands beside it (JA-VG-VQA-500), and both ids
    count.

    Raises:
        FileNotFoundError: The file is not there.
        ValueError: It holds no ids.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"The exclusion list {path} does not exist.")
    ids: set[str] = set()
    for entry in _entries(path):
        if not isinstance(entry, dict):
            ids.add(canonical_id(entry, namespace))
            continue
        beside_coco = "coco_id" in entry
        number = entry.get("image_id", entry.get("id"))
        if number is not None:
            ids.add(canonical_id(number, "vg" if beside_coco else namespace))
        if beside_coco and (twin := coco_twin(entry["coco_id"])) is not None:
            ids.add(twin)
    if not ids:
        raise ValueError(f"{path} holds no image ids.")
    return ids


def _entries(path: Path) -> Iterable[object]:
    if path.suffix == ".parquet":
        import pyarrow.parquet as parquet

        names = [name for name in ("image_id", "coco_id", "id") if name in parquet.read_schema(path).names]
        return parquet.read_table(path, columns=names).to_pylist()
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix == ".json":
        content = json.loads(text)
        return content["images"] if isinstance(content, dict) else content
    lines = [line for line in text.splitlines() if line.strip()]
    return [json.loads(line) for line in lines] if path.suffix == ".jsonl" else lines


def exclude(rows: list[Row], ids: set[str], twins: CocoTwins) -> list[Row]:
    """The rows none of whose pictures is listed, under its own id or its twin's."""
    identities = {twins.identity(each) for each in ids}
    return [row for row in rows if not any(twins.identity(_canonical(each)) in identities for each in row.image_ids)]


def _canonical(image_id: str) -> str:
    return canonical_id(image_id) if image_id.startswith(("coco:", "vg:")) else image_id


def split(groups: list[Group], share: float, twins: CocoTwins) -> tuple[list[Group], list[Group]]:
    """Groups for training and for validation: a picture, its twin and all its rows fall on the same side.

    The side is a function of the picture's id alone, so it stays when data is added.
    """
    training: list[Group] = []
    validation: list[Group] = []
    for group in groups:
        identity = "|".join(sorted(twins.identity(_canonical(each)) for each in group.image_ids))
        number = int.from_bytes(hashlib.sha256(identity.encode()).digest()[:8], "big") / 2**64
        (validation if group.image_ids and number < share else training).append(group)
    return training, validation
