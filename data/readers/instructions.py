"""Instructions and queries with their history: LLaMA-Factory's alpaca form, ms-swift's alpaca and query-response."""

from typing import Annotated, Any

from pydantic import BeforeValidator

from ..chat_rows import ChatFields, Draft, chat_row, exchange
from ..fields import Answer
from ..row_context import RowContext
from ..rows import Row
from .registry import row_layout

Exchange = tuple[str, str]


def _history(value: Any) -> Any:
    return value or []


class Instruction(ChatFields):
    """A question, what it is about, its answer, and what was said before."""

    instruction: str | None = None
    input: str | None = None
    output: Answer | None = None
    query: str | None = None
    response: Answer | None = None
    history: Annotated[list[Exchange], BeforeValidator(_history)] = []

    def draft(self, answer: str) -> Draft:
        """The history, the question and an answer to it."""
        asked = [text for text in (self.instruction, self.input, self.query) if text]
        said = [*self.history, ("\n".join(asked), answer)]
        return [turn for ask, reply in said for turn in exchange(ask, reply)]


@row_layout(
    "instructions",
    "LLaMA-Factory's and ms-swift's alpaca and query-response forms",
    keys=[{"instruction", "output"}, {"query", "response"}],
)
def read_instructions(entry: dict, at: RowContext) -> Row:
    """`{"instruction", "input", "output", "system", "history": [[…, …]], "images"}` or `{"query", "response", …}`.

    Sources: hiyouga/LLaMA-Factory, data/README.md, "Alpaca Format"; modelscope/ms-swift,
    docs/source_en/Customization/Custom-dataset.md. `input` follows `instruction` in a line of its own; answers of
    the history are learnt too, as both trainers do. `<image>` is a picture at its place.

    Raises:
        ValueError: The row is of another layout.
    """
    row = Instruction.model_validate(entry)
    names = ("query", "response") if row.query is not None else ("instruction", "output")
    answer = row.response if row.query is not None else row.output
    if answer is None or (row.query is None and row.instruction is None):
        raise ValueError(f"`{names[1] if answer is None else names[0]}` is missing.")
    return chat_row(row.draft(answer), row, at)
