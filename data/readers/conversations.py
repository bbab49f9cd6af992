"""LLaVA-style conversations, as most Japanese instruction sets are published."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..pictures import PictureRoots
from ..rows import PICTURE, Row, Turn
from .captions import coco_names
from .plain import json_lines

ROLES = {"human": "user", "user": "user", "ユーザー": "user", "system": "system"}
ROLES |= {"gpt": "assistant", "assistant": "assistant", "システム": "assistant"}


def read_llava(path: Path, roots: PictureRoots, source: str, language: str = "auto") -> Iterator[Row]:
    """`[{"id", "image", "conversations": [{"from", "value", "jp"}]}]`, one JSON array or JSON lines.

    Args:
        path: The file.
        roots: Folders with the pictures; names may be bare or relative, COCO pictures go by all their names.
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
    for number, row in _rows(path):
        try:
            yield _row(row, roots, source, language)
        except (KeyError, ValueError) as error:
            said = f"{error} is missing." if isinstance(error, KeyError) else str(error)
            raise ValueError(f"{path}, row {number} (id {row.get('id')}): {said}") from None


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    if path.suffix == ".jsonl":
        yield from json_lines(path)
    else:
        yield from enumerate(json.loads(path.read_text(encoding="utf-8-sig")))


def _row(row: dict[str, Any], roots: PictureRoots, source: str, language: str) -> Row:
    names = row.get("image") or []
    names = [names] if isinstance(names, str) else names
    pictures = tuple(roots.find(name, *_other_names(name)) for name in names)
    turns: list[Turn] = []
    unplaced = len(pictures)
    for message in row["conversations"]:
        if message["from"] not in ROLES:
            raise ValueError(f"role {message['from']!r} is none of {', '.join(ROLES)}.")
        role = ROLES[message["from"]]
        if not turns and role == "assistant":
            continue  # as LLaVA does: a conversation begins with a question
        text = _text(message, language)
        mentioned = min(text.count("<image>"), unplaced) if role == "user" else 0
        text = text.replace("<image>", "").strip() if role == "user" else text.strip()
        turns.append(Turn(role, (PICTURE,) * mentioned + ((text,) if text else ())))
        unplaced -= mentioned
    if unplaced and turns:  # pictures that no text mentions belong to the first question
        first = next((index for index, turn in enumerate(turns) if turn.role == "user"), 0)
        turns[first] = Turn(turns[first].role, (PICTURE,) * unplaced + turns[first].parts)
    while turns and turns[-1].role != "assistant":
        turns.pop()
    return Row(tuple(turns), pictures, tuple(_image_id(name, source) for name in names), source)


def _text(message: dict[str, Any], language: str) -> str:
    if language == "auto":
        return message.get("jp") or message["value"]
    return message[language]


def _other_names(name: str) -> list[str]:
    """COCO pictures are known by their 2017 name in most sets, and lie under their 2014 name on many disks."""
    stem = name.rpartition("/")[2].partition(".")[0]
    return coco_names(int(stem)) if stem.isdigit() and len(stem) == 12 else []


def _image_id(name: str, source: str) -> str:
    """COCO and Visual Genome pictures keep their own ids: evaluation sets are told from them."""
    stem = name.rpartition("/")[2].partition(".")[0]
    number = stem.rpartition("_")[2]
    if "vg/" in name.lower() or "VG_100K" in name:
        return f"vg:{number}"
    if number.isdigit() and len(number) == 12:
        return f"coco:{int(number)}"
    return f"{source}:{name}"
