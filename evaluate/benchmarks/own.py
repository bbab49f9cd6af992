"""A benchmark of one's own: JSON lines of the layout that training reads too."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from ...data.fields import Answer, Id
from ...data.json_files import numbered_lines, parse_object
from ...data.own_rows import KEYS, read_row
from ...data.pictures import PictureFolders
from ...data.rows import BadRow, row_or_fault
from ..items import Item
from .registry import Request, benchmark


class Extras(BaseModel):
    """What a line may have besides what training reads. References that are numbers or booleans are texts."""

    id: Id | None = None
    references: list[Answer] | None = None


@benchmark("own", scoring="questions", max_new_tokens=128)
def read_own(path: Path, folders: PictureFolders, request: Request) -> Iterator[Item]:
    """Lines that [`read_jsonl`] trains on. The last message, the assistant's, is the right answer; `references` (a
    list) may name further ones, or take its place. `id` is kept where given. Every other key whose value is a text or
    a number (`category`, `artist`, …) is a field that scores are broken down by.

    Raises:
        ValueError: A line lacks something; the message names it.
    """

    def read(number: int, line: bytes) -> Item:
        entry = parse_object(line)
        given = Extras.model_validate(entry)
        references = list(given.references or [])
        row = read_row(_answered(entry, references), folders, path, path.stem)
        messages = row.messages()[:-1]
        if not messages or messages[-1]["role"] != "user" or not all(references):
            raise ValueError("the messages must end with a question of the user and, behind it, the right answer.")
        fields = {
            name: str(value)
            for name, value in entry.items()
            if name not in {"id", "references", *KEYS} and isinstance(value, str | int)
        }
        name = str(number if given.id is None else given.id)
        return Item(name, messages, row.pictures, (row.answer, *references), row.image_ids, fields)

    for number, line in numbered_lines(path):
        item = row_or_fault(path, f"line {number}", read, number, line)
        if isinstance(item, BadRow):
            raise ValueError(item.reason)
        yield item


def _answered(entry: dict[str, Any], references: list[str]) -> dict[str, Any]:
    """The row with a right answer behind the question: where it has none, the first of `references`, taken out."""
    messages = entry.get("messages")
    if messages and isinstance(messages, list):
        if not isinstance(messages[-1], dict) or messages[-1].get("role") == "assistant":
            return entry  # the schema of rows says what is wrong with the first
        if not references:
            raise ValueError("there is no right answer: end with a message of the assistant, or give `references`.")
        return {**entry, "messages": [*messages, {"role": "assistant", "content": references.pop(0)}]}
    answer = "answer" if "question" in entry else "caption"
    if references and not {answer, "text"} & entry.keys():
        return {**entry, answer: references.pop(0)}
    return entry
