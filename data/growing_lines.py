"""JSON lines that grow while a run goes on, so that one that was stopped goes on where it was."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from ..checkpoint import naming_full_disk
from ..schema import explain

Line = TypeVar("Line")


def read_back(path: Path, kind: type[Line]) -> list[Line]:
    """The whole lines of a file; nothing where it is not there. A last line that was being written when the run was
    killed is removed from it.

    Raises:
        ValueError: A line is damaged; the message names it.
    """
    if not path.is_file():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        with open(path, "r+b") as file:
            file.truncate(len(whole))
    schema, lines = TypeAdapter(kind), []
    # Not `splitlines`, which also parts lines at characters such as U+2028 that a text may hold.
    for number, line in enumerate(whole.split(b"\n")[:-1], 1):
        try:
            lines.append(schema.validate_json(line))
        except ValidationError as error:
            raise explain(error, f"{path}, line {number}") from None
    return lines


def append(path: Path, lines: Iterable[dict[str, Any]]):
    """Appends lines; they are on the disk when this returns.

    Raises:
        OSError: The disk is full or the file cannot be written; the message names it.
    """
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    with naming_full_disk(path), open(path, "a", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
