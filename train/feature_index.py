"""Where the features of a picture lie: sorted tables of keys, memory-mapped, without a Python object per picture.

A key is 128 bits of a SHA-256: of a picture's content, or of its name, size and time of change, so that an unchanged
picture is found without being read. Keys are spread evenly, and a search touches a few pages of the file.
"""

import json
import mmap
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

HEADER = 4096  # bytes before the first tensor of the store's safetensors files: the place of a row is known unopened
NUMPY_DTYPES = {"U8": np.uint8, "U32": np.dtype("<u4"), "U64": np.dtype("<u8")}
COLUMNS = {"high": "U64", "low": "U64", "place": "U64", "tag": "U32"}
KINDS = ("contents", "pictures")
NAME_BYTES = 64  # of a file's name in the index
ROWS_OF_A_RANGE = 1 << 20  # keys that are sorted at a time while an index is written
# Pages of the index that a process has looked at count as its memory, though all share them: so often it lets them go.
LOOKUPS_BEFORE_RELEASE = 1 << 16


def safetensors_header(tensors: dict[str, tuple[str, Sequence[int]]], metadata: dict[str, str]) -> bytes:
    """The first `HEADER` bytes of a safetensors file.

    Args:
        tensors: Type and shape of each tensor, in the order of their bytes.
        metadata: What the file says of itself.
    """
    entries: dict[str, Any] = {"__metadata__": metadata}
    start = 0
    for name, (dtype, shape) in tensors.items():
        end = start + int(np.prod(shape, dtype=np.int64)) * np.dtype(NUMPY_DTYPES[dtype]).itemsize
        entries[name] = {"dtype": dtype, "shape": [int(each) for each in shape], "data_offsets": [start, end]}
        start = end
    text = json.dumps(entries).encode()
    assert len(text) <= HEADER - 8
    return struct.pack("<Q", HEADER - 8) + text.ljust(HEADER - 8)


def parsed_header(content: bytes) -> tuple[int, dict[str, Any]]:
    """Where the tensors of a safetensors file begin, and its entries, from the first bytes of it.

    Raises:
        ValueError: It is no header, or longer than these bytes.
    """
    if len(content) < 8:
        raise ValueError("is cut off")
    (length,) = struct.unpack("<Q", content[:8])
    if length > len(content) - 8:
        raise ValueError("is cut off, or no safetensors file")
    try:
        entries = json.loads(content[8 : 8 + length])
        for name, each in entries.items():
            if name != "__metadata__":
                start, end = each["data_offsets"]
                size = int(np.prod(each["shape"], dtype=np.int64))
                each["data_offsets"] = int(start), int(end)
                if not 0 <= start <= end or size < 0:
                    raise ValueError
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise ValueError("has a damaged header") from None
    return 8 + length, entries


def split_keys(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Keys `(n, 16)`, uint8, as two halves `(n,)`, uint64: compared as numbers, in the order of their bytes."""
    halves = np.ascontiguousarray(keys).view(">u8").astype("<u8")
    return halves[:, 0].copy(), halves[:, 1].copy()


@dataclass(frozen=True, slots=True)
class KeyTable:
    """Keys in rising order, and where what they stand for lies.

    Args:
        high, low: The two halves of each key, `(n,)`, uint64.
        place: Number of the file, times 2^32, plus row in it, `(n,)`, uint64.
        tag: 32 further bits of the content's SHA-256, `(n,)`, uint32: the features found there must bear them.
    """

    high: np.ndarray
    low: np.ndarray
    place: np.ndarray
    tag: np.ndarray

    @classmethod
    def of(cls, keys: np.ndarray, place: np.ndarray, tag: np.ndarray) -> "KeyTable":
        """A table of keys `(n, 16)`, uint8, in any order."""
        return cls.sorted(*split_keys(keys), place, tag)

    @classmethod
    def sorted(cls, high: np.ndarray, low: np.ndarray, place: np.ndarray, tag: np.ndarray) -> "KeyTable":
        """A table of keys in any order."""
        order = np.lexsort((low, high))
        return cls(high[order], low[order], place[order], tag[order])

    @classmethod
    def joined(cls, tables: Sequence["KeyTable"]) -> "KeyTable":
        """One table of several."""
        columns = (np.concatenate([getattr(table, name) for table in tables]) for name in COLUMNS)
        return cls.sorted(*columns)

    def __len__(self) -> int:
        return len(self.high)

    def part(self, start: int, end: int) -> "KeyTable":
        """Rows of the table."""
        return KeyTable(*(getattr(self, name)[start:end] for name in COLUMNS))

    def find(self, high: np.ndarray, low: np.ndarray, gone: np.ndarray) -> np.ndarray:
        """Rows of keys, `(n,)`, int64; -1 for those that are not there or lie in a file that is gone.

        Args:
            high, low: Halves of the keys.
            gone: Whether each file is gone, bool.
        """
        found = np.full(len(high), -1, np.int64)
        if not len(self.high):
            return found
        rows = np.searchsorted(self.high, high)
        pending = np.arange(len(high))
        while len(pending):  # once, but where two keys share a half or a file is gone
            at = rows[pending]
            inside = at < len(self.high)
            pending, at = pending[inside], at[inside]
            same = self.high[at] == high[pending]
            pending, at = pending[same], at[same]
            right = (self.low[at] == low[pending]) & ~gone_at(self.place[at], gone)
            found[pending[right]] = at[right]
            pending = pending[~right]
            rows[pending] += 1
        return found


def gone_at(place: np.ndarray, gone: np.ndarray) -> np.ndarray:
    """Which places are in a file that is gone; one of a number that no file has is damaged, and as good as gone."""
    files = place >> 32
    inside = files < len(gone)
    return ~inside | gone[np.where(inside, files, 0).astype(np.int64)]


EMPTY = KeyTable(*(np.empty(0, NUMPY_DTYPES[dtype]) for dtype in COLUMNS.values()))


@dataclass(slots=True)
class Piece:
    """Part of an index: which contents there are, and which pictures have them."""

    contents: KeyTable = EMPTY
    pictures: KeyTable = EMPTY

    def __len__(self) -> int:
        return len(self.contents) + len(self.pictures)


@dataclass(slots=True)
class Index:
    """All that is known of a store's files, which are numbered: those of the mapped index first.

    Attributes:
        mapped: The mapped index, if there is one.
        added: Names of files that were taken up since.
        gone: Whether each file is gone, bool.
        pieces: The mapped index's tables, and what was added since.
        count: Number of contents.
        waiting: Keys of pictures, and of their contents, which no file that was taken up holds.
    """

    mapped: "MappedIndex | None" = None
    added: list[str] = field(default_factory=list)
    gone: np.ndarray = field(default_factory=lambda: np.empty(0, bool))
    pieces: list[Piece] = field(default_factory=list)
    count: int = 0
    waiting: tuple[np.ndarray, np.ndarray] = (np.empty((0, 16), np.uint8), np.empty((0, 16), np.uint8))
    _lookups: int = 0

    @classmethod
    def over(cls, mapped: "MappedIndex", names: Sequence[str]) -> "Index":
        """What a mapped index knows of the files that are there, `names`."""
        return cls(mapped, [], mapped.not_among(names), [mapped.piece], mapped.count)

    def find(self, keys: np.ndarray, pictures: bool) -> tuple[np.ndarray, np.ndarray]:
        """Places `(n,)`, int64, -1 where there is none, and tags `(n,)`, uint32, of keys `(n, 16)`, uint8.

        Args:
            keys: Of contents, or of pictures.
            pictures: Which of them.
        """
        places, tags = np.full(len(keys), -1, np.int64), np.zeros(len(keys), np.uint32)
        high, low = split_keys(keys)
        open_ = np.arange(len(keys))
        for piece in self.pieces:
            table = piece.pictures if pictures else piece.contents
            rows = table.find(high[open_], low[open_], self.gone)
            there, at = open_[rows >= 0], rows[rows >= 0]
            places[there], tags[there] = table.place[at].astype(np.int64), table.tag[at]
            open_ = open_[rows < 0]
            if not len(open_):
                break
        self._lookups += len(keys)
        if self.mapped is not None and self._lookups > LOOKUPS_BEFORE_RELEASE:
            self._lookups = 0
            self.mapped.release()
        return places, tags

    def add(self, name: str, digests: np.ndarray, pictures: np.ndarray, contents: np.ndarray):
        """Takes up a file.

        Args:
            name: Its name.
            digests: SHA-256 of the content of each of its rows, `(rows, 32)`, uint8.
            pictures: Keys of pictures, `(n, 16)`, uint8.
            contents: Key of the content of each of these, of this file or of another.
        """
        number = len(self.gone)
        self.added.append(name)
        self.gone = np.append(self.gone, False)
        places = (np.uint64(number) << np.uint64(32)) + np.arange(len(digests), dtype=np.uint64)
        tags = np.ascontiguousarray(digests[:, 16:20]).view("<u4").reshape(-1)
        new = self.find(digests[:, :16], False)[0] < 0
        self.count += int(new.sum())
        piece = Piece(KeyTable.of(digests[new, :16], places[new], tags[new]))
        self.pieces.append(piece)
        # A file may come before the one that holds the content of its pictures.
        waiting = [each for each in (self.waiting, (pictures, contents)) if len(each[0])]
        pictures, contents = map(np.concatenate, zip(*waiting, strict=True)) if waiting else (pictures, contents)
        where, tags = self.find(contents, False)
        known = where >= 0
        self.waiting = pictures[~known], contents[~known]
        piece.pictures = KeyTable.of(pictures[known], where[known].astype(np.uint64), tags[known])
        # Pieces of like size are joined, so that there are few of them and each key is sorted a few times.
        first = 1 if self.mapped is not None else 0
        while len(self.pieces) > first + 1 and 2 * len(self.pieces[-1]) >= len(self.pieces[-2]):
            last = [self.pieces.pop(), self.pieces.pop()]
            contents_, pictures_ = ([getattr(each, name) for each in last] for name in KINDS)
            self.pieces.append(Piece(KeyTable.joined(contents_), KeyTable.joined(pictures_)))

    def name(self, number: int) -> str:
        """Name of a file."""
        before = 0 if self.mapped is None else len(self.mapped.files)
        return self.mapped.files[number].decode() if number < before else self.added[number - before]


class MappedIndex:
    """An index file: both tables and the names of the files they are about, in the layout of safetensors.

    Args:
        path: The file.

    Raises:
        ValueError: It is damaged.
    """

    def __init__(self, path: Path):
        with open(path, "rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        start, entries = parsed_header(self._map[:HEADER])
        try:
            metadata = entries["__metadata__"]
            self.count, self.fingerprint = int(metadata["contents"]), str(metadata["fingerprint"])
            arrays = {}
            for name, each in entries.items():
                if name != "__metadata__":
                    dtype = np.dtype(NUMPY_DTYPES[each["dtype"]])
                    first, end = each["data_offsets"]
                    arrays[name] = np.frombuffer(self._map, dtype, (end - first) // dtype.itemsize, start + first)
            tables = [KeyTable(*(arrays[f"{kind}.{name}"] for name in COLUMNS)) for kind in KINDS]
            self.piece = Piece(*tables)
            self.files = arrays["files"].view(f"S{NAME_BYTES}")  # without a Python object for each
            if zlib.crc32(arrays["files"].data) != int(metadata["files_crc32"]):
                raise ValueError("checksum of the list of files")
        except (KeyError, ValueError, TypeError) as error:
            raise ValueError(f"is damaged ({error})") from None

    def not_among(self, names: Sequence[str]) -> np.ndarray:
        """Which of its files are not among `names`, bool."""
        return ~np.isin(self.files, np.array(names, self.files.dtype))

    def release(self):
        """Gives the pages that were looked at back: they stay in the system's cache, and count for no process."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)


def write_index(index: Index, path: Path, fingerprint: str):
    """Writes one sorted index of all pieces, without the files that are gone.

    Args:
        index: What is known.
        path: Where to.
        fingerprint: Of the store.
    """
    kept = np.flatnonzero(~index.gone)
    numbers = np.zeros(len(index.gone), np.uint64)
    numbers[kept] = np.arange(len(kept), dtype=np.uint64)
    names = np.array([index.name(number) for number in kept.tolist()], f"S{NAME_BYTES}")
    kinds = {kind: [getattr(piece, kind) for piece in index.pieces] for kind in KINDS}
    sizes = {kind: sum(_remaining(table, index.gone) for table in tables) for kind, tables in kinds.items()}
    columns = sorted(((kind, name) for kind in KINDS for name in COLUMNS), key=lambda each: each[1] == "tag")
    tensors: dict[str, tuple[str, Sequence[int]]] = {
        f"{kind}.{name}": (COLUMNS[name], (sizes[kind],)) for kind, name in columns
    }
    tensors["files"] = "U8", (len(names), NAME_BYTES)
    starts = _starts(tensors)
    with open(path, "wb") as file:
        count = 0
        for kind, tables in kinds.items():
            written, last = 0, None
            for part in _in_order(tables, index.gone):
                place = (numbers[(part.place >> 32).astype(np.int64)] << np.uint64(32)) + (part.place & 0xFFFFFFFF)
                for name in COLUMNS:
                    column = place if name == "place" else getattr(part, name)
                    file.seek(starts[f"{kind}.{name}"] + written * column.itemsize)
                    file.write(np.ascontiguousarray(column).data)
                written += len(part)
                if kind == "contents":
                    count += _distinct(part, last)
                    last = (part.high[-1], part.low[-1])
        file.seek(starts["files"])
        file.write(names.tobytes())
        file.seek(0)
        metadata = {
            "contents": str(count),
            "fingerprint": fingerprint,
            "files_crc32": str(zlib.crc32(names.tobytes())),
        }
        file.write(safetensors_header(tensors, metadata))


def _starts(tensors: dict[str, tuple[str, Sequence[int]]]) -> dict[str, int]:
    start, starts = HEADER, {}
    for name, (dtype, shape) in tensors.items():
        starts[name] = start
        start += int(np.prod(shape, dtype=np.int64)) * np.dtype(NUMPY_DTYPES[dtype]).itemsize
    return starts


def _remaining(table: KeyTable, gone: np.ndarray) -> int:
    """Number of keys whose file is there."""
    steps = range(0, len(table), ROWS_OF_A_RANGE)
    return sum(int((~gone_at(table.place[at : at + ROWS_OF_A_RANGE], gone)).sum()) for at in steps)


def _in_order(tables: list[KeyTable], gone: np.ndarray) -> Iterator[KeyTable]:
    """The keys of several tables in rising order, a range of them at a time: no more of them is in memory."""
    ranges = max(1, -(-sum(map(len, tables)) // ROWS_OF_A_RANGE))
    bounds = [number * 2**64 // ranges for number in range(1, ranges)]
    cuts = [
        [0, *np.searchsorted(table.high, np.array(bounds, np.uint64)).tolist(), len(table)] if len(table) else None
        for table in tables
    ]
    for number in range(ranges):
        parts = [
            table.part(cut[number], cut[number + 1])
            for table, cut in zip(tables, cuts, strict=True)
            if cut is not None
        ]
        if not parts:
            return
        whole = KeyTable.joined(parts)
        there = ~gone_at(whole.place, gone)
        if there.any():
            yield KeyTable(*(getattr(whole, name)[there] for name in COLUMNS))


def _distinct(table: KeyTable, before: tuple[Any, Any] | None) -> int:
    """How many keys of a sorted table differ from the one before."""
    differs = (table.high[1:] != table.high[:-1]) | (table.low[1:] != table.low[:-1])
    first = before is None or (table.high[0], table.low[0]) != before
    return int(differs.sum()) + int(first)
