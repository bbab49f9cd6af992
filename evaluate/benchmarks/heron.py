"""Japanese-Heron-Bench: 21 pictures, three categories of questions, a judge instead of references."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel

from ...data.fields import Id, Name, checked
from ...data.json_files import json_lines
from ...data.pictures import Picture, PictureFolders, TablePicture
from ..items import Item, ask
from .registry import Request, benchmark
from .tables import TableRow, cell_name, parquet_files, rows

CATEGORIES = ("conv", "detail", "complex")


class Asked(BaseModel):
    """What both layouts have of a question."""

    question_id: Id
    category: Literal["conv", "detail", "complex"]
    text: str
    image_category: str | None = None


class Question(Asked):
    """A line of `questions_ja.jsonl`."""

    image: Name


class Context(BaseModel):
    """A line of `context_ja.jsonl`."""

    image: Name
    caption: str


class Gpt4Answer(BaseModel):
    """A line of `answers_gpt4.jsonl`."""

    question_id: Id
    text: str


class HeronRow(Asked, TableRow):
    """A row of llm-jp-eval-mm's Parquet file."""

    image: TablePicture
    context: str
    answer: dict[str, str | None] | None


Line = TypeVar("Line", bound=BaseModel)
HUB = "turing-motors/Japanese-Heron-Bench"


@benchmark("heron-bench", scoring="judge", max_new_tokens=256, hub=HUB, task="japanese-heron-bench")
def read_heron(path: Path, folders: PictureFolders, request: Request) -> Iterator[Item]:
    """Turing's own folder, `questions_ja.jsonl`, `context_ja.jsonl` and `answers_gpt4.jsonl` with the pictures in
    `images/`; or the Parquet file that llm-jp-eval-mm reads, with the answers of GPT-4 in `answer`.

    Raises:
        FileNotFoundError: Files are missing.
        ValueError: A file is of another layout.
    """
    if path.is_dir() and (path / "questions_ja.jsonl").is_file():
        yield from _from_folder(path, folders)
        return
    for file in parquet_files(path, split=""):
        for row in rows(file, HeronRow):
            answers = [text for text in (row.answer or {}).values() if text]
            image_id = f"heron:{cell_name(row.image)}"
            yield _item(row, row.image, image_id, row.context, answers[0] if answers else "")


def _from_folder(path: Path, folders: PictureFolders) -> Iterator[Item]:
    contexts = {row.image: row.caption for row in _lines(path / "context_ja.jsonl", Context)}
    answers = {row.question_id: row.text for row in _lines(path / "answers_gpt4.jsonl", Gpt4Answer)}
    for row in _lines(path / "questions_ja.jsonl", Question):
        context, answer = contexts.get(row.image), answers.get(row.question_id)
        if context is None or answer is None:
            raise ValueError(f"{path}: question {row.question_id} lacks its context or GPT-4's answer.")
        yield _item(row, folders.find(row.image), f"heron:{row.image}", context, answer)


def _item(row: Asked, picture: Picture, image_id: str, context: str, answer: str) -> Item:
    fields: dict[str, str] = {"category": row.category}
    if row.image_category:
        fields["image_category"] = row.image_category
    details = {"context": context, "gpt4_answer": answer, "image": image_id.partition(":")[2]}
    return Item(str(row.question_id), ask(row.text), (picture,), (), (image_id,), fields, details)


def _lines(path: Path, schema: type[Line]) -> Iterator[Line]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: Japanese-Heron-Bench is questions, contexts and GPT-4's answers.")
    for number, row in json_lines(path):
        yield checked(schema, row, path, f"line {number}")
