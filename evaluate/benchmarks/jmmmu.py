"""JMMMU: university examinations in 28 subjects, with up to seven pictures a question."""

import ast
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator

from ...data.fields import Answer
from ...data.pictures import PictureFolders, TablePicture
from ..items import Item, ask
from .registry import Request, benchmark
from .tables import TableRow, parquet_files, rows

# The benchmark's own instructions (JMMMU, arXiv:2410.17250; the same in lmms-eval and llm-jp-eval-mm).
CHOOSE = "与えられた選択肢の中から最も適切な回答のアルファベットを直接記入してください。"
ANSWER_BRIEFLY = "質問に対する回答を単語や短いフレーズで記入してください。"
CULTURE_SPECIFIC = {"Japanese_Art", "Japanese_Heritage", "Japanese_History", "World_History"}


def _as_list(answer: object) -> object:
    return answer if isinstance(answer, list) else [answer]


Answers = Annotated[list[Answer], BeforeValidator(_as_list)]


class JmmmuRow(TableRow):
    """A row of JMMMU."""

    id: str
    question: str
    options: str
    answer: Answers
    question_type: str
    image_1: TablePicture | None
    image_2: TablePicture | None = None
    image_3: TablePicture | None = None
    image_4: TablePicture | None = None
    image_5: TablePicture | None = None
    image_6: TablePicture | None = None
    image_7: TablePicture | None = None


def letters(options: Sequence[str]) -> list[str]:
    return [chr(ord("A") + number) for number in range(len(options))]


def with_options(question: str, options: Sequence[str]) -> str:
    """A question with its lettered options, as JMMMU asks it and llm-jp-eval-mm every set of choices."""
    listed = "\n".join(f"{letter}. {option}" for letter, option in zip(letters(options), options, strict=True))
    return f"{question}\n{listed}\n\n{CHOOSE}"


@benchmark("jmmmu", scoring="choices", max_new_tokens=256, hub="JMMMU/JMMMU", task="jmmmu", hub_tasks={"": "default"})
def read_jmmmu(path: Path, folders: PictureFolders, request: Request) -> Iterator[Item]:
    """Parquet files with `id`, `question`, `options` (a Python list written as text), `answer`, `question_type` and
    `image_1` to `image_7`; one folder a subject.

    The pictures that a question or its options mention come before the text, and the mentions go, as in
    llm-jp-eval-mm.

    Raises:
        FileNotFoundError: There is no Parquet file.
        ValueError: A column or a mentioned picture is missing, or `options` is no list.
    """
    for file in parquet_files(path):
        for row in rows(file, JmmmuRow):
            yield jmmmu_item(row)


def jmmmu_item(row: JmmmuRow) -> Item:
    """The question of a row, as JMMMU asks it."""
    options = listed_options(row.options, row.id)
    chosen_from = row.question_type == "multiple-choice"
    question = row.question.replace("<image1>", "<image 1>")
    if chosen_from:
        if len(options) > 26:
            raise ValueError(f"JMMMU {row.id}: {len(options)} options are more than there are letters.")
        question = with_options(question, options)
    else:
        question = f"{question}\n\n{ANSWER_BRIEFLY}"
    numbers = sorted({int(number) for number in re.findall(r"<image (\d)>", question)})
    mentioned = {number: getattr(row, f"image_{number}", None) for number in numbers}
    if missing := [number for number, picture in mentioned.items() if picture is None]:
        raise ValueError(f"JMMMU {row.id} mentions image {missing[0]}, which is missing.")
    pictures = tuple(picture for picture in mentioned.values() if picture is not None)
    text = re.sub(r"<image \d>", "", question)
    fields = subject_fields(row.id)
    details = {"options": options if chosen_from else None}
    ids = tuple(f"jmmmu:{row.id}.{number}" for number in numbers)
    return Item(row.id, ask(text, len(pictures)), pictures, tuple(row.answer), ids, fields, details)


def subject_fields(name: str) -> dict[str, str]:
    """Subject and kind of culture, by the id of a question: `validation_Japanese_Art_1`."""
    subject = re.sub(r"^[^_]+_|_\d+$", "", name)
    return {"subject": subject, "culture": "specific" if subject in CULTURE_SPECIFIC else "agnostic"}


def listed_options(options: str | list[str], name: str) -> list[str]:
    """A list of options, which JMMMU writes as a Python list in a text.

    Raises:
        ValueError: It is none; the message names the question.
    """
    try:
        found = ast.literal_eval(options) if isinstance(options, str) else options
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        found = None
    if not isinstance(found, list | tuple):
        raise ValueError(f"JMMMU {name}: `options` is not a list: {options!r:.80}.")
    return [str(option) for option in found]
