"""Files in a line that was typed, or dragged into a terminal, which types their names: quoted, with escaped spaces, as
`file://` addresses, several in a row, perhaps with a question behind them."""

import os
import re
import socket
from collections.abc import Callable, Iterator
from typing import cast
from urllib.parse import unquote_to_bytes

from ..checkpoint import user_path

PICTURE_SUFFIXES = ("png", "jpg", "jpeg", "jpe", "jfif", "webp", "gif", "bmp", "tif", "tiff", "avif", "heic", "heif")
PICTURE_SUFFIXES += ("ppm", "pgm", "pbm", "pnm")
MAX_LENGTH = 4096  # of a path, as Linux has it
# What begins so is a path and no word of a question: /, ~/, ~user/, ./, ../, C:\, \\server\, file:/.
_PATH = re.compile(r"~?/|~[\w.-]+/|\.{1,2}[/\\]|[A-Za-z]:[/\\]|\\\\|file:/", re.ASCII | re.IGNORECASE)
_NAMED_LIKE_PICTURE = re.compile(rf"(?s:.+?)\.({'|'.join(PICTURE_SUFFIXES)})(?=['\"\s]|$)", re.IGNORECASE)
# A word of a shell: quoted, escaped and plain pieces without a gap.
_SHELL_WORD = re.compile(r"""(?:'[^']*'|"(?:\\.|[^"\\])*"|\\.|[^\s'"\\])+""", re.DOTALL)
_SHELL_PIECE = re.compile(r"""'([^']*)'|"((?:\\.|[^"\\])*)"|\\(.)|([^\s'"\\]+)""", re.DOTALL)


def typed_pictures(line: str) -> tuple[list[str], str]:
    """The picture files that a line begins with, and the question behind them.

    A path (`/…`, `~/…`, `C:\\…`, `file:///…`) counts where such a file exists, a bare name where it ends like a
    picture as well; of names with unescaped spaces the longest that exists. Everything else is the question.

    Raises:
        ValueError: A path is named like a picture, and there is no such file.
    """
    names, rest = [], line.strip()
    while found := _leading_file(rest, lambda name: _is_path(name) or _NAMED_LIKE_PICTURE.fullmatch(name) is not None):
        names.append(found[0])
        rest = found[1].lstrip()
    if missing := _missing_picture(rest, alone=not names):
        raise ValueError(f"No picture at {missing}.")
    return names, rest


def typed_files(line: str) -> list[str]:
    """The names in a line that holds nothing else: files as in [`typed_pictures`] whatever they are called, and the
    words between them, for whoever opens them to say that they are none."""
    names, rest = [], line.strip()
    while rest:
        found = _leading_file(rest, lambda name: True) or _leading_word(rest)
        names.append(found[0])
        rest = found[1].lstrip()
    return names


def local_name(name: str) -> str:
    """The path that a `file:` address means (RFC 8089), percent signs resolved; any other name as it is."""
    address = re.fullmatch(r"file:(?://([^/]*))?(/.*)", name.replace("\\", "/"), re.DOTALL | re.IGNORECASE)
    if address is None:
        return name
    host, path = address[1] or "", os.fsdecode(unquote_to_bytes(address[2]))
    if re.match(r"/[A-Za-z]:(/|$)", path):
        return path[1:]
    return path if host in ("", "localhost", socket.gethostname()) else f"//{host}{path}"


def unquoted(text: str) -> str:
    """What a shell makes of a word: its quotes and backslashes resolved."""
    inside_quotes = re.compile(r'\\(["\\$`\n])')
    pieces = _SHELL_PIECE.findall(text)
    return "".join(one + inside_quotes.sub(r"\1", two) + escaped + plain for one, two, escaped, plain in pieces)


def _is_path(name: str) -> bool:
    return _PATH.match(name) is not None


def _is_file(name: str) -> bool:
    try:
        return os.path.isfile(user_path(local_name(name)))
    except ValueError:  # `~name` of nobody
        return False


def _leading_file(text: str, may_be: Callable[[str], bool]) -> tuple[str, str] | None:
    """The file that a text begins with, its name as the system has it, and what follows."""
    for name, rest in _possible_names(text):
        if may_be(name) and _is_file(name):
            return local_name(name), rest
    return None


def _possible_names(text: str) -> Iterator[tuple[str, str]]:
    """What a text may begin with, as a name, and what follows it."""
    if not text:
        return
    word = _SHELL_WORD.match(text)
    if text[0] in "'\"":
        if word:
            yield unquoted(word[0]), text[word.end() :]
        end = text.find(text[0], 1)
        yield text[1 : end if end > 0 else None], text[end + 1 :] if end > 0 else ""
        return
    ends = [found.start() for found in re.finditer(r"\s", text) if found.start() <= MAX_LENGTH]
    ends += [len(text)] if len(text) <= MAX_LENGTH else []
    for end in reversed(ends):
        yield text[:end], text[end:]
        if "\\" in text[:end]:
            yield re.sub(r"\\(.)", r"\1", text[:end]), text[end:]
    if word:  # a name that is partly quoted
        yield unquoted(word[0]), text[word.end() :]


def _leading_word(text: str) -> tuple[str, str]:
    if text[0] in "'\"" and text[0] not in text[1:]:
        return text[1:], ""
    word = cast(re.Match, re.match(r"'([^']*)'|\"([^\"]*)\"|(\S+)", text))
    return next(each for each in word.groups() if each is not None), text[word.end() :]


def _missing_picture(text: str, alone: bool) -> str | None:
    """The path that a text begins with, where it is named like a picture; a bare name where the line is nothing else
    and in ASCII, for a Japanese question may end with one."""
    bare = text[1:] if text[:1] in ("'", '"') else text
    if _is_path(bare) and (found := _NAMED_LIKE_PICTURE.match(bare)):
        name = found[0] if re.match(r"[A-Za-z]:\\|\\\\", found[0]) else re.sub(r"\\(.)", r"\1", found[0])
        return local_name(name)
    if alone and re.fullmatch(r"[\w.+/-]+", text, re.ASCII) and _NAMED_LIKE_PICTURE.fullmatch(text):
        return text
    return None
