"""Which pictures are trained on: exclusion lists, and the split for validation. By picture, never by row."""

import hashlib
import os
from collections.abc import Iterable

from ..data.ids import canonical_id, read_twins
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


def exclude(rows: list[Row], ids: Iterable[str], twins: CocoTwins) -> list[Row]:
    """The rows none of whose pictures is listed, under its own id or its twin's."""
    identities = set(map(twins.identity, ids))
    return [row for row in rows if identities.isdisjoint(_identities(row, twins))]


def not_in(ids: Iterable[str], rows: Iterable[Row], twins: CocoTwins) -> list[str]:
    """The ids that no picture of the rows has, under its own id or its twin's."""
    present = {identity for row in rows for identity in _identities(row, twins)}
    return [each for each in ids if twins.identity(each) not in present]


def _identities(row: Row | Group, twins: CocoTwins) -> list[str]:
    return [twins.identity(canonical_id(each)) for each in row.image_ids]


def split(groups: list[Group], share: float, twins: CocoTwins) -> tuple[list[Group], list[Group]]:
    """Groups for training and for validation: a picture, its twin and all its rows fall on the same side.

    The side is a function of the picture's id alone, so it stays when data is added.
    """
    training: list[Group] = []
    validation: list[Group] = []
    for group in groups:
        identity = "|".join(sorted(_identities(group, twins)))
        number = int.from_bytes(hashlib.sha256(identity.encode()).digest()[:8], "big") / 2**64
        (validation if group.image_ids and number < share else training).append(group)
    return training, validation
