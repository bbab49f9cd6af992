"""FineVision and The Cauldron."""

from pydantic import BaseModel

from ..chat_rows import ChatFields, chat_row, exchange
from ..fields import Answer
from ..row_context import RowContext
from ..rows import Row
from .registry import row_layout


class Exchange(BaseModel):
    """A question and its answer. Others of its keys, such as `source`, are not read."""

    user: str
    assistant: Answer


class FineVisionRow(ChatFields):
    """Pictures, and what is asked about them in turn."""

    texts: list[Exchange]


@row_layout("finevision", "FineVision and The Cauldron", keys=[{"texts.user", "texts.assistant"}])
def read_finevision(entry: dict, at: RowContext) -> Row:
    """`{"images": […], "texts": [{"user", "assistant", "source"}]}`: one conversation, the pictures before it.

    Sources: the cards of HuggingFaceM4/FineVision and HuggingFaceM4/the_cauldron; their own reader, `VQADataset` of
    huggingface/nanoVLM, data/datasets.py, puts the pictures before the first question too. Its limits on ratings are 1
    by default, which leaves out nothing.

    Raises:
        ValueError: The row is of another layout.
    """
    row = FineVisionRow.model_validate(entry)
    return chat_row([turn for each in row.texts for turn in exchange(each.user, each.assistant)], row, at)
