"""Data of one's own, one schema whatever holds it, and of one's own benchmark."""

from pathlib import Path

from .chat_rows import ChatFields, RowMessage, chat_row, drafted, exchange
from .fields import Answer, PictureFields, Texts
from .pictures import PictureFolders
from .row_context import RowContext
from .rows import Row


class OwnRow(PictureFields):
    """A row of one's own: pictures, and `messages`, or `question` and `answer`, or `caption` (or `captions`, `text`),
    which may be a list."""

    messages: list[RowMessage] | None = None
    question: str | None = None
    answer: Answer | None = None
    caption: Texts | None = None
    captions: Texts | None = None
    text: Texts | None = None


KEYS = set(OwnRow.model_fields)


def read_rows(entry: object, at: RowContext) -> list[Row]:
    """A row, or one for each of its captions.

    Raises:
        ValueError: It lacks something, or holds something else where a text or a name belongs.
    """
    row = OwnRow.model_validate(entry)
    if row.messages:
        return [chat_row(drafted(row.messages), ChatFields.model_validate(entry), at)]
    if row.question or row.answer:
        if row.question is None or row.answer is None:
            raise ValueError(f"`{'answer' if row.answer is None else 'question'}` is missing.")
        return [chat_row(exchange(row.question, row.answer), row, at)]
    given = [texts for texts in (row.caption, row.captions, row.text) if texts]
    captions = next((texts for texts in given if any(texts)), given[0] if given else [])
    if not captions or not row.names:
        raise ValueError(f"`{'image' if captions else 'caption'}` is missing.")
    return [chat_row(exchange("", caption), row, at) for caption in captions]


def read_row(entry: object, folders: PictureFolders, file: Path, source: str) -> Row:
    """A row of `file` whose pictures are files.

    Raises:
        ValueError: As [`read_rows`], or it has several captions.
    """
    rows = read_rows(entry, RowContext(file, folders, source))
    if len(rows) != 1:
        raise ValueError(f"one answer belongs here, got {len(rows)} captions.")
    return rows[0]
