"""Answers of which one is preferred: TRL's, LLaMA-Factory's and ms-swift's."""

from ..preferences import read_preference
from ..row_context import RowContext
from ..rows import Row
from .registry import row_layout


@row_layout(
    "preferences",
    "preferred and rejected answers (TRL, LLaMA-Factory, ms-swift), of which the preferred ones are learnt",
    keys=[
        {"chosen", "rejected"},
        {"prompt", "chosen", "rejected"},
        {"instruction", "chosen", "rejected"},
        {"conversations.from", "conversations.value", "chosen.from", "rejected.from"},
        {"messages.role", "messages.content", "rejected_response"},
        {"chosen_messages.role", "rejected_messages.role"},
    ],
)
def read_preferences(entry: dict, at: RowContext) -> Row:
    """The preferred answer behind what was asked. The rejected one is for TRL's DPOTrainer: [`trl_preferences`].

    Raises:
        ValueError: The row is of another layout.
    """
    return read_preference(entry, at).preferred
