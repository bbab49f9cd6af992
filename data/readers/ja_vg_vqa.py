"""Japanese Visual Genome VQA, and the 500 of its pictures that are a benchmark."""

from typing import Annotated

from pydantic import BaseModel, BeforeValidator

from ..fields import Answer, Id, Number, PictureFields, as_objects
from ..ids import canonical_id
from ..row_context import RowContext
from ..rows import BadRow, Row, question_row
from .registry import row_layout


class Question(BaseModel):
    """A question about a picture. Answers that are numbers or booleans are texts."""

    image_id: Number | None = None
    question: str
    answer: Answer
    qa_id: Id | None = None


class Questions(PictureFields):
    """A picture and what is asked about it, each as it stands in the file."""

    id: Id | None = None
    qas: Annotated[list[object], BeforeValidator(as_objects)]


@row_layout(
    "ja-vg-vqa",
    "Japanese Visual Genome VQA (question_answers.json) and JA-VG-VQA-500",
    keys=[{"qas.question", "qas.answer"}],
)
def read_ja_vg_vqa(entry: dict, at: RowContext) -> list[Row | BadRow]:
    """yahoojapan/ja-vg-vqa, `question_answers.json`: `[{"id", "qas": [{"image_id", "question", "answer"}]}]`, and
    SakanaAI/JA-VG-VQA-500: `image_id`, `coco_id`, `image` and `qas` without ids; a row for each question.

    Pictures that are not in the file, `<id>.jpg`, are joined by the question's `image_id`, else by that of the entry,
    never by position: Visual Genome lists 108,000 pictures, this file 99,000. Ids are Visual Genome's.
    """
    row = Questions.model_validate(entry)
    stated = (row.stated_ids or [row.id])[0]

    def read(qa: object) -> Row:
        asked = Question.model_validate(qa)
        number = stated if asked.image_id is None else asked.image_id
        if number is None:
            raise ValueError("`image_id` is missing.")
        image_id = canonical_id(number, "vg")
        picture = at.picture(row.names[0] if row.names else f"{image_id.removeprefix('vg:')}.jpg")
        return question_row(asked.question, asked.answer, picture, image_id, at.source)

    return [at.part(f"question {place}", read, qa) for place, qa in enumerate(row.qas)]
