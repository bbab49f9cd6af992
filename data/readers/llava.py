"""LLaVA-style conversations, as most Japanese instruction sets are published."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, Field

from ..fields import PictureFields
from ..json_entries import list_entries
from ..json_files import begins_with, first_keys, numbered_lines, parse_object
from ..own_rows import place_pictures
from ..pictures import PictureFolders
from ..rows import IMAGE, PICTURE, BadRow, Message, Row, row_or_fault
from .registry import reader

ROLE_NAMES = {"human": "user", "user": "user", "ユーザー": "user", "system": "system"}
ROLE_NAMES |= {"gpt": "assistant", "assistant": "assistant", "システム": "assistant"}


def _role(name: str) -> str:
    if name not in ROLE_NAMES:
        raise ValueError(f"role {name!r:.40} is none of {', '.join(ROLE_NAMES)}")
    return name


class LlavaTurn(BaseModel):
    """A message of a conversation, in one or two languages."""

    speaker: Annotated[str, AfterValidator(_role)] = Field(alias="from")
    value: str | None = None
    jp: str | None = None

    def text(self, language: str) -> str:
        text = (self.jp or self.value) if language == "auto" else getattr(self, language)
        if text is None:
            raise ValueError(f"`{'value' if language == 'auto' else language}` is missing in a message.")
        return text


class LlavaRow(PictureFields):
    """A conversation about pictures."""

    conversations: list[LlavaTurn]


def _recognises(path: Path) -> bool:
    return "conversations" in first_keys(path) or begins_with(path, "[", "conversations")


@reader("llava", "LLaVA's conversations, JSON or JSON lines", _recognises, options=("language",))
def read_llava(path: Path, folders: PictureFolders, source: str, language: str = "auto") -> Iterator[Row | BadRow]:
    """`[{"id", "image", "conversations": [{"from", "value", "jp"}]}]`, one JSON array or JSON lines.

    Args:
        path: The file.
        folders: Folders with the pictures.
        source: Name of the data set.
        language: `jp` or `value`: the key of the text; `auto` takes `jp` where a message has one (LLaVA-Instruct-JA
            keeps the English text in `value`).

    Roles may be named `human`/`gpt`, `user`/`assistant` or `ユーザー`/`システム`. `<image>` may stand anywhere in a
    question; the picture goes before the text, as LLaVA's own loader moves it. There are as many as there are
    pictures, or none: then the pictures go before the first question. Rows without `image` are text only. An answer
    before the first question and a question after the last answer are left out.

    Raises:
        ValueError: The file is neither, or there is no such `language`.
    """
    if language not in {"auto", "jp", "value"}:
        raise ValueError(f"language must be auto, jp or value, got {language!r}.")

    def read(entry: object) -> Row:
        row = LlavaRow.model_validate(entry)
        pictures = tuple(folders.find(name) for name in row.names)
        conversation = _conversation(row.conversations, len(pictures), language)
        return Row(conversation, pictures, row.ids(row.names, path), source)

    if path.suffix == ".jsonl":
        for number, line in numbered_lines(path):
            yield row_or_fault(path, f"line {number}", lambda line: read(parse_object(line)), line)
        return
    for number, entry in enumerate(list_entries(path)):
        name = entry.get("id") if isinstance(entry, dict) else None
        yield row_or_fault(path, f"row {number} (id {name!r:.40})", read, entry)


def _conversation(turns: list[LlavaTurn], pictures: int, language: str) -> tuple[Message, ...]:
    asked = sum(turn.text(language).count(IMAGE) for turn in turns if ROLE_NAMES[turn.speaker] == "user")
    if asked not in (0, pictures):
        raise ValueError(f"{IMAGE} stands {asked} times in the questions, but there are {pictures} pictures.")
    conversation: list[Message] = []
    for turn in turns:
        role, text = ROLE_NAMES[turn.speaker], turn.text(language)
        if not conversation and role == "assistant":
            continue  # as LLaVA does: a conversation begins with a question
        places = (PICTURE,) * text.count(IMAGE) if role == "user" else ()
        text = text.replace(IMAGE, "").strip() if places else text.strip()
        conversation.append(Message(role, places + ((text,) if text else ())))
    if not asked:
        place_pictures(conversation, (PICTURE,) * pictures)
    while conversation and conversation[-1].role != "assistant":
        conversation.pop()
    return tuple(conversation)
