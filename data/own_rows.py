"""Data of one's own, one schema for JSON lines, folders with `metadata.jsonl`, Parquet, and one's own benchmark."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .ids import row_ids
from .pictures import Picture, PictureFolders
from .rows import PICTURE, Message, Row

KEYS = {"images", "image", "file_name", "image_ids", "image_id", "coco_id"}
KEYS |= {"messages", "question", "answer", "caption", "text"}


def picture_names(row: Mapping[str, Any]) -> list[str]:
    """Names of a row's pictures: `images`, `image` or, as `datasets` calls it, `file_name`."""
    names = row.get("images") or row.get("image") or row.get("file_name") or []
    return [names] if isinstance(names, str) else list(names)


def read_row(row: Mapping[str, Any], folders: PictureFolders, file: Path, source: str) -> Row:
    """A row of `file` whose pictures are files.

    Raises:
        KeyError, ValueError: It lacks something.
    """
    names = picture_names(row)
    return make_row(row, [folders.find(name) for name in names], row_ids(row, names, file), source)


def make_row(row: Mapping[str, Any], pictures: Sequence[Picture], ids: tuple[str, ...], source: str) -> Row:
    """A row from `messages`, or `question` and `answer`, or `caption` (or `text`); pictures go before the question.

    Raises:
        KeyError, ValueError: It lacks something.
    """
    places = (PICTURE,) * len(pictures)
    if row.get("messages"):
        conversation = _conversation(row["messages"], places)
    elif row.get("question") or row.get("answer"):
        asked = places if row["question"] == "" else (*places, row["question"])
        conversation = [Message("user", asked), Message("assistant", (row["answer"],))]
    else:
        if not pictures:
            raise KeyError("image")
        caption = row["caption"] if row.get("text") is None else row.get("caption") or row["text"]
        conversation = [Message("user", places), Message("assistant", (caption,))]
    return Row(tuple(conversation), tuple(pictures), ids, source)


def _conversation(messages: Sequence[Mapping[str, Any]], places: tuple) -> list[Message]:
    """Messages in the format of chat templates: `content` is a text, or a list of parts `{"type": "image"}` and
    `{"type": "text", "text": …}`. Pictures that no part mentions go before the first question."""
    conversation = []
    for message in messages:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        kept = [PICTURE if part["type"] == "image" else part["text"] for part in parts]
        conversation.append(Message(message["role"], tuple(part for part in kept if part != "")))
    if not any(PICTURE in message.parts for message in conversation):
        place_pictures(conversation, places)
    return conversation


def place_pictures(conversation: list[Message], places: tuple):
    """Puts pictures before the first question."""
    first = next((index for index, each in enumerate(conversation) if each.role == "user"), None)
    if places and first is not None:
        conversation[first] = Message("user", places + conversation[first].parts)
