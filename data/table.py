"""Rows that live on disk: a source is read once into an Arrow table, which later runs and all processes map.

    HF_HOME/jminigpt4/rows/NAME-IDENTITY/    one folder a source: its files, its reader, what the reader was told
        FINGERPRINT/                         its table at one state of these files
            rows.arrow                       the rows, in the schema of `columns.py`
            bad_rows.jsonl                   what was left out: file, place and reason
            missing.jsonl                    paths and names of the pictures that were not found
            table.json                       how many there are, and which picture folders were looked into
            groups-…/                        selections made from it, see `train/groups.py`

The environment variable `JMINIGPT4_ROWS` names another folder. Everything may be removed while nothing runs: it is
made anew. A table appears when it is whole, under a lock, so processes that start together build it once.
"""

import gc
import json
import os
import shutil
import time
from bisect import bisect_right
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter
from tqdm import tqdm

from ..checkpoint import finished_file, finished_folder, locked_folder, remove_unfinished
from .columns import INDEX, STORED, Decoded, batch_of, index_of, key_of, picture_keys, schema
from .freshness import Origin, looked_into, where_found
from .mapped import Mapped
from .pictures import PictureFolders
from .readers import DataSource, images_of, no_rows, rows_of
from .rows import BadRow, Row

ROWS, BAD_ROWS, MISSING, TABLE = "rows.arrow", "bad_rows.jsonl", "missing.jsonl", "table.json"
BATCH_ROWS, BATCH_BYTES = 1 << 15, 64_000_000  # of texts: what is read before it is written
BATCHES = 1024  # of which a process keeps where their columns lie, some 10 KB each
WAIT = 0.2  # seconds between looks whether another process has written the table


@dataclass(frozen=True)
class Facts:
    """What a table says of itself.

    Args:
        starts: Number of the first row of each batch, and of all rows.
        bad: Number of rows that were left out.
        listed: Picture folders that were looked into, each with its time of modification.
    """

    starts: list[int]
    bad: int
    listed: dict[str, int | None] = field(default_factory=dict)


_FACTS, _BAD, _NAMES = TypeAdapter(Facts), TypeAdapter(BadRow), TypeAdapter(list[str])


class RowTable(Sequence[Row]):
    """The rows of a source, in a folder on disk.

    Args:
        folder: The table.
        source: What its rows are called.

    Raises:
        FileNotFoundError: It is not there, or not whole.
    """

    def __init__(self, folder: Path, source: str):
        import pyarrow as pa

        self.folder, self.source = folder, source
        self.facts = _FACTS.validate_json((folder / TABLE).read_bytes())
        self.bad = BadRows(folder / BAD_ROWS, self.facts.bad)
        self._file = Mapped(folder / ROWS)
        self._reader = pa.ipc.open_file(pa.BufferReader(pa.py_buffer(self._file.content)))
        self._batch = lru_cache(maxsize=BATCHES)(lambda number: Decoded(self._reader.get_batch(number)))

    def __reduce__(self):
        return RowTable, (self.folder, self.source)

    def __len__(self) -> int:
        return self.facts.starts[-1]

    def __getitem__(self, number: int) -> Row:
        """Row `number`, made of its columns.

        Raises:
            IndexError: There is no such row.
        """
        if not 0 <= number < len(self):
            raise IndexError(f"{self.source} has no row {number}: it has {len(self):,}.")
        batch = bisect_right(self.facts.starts, number) - 1
        row = self._batch(batch).row(number - self.facts.starts[batch], self.source)
        self._file.touched()
        return row

    def image_ids(self, number: int) -> tuple[str, ...]:
        """Ids of the pictures of row `number`."""
        batch = bisect_right(self.facts.starts, number) - 1
        self._file.touched()
        return self._batch(batch).image_ids(number - self.facts.starts[batch])

    def rows_about(self, names: set[str]) -> np.ndarray:
        """Numbers of the rows with a picture called so, `(n,)` int64, ascending."""
        keys = {key_of(kind, name) for kind in STORED for name in names}
        wanted = np.frombuffer(b"".join(keys), ">u8")[::2]
        found = [np.empty(0, np.int64)]
        for start, batch in self.batches():
            offsets, values = picture_keys(batch)
            hits = np.flatnonzero(np.isin(values[:, 0], wanted))
            hits = hits[[values[place].tobytes() in keys for place in hits.tolist()]]
            found.append(start + np.unique(np.searchsorted(offsets, hits, side="right") - 1))
        return np.concatenate(found)

    def batches(self) -> Iterator[tuple[int, Any]]:
        """Number of the first row, and a `pyarrow.RecordBatch`, one after the other."""
        for number, start in enumerate(self.facts.starts[:-1]):
            yield start, self._reader.get_batch(number)
            self._file.let_go()


class RowList(Sequence[Row]):
    """Rows that another program has made, with the same columns to select them by.

    Args:
        rows: The rows of one source.
    """

    folder, bad = None, ()

    def __init__(self, rows: list[Row]):
        self.rows, self.source = rows, rows[0].source

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> Row:
        return self.rows[number]

    def image_ids(self, number: int) -> tuple[str, ...]:
        """As of [`RowTable`]."""
        return self.rows[number].image_ids

    def rows_about(self, names: set[str]) -> np.ndarray:
        """As of [`RowTable`]."""
        return np.flatnonzero([any(each.name in names for each in row.pictures) for row in self.rows])

    def batches(self) -> Iterator[tuple[int, Any]]:
        """As of [`RowTable`], with the columns to select by alone."""
        import pyarrow as pa

        for start in range(0, len(self), BATCH_ROWS):
            columns = index_of(self.rows[start : start + BATCH_ROWS])
            yield start, pa.RecordBatch.from_pydict({name: columns[name] for name in INDEX})


Rows = RowTable | RowList


class BadRows(Sequence[BadRow]):
    """Rows that were left out, one a line of a file.

    Args:
        path: The file.
        count: How many there are.
    """

    def __init__(self, path: Path, count: int):
        self.path, self._count = path, count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[BadRow]:
        with open(self.path, "rb") as file:
            yield from map(_BAD.validate_json, file)

    def __getitem__(self, number: int) -> BadRow:
        return next(islice(self, range(len(self))[number], None))


def tables_folder() -> Path:
    """Where tables of rows lie: `JMINIGPT4_ROWS`, else below `HF_HOME`."""
    from huggingface_hub.constants import HF_HOME

    return Path(os.environ.get("JMINIGPT4_ROWS") or Path(HF_HOME) / "jminigpt4" / "rows")


def open_table(
    source: DataSource,
    refuse: Callable[[BadRow], None] | None = None,
    aloud: bool = False,
    tables: Path | None = None,
    may_be_empty: bool = False,
) -> RowTable:
    """The rows of a source, mapped from its table; read into one first where there is none of the files as they are.

    A table is made anew when a data file, a reader or an option has changed, when a picture that was not found has
    appeared, and when one that was found has gone from its folder.

    Args:
        source: The source.
        refuse: Called with the first bad row, which it may refuse by an error, before anything more is read.
        aloud: Whether to show a progress bar.
        tables: Folder of the tables; by default [`tables_folder`].
        may_be_empty: Whether it may hold no rows.

    Raises:
        FileNotFoundError: A data file or a picture folder is not there.
        OSError: The folder of the tables cannot be written.
        ValueError: A file is of no known format or of no use as a whole, or holds no rows.
    """
    origin = Origin.of(source)
    home = (tables or tables_folder()) / origin.folder_name
    folder = home / origin.fingerprint
    with only_one(home, lambda: _fresh(folder, source)) as missing:
        if missing:
            _build(folder, source, refuse, aloud, may_be_empty)
    table = RowTable(folder, source.title)
    if table.bad and refuse is not None:
        refuse(table.bad[0])
    return table


def _fresh(folder: Path, source: DataSource) -> bool:
    """Whether a table is there and pictures are where it found them."""
    if not (folder / TABLE).is_file():
        return False
    table = RowTable(folder, source.title)
    with open(folder / MISSING, "rb") as file:
        listed = where_found(table.facts.listed, table.batches, map(_NAMES.validate_json, file), source)
    if listed is not None and listed != table.facts.listed:  # of names that no row asks for; not looked at again
        with suppress(OSError), finished_file(folder / TABLE) as temporary:
            temporary.write_bytes(_FACTS.dump_json(replace(table.facts, listed=listed)))
    return listed is not None


@contextmanager
def only_one(home: Path, is_there: Callable[[], bool]) -> Generator[bool]:
    """Yields whether something is still to be made: where several processes come together, to the first alone."""
    while not is_there():
        try:
            with locked_folder(home):
                remove_unfinished(home)
                yield not is_there()
                return
        except BlockingIOError:
            time.sleep(WAIT)
        except OSError as error:
            if error.filename is None or not str(error.filename).startswith(str(home)):
                raise
            raise OSError(
                f"{error.filename}: {error.strerror}. Rows are kept there; the environment variable JMINIGPT4_ROWS "
                "names another folder."
            ) from None
    yield False


def _build(folder: Path, source: DataSource, refuse: Callable[[BadRow], None] | None, aloud: bool, may_be_empty: bool):
    """Reads a source into a new table, and removes those of its earlier states."""
    with finished_folder(folder, replace=True) as temporary:
        folders = [PictureFolders(images_of(source, path)) for path in source.files]
        with _Writer(temporary, refuse) as writer, _bar(source, aloud) as bar, _few_collections():
            for path, pictures in zip(source.files, folders, strict=True):
                for row in rows_of(source, path, writer.note, pictures):
                    writer.add(row)
                    bar.update()
        if not writer.starts[-1] and not may_be_empty:
            raise no_rows(source, writer.bad, writer.first_bad)
        with open(temporary / MISSING, "w", encoding="utf-8") as file:
            lines = (json.dumps([path, *names]) for each in folders for path, names in each.missing.items())
            file.writelines(f"{line}\n" for line in lines)
        facts = Facts(writer.starts, writer.bad, looked_into(folders))
        (temporary / TABLE).write_bytes(_FACTS.dump_json(facts))
    for other in folder.parent.iterdir():
        if other.is_dir() and other.name != folder.name:
            shutil.rmtree(other, ignore_errors=True)


@contextmanager
def _few_collections() -> Generator[None]:
    """Python's collector off, as it would look at every row again and again while a batch of them is gathered, which
    is a third of the time; the writer lets it look once a batch."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _bar(source: DataSource, aloud: bool) -> tqdm:
    return tqdm(desc=f"{source.title}: rows", unit=" rows", unit_scale=True, delay=2, disable=not aloud)


class _Writer(AbstractContextManager):
    """Writes rows as they come, `BATCH_ROWS` at a time."""

    def __init__(self, folder: Path, refuse: Callable[[BadRow], None] | None):
        self.folder, self.refuse = folder, refuse
        self.starts, self.bad = [0], 0
        self.first_bad: BadRow | None = None
        self._rows: list[Row] = []
        self._bytes = 0

    def __enter__(self) -> "_Writer":
        import pyarrow as pa

        with ExitStack() as files:
            self._stream = files.enter_context(pa.ipc.new_file(str(self.folder / ROWS), schema()))
            self._bad = files.enter_context(open(self.folder / BAD_ROWS, "w", encoding="utf-8"))
            self._files = files.pop_all()
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any):
        with self._files:
            if kind is None:
                self._flush()

    def add(self, row: Row):
        self._rows.append(row)
        self._bytes += sum(len(part) for each in row.conversation for part in each.parts if isinstance(part, str))
        if len(self._rows) == BATCH_ROWS or self._bytes > BATCH_BYTES:
            self._flush()

    def note(self, bad: BadRow):
        if self.refuse is not None:
            self.refuse(bad)
        self.bad += 1
        self.first_bad = self.first_bad or bad
        self._bad.write(json.dumps(asdict(bad)) + "\n")

    def _flush(self):
        if self._rows:
            self._stream.write_batch(batch_of(self._rows))
            self.starts.append(self.starts[-1] + len(self._rows))
            self._rows, self._bytes = [], 0
            gc.collect(0)
