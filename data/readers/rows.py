"""Rows of one's own, and chat messages."""

from ..own_rows import read_rows
from ..row_context import RowContext
from ..rows import Row
from .registry import row_layout

_CAPTIONS = [
    {picture, text}
    for picture in ("image", "images", "file_name", "file_names")
    for text in ("caption", "captions", "text")
]


@row_layout(
    "rows",
    "rows of one's own (image and caption, question and answer) and chat messages (TRL, ms-swift, LLaMA-Factory, "
    "Qwen, OpenAI)",
    keys=[{"messages.role", "messages.content"}, {"question", "answer"}, *_CAPTIONS],
)
def read(entry: dict, at: RowContext) -> list[Row]:
    """`{"image", "caption"}`, `{"image", "question", "answer"}` or `{"images": […], "messages": […]}`.

    A list of captions is a row each. A row may carry `image_id` or `image_ids`, such as `coco:9`; see [`row_ids`].
    Dialects of messages: [`jminigpt4.data.chat_rows`].
    """
    return read_rows(entry, at)
