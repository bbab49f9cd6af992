"""Data sets in their owners' layouts, read into the one schema of [`Row`]; nothing is converted beforehand."""

import importlib
import os
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ...schema import explain
from ..json_files import json_lines, read_json
from ..pictures import PictureFolders
from ..remote import data_path
from ..rows import BadRow, Row
from .registry import READERS, Reader

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")


@dataclass(frozen=True)
class DataSource:
    """One data set of a training run.

    Args:
        path: Its file or folder, here or at an address such as `s3://bucket/set`; several files that belong together
            may be given as a list.
        images: Folders with its pictures, looked through in order; by default the folder of `path`.
        format: A key of `READERS`; by default told from the file.
        name: Its name in the log; by default the file's.
        weight: Its share of every epoch, relative to the other sources'; by default its number of pictures.
        language: Which text a translated conversation is read from: `auto`, `value` or `jp`.
        prompts: What captions are asked with: `none` (the article), `japanese`, `minigpt4`, or a list of prompts.
        prompt_probability: How often a caption is asked with one of them, from 0 to 1.
    """

    path: str | list[str]
    images: str | list[str] | None = None
    format: str = "auto"
    name: str = ""
    weight: float | None = None
    language: str = "auto"
    prompts: str | list[str] | None = None
    prompt_probability: float | None = None

    @property
    def files(self) -> list[Path]:
        return [data_path(each) for each in ([self.path] if isinstance(self.path, str) else self.path)]

    @property
    def title(self) -> str:
        return self.name or self.files[0].stem


def as_source(source: "DataSource | dict[str, Any] | str | os.PathLike") -> DataSource:
    """A source from its short forms: a path, or the mapping of a recipe.

    Raises:
        ValueError: The mapping has a key that no source has, or a value of the wrong type.
    """
    if isinstance(source, DataSource):
        return source
    if not isinstance(source, dict):
        return DataSource(os.fspath(source))
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
    rows = [row for path in source.files for row in rows_of(source, path, note)]
    if not rows:
        raise ValueError(f"{source.path} holds no rows that can be used.")
    return rows


def rows_of(
    source: DataSource, path: Path, note: Callable[[BadRow], None] = refuse, folders: PictureFolders | None = None
) -> Iterator[Row]:
    """The rows of one file of a source, one after the other; arguments and errors as of [`read_source`], and
    `folders`: where pictures are looked for, by default in [`images_of`] the source."""
    reader = reader_of(source, path)
    folders = PictureFolders(images_of(source, path)) if folders is None else folders
    options = {name: getattr(source, name) for name in reader.options}
    for row in reader.read(path, folders, source.title, **options):
        if isinstance(row, BadRow):
            note(row)
        else:
            yield row


def reader_of(source: DataSource, path: Path) -> Reader:
    """What reads one file of a source.

    Raises:
        FileNotFoundError: It is not there.
        ValueError: It is of no known format.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist.")
    reader = detect(path) if source.format == "auto" else READERS.get(source.format)
    if reader is None:
        raise ValueError(f"{source.format!r} is no format; there are {', '.join(READERS)}.")
    return reader


def images_of(source: DataSource, path: Path) -> list[str | Path]:
    """The folders in which the pictures of one file of a source are looked for."""
    images = [source.images] if isinstance(source.images, str) else source.images
    return [*images] if images else [path if path.is_dir() else path.parent]


def recognised(path: Path) -> Reader | None:
    """The reader of a file or folder, told from its name and its beginning; `None` where none knows it."""
    return next((reader for reader in READERS.values() if reader.recognises(path)), None)


def detect(path: Path) -> Reader:
    """The reader of a file or folder.

    Raises:
        ValueError: No reader knows it, or it is not JSON in UTF-8 although its name says so.
    """
    if reader := recognised(path):
        return reader
    if path.suffix == ".json":
        read_json(path)  # what is wrong with it as a whole is said before what is wrong with its keys
    elif path.suffix == ".jsonl":
        next(json_lines(path), None)
    known = "; ".join(f"{reader.name} ({reader.layout})" for reader in READERS.values())
    raise ValueError(f"{path} is of no known format: state one with `format`. Known are {known}.")
