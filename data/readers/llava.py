"""LLaVA-style conversations, as most Japanese instruction sets are published."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..ids import row_ids
from ..json_files import begins_with, first_keys, json_lines, read_json
from ..own_rows import picture_names, place_pictures
from ..pictures import PictureFolders
from ..rows import PICTURE, Message, Row, naming_place
from .registry import reader

ROLES = {"human": "user", "user": "user", "ユーザー": "user", "system": "system"}
ROLES |= {"gpt": "assistant", "assistant": "assistant", "システム": "assistant"}


def _recognises(path: Path) -> bool:
    return "conversations" in first_keys(path) or begins_with(path, "[", "conversations")


@reader("llava", "LLaVA's conversations, JSON or JSON lines", _recognises, options=("language",))
def read_llava(path: Path, folders: PictureFolders, source: str, language: str = "auto") -> Iterator[Row]:
    """`[{"id", "image", "conversations": [{"from", "value", "jp"}]}]`, one JSON array or JSON lines.

    Args:
        path: The file.
        folders: Folders with the pictures.
        source: Name of the data set.
        language: `jp` or `value`: the key of the text; `auto` takes `jp` where a message has one (LLaVA-Instruct-JA
            keeps the English text in `value`).

    Roles may be named `human`/`gpt`, `user`/`assistant` or `ユーザー`/`システム`. `<image>` may stand anywhere in a
    question; the picture goes before the text, as LLaVA's own loader moves it. Rows without `image` are text only.

    Raises:
        ValueError: A row lacks a key or names an unknown role.
    """
    if language not in {"auto", "jp", "value"}:
        raise ValueError(f"language must be auto, jp or value, got {language!r}.")
    entries = json_lines(path) if path.suffix == ".jsonl" else enumerate(read_json(path))
    for number, entry in entries:
        with naming_place(path, f"row {number} (id {entry.get('id')})"):
            names = picture_names(entry)
            pictures = tuple(folders.find(name) for name in names)
            conversation = _conversation(entry["conversations"], len(names), language)
            row = Row(conversation, pictures, row_ids(entry, names, path), source)
        yield row


def _conversation(entries: list[dict[str, Any]], pictures: int, language: str) -> tuple[Message, ...]:
    conversation: list[Message] = []
    unplaced = pictures
    for entry in entries:
        if entry["from"] not in ROLES:
            raise ValueError(f"role {entry['from']!r} is none of {', '.join(ROLES)}.")
        role = ROLES[entry["from"]]
        if not conversation and role == "assistant":
            continue  # as LLaVA does: a conversation begins with a question
        text = (entry.get("jp") or entry["value"]) if language == "auto" else entry[language]
        mentioned = min(text.count("<image>"), unplaced) if role == "user" else 0
        text = text.replace("<image>", "").strip() if role == "user" else text.strip()
        conversation.append(Message(role, (PICTURE,) * mentioned + ((text,) if text else ())))
        unplaced -= mentioned
    place_pictures(conversation, (PICTURE,) * unplaced)
    while conversation and conversation[-1].role != "assistant":
        conversation.pop()
    return tuple(conversation)
