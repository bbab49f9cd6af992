"""TRL's prompts and completions."""

from typing import Annotated

from pydantic import BeforeValidator

from ..chat_rows import ChatFields, RowMessage, chat_row, drafted, said_by
from ..row_context import RowContext
from ..rows import Row
from .registry import row_layout


class PromptCompletion(ChatFields):
    """What is asked and what is answered, each a text or messages."""

    prompt: Annotated[list[RowMessage], BeforeValidator(said_by("user"))]
    completion: Annotated[list[RowMessage], BeforeValidator(said_by("assistant"))]


@row_layout("trl", "TRL's prompts and completions", keys=[{"prompt", "completion"}])
def read_trl(entry: dict, at: RowContext) -> Row:
    """`{"images": […], "prompt": …, "completion": …}`, both texts (TRL's standard form) or messages (conversational).

    Source: huggingface/trl, docs/source/dataset_formats.md, "Prompt-completion" and "Vision datasets". White space
    between a plain prompt and its completion is not learnt: they are a question and an answer here. Rows of unpaired
    preference are read where `label` is true; where it is false they are bad rows.

    Raises:
        ValueError: The row is of another layout.
    """
    row = PromptCompletion.model_validate(entry)
    return chat_row(drafted([*row.prompt, *row.completion]), row, at)
