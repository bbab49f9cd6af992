"""Whether a model was trained on the pictures it is examined on."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..data.id_lists import read_ids
from .items import Item


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
        file: A training file or a list of ids, see [`read_ids`].
        benchmark: Name of the benchmark.
        items: Its items.
        twins: `vg:…` to `coco:…`, see [`read_twins`]; without it only the twins that the benchmark itself states are
            known (JA-VG-VQA-500 does).

    Raises:
        FileNotFoundError: The file is not there.
        ValueError: It holds no ids.
    """
    twins = dict(twins or {})
    for item in items:
        if "coco_id" in item.details:
            twins[item.image_ids[0]] = item.details["coco_id"]
    trained = read_ids(file)
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
    return sorted({each for item in items for each in item.known_ids})
