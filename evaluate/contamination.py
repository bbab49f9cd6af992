"""Whether a model was trained on the pictures it is examined on."""

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..data.ids import canonical_id, coco_twin
from .items import Item

_SPLIT = re.compile(r"(train|val|test)(2014|2017)")


@dataclass(frozen=True)
class Overlap:
    """Pictures of a benchmark that a training file holds too.

    Args:
        file: The training file.
        benchmark: Name of the benchmark.
        pictures: Pictures of the benchmark.
        shared: Those of them that are in the training file.
        by_twin: Those of the shared ones that only the join of Visual Genome with COCO reveals.
        items: Items of the benchmark on shared pictures.
        splits: The shared pictures by the COCO split that the training file names.
    """

    file: str
    benchmark: str
    pictures: int
    shared: int
    by_twin: int
    items: int
    splits: dict[str, int]

    @property
    def share(self) -> float:
        """Shared pictures in percent."""
        return 100 * self.shared / self.pictures if self.pictures else 0.0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"share": self.share}


def overlap(
    file: str | os.PathLike, benchmark: str, items: Sequence[Item], twins: dict[str, str] | None = None
) -> Overlap:
    """Compares a training file with a benchmark.

    Args:
        file: A training file or a list of ids, see [`image_ids`].
        benchmark: Name of the benchmark.
        items: Its items.
        twins: `vg:…` to `coco:…`, see [`read_twins`]; without it only the twins that the benchmark itself states are
            known (JA-VG-VQA-500 does).

    Raises:
        ValueError: The file is of no known layout.
    """
    twins = dict(twins or {})
    for item in items:
        if "coco_id" in item.details:
            twins[item.image_ids[0]] = item.details["coco_id"]
    trained = image_ids(file)
    identities = {twins.get(each, each): split for each, split in trained.items()}
    own = {each for item in items for each in item.image_ids}
    shared = {each for each in own if twins.get(each, each) in identities}
    splits = Counter(identities[twins.get(each, each)] or "unnamed" for each in shared)
    return Overlap(
        file=os.fspath(file),
        benchmark=benchmark,
        pictures=len(own),
        shared=len(shared),
        by_twin=sum(each not in trained for each in shared),
        items=sum(not shared.isdisjoint(item.image_ids) for item in items),
        splits=dict(sorted(splits.items())),
    )


def benchmark_ids(items: Sequence[Item]) -> list[str]:
    """Every id of the pictures of a benchmark, COCO twins included, for the `exclude` list of a training recipe."""
    ids = {each for item in items for each in item.image_ids}
    ids |= {item.details["coco_id"] for item in items if "coco_id" in item.details}
    return sorted(ids)


def image_ids(path: str | os.PathLike) -> dict[str, str | None]:
    """Image ids of a training file, each with the COCO split that its file name tells, such as `train2014`.

    Read are COCO captions, ja-vg-vqa, LLaVA JSON and JSON lines (pictures named as COCO and Visual Genome name them),
    JSON lines of messages, Parquet with `image_id` or `coco_id`, and plain lists of one id a line.

    Raises:
        FileNotFoundError: The file is not there.
        ValueError: No image id can be told from it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"The training file {path} does not exist.")
    ids = dict(_read(path))
    if not ids:
        raise ValueError(
            f"No image id can be told from {path}: known are COCO captions, ja-vg-vqa, LLaVA JSON, JSON lines with "
            "image_id or with the names of COCO or Visual Genome pictures, Parquet with image_id, and lists of ids."
        )
    return ids


def _read(path: Path) -> Iterator[tuple[str, str | None]]:
    if path.suffix == ".parquet":
        yield from _read_parquet(path)
        return
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix == ".json":
        content = json.loads(text)
        if isinstance(content, dict):
            for image in content.get("images", []):
                yield canonical_id(image["id"]), _split(str(image.get("file_name", "")))
            return
        rows: Sequence[Any] = content
    elif path.suffix == ".jsonl":
        rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    else:
        rows = [line.strip() for line in text.splitlines() if line.strip()]
    for row in rows:
        yield from _of_row(row)


def _of_row(row: Any) -> Iterator[tuple[str, str | None]]:
    if not isinstance(row, dict):
        yield canonical_id(row), _split(str(row))
    elif "qas" in row:
        yield canonical_id(row["id"] if "id" in row else row["image_id"], "vg"), None
    elif "image_id" in row or "coco_id" in row:
        if "image_id" in row:
            yield canonical_id(row["image_id"], "vg" if "coco_id" in row else "coco"), None
        if twin := coco_twin(row.get("coco_id")):
            yield twin, None
    else:
        names = row.get("images") or row.get("image") or []
        for name in [names] if isinstance(names, str) else names:
            if isinstance(name, str) and (known := _of_name(name)):
                yield known, _split(name)


def _of_name(name: str) -> str | None:
    """The id that a picture's file name tells, where it is COCO's or Visual Genome's."""
    number = name.rpartition("/")[2].partition(".")[0].rpartition("_")[2]
    if not number.isdigit():
        return None
    if "VG_100K" in name or name.lower().startswith("vg/"):
        return canonical_id(number, "vg")
    return canonical_id(number) if len(number) == 12 else None


def _split(name: str) -> str | None:
    found = _SPLIT.search(name)
    return found[0] if found else None


def _read_parquet(path: Path) -> Iterator[tuple[str, str | None]]:
    import pyarrow.parquet as pq

    names = [name for name in ("image_id", "coco_id", "file_name") if name in pq.read_schema(path).names]
    for row in pq.read_table(path, columns=names).to_pylist():
        split = _split(str(row.pop("file_name", "")))
        for each, _ in _of_row(row):
            yield each, split
