"""Data sets in their owners' layouts, read into the one schema of [`Row`]; nothing is converted beforehand."""

import importlib
import os
import pkgutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from ...schema import explain
from ..containers import container_of
from ..json_files import read_json
from ..pictures import PictureFolders
from ..recognition import nearest, seen_keys
from ..remote import data_path
from ..rows import BadRow, Row, row_or_fault
from ..splits import named_parts, say_once
from .registry import READERS, Reader, layout_of

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")


@dataclass(frozen=True)
class DataSource:
    """One data set of a training run.

    Args:
        path: Its file or folder, here or at an address such as `s3://bucket/set`; several files that belong together
            may be given as a list.
        images: Folders with its pictures, looked through in order; by default the folder of `path`.
        reader: A key of `READERS`; by default told from the file.
        name: Its name in the log; by default the file's.
        weight: Its share of every epoch, relative to the other sources'; by default its number of pictures.
        language: Which text a translated conversation is read from: `auto`, `value` or `jp`.
        prompts: What captions are asked with: `none` (the article), `japanese`, `minigpt4`, or a list of prompts.
        prompt_probability: How often a caption is asked with one of them, from 0 to 1.
        stream: Whether the files are shards that are fetched in training, some at a time: `path` may then be an
            address (`hf://datasets/…`, `s3://…`, `https://…`) and a pattern (`{00000..00099}.tar`, `**.parquet`).
    """

    path: str | list[str]
    images: str | list[str] | None = None
    reader: str = "auto"
    name: str = ""
    weight: float | None = None
    language: Literal["auto", "value", "jp"] = "auto"
    prompts: str | list[str] | None = None
    prompt_probability: float | None = None
    stream: bool = False

    @property
    def patterns(self) -> list[str]:
        """The path, or the paths, as they were given."""
        return [self.path] if isinstance(self.path, str) else self.path

    @property
    def files(self) -> list[Path]:
        return [data_path(each) for each in self.patterns]

    @property
    def title(self) -> str:
        if self.name or not self.stream:
            return self.name or self.files[0].stem
        plain = [part for part in self.patterns[0].split("/") if part and not any(each in part for each in "*{[")]
        return Path(plain[-1]).stem if plain else self.patterns[0]


def as_source(source: "DataSource | dict[str, Any] | str | os.PathLike") -> DataSource:
    """A source from its short forms: a path, or the mapping of a recipe.

    Raises:
        ValueError: The mapping has a key that no source has, or a value of the wrong type.
    """
    if isinstance(source, DataSource):
        return source
    if not isinstance(source, dict):
        return DataSource(os.fspath(source))
    if "format" in source:  # what `reader` was called
        if "reader" in source:
            raise ValueError("A data source has `reader` and `format`, which are the same: one is enough.")
        source = {"reader" if key == "format" else key: value for key, value in source.items()}
    known = {each.name for each in fields(DataSource)}
    if unknown := sorted(source.keys() - known) or ("path" not in source and ["no `path`"]):
        raise ValueError(f"A data source has {unknown}; its keys are {', '.join(sorted(known))}.")
    try:
        return _SOURCE.validate_python(source)
    except ValidationError as error:
        raise explain(error, "A data source") from None


_SOURCE = TypeAdapter(DataSource)


def refuse(bad: BadRow):
    """What is done with bad rows where they are not to be skipped.

    Raises:
        ValueError: Always; the message names file, place and field.
    """
    raise ValueError(bad.reason)


def read_source(source: DataSource, note: Callable[[BadRow], None] = refuse) -> list[Row]:
    """All rows of a source, in the order of its files.

    Args:
        source: The source.
        note: Takes the bad rows, which are left out; by default the first one is an error.

    Raises:
        FileNotFoundError: A file is not there.
        ValueError: A file is of no known format or of no use as a whole, or a row is bad; the message names file and
            place.
    """
    bad: list[BadRow] = []

    def noted(each: BadRow):
        bad.append(each)
        note(each)

    rows = [row for path in source.files for row in rows_of(source, path, noted)]
    if not rows:
        raise no_rows(source, len(bad), bad[0] if bad else None)
    return rows


def no_rows(source: DataSource, bad: int, first: BadRow | None) -> ValueError:
    """The error of a source without a row that can be used: it says what is wrong with the first one."""
    reason = f"; the first of {bad:,} bad ones: {first.reason}" if first is not None else "."
    return ValueError(f"{source.path} holds no rows that can be used{reason}")


def rows_of(
    source: DataSource, path: Path, note: Callable[[BadRow], None] = refuse, folders: PictureFolders | None = None
) -> Iterator[Row]:
    """The rows of one file of a source, one after the other; arguments and errors as of [`read_source`], and
    `folders`: where pictures are looked for, by default in [`images_of`] the source."""
    reader = reader_of(source, path)
    folders = PictureFolders(images_of(source, path)) if folders is None else folders
    options = {name: getattr(source, name) for name in reader.options}
    if left := other_parts(path, reader):
        say_once(f"{path}: its part `train` is read; {', '.join(part.name for part in left)} by its own path.")
    for row in reader.read(path, folders, source.title, **options):
        if isinstance(row, BadRow):
            note(row)
        else:
            yield row


def reader_of(source: DataSource, path: Path) -> Reader:
    """What reads one file of a source.

    Raises:
        FileNotFoundError: It is not there.
        ValueError: It is of no known layout, or the source names a reader that there is not.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist.")
    reader = detect(path) if source.reader == "auto" else READERS.get(FORMER.get(source.reader, source.reader))
    if reader is None:
        raise ValueError(f"{source.reader!r} is no reader; there are {', '.join(READERS)}.")
    return reader


def images_of(source: DataSource, path: Path) -> list[str | Path]:
    """The folders in which the pictures of one file of a source are looked for."""
    images = [source.images] if isinstance(source.images, str) else source.images
    return [*images] if images else [path if path.is_dir() else path.parent]


# What these layouts of rows were called when each came with what holds it.
FORMER = {"jsonl": "rows", "parquet": "rows", "imagefolder": "rows"}


def recognised(path: Path) -> Reader | None:
    """The reader of a file or folder, told from its name and its beginning; `None` where none knows it.

    Layouts of whole files come first; then those of rows, of which the one wins that most keys speak for: [`best`].
    """
    for reader in READERS.values():
        if reader.recognises is not None and reader.recognises(path):
            return reader
    return layout_of(seen_keys(path))


def other_parts(path: Path, reader: Reader) -> list[Path]:
    """What a reader leaves out of a folder that has a part `train`: parts for validation and for tests."""
    return [part for part in named_parts(path) if recognised(part) == reader]


def _forms() -> list[tuple[str, tuple[frozenset[str], ...]]]:
    return [(reader.name, reader.keys) for reader in READERS.values()]


def detect(path: Path) -> Reader:
    """The reader of a file or folder.

    Raises:
        ValueError: No reader knows it, or it is not JSON in UTF-8 although its name says so. The message says which
            keys its rows have, and what the nearest layout lacks.
    """
    if reader := recognised(path):
        return reader
    keys = seen_keys(path)
    if not keys:
        _refuse_as_a_whole(path)
    known = "; ".join(f"{reader.name} ({reader.layout})" for reader in READERS.values())
    raise ValueError(
        f"{path} is of no known layout{_what_was_seen(keys)}: state one with `--reader` (`reader` of a data source). "
        f"Known are {', '.join(READERS) if keys else known}."
    )


def _refuse_as_a_whole(path: Path):
    """What is wrong with a file, or with the first of its rows, none of which could be read.

    Raises:
        ValueError: There is such a fault.
    """
    holder = container_of(path)
    for entry in islice(holder.entries(path) if holder else (), 1):
        if isinstance(fault := row_or_fault(entry.file, entry.place, entry.load), BadRow):
            refuse(fault)
    if holder is None and path.suffix == ".json":
        read_json(path)


def _what_was_seen(keys: frozenset[str]) -> str:
    if not keys:
        return ""
    outer = sorted(key for key in keys if "." not in key)
    text = f"; its rows have {_listed(outer)}"
    if found := nearest(keys, _forms()):
        name, form = found
        text += f", and `{name}`, which comes nearest, wants {_listed(form - keys)} beside {_listed(form & keys)}"
    return text


def _listed(keys: Iterable[str]) -> str:
    return ", ".join(f"`{key}`" for key in sorted(keys))
