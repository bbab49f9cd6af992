"""Shared conversations, as LLaMA-Factory and ms-swift take them."""

from typing import Any

from pydantic import BaseModel

from ..chat_rows import ChatFields, RowMessage, Turn, chat_row, drafted, exchange
from ..row_context import RowContext
from ..rows import Row
from .registry import row_layout


class Exchange(BaseModel):
    """A question and its answer, ms-swift's ShareGPT format."""

    human: str
    assistant: str


class SharedTurns(ChatFields):
    """`from` and `value`."""

    conversations: list[Turn] | None = None
    messages: list[Turn] | None = None


class SharedMessages(ChatFields):
    """`role` and `content`."""

    conversations: list[RowMessage]


class SharedExchanges(ChatFields):
    """`human` and `assistant`."""

    conversation: list[Exchange]


@row_layout(
    "sharegpt",
    "LLaMA-Factory's and ms-swift's conversations",
    keys=[
        {"conversations.from", "conversations.value", "images"},
        {"conversations.from", "conversations.value", "system"},
        {"conversations.from", "conversations.value", "tools"},
        {"messages.from", "messages.value"},
        {"conversations.role", "conversations.content"},
        {"conversation.human", "conversation.assistant"},
    ],
)
def read_sharegpt(entry: dict, at: RowContext) -> Row:
    """`{"conversations": [{"from": "human", "value": "<image>…"}, {"from": "gpt", …}], "images": […], "system": …}`.

    Sources: hiyouga/LLaMA-Factory, data/README.md, "Sharegpt Format"; modelscope/ms-swift,
    docs/source_en/Customization/Custom-dataset.md, which also has `conversation: [{"human", "assistant"}]`.

    `<image>` is a picture at its place. `system` comes first. Rows with calls of tools (`function_call`,
    `observation`; `tools`), videos or sounds are bad rows.

    Raises:
        ValueError: The row is of another layout.
    """
    if entry.get("conversation") is not None:
        exchanges = SharedExchanges.model_validate(entry)
        said = [turn for each in exchanges.conversation for turn in exchange(each.human, each.assistant)]
        return chat_row(said, exchanges, at)
    if _has_roles(entry.get("conversations")):
        messages = SharedMessages.model_validate(entry)
        return chat_row(drafted(messages.conversations), messages, at)
    turns = SharedTurns.model_validate(entry)
    if (given := turns.conversations or turns.messages) is None:
        raise ValueError("`conversations` is missing.")
    return chat_row(drafted(given), turns, at)


def _has_roles(messages: Any) -> bool:
    return isinstance(messages, list) and any(isinstance(each, dict) and "role" in each for each in messages)
