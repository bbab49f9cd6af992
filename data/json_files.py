"""JSON and JSON lines on disk: read in bounded memory, and known by their beginning without being read."""

import codecs
import json
import mmap
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from .files import open_regular
from .remote import RemotePath

MAX_LINE = 1 << 24  # bytes of a line
HALF_A_PAIR = re.compile(r"\\u[dD][89a-fA-F]")


class LongLine(bytes):
    """What stands for a line that is longer than `MAX_LINE`: nothing of it, and its size in bytes."""

    size: int


def decode(content: bytes) -> str:
    """The text of a file or of a line of one, without a byte-order mark.

    Raises:
        ValueError: It is not UTF-8, or a line that is too long; the message goes on behind the name of a file.
    """
    if isinstance(content, LongLine):
        raise ValueError(f"has {content.size:,} bytes: a line of at most {MAX_LINE:,} is read.")
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError("is not UTF-8 but UTF-16: save it as UTF-8.")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        place = f" in line {line}" if b"\n" in content.rstrip() else ""
        raise ValueError(f"is not UTF-8{place} (byte 0x{content[error.start]:02x}): save it as UTF-8.") from None


def parse_json(content: bytes) -> Any:
    """The value that is written in a file or in a line of one.

    Raises:
        ValueError: It is not JSON in UTF-8, or holds half of a surrogate pair, which no file could hold as it stands;
            the message goes on behind the name of a file.
    """
    text = decode(content)
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("is nested too deeply.") from None
    except ValueError as error:
        raise ValueError(f"is not JSON: {error}") from None
    if HALF_A_PAIR.search(text):
        refuse_halves(value)
    return value


def refuse_halves(value: Any):
    """Makes sure that a file could hold a value as it stands.

    Raises:
        ValueError: It holds half of a surrogate pair; the message goes on behind the name of a file.
    """
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        raise ValueError(f"holds {half} alone, half of a surrogate pair, which is no character.") from None


def parse_object(line: bytes) -> dict[str, Any]:
    """The JSON object that is written in a line.

    Raises:
        ValueError: As [`parse_json`], or it is another value.
    """
    value = parse_json(line)
    if not isinstance(value, dict):
        raise ValueError("is not a JSON object.")
    return value


def read_json(path: Path) -> Any:
    """The value in a JSON file.

    Raises:
        ValueError: As [`parse_json`]; the message names the file.
    """
    with open_regular(path) as file:
        content = file.read()
    try:
        return parse_json(content)
    except ValueError as error:
        raise ValueError(f"{path} {error}") from None


def numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Line numbers (from 1) and lines of a file; empty lines are passed over.

    Lines end with a line feed and nowhere else: `str.splitlines` also parts them at characters such as U+2028, which
    may stand in a JSON text. For one of more than `MAX_LINE` bytes comes a [`LongLine`], which says so where it is
    parsed, and then the line behind it.
    """
    with open_regular(path) as file:
        for number, line in enumerate(iter(partial(file.readline, MAX_LINE + 1), b""), 1):
            if len(line) > MAX_LINE and not line.endswith(b"\n"):
                long = LongLine()
                long.size = len(line) + _rest_of_line(file)
                yield number, long
            elif not line.isspace():
                yield number, line


def _rest_of_line(file: BinaryIO) -> int:
    """Passes over it, and says how long it is, without the line feed."""
    size = 0
    while piece := file.readline(MAX_LINE):
        size += len(piece)
        if piece.endswith(b"\n"):
            return size - 1
    return size


def json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers (from 1) and objects of a JSON-lines file; empty lines are passed over.

    Raises:
        ValueError: A line is not a JSON object; the message names file and line.
    """
    for number, line in numbered_lines(path):
        try:
            yield number, parse_object(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}, {error}") from None


def begins_with(path: Path, opening: str, key: str = "") -> bool:
    """Whether the value of a `.json` file begins with `opening`, `[` or `{`, and has `key` near its beginning."""
    if path.suffix != ".json" or path.is_dir():
        return False
    with open_regular(path) as file:
        start = file.read(1 << 16).decode("utf-8-sig", errors="replace").lstrip()
    return start.startswith(opening) and (not key or f'"{key}"' in start)


def mentions(path: Path, *keys: str) -> bool:
    """Whether all the keys stand somewhere in a file. Parsing hundreds of MB is left to the reader."""
    if isinstance(path, RemotePath):
        with open_regular(path) as file:
            read = file.read()
        return all(f'"{key}"'.encode() in read for key in keys)
    with open_regular(path) as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return all(content.find(f'"{key}"'.encode()) >= 0 for key in keys)
