"""JSON and JSON lines on disk: read, and known by their beginning without being read."""

import codecs
import json
import mmap
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from .files import open_regular
from .remote import RemotePath

_HALF_A_PAIR = re.compile(r"\\u[dD][89a-fA-F]")


def decode(content: bytes) -> str:
    """The text of a file or of a line of one, without a byte-order mark.

    Raises:
        ValueError: It is not UTF-8; the message goes on behind the name of a file.
    """
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
        if _HALF_A_PAIR.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("is nested too deeply.") from None
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        raise ValueError(f"holds {half} alone, half of a surrogate pair, which is no character.") from None
    except ValueError as error:
        raise ValueError(f"is not JSON: {error}") from None
    return value


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


def read_list(path: Path) -> list[Any]:
    """The JSON array in a file.

    Raises:
        ValueError: As [`read_json`], or it is another value.
    """
    content = read_json(path)
    if not isinstance(content, list):
        raise ValueError(f"{path} is not a JSON array.")
    return content


def read_lists(path: Path, *keys: str) -> list[list[Any]]:
    """The arrays under `keys` of the JSON object in a file.

    Raises:
        ValueError: As [`read_json`], or it is another value, or lacks a key.
    """
    content = read_json(path)
    if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in keys):
        raise ValueError(f"{path} is not a JSON object with lists called {' and '.join(keys)}.")
    return [content[key] for key in keys]


def numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Line numbers (from 1) and lines of a file; empty lines are passed over.

    Lines end with a line feed and nowhere else: `str.splitlines` also parts them at characters such as U+2028, which
    may stand in a JSON text.
    """
    with open_regular(path) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, line


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


def first_keys(path: Path) -> frozenset[str]:
    """Keys of the first object among the first hundred lines of a JSON-lines file; none where it is no such file."""
    if path.suffix != ".jsonl" or path.is_dir():
        return frozenset()
    for _, line in islice(numbered_lines(path), 100):
        try:
            return frozenset(parse_object(line))
        except ValueError:
            continue  # the reader names it
    return frozenset()


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
