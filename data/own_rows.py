"""Data of one's own, one schema for JSON lines, folders with `metadata.jsonl`, Parquet, and one's own benchmark."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, model_validator

from .fields import Answer, PictureFields
from .pictures import Picture, PictureFolders
from .rows import IMAGE, PICTURE, Message, Placeholder, Row


class ContentPart(BaseModel):
    """A part of a message: a picture, or a text."""

    type: Literal["image", "text"]
    text: str | None = None

    @model_validator(mode="after")
    def _has_its_text(self) -> "ContentPart":
        if self.type == "text" and self.text is None:
            raise ValueError("there is no `text` where a text belongs")
        return self


def _as_parts(content: object) -> object:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


class RowMessage(BaseModel):
    """A message in the format of chat templates: `content` is a text, or a list of parts."""

    role: Literal["system", "user", "assistant"]
    content: Annotated[list[ContentPart], BeforeValidator(_as_parts)]

    def read(self) -> Message:
        """`<image>` in a text of the user is a place for a picture, like a part `{"type": "image"}`."""
        parts: list[str | Placeholder] = []
        for part in self.content:
            if part.text is None or part.type == "image":
                parts.append(PICTURE)
            else:
                parts += split_text(part.text) if self.role == "user" else [part.text] if part.text else []
        return Message(self.role, tuple(parts))


class OwnRow(PictureFields):
    """A row of one's own: pictures, and `messages`, or `question` and `answer`, or `caption` (or `text`)."""

    messages: list[RowMessage] | None = None
    question: str | None = None
    answer: Answer | None = None
    caption: str | None = None
    text: str | None = None


KEYS = set(OwnRow.model_fields)


def split_text(text: str) -> list[str | Placeholder]:
    """A text with `<image>` in it to texts and places for pictures; white space beside a place goes with it."""
    if IMAGE not in text:
        return [text] if text else []
    first, *others = text.split(IMAGE)
    parts: list[str | Placeholder] = [first.strip()]
    for piece in others:
        parts += [PICTURE, piece.strip()]
    return [part for part in parts if part]


def read_row(row: object, folders: PictureFolders, file: Path, source: str) -> Row:
    """A row of `file` whose pictures are files.

    Raises:
        ValueError: It lacks something, or holds something else where a text or a name belongs.
    """
    checked = OwnRow.model_validate(row)
    return make_row(checked, [folders.find(name) for name in checked.names], checked.ids(checked.names, file), source)


def make_row(row: OwnRow, pictures: Sequence[Picture], ids: tuple[str, ...], source: str) -> Row:
    """A row from `messages`, or `question` and `answer`, or `caption` (or `text`). Pictures that no part and no
    `<image>` mentions go before the first question.

    Raises:
        ValueError: It lacks something.
    """
    if row.messages:
        conversation = [message.read() for message in row.messages]
    elif row.question or row.answer:
        if row.question is None or row.answer is None:
            raise ValueError(f"`{'answer' if row.answer is None else 'question'}` is missing.")
        conversation = [Message("user", tuple(split_text(row.question))), Message("assistant", (row.answer,))]
    else:
        caption = row.caption or row.text or row.caption
        if caption is None or not pictures:
            raise ValueError(f"`{'image' if caption is not None else 'caption'}` is missing.")
        conversation = [Message("user", ()), Message("assistant", (caption,))]
    if not any(PICTURE in message.parts for message in conversation):
        place_pictures(conversation, (PICTURE,) * len(pictures))
    return Row(tuple(conversation), tuple(pictures), ids, source)


def place_pictures(conversation: list[Message], places: tuple):
    """Puts pictures before the first question."""
    first = next((index for index, each in enumerate(conversation) if each.role == "user"), None)
    if places and first is not None:
        conversation[first] = Message("user", places + conversation[first].parts)
