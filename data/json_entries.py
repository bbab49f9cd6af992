"""Elements of JSON arrays in files of any size: parsed one after the other, with one of them in memory at a time."""

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from .files import open_regular
from .json_files import HALF_A_PAIR, decode, refuse_halves

PIECE = 1 << 20  # bytes read at a time
MAX_ELEMENT = 1 << 24  # characters of an element
_DECODER = json.JSONDecoder()
_SPACE = " \t\n\r"


def list_entries(path: Path) -> Iterator[Any]:
    """The elements of the JSON array in a file.

    Raises:
        ValueError: It is not JSON in UTF-8 or another value, or an element is too large; the message names the file.
    """
    with open_regular(path) as file:
        text = _Text(path, file)
        if text.next() != "[":
            if text.next() != "{":
                text.value()  # what is no JSON at all is told so
            raise ValueError(f"{path} is not a JSON array.")
        yield from text.elements()
        text.end()


def lists_entries(path: Path, *keys: str) -> list[Iterator[Any]]:
    """For each key the elements of the array under it, in the JSON object in a file. Each goes through the file by
    itself, whatever the order of the keys.

    Raises:
        ValueError: As [`list_entries`], or a key is missing; when its elements are asked for.
    """
    return [_entries_under(path, key, keys) for key in keys]


def _entries_under(path: Path, key: str, keys: tuple[str, ...]) -> Iterator[Any]:
    found = False
    with open_regular(path) as file:
        text = _Text(path, file)
        if text.next() == "{":
            for name in text.members():
                if name == key and text.next() == "[":
                    found = True
                    yield from text.elements()
                else:
                    text.skip()
            text.end()
        elif text.next() != "[":
            text.value()
    if not found:
        raise ValueError(f"{path} is not a JSON object with lists called {' and '.join(keys)}.")


class _Text:
    """The text of a JSON file, of which what has been parsed is let go.

    Args:
        path: The file, for messages.
        file: It, open.
    """

    def __init__(self, path: Path, file: BinaryIO):
        self.path, self.file = path, file
        self.held, self.place = "", 0  # of the text, and where parsing is in it
        self.line, self.column = 1, 1  # where what is held begins
        self.ended = False
        self._decode = codecs.getincrementaldecoder("utf-8")().decode
        self._read(first=True)

    def next(self) -> str:
        """The next character that is no white space, where parsing stops before; nothing at the end."""
        while True:
            while self.place < len(self.held) and self.held[self.place] in _SPACE:
                self.place += 1
            if self.place < len(self.held) or self.ended:
                return self.held[self.place : self.place + 1]
            self._read()

    def value(self) -> Any:
        """The next value.

        Raises:
            ValueError: There is none, or it is too large.
        """
        self.next()
        while True:
            try:
                value, end = _DECODER.raw_decode(self.held, self.place)
            except RecursionError:
                raise ValueError(f"{self.path} is nested too deeply.") from None
            except json.JSONDecodeError as error:
                # A string that is not closed is told at its beginning, all else that is cut off where the text ends.
                is_cut = error.msg.startswith("Unterminated") or error.pos > len(self.held) - 16
                if self.ended or not is_cut:
                    raise self._fault(error.msg, error.pos) from None
            else:
                if end < len(self.held) - 2 or self.ended:
                    break  # else a number may go on, `1` being what is read of `1e+` so far
            if len(self.held) - self.place > MAX_ELEMENT:
                line, _ = self._position(self.place)
                raise ValueError(f"{self.path}, line {line}: an element has more than {MAX_ELEMENT:,} characters.")
            self._read()
        if HALF_A_PAIR.search(self.held, self.place, end):
            try:
                refuse_halves(value)
            except ValueError as error:
                raise ValueError(f"{self.path} {error}") from None
        self.place = end
        return value

    def elements(self) -> Iterator[Any]:
        """Those of the array that begins here."""
        self.place += 1
        if self.next() == "]":
            self.place += 1
            return
        while True:
            yield self.value()
            if self._separator("]"):
                return

    def members(self) -> Iterator[str]:
        """Keys of the object that begins here; who is given one takes the value behind it."""
        self.place += 1
        if self.next() == "}":
            self.place += 1
            return
        while True:
            if self.next() != '"':
                raise self._fault("Expecting property name enclosed in double quotes", self.place)
            key = self.value()
            if self.next() != ":":
                raise self._fault("Expecting ':' delimiter", self.place)
            self.place += 1
            yield key
            if self._separator("}"):
                return

    def skip(self):
        """Passes over a value, also over a large array or object."""
        if self.next() == "[":
            for _ in self.elements():
                pass
        elif self.next() == "{":
            for _ in self.members():
                self.value()
        else:
            self.value()

    def end(self):
        """Makes sure that nothing follows."""
        if self.next():
            raise self._fault("Extra data", self.place)

    def _separator(self, closing: str) -> bool:
        """Passes over what stands between elements; whether it was the end of them."""
        mark = self.next()
        if not mark or mark not in (",", closing):
            raise self._fault("Expecting ',' delimiter", self.place)
        self.place += 1
        return mark == closing

    def _read(self, first: bool = False):
        """Reads on: as much again as is held unparsed, so that a large element is looked at few times."""
        content = self.file.read(max(PIECE, len(self.held) - self.place))
        self.ended = not content
        if first and content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            try:
                decode(content)
            except ValueError as error:
                raise ValueError(f"{self.path} {error}") from None
        try:
            text = self._decode(content, self.ended)
        except UnicodeDecodeError as error:
            line = self._position(len(self.held))[0] + error.object.count(b"\n", 0, error.start)
            byte = error.object[error.start]
            raise ValueError(
                f"{self.path} is not UTF-8 in line {line} (byte 0x{byte:02x}): save it as UTF-8."
            ) from None
        self.line, self.column = self._position(self.place)
        self.held = self.held[self.place :] + (text.removeprefix("\ufeff") if first else text)
        self.place = 0

    def _position(self, place: int) -> tuple[int, int]:
        """Line and column of a place in what is held."""
        lines = self.held.count("\n", 0, place)
        return self.line + lines, place - self.held.rfind("\n", 0, place) if lines else self.column + place

    def _fault(self, what: str, place: int) -> ValueError:
        line, column = self._position(place)
        return ValueError(f"{self.path} is not JSON: {what}: line {line} column {column}")
