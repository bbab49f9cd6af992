"""A benchmark of one's own: JSON lines of messages, the layout that training reads too."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..items import Item, PictureFolders, ask, require_pictures

RESERVED = {
    "id",
    "images",
    "image",
    "image_id",
    "image_ids",
    "messages",
    "question",
    "answer",
    "references",
    "caption",
}


def read_own(path: Path, folders: PictureFolders) -> Iterator[Item]:
    """Lines `{"images": […], "messages": […]}` or `{"image", "question", "answer"}` or `{"image", "caption"}`.

    The last message, the assistant's, is the right answer; `references` (a list) may name further ones, or take its
    place. `id` and `image_id` (such as `coco:9`) are kept where given. Every other key whose value is a text or a
    number (`category`, `artist`, …) is a field that scores are broken down by.

    Raises:
        ValueError: A line lacks something; the message names it.
        FileNotFoundError: Pictures are missing.
    """
    lines = []
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                lines.append((number, _normalised(json.loads(line))))
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                said = f"{error} is missing" if isinstance(error, KeyError) else str(error)
                raise ValueError(f"{path}, line {number}: {said}.") from None
    if not lines:
        raise ValueError(f"{path} holds no lines.")
    names = {name for _, row in lines for name in row["images"]}
    pictures = require_pictures({name: folders.find(name) for name in sorted(names)}, folders)
    for number, row in lines:
        shown = tuple(pictures[name] for name in row["images"])
        ids = tuple(row["image_ids"] or (f"{path.stem}:{name}" for name in row["images"]))
        yield Item(row["id"] or str(number), row["messages"], shown, tuple(row["references"]), ids, row["fields"])


def _normalised(row: dict[str, Any]) -> dict[str, Any]:
    images = row.get("images") or ([row["image"]] if row.get("image") else [])
    messages, references = _conversation(row, len(images))
    places = sum(part["type"] == "image" for message in messages for part in _parts(message))
    if places != len(images):
        raise ValueError(f"{len(images)} pictures but {places} places for them in the messages")
    image_ids = row.get("image_ids") or ([row["image_id"]] if "image_id" in row else [])
    if image_ids and len(image_ids) != len(images):
        raise ValueError(f"{len(images)} pictures but {len(image_ids)} image ids")
    fields = {name: str(row[name]) for name in row if name not in RESERVED and isinstance(row[name], str | int)}
    return {
        "id": str(row["id"]) if "id" in row else "",
        "images": images,
        "image_ids": [str(each) for each in image_ids],
        "messages": messages,
        "references": references,
        "fields": fields,
    }


def _conversation(row: dict[str, Any], pictures: int) -> tuple[list[dict[str, Any]], list[str]]:
    """The messages up to the answer, and the right answers."""
    references = list(row.get("references") or [])
    if "messages" not in row:
        answer = row["answer"] if "question" in row else row["caption"]
        return ask(row.get("question", ""), pictures), [answer, *references]
    messages = [{**message, "content": _parts(message)} for message in row["messages"]]
    if messages[-1]["role"] == "assistant":
        answer = "".join(part["text"] for part in messages.pop()["content"])
        references = [answer, *references]
    if not messages or messages[-1]["role"] != "user":
        raise ValueError("the messages must end with a question of the user and, behind it, the right answer")
    if not references or not all(references):
        raise ValueError("there is no right answer: end with a message of the assistant, or give `references`")
    if pictures and not any(part["type"] == "image" for message in messages for part in message["content"]):
        first = next(message for message in messages if message["role"] == "user")
        first["content"] = [{"type": "image"}] * pictures + first["content"]
    return messages, references


def _parts(message: dict[str, Any]) -> list[dict[str, Any]]:
    content = message["content"]
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return [{"type": "image"} if part["type"] == "image" else part for part in content]
