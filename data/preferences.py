"""A question with an answer that is preferred and one that is rejected."""

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator

from .chat_rows import ChatFields, Draft, RowMessage, Turn, chat_row, drafted, said_by, split_text
from .row_context import RowContext
from .rows import Row

Asked = Annotated[list[RowMessage], BeforeValidator(said_by("user"))]
Said = Annotated[list[RowMessage], BeforeValidator(said_by("assistant"))]


class PreferenceRow(ChatFields):
    """What trainers call a question, and its two answers."""

    prompt: Asked | None = None
    instruction: str | None = None
    input: str | None = None
    conversations: list[Turn] | None = None
    messages: list[RowMessage] | None = None
    chosen: Said | None = None
    rejected: Said | None = None
    rejected_response: Said | None = None
    chosen_messages: list[RowMessage] | None = None
    rejected_messages: list[RowMessage] | None = None

    def drafts(self) -> tuple[Draft, Draft]:
        """The conversation to its preferred end, and to its rejected one."""
        chosen, rejected = self.chosen or self.chosen_messages, self.rejected or self.rejected_messages
        asked = self._asked()
        if self.rejected_response is not None:
            if not asked or asked[-1][0] != "assistant":
                raise ValueError("`messages` must end with the preferred answer.")
            return asked, [*asked[:-1], *drafted(self.rejected_response)]
        if chosen is None or rejected is None:
            raise ValueError(f"`{'chosen' if chosen is None else 'rejected'}` is missing.")
        return [*asked, *drafted(chosen)], [*asked, *drafted(rejected)]

    def _asked(self) -> Draft:
        if self.instruction is not None:
            return [("user", split_text("\n".join(text for text in (self.instruction, self.input) if text)))]
        return drafted(self.prompt or self.conversations or self.messages or [])


@dataclass(frozen=True)
class Preference:
    """A row of which one answer is preferred.

    Args:
        preferred, rejected: The same question, about the same pictures, with either answer.
    """

    preferred: Row
    rejected: Row


def read_preference(entry: dict[str, Any], at: RowContext) -> Preference:
    """A row in one of these forms:

    - `{"prompt", "chosen", "rejected"}`, texts or messages, or without `prompt`, both answers behind one question
      (huggingface/trl, docs/source/dataset_formats.md, "Preference");
    - `{"instruction", "input", "chosen", "rejected"}`, `{"conversations", "chosen": {"from", "value"}, "rejected"}`
      and `{"chosen_messages", "rejected_messages"}` (hiyouga/LLaMA-Factory, data/README.md, data/v1_dpo_demo.jsonl);
    - `{"messages", "rejected_response"}` (modelscope/ms-swift, docs/source_en/Customization/Custom-dataset.md).

    Raises:
        ValueError: It is none of them, or the two answers do not follow the same question.
    """
    row = PreferenceRow.model_validate(entry)
    preferred, rejected = (chat_row(draft, row, at) for draft in row.drafts())
    if preferred.conversation[:-1] != rejected.conversation[:-1]:
        raise ValueError("the preferred and the rejected answer follow different questions.")
    return Preference(preferred, rejected)
