"""LLaVA-style conversations, as most Japanese instruction sets are published."""

from pydantic import BaseModel, Field

from ..chat_rows import ChatFields, Draft, Part, Role, chat_row, split_tags
from ..row_context import RowContext
from ..rows import IMAGE, PICTURE, Row
from .registry import row_layout

LANGUAGES = ("auto", "jp", "value")


class LlavaTurn(BaseModel):
    """A message of a conversation, in one or two languages."""

    role: Role = Field(alias="from")
    value: str | None = None
    jp: str | None = None

    def text(self, language: str) -> str:
        text = (self.jp or self.value) if language == "auto" else getattr(self, language)
        if text is None:
            raise ValueError(f"`{'value' if language == 'auto' else language}` is missing in a message.")
        return text


class LlavaRow(ChatFields):
    """A conversation about pictures."""

    conversations: list[LlavaTurn]


@row_layout(
    "llava",
    "LLaVA's conversations",
    keys=[
        {"conversations.from", "conversations.value"},
        {"conversations.from", "conversations.jp"},
        {"conversations.from", "conversations.value", "image"},
    ],
    options=("language",),
)
def read_llava(entry: dict, at: RowContext) -> Row:
    """`{"id", "image", "conversations": [{"from", "value", "jp"}]}`.

    Source: haotian-liu/LLaVA, docs/Finetune_Custom_Data.md; LLaVA-OneVision's Parquet has the same columns.

    Roles may be named `human`/`gpt`, `user`/`assistant` or `ユーザー`/`システム`. Where a question has one `<image>`,
    the picture goes before its text, as LLaVA's loader moves it (`preprocess_multimodal` of llava/train/train.py);
    several keep their places, as in LLaVA-NeXT's, and so does every one where the key is `images`. There are as many
    as there are pictures, or none: then the pictures go before the first question. Rows without pictures are texts.
    An answer before the first question and a question after the last answer are left out.

    `language` is `jp` or `value`, the key of the text; `auto` takes `jp` where a message has one (LLaVA-Instruct-JA
    keeps the English text in `value`).

    Raises:
        ValueError: There is no such `language`, or the row is of another layout.
    """
    language = at.options.get("language", "auto")
    if language not in LANGUAGES:
        raise ValueError(f"language must be {', '.join(LANGUAGES)}, got {language!r}.")
    row = LlavaRow.model_validate(entry)
    return chat_row(_draft(row.conversations, language, moves=bool(row.image)), row, at)


def _draft(turns: list[LlavaTurn], language: str, moves: bool) -> Draft:
    draft: Draft = []
    for turn in turns:
        text = turn.text(language)
        if not draft and turn.role == "assistant":
            continue  # as LLaVA does: a conversation begins with a question
        draft.append((turn.role, _parts(text, moves) if turn.role == "user" else _words(text)))
    while draft and draft[-1][0] != "assistant":
        draft.pop()
    return draft


def _parts(text: str, moves: bool) -> list[Part]:
    if moves and text.count(IMAGE) == 1:
        return [PICTURE, *_words(text.replace(IMAGE, ""))]
    return split_tags(text.strip())


def _words(text: str) -> list[Part]:
    return [text.strip()] if text.strip() else []
