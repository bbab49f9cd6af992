"""Groups of rows about the same pictures, chosen and ordered on the columns of a table of rows.

A grouping lies beside its table, in a folder of files that are mapped: which rows are in it, group after group, and
what is asked of groups without making them, their length and their side of a split. A second run with the same choice
maps it at once. Nothing here keeps an object of a row or of a group.
"""

import hashlib
import json
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from ..checkpoint import finished_folder, remove_unfinished
from ..data.columns import KEY_BYTES, content_keys, picture_key, picture_keys, side_of
from ..data.ids import canonical_id
from ..data.mapped import Mapped, Numbers
from ..data.pictures import Picture
from ..data.rows import Group
from ..data.table import Rows, RowTable, only_one
from .selection import CocoTwins, candidates

VERSION = 1  # of what is written
META = "groups.json"
CHUNK = 1 << 16  # groups looked at together
COLUMNS = {"starts": "<i8", "sides": "<u8", "longest": "<u4", "turns": "<u4", "pictures": "<u4"}


class Grouping:
    """Which rows of a table go together, in the order of their first appearance.

    Args:
        table: The rows.
        folder: With the files of the grouping; `None`: `arrays` are given.
        arrays: The columns, each `(groups,)`, but `rows` `(rows,)`, `starts` `(groups + 1,)` and `distinct` and
            `repeated` as bytes.
        meta: Number of `groups`, `rows` and distinct `pictures`, and the digest of their `content`.
    """

    def __init__(self, table: Rows, folder: Path | None, arrays: dict[str, Any], meta: dict[str, Any]):
        self.table, self.folder, self.meta = table, folder, meta
        kinds = {**COLUMNS, "rows": meta["dtype"]}
        columns = {name: Numbers(folder / f"{name}.bin", kind) for name, kind in kinds.items()} if folder else arrays
        self.rows, self.starts, self.sides = columns["rows"], columns["starts"], columns["sides"]
        self.longest, self.turns, self.pictures = columns["longest"], columns["turns"], columns["pictures"]
        self.distinct, self.repeated = (
            _Keys(Mapped(folder / f"{name}.bin").content if folder else arrays[name])
            for name in ("distinct", "repeated")
        )
        self._arrays = arrays

    def __reduce__(self):
        return Grouping, (self.table, self.folder, self._arrays, self.meta)

    def __len__(self) -> int:
        return self.meta["groups"]

    def rows_of(self, group: int) -> np.ndarray:
        """Numbers of the rows of a group."""
        start, end = self.starts[group : group + 2]
        return self.rows[int(start) : int(end)]


class _Keys:
    """Sorted keys of pictures, `KEY_BYTES` each."""

    def __init__(self, content: Any):
        self.content = content

    def __len__(self) -> int:
        return len(self.content) // KEY_BYTES

    def __getitem__(self, number: int) -> bytes:
        return bytes(self.content[number * KEY_BYTES : (number + 1) * KEY_BYTES])

    def __contains__(self, key: bytes) -> bool:
        place = bisect_left(self, key)
        return place < len(self) and self[place] == key


class AllBut:
    """All numbers below `count` without some, which are kept alone.

    Args:
        count: How many there would be.
        without: `(n,)` int64, ascending.
    """

    def __init__(self, count: int, without: np.ndarray):
        self.count, self.without = count, without
        self._before = without - np.arange(len(without))  # how many are left before each that is not

    def __len__(self) -> int:
        return self.count - len(self.without)

    def take(self, places: np.ndarray) -> np.ndarray:
        """The numbers at these places."""
        return places + np.searchsorted(self._before, places, side="right")

    def drop(self, numbers: np.ndarray) -> "AllBut":
        """Without these as well."""
        return AllBut(self.count, np.union1d(self.without, numbers))

    def description(self) -> bytes:
        return b"all but" + self.without.tobytes()


class Only:
    """The given numbers, `(n,)` int64, ascending."""

    def __init__(self, numbers: np.ndarray):
        self.numbers = numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def take(self, places: np.ndarray) -> np.ndarray:
        """The numbers at these places."""
        return self.numbers[places]

    def drop(self, numbers: np.ndarray) -> "Only":
        """Without these."""
        return Only(self.numbers[~np.isin(self.numbers, numbers)])

    def description(self) -> bytes:
        return b"only" + self.numbers.tobytes()


class Groups(Sequence[Group]):
    """Some groups of a grouping; each is made of its rows when it is asked for.

    Args:
        grouping: The grouping.
        numbers: Which of its groups.
        without: Numbers of rows that are left out of their groups, ascending.
    """

    def __init__(self, grouping: Grouping, numbers: AllBut | Only, without: np.ndarray | None = None):
        self.grouping, self.numbers = grouping, numbers
        self.without = np.empty(0, np.int64) if without is None else without

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, place: int) -> Group: ...
    @overload
    def __getitem__(self, place: slice) -> "Groups": ...
    def __getitem__(self, place: int | slice) -> "Group | Groups":
        if isinstance(place, slice):
            return Groups(self.grouping, Only(self.numbers.take(np.arange(len(self))[place])), self.without)
        (number,) = self.numbers.take(np.array([range(len(self))[place]]))
        rows = self.grouping.rows_of(int(number))
        kept = rows[~np.isin(rows, self.without)] if len(self.without) else rows
        return Group(tuple(self.grouping.table[row] for row in kept.tolist()))

    def chunks(self) -> Iterator[np.ndarray]:
        """The numbers of the groups in the grouping, in order, some at a time."""
        for start in range(0, len(self), CHUNK):
            yield self.numbers.take(np.arange(start, min(start + CHUNK, len(self))))

    def drop(self, groups: np.ndarray, rows: np.ndarray | None = None) -> "Groups":
        """Without these groups (numbers in the grouping), and without these rows in the others."""
        without = self.without if rows is None else np.union1d(self.without, rows)
        return Groups(self.grouping, self.numbers.drop(groups), without)

    def digest(self) -> str:
        """SHA-256 over what these groups teach: every text, role and id of a picture, in its order."""
        parts = (self.grouping.meta["content"].encode(), self.numbers.description(), self.without.tobytes())
        return hashlib.sha256(b"\0".join(parts)).hexdigest()

    def about(self, names: set[str]) -> np.ndarray:
        """Numbers, in the grouping, of the groups with a picture called so."""
        rows = self.grouping.table.rows_about(names)
        found = [
            np.searchsorted(self.grouping.starts[:], start + hits, side="right") - 1
            for start in range(0, len(self.grouping.rows), CHUNK)
            if len(hits := np.flatnonzero(np.isin(self.grouping.rows[start : start + CHUNK], rows)))
        ]
        return np.unique(np.concatenate(found)) if found else np.empty(0, np.int64)


def split(grouping: Grouping, share: float) -> tuple[Groups, Groups]:
    """Groups for training and for validation: a picture, its twin and all its rows fall on the same side.

    The side is a function of the picture's id alone, so it stays when data is added.
    """
    held = [np.empty(0, np.int64)]
    for start in range(0, len(grouping) if share else 0, CHUNK):
        sides, pictures = grouping.sides[start : start + CHUNK], grouping.pictures[start : start + CHUNK]
        held.append(start + np.flatnonzero((sides / 2.0**64 < share) & (pictures > 0)))
    validation = np.concatenate(held)
    return Groups(grouping, AllBut(len(grouping), validation)), Groups(grouping, Only(validation))


def group(
    table: Rows,
    excluded: np.ndarray,
    twins: CocoTwins,
    rows_per_picture: int | None = None,
    without_pictures: bool = True,
) -> Grouping:
    """The grouping of a table: rows with the same pictures together.

    Args:
        table: The rows.
        excluded: Numbers of rows that are left out, ascending.
        twins: Which ids are one picture's.
        rows_per_picture: At most so many in a group (`None`: all).
        without_pictures: Whether rows without a picture stay, each alone.

    Raises:
        ValueError: `rows_per_picture` is below 1.
    """
    if rows_per_picture is not None and rows_per_picture < 1:
        raise ValueError(f"rows_per_picture must be at least 1, got {rows_per_picture}.")
    asked = (table, excluded, twins, rows_per_picture, without_pictures)
    if not isinstance(table, RowTable):
        return Grouping(table, None, *_arrays(*asked))
    choice = (VERSION, excluded.tobytes(), sorted(twins.of.items()), rows_per_picture, without_pictures)
    folder = table.folder / f"groups-{hashlib.sha256(repr(choice).encode()).hexdigest()[:24]}"
    with only_one(table.folder.parent, (folder / META).is_file) as missing:
        if missing:
            remove_unfinished(table.folder)
            _write(folder, *_arrays(*asked))
    return Grouping(table, folder, {}, json.loads((folder / META).read_bytes()))


def _write(folder: Path, arrays: dict[str, Any], meta: dict[str, Any]):
    with finished_folder(folder, replace=True) as temporary:
        for name, values in arrays.items():
            (temporary / f"{name}.bin").write_bytes(memoryview(values))
        (temporary / META).write_text(json.dumps(meta))


def _arrays(
    table: Rows, excluded: np.ndarray, twins: CocoTwins, rows_per_picture: int | None, without_pictures: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    columns = _gather(table, excluded, without_pictures)
    rows, starts = _together(columns["keys"], columns["numbers"])
    first = rows[starts[:-1]]
    distinct, repeated = _distinct(table, first)
    if rows_per_picture is not None:
        starts = _parted(starts, rows_per_picture)
        first = rows[starts[:-1]]
    pictures = columns["counts"][first]
    arrays = {
        "rows": rows.astype("<u4" if len(table) < 1 << 32 else "<i8"),
        "starts": starts.astype("<i8"),
        "sides": _sides(table, columns["sides"][first], first, twins),
        "longest": _most(columns["text_bytes"][rows], starts),
        "turns": _most(columns["turn_count"][rows], starts),
        "pictures": pictures.astype("<u4"),
        "distinct": distinct,
        "repeated": repeated,
    }
    content = hashlib.sha256(starts.tobytes())
    for start in range(0, len(rows), CHUNK):
        content.update(columns["content"][rows[start : start + CHUNK]].tobytes())
    meta = {"groups": len(first), "rows": len(rows), "pictures": len(distinct) // KEY_BYTES}
    return arrays, meta | {"content": content.hexdigest(), "dtype": arrays["rows"].dtype.str}


def _gather(table: Rows, excluded: np.ndarray, without_pictures: bool) -> dict[str, np.ndarray]:
    """Columns of all rows by their number: `keys` `(n, 2)` of all pictures of a row, and how many `counts` they are;
    and the `numbers` of the rows that stay."""
    count = len(table)
    found: dict[str, np.ndarray] = {name: np.empty((count, 2), ">u8") for name in ("keys", "content")}
    found |= {name: np.empty(count, kind) for name, kind in (("counts", "<u4"), ("sides", "<u8"))}
    found |= {name: np.empty(count, "<u4") for name in ("text_bytes", "turn_count")}
    for start, batch in table.batches():
        place = slice(start, start + batch.num_rows)
        offsets, keys = picture_keys(batch)
        counts = np.diff(offsets)
        found["counts"][place] = counts
        found["keys"][place] = _row_keys(start, offsets, counts, keys)
        found["content"][place] = content_keys(batch)
        found["sides"][place] = batch.column("side").to_numpy()
        for name in ("text_bytes", "turn_count"):
            found[name][place] = batch.column(name).to_numpy()
    stays = np.ones(count, bool)
    stays[excluded] = False
    if not without_pictures:
        stays &= found["counts"] > 0
    return found | {"numbers": np.flatnonzero(stays)}


def _row_keys(start: int, offsets: np.ndarray, counts: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """One key for all pictures of each row, `(rows, 2)`; a row without one has its number for it."""
    numbers = np.arange(start, start + len(counts), dtype=">u8")
    found = np.stack([np.full(len(counts), 2**64 - 1, ">u8"), numbers], axis=1)
    one, several = counts == 1, np.flatnonzero(counts > 1)
    found[one] = keys[offsets[:-1][one]]
    for row in several.tolist():
        content = keys[offsets[row] : offsets[row + 1]].tobytes()
        found[row] = np.frombuffer(hashlib.blake2b(content, digest_size=KEY_BYTES).digest(), ">u8")
    return found


def _together(keys: np.ndarray, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows with equal keys one after the other, and where each such group begins; groups and the rows in them keep the
    order of first appearance."""
    high, low = (keys[numbers, half].astype(np.uint64) for half in (0, 1))
    order = np.lexsort((low, high))
    if not len(order):
        return numbers, np.zeros(1, np.int64)
    high, low = high[order], low[order]
    begins = np.flatnonzero(np.concatenate([[True], (high[1:] != high[:-1]) | (low[1:] != low[:-1])]))
    sizes = np.diff(np.append(begins, len(order)))
    by_first = np.argsort(order[begins])
    sizes = sizes[by_first]
    starts = np.concatenate([[0], np.cumsum(sizes)])
    taken = np.repeat(begins[by_first] - starts[:-1], sizes) + np.arange(len(order))
    return numbers[order[taken]], starts


def _parted(starts: np.ndarray, most: int) -> np.ndarray:
    """Where groups begin that have at most so many rows."""
    sizes = np.diff(starts)
    pieces = -(-sizes // most)
    number = np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    return np.append(np.repeat(starts[:-1], pieces) + most * number, starts[-1])


def _most(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """The largest value of each group."""
    return np.maximum.reduceat(values, starts[:-1]) if len(values) else values


def _sides(table: Rows, sides: np.ndarray, first: np.ndarray, twins: CocoTwins) -> np.ndarray:
    """Where the groups fall in a split; those with a twin where that falls."""

    if twins.of:
        for place in np.flatnonzero(np.isin(first, candidates(twins.of, table))).tolist():
            ids = table.image_ids(int(first[place]))
            sides[place] = side_of(twins.identity(canonical_id(each)) for each in ids)
    return sides


def _distinct(table: Rows, first: np.ndarray) -> tuple[bytes, bytes]:
    """Sorted keys of the pictures of these rows, and of those that several of them show."""
    found, ordered = [np.empty((0, 2), ">u8")], np.sort(first)
    for start, batch in table.batches():
        offsets, keys = picture_keys(batch)
        places = ordered[slice(*np.searchsorted(ordered, [start, start + batch.num_rows]))] - start
        chosen = np.zeros(batch.num_rows, bool)
        chosen[places] = True
        found.append(keys[np.repeat(chosen, np.diff(offsets))])
    keys = np.concatenate(found)
    keys = keys[np.lexsort((keys[:, 1], keys[:, 0]))]
    again = np.zeros(len(keys), bool)
    again[1:] = (keys[1:] == keys[:-1]).all(axis=1)
    distinct, shown_again = keys[~again], keys[again]
    repeats = np.zeros(len(shown_again), bool)
    repeats[1:] = (shown_again[1:] == shown_again[:-1]).all(axis=1)
    # Joined arrays are in the machine's own order of bytes; keys sort as bytes do.
    return distinct.astype(">u8").tobytes(), shown_again[~repeats].astype(">u8").tobytes()


def distinct_pictures(parts: Iterable[Groups]) -> Iterator[Picture]:
    """The pictures of groups, each once, in the order of the groups. Only those that come up in several places are
    kept in mind."""
    parts = list(parts)
    groupings = list({id(each.grouping): each.grouping for each in parts}.values())
    seen: set[bytes] = set()
    for groups in parts:
        others = [each for each in groupings if each is not groups.grouping]
        last: tuple[Picture, ...] = ()
        for chunk in groups.chunks():
            for number in chunk.tolist():
                pictures = groups.grouping.table[int(groups.grouping.rows_of(number)[0])].pictures
                if pictures == last:
                    continue  # the next rows of the same group
                last = pictures
                for picture in pictures:
                    key = picture_key(picture)
                    if key in groups.grouping.repeated or any(key in each.distinct for each in others):
                        if key in seen:
                            continue
                        seen.add(key)
                    yield picture
