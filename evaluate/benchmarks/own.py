"""A benchmark of one's own: JSON lines of the layout that training reads too."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...data.json_files import json_lines
from ...data.own_rows import KEYS, read_row
from ...data.pictures import PictureFolders
from ...data.rows import naming_place
from ..items import Item
from .registry import Request, benchmark


@benchmark("own", scoring="questions", max_new_tokens=128)
def read_own(path: Path, folders: PictureFolders, request: Request) -> Iterator[Item]:
    """Lines that [`read_jsonl`] trains on. The last message, the assistant's, is the right answer; `references` (a
    list) may name further ones, or take its place. `id` is kept where given. Every other key whose value is a text or
    a number (`category`, `artist`, …) is a field that scores are broken down by.

    Raises:
        ValueError: A line lacks something; the message names it.
    """
    for number, entry in json_lines(path):
        with naming_place(path, f"line {number}"):
            references = list(entry.get("references") or [])
            row = read_row(_answered(entry, references), folders, path, path.stem)
            messages = row.messages()[:-1]
            if not messages or messages[-1]["role"] != "user" or not all(references):
                raise ValueError("the messages must end with a question of the user and, behind it, the right answer.")
            fields = {
                name: str(value)
                for name, value in entry.items()
                if name not in {"id", "references", *KEYS} and isinstance(value, str | int)
            }
        right = (row.answer, *references)
        yield Item(str(entry.get("id", number)), messages, row.pictures, right, row.image_ids, fields)


def _answered(entry: dict[str, Any], references: list[str]) -> dict[str, Any]:
    """The row with a right answer behind the question: where it has none, the first of `references`, taken out."""
    messages = entry.get("messages")
    if messages:
        if messages[-1]["role"] == "assistant":
            return entry
        if not references:
            raise ValueError("there is no right answer: end with a message of the assistant, or give `references`.")
        return {**entry, "messages": [*messages, {"role": "assistant", "content": references.pop(0)}]}
    answer = "answer" if "question" in entry else "caption"
    if references and not {answer, "text"} & entry.keys():
        return {**entry, answer: references.pop(0)}
    return entry
