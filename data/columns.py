"""Rows as columns of an Arrow table, and back: the one schema of tables of rows.

    turns         list<struct<role, parts: list<string>>>   a null part is a place for a picture
    pictures      list<struct<kind, path, …>>               the class of a picture, and its fields
    image_ids     list<string>
    picture_keys  list<16 bytes>                            what a picture is known by, for grouping
    id_keys       list<uint64>                              hashes of the ids, for exclusion
    side          uint64                                    which share of a split the row falls into
    content       16 bytes                                  what the row teaches: texts, roles and ids
    text_bytes    uint32                                    of all its texts, UTF-8
    turn_count    uint32                                    its messages

The source is that of the table. The columns from `picture_keys` on are functions of those before them: what selects
rows looks at them alone and never makes an object of a row.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Any, get_args

import numpy as np

from .ids import canonical_id
from .pictures import MemoryPicture, Picture
from .rows import PICTURE, Message, Placeholder, Row

VERSION = 1  # of this schema
KEY_BYTES = 16
STORED = {kind.__name__: kind for kind in get_args(Picture) if kind is not MemoryPicture}
_FIELDS = {name: (kind, [field.name for field in fields(kind)]) for name, kind in STORED.items()}
PLACES = ("path", "offset", "size", "row", "column", "position")  # fields of stored pictures
INDEX = ("picture_keys", "id_keys", "side", "content", "text_bytes", "turn_count")


def schema() -> Any:
    """The `pyarrow.Schema` of a table of rows."""
    import pyarrow as pa

    texts, numbers = {"kind", "path", "column"}, pa.int64()
    picture = pa.struct([(name, pa.string() if name in texts else numbers) for name in ("kind", *PLACES)])
    return pa.schema(
        [
            ("turns", pa.list_(pa.struct([("role", pa.string()), ("parts", pa.list_(pa.string()))]))),
            ("pictures", pa.list_(picture)),
            ("image_ids", pa.list_(pa.string())),
            ("picture_keys", pa.list_(pa.binary(KEY_BYTES))),
            ("id_keys", pa.list_(pa.uint64())),
            ("side", pa.uint64()),
            ("content", pa.binary(KEY_BYTES)),
            ("text_bytes", pa.uint32()),
            ("turn_count", pa.uint32()),
        ]
    )


def batch_of(rows: Sequence[Row]) -> Any:
    """A `pyarrow.RecordBatch` of rows.

    Raises:
        ValueError: A picture is of a kind that no table stores.
    """
    import pyarrow as pa

    kinds = schema()
    messages = [message for row in rows for message in row.conversation]
    parts = pa.array([None if part is PICTURE else part for each in messages for part in each.parts], pa.string())
    roles = pa.array([message.role for message in messages], pa.string())
    turn = kinds.field("turns").type.value_type
    turns = pa.StructArray.from_arrays(
        [roles, _lists(parts, (len(each.parts) for each in messages))], fields=[turn.field(0), turn.field(1)]
    )
    columns = {
        "turns": _lists(turns, (len(row.conversation) for row in rows)),
        "pictures": _lists(
            _pictures([each for row in rows for each in row.pictures], kinds.field("pictures").type.value_type),
            (len(row.pictures) for row in rows),
        ),
        "image_ids": _lists(
            pa.array([each for row in rows for each in row.image_ids], pa.string()),
            (len(row.image_ids) for row in rows),
        ),
    }
    columns |= index_of(rows)
    return pa.RecordBatch.from_arrays([columns[field.name] for field in kinds], schema=kinds)


def index_of(rows: Sequence[Row]) -> dict[str, Any]:
    """The columns by which rows are selected, as `pyarrow.Array`s; also of rows whose pictures no table stores."""
    import pyarrow as pa

    known = [[canonical_id(each) for each in row.image_ids] for row in rows]
    counts = [len(row.pictures) for row in rows]
    keys = [picture_key(picture) for row in rows for picture in row.pictures]
    hashes = [id_key(each) for ids in known for each in ids]
    return {
        "picture_keys": _lists(pa.array(keys, pa.binary(KEY_BYTES)), counts),
        "id_keys": _lists(pa.array(hashes, pa.uint64()), counts),
        "side": pa.array([side_of(ids) for ids in known], pa.uint64()),
        "content": pa.array([_content(row) for row in rows], pa.binary(KEY_BYTES)),
        "text_bytes": pa.array([text_bytes(row) for row in rows], pa.uint32()),
        "turn_count": pa.array([len(row.conversation) for row in rows], pa.uint32()),
    }


class Decoded:
    """A batch of a table, of which rows are made: where its columns lie, looked up once.

    Args:
        batch: The `pyarrow.RecordBatch`.
    """

    def __init__(self, batch: Any):
        turns, pictures, ids = (batch.column(name) for name in ("turns", "pictures", "image_ids"))
        self._turns, self._pictures, self._ids = (each.offsets.to_numpy() for each in (turns, pictures, ids))
        self._roles, parts = turns.values.field("role"), turns.values.field("parts")
        self._parts, self._texts = parts.offsets.to_numpy(), parts.values
        self._fields = {name: pictures.values.field(name) for name in ("kind", *PLACES)}
        self._image_ids = ids.values

    def row(self, number: int, source: str) -> Row:
        """Row `number` of the batch."""
        turns = range(self._turns[number], self._turns[number + 1])
        pictures = range(self._pictures[number], self._pictures[number + 1])
        return Row(
            tuple([Message(self._roles[turn].as_py(), self._parts_of(turn)) for turn in turns]),
            tuple([self._picture(place) for place in pictures]),
            self.image_ids(number),
            source,
        )

    def image_ids(self, number: int) -> tuple[str, ...]:
        """Ids of the pictures of row `number`."""
        ids = range(self._ids[number], self._ids[number + 1])
        return tuple([self._image_ids[place].as_py() for place in ids])

    def _parts_of(self, turn: int) -> tuple[str | Placeholder, ...]:
        texts = [self._texts[part].as_py() for part in range(self._parts[turn], self._parts[turn + 1])]
        return tuple([PICTURE if text is None else text for text in texts])

    def _picture(self, place: int) -> Picture:
        kind, names = _FIELDS[self._fields["kind"][place].as_py()]
        return kind(*[self._fields[name][place].as_py() for name in names])


def picture_key(picture: Picture) -> bytes:
    """What a picture is known by, 16 bytes: equal for equal pictures alone."""
    # Names of other programs' pictures may repeat.
    more = f" {picture.stamp()}" if isinstance(picture, MemoryPicture) else ""
    return key_of(type(picture).__name__, picture.name + more)


def key_of(kind: str, name: str) -> bytes:
    """The key of a picture of that class and name."""
    return hashlib.blake2b(f"{kind} {name}".encode("utf-8", "surrogatepass"), digest_size=KEY_BYTES).digest()


def picture_keys(batch: Any) -> tuple[np.ndarray, np.ndarray]:
    """Of a batch, where the keys of each row's pictures begin, `(rows + 1,)`, and the keys, `(pictures, 2)`."""
    lists = batch.column("picture_keys")
    offsets = lists.offsets.to_numpy()
    return offsets - offsets[0], _pairs(lists.flatten())


def content_keys(batch: Any) -> np.ndarray:
    """Of a batch, what its rows teach, `(rows, 2)`; equal where they say the same of the same pictures."""
    return _pairs(batch.column("content"))


def _pairs(values: Any) -> np.ndarray:
    """A column of 16 bytes each as `(n, 2)` numbers that sort as the bytes do."""
    content = np.frombuffer(values.buffers()[1] or b"", ">u8").reshape(-1, 2)
    return content[values.offset : values.offset + len(values)]


def id_key(image_id: str) -> int:
    """A hash of a picture's id, 64 bits: what it finds is compared letter by letter where that matters."""
    return int.from_bytes(hashlib.blake2b(image_id.encode("utf-8", "replace"), digest_size=8).digest(), "big")


def side_of(identities: Iterable[str]) -> int:
    """Where a row falls in a split by its pictures, of 2^64: a function of their ids alone, so it stays when data is
    added."""
    identity = "|".join(sorted(identities))
    return int.from_bytes(hashlib.sha256(identity.encode("utf-8", "replace")).digest()[:8], "big")


def text_bytes(row: Row) -> int:
    """Of all texts of a row in UTF-8, which bounds the number of their tokens."""
    return sum(
        len(part.encode("utf-8", "replace")) for each in row.conversation for part in each.parts if part is not PICTURE
    )


def _content(row: Row) -> bytes:
    said = [(each.role, [None if part is PICTURE else part for part in each.parts]) for each in row.conversation]
    return hashlib.blake2b(repr((row.image_ids, said)).encode("utf-8", "replace"), digest_size=KEY_BYTES).digest()


def _lists(values: Any, counts: Iterable[int]) -> Any:
    """Values parted into lists of so many each."""
    import pyarrow as pa

    offsets = np.zeros(1, np.int32)
    offsets = np.concatenate([offsets, np.cumsum(np.fromiter(counts, np.int64))]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)


def _pictures(pictures: list[Picture], kind: Any) -> Any:
    import pyarrow as pa

    kinds = {type(picture) for picture in pictures}
    if foreign := [each.__name__ for each in kinds if STORED.get(each.__name__) is not each]:
        raise ValueError(f"A {foreign[0]} cannot be stored in a table of rows: {', '.join(STORED)} can.")
    has = {name: {each for each in kinds if name in {field.name for field in fields(each)}} for name in PLACES}
    columns = [pa.array([type(picture).__name__ for picture in pictures], pa.string())]
    for name in PLACES:
        wanted = kind.field(kind.get_field_index(name)).type
        if not has[name]:
            columns.append(pa.nulls(len(pictures), wanted))
        else:
            columns.append(
                pa.array([getattr(each, name) if type(each) in has[name] else None for each in pictures], wanted)
            )
    return pa.StructArray.from_arrays(columns, fields=list(kind))
