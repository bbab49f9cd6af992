"""JMMMU: university examinations in 28 subjects, with up to seven pictures a question."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...data.pictures import PictureFolders
from ..items import Item, ask
from .registry import Request, benchmark
from .tables import parquet_files, rows

# The benchmark's own instructions (JMMMU, arXiv:2410.17250; the same in lmms-eval and llm-jp-eval-mm).
CHOOSE = "与えられた選択肢の中から最も適切な回答のアルファベットを直接記入してください。"
ANSWER_BRIEFLY = "質問に対する回答を単語や短いフレーズで記入してください。"
CULTURE_SPECIFIC = {"Japanese_Art", "Japanese_Heritage", "Japanese_History", "World_History"}


def letters(options: list[str]) -> list[str]:
    return [chr(ord("A") + number) for number in range(len(options))]


@benchmark("jmmmu", scoring="choices", max_new_tokens=256, hub="JMMMU/JMMMU", task="jmmmu")
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
        for row in rows(file, ("id", "question", "options", "answer", "question_type", "image_1")):
            yield _item(row)


def _item(row: dict[str, Any]) -> Item:
    options = _options(row)
    chosen_from = row["question_type"] == "multiple-choice"
    question = row["question"].replace("<image1>", "<image 1>")
    if chosen_from:
        listed = "\n".join(f"{letter}. {option}" for letter, option in zip(letters(options), options, strict=True))
        question = f"{question}\n{listed}\n\n{CHOOSE}"
    else:
        question = f"{question}\n\n{ANSWER_BRIEFLY}"
    numbers = sorted({int(number) for number in re.findall(r"<image (\d)>", question)})
    mentioned = {number: row.get(f"image_{number}") for number in numbers}
    if missing := [number for number, picture in mentioned.items() if picture is None]:
        raise ValueError(f"JMMMU {row['id']} mentions image {missing[0]}, which is missing.")
    pictures = tuple(picture for picture in mentioned.values() if picture is not None)
    text = re.sub(r"<image \d>", "", question)
    subject = re.sub(r"^[^_]+_|_\d+$", "", row["id"])
    fields = {"subject": subject, "culture": "specific" if subject in CULTURE_SPECIFIC else "agnostic"}
    details = {"options": options if chosen_from else None}
    ids = tuple(f"jmmmu:{row['id']}.{number}" for number in numbers)
    references = tuple(row["answer"]) if isinstance(row["answer"], list) else (row["answer"],)
    return Item(row["id"], ask(text, len(pictures)), pictures, references, ids, fields, details)


def _options(row: dict[str, Any]) -> list[str]:
    try:
        options = ast.literal_eval(row["options"])
        return [str(option) for option in options]
    except (ValueError, SyntaxError, TypeError):
        raise ValueError(f"JMMMU {row['id']}: `options` is not a list: {row['options']!r}.") from None
