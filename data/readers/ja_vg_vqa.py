"""Japanese Visual Genome VQA."""

from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel

from ..fields import Answer, Id, Number
from ..json_entries import list_entries
from ..json_files import begins_with
from ..pictures import PictureFolders
from ..rows import BadRow, Row, question_row, row_or_fault
from .registry import reader


class Question(BaseModel):
    """A question about a picture. Answers that are numbers or booleans are texts."""

    image_id: Number
    question: str
    answer: Answer
    qa_id: Id | None = None


class Questions(BaseModel):
    """A picture and what is asked about it, each as it stands in the file."""

    id: Id | None = None
    qas: list[object]


def _recognises(path: Path) -> bool:
    return begins_with(path, "[", "qas")


@reader("ja-vg-vqa", "Japanese Visual Genome VQA, question_answers.json", _recognises)
def read_ja_vg_vqa(path: Path, folders: PictureFolders, source: str) -> Iterator[Row | BadRow]:
    """yahoojapan/ja-vg-vqa, `question_answers.json`: `[{"id": …, "qas": [{"image_id", "question", "answer"}]}]`.

    Pictures, `<id>.jpg`, are joined by `image_id`, never by position: Visual Genome lists 108,000 pictures, this file
    99,000.

    Raises:
        ValueError: The file is not a JSON array.
    """

    def read(entry: object) -> Row:
        qa = Question.model_validate(entry)
        picture = folders.find(f"{qa.image_id}.jpg")
        return question_row(qa.question, qa.answer, picture, f"vg:{qa.image_id}", source)

    for number, each in enumerate(list_entries(path)):
        entry = row_or_fault(path, f"entry {number}", Questions.model_validate, each)
        if isinstance(entry, BadRow):
            yield entry
            continue
        for place, qa in enumerate(entry.qas):
            yield row_or_fault(path, f"question {place} of image {entry.id}", read, qa)
