"""CSV and TSV on disk, as spreadsheets and pandas write them: a header, then rows, cells quoted by `"`."""

import csv
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ..files import open_regular
from ..json_files import decode
from .registry import Entry, container

ENDINGS = {".csv", ".tsv"}
MAX_CELL = 10_000_000  # characters; the standard library's own limit, 131,072, is less than a long conversation
# Columns whose cells may be lists, which CSV has no other way to write.
LISTS = {"images", "file_names", "image_ids", "captions", "texts", "qas", "annotations"}
LISTS |= {"messages", "conversations", "prompt", "completion"}


def _holds(path: Path) -> bool:
    return path.suffix.lower() in ENDINGS and path.is_file() and path.name != "metadata.csv"  # an image folder's


@container("csv", "CSV or TSV with a header", _holds)
def csv_rows(path: Path) -> Iterator[Entry]:
    """Rows of a CSV or TSV file, each with the line in which it begins.

    Between cells stands what the header has most of: commas, tabs or, as Excel writes them in some countries,
    semicolons. Cells may hold line breaks and, doubled, quotes (RFC 4180). A byte-order mark, empty rows and columns
    without a name (the index of a data frame) are passed over. An empty cell is no value. In columns of `LISTS` a cell
    that begins with `[` is JSON.

    Raises:
        ValueError: The header is not UTF-8, is no CSV or names a column twice; the message names the file.
    """
    csv.field_size_limit(max(csv.field_size_limit(), MAX_CELL))
    with open_regular(path) as file:
        lines = _Lines(file)
        names, delimiter = _header(lines, path)
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        while True:
            place = f"line {lines.number + 1}"
            try:
                cells = next(reader)
            except StopIteration:
                return
            except (ValueError, csv.Error) as error:
                yield Entry(path, place, functools.partial(_refuse, _said(error)))
                continue
            if any(cells):
                yield Entry(path, place, functools.partial(_entry, names, cells))


class _Lines:
    """Lines of a file as texts, with the number of the last one."""

    def __init__(self, file: BinaryIO):
        self.file, self.number = file, 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self.file)
        self.number += 1
        try:
            return decode(line)
        except ValueError as error:
            if not _is_shift_jis(line):
                raise
            raise ValueError(f'{error} It seems to be Shift_JIS; Excel\'s "CSV UTF-8" is UTF-8.') from None


def _is_shift_jis(line: bytes) -> bool:
    try:
        return any("ぁ" <= letter <= "鿿" for letter in line.decode("cp932"))
    except UnicodeDecodeError:
        return False


def _header(lines: _Lines, path: Path) -> tuple[list[str], str]:
    try:
        first = next(lines, "")
        delimiter = max(",\t;", key=first.count)
        names = [name.strip() for name in next(csv.reader([first], delimiter=delimiter, strict=True), [])]
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path}, line 1: {_said(error)}") from None
    if twice := sorted({name for name in names if name and names.count(name) > 1}):
        raise ValueError(f"{path}, line 1: the column `{twice[0]}` is there twice.")
    return names, delimiter


def _refuse(reason: str) -> dict[str, Any]:
    raise ValueError(reason)


def _entry(names: list[str], cells: list[str]) -> dict[str, Any]:
    if len(cells) != len(names):
        raise ValueError(
            f"{len(cells)} cells, where the header names {len(names)} columns: is there a comma or a line break in a "
            "cell without quotes?"
        )
    return {name: _value(name, cell) for name, cell in zip(names, cells, strict=True) if name and cell}


def _value(name: str, cell: str) -> Any:
    if name not in LISTS or not cell.lstrip().startswith("["):
        return cell
    try:
        return json.loads(cell)
    except ValueError as error:
        raise ValueError(f"`{name}` begins with [ and is not JSON: {error}") from None


def _said(error: Exception) -> str:
    text = str(error)
    if "new-line character" in text:
        return "its lines end with carriage returns alone: save it with line feeds."
    if "unexpected end of data" in text or "field larger than" in text:
        return "a quote is opened here and never closed."
    return text if isinstance(error, ValueError) else f"is no CSV: {text}."
