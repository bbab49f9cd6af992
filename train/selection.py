"""Which rows are about listed pictures, for exclusion lists: found on columns, under all ids a picture goes by."""

import os
from collections.abc import Collection, Iterable

import numpy as np

from ..data.columns import id_key
from ..data.ids import canonical_id, read_twins
from ..data.table import Rows


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

    def names(self, ids: Iterable[str]) -> dict[str, str]:
        """All ids that pictures may go by, each with the picture's identity: those given and those of their twins."""
        identities = set(map(self.identity, ids))
        names = {each: each for each in identities if self.identity(each) == each}
        return names | {own: twin for own, twin in self.of.items() if twin in identities}


def rows_about(ids: Iterable[str], table: Rows, twins: CocoTwins) -> np.ndarray:
    """Numbers of the rows with a picture that is listed, under its own id or its twin's, `(n,)` int64, ascending."""
    return rows_with(twins.names(ids), table)


def rows_with(names: Collection[str], table: Rows) -> np.ndarray:
    """Numbers of the rows with a picture that has one of these ids, `(n,)` int64, ascending."""
    names, rows = set(names), candidates(names, table)
    exact = [not names.isdisjoint(map(canonical_id, table.image_ids(row))) for row in rows.tolist()]
    return rows[np.array(exact, bool)]


def not_in(ids: Iterable[str], tables: Iterable[Rows], twins: CocoTwins) -> list[str]:
    """The ids that no picture of the tables has, under its own id or its twin's."""
    ids = list(ids)
    names = twins.names(ids)
    hashes = np.unique(np.array([id_key(name) for name in names], np.uint64))
    there = np.zeros(len(hashes), bool)
    for table in tables:
        for _, batch in table.batches():
            there |= np.isin(hashes, batch.column("id_keys").flatten().to_numpy())
    present = set(hashes[there].tolist())
    identities = {identity for name, identity in names.items() if id_key(name) in present}
    return [each for each in ids if twins.identity(each) not in identities]


def candidates(names: Collection[str], table: Rows) -> np.ndarray:
    """As [`rows_with`] by hashes of the ids: a row among 1e10 may be another."""
    hashes = np.array([id_key(name) for name in names], np.uint64)
    found = [np.empty(0, np.int64)]
    for start, batch in table.batches() if len(hashes) else ():
        lists = batch.column("id_keys")
        hits = np.flatnonzero(np.isin(lists.flatten().to_numpy(), hashes))
        offsets = lists.offsets.to_numpy()
        found.append(start + np.unique(np.searchsorted(offsets - offsets[0], hits, side="right") - 1))
    return np.concatenate(found)
