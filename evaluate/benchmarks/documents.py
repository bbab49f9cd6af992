"""Questions about documents, slides, graphs and several pictures at once."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from ...data.fields import Answer, Id
from ...data.pictures import PictureFolders, TablePicture
from ..items import Item, ask
from .registry import Request, benchmark
from .tables import TableRow, cell_name, parquet_files, rows

HAKUSHO_WORDING = "\n上記の質問に対して、正確かつ簡潔に答えてください。"
JDOCQA_KINDS = ("yesno", "factoid", "numerical", "open-ended")


class JDocQARow(TableRow):
    """A row of JDocQA: a question about up to four pages."""

    question_id: Id
    question: str
    answer: Answer
    answer_type: Literal[0, 1, 2, 3]
    image_0: TablePicture | None
    image_1: TablePicture | None = None
    image_2: TablePicture | None = None
    image_3: TablePicture | None = None


class SeveralRow(TableRow):
    """A row of JA-Multi-Image-VQA."""

    images: Annotated[list[TablePicture], Field(min_length=1)]
    question: str
    answer: Answer


class OneRow(TableRow):
    """A question about one picture, as BusinessSlideVQA and JGraphQA have it."""

    image: TablePicture
    question: str
    answer: Answer
    question_id: Id | None = None


class HakushoRow(TableRow):
    """A row of HakushoBench: a question about a chart or table of a white paper."""

    image: TablePicture
    question: str
    answer: Answer
    original_id: Id
    image_type: str | None = None


@benchmark(
    "jdocqa", scoring="documents", max_new_tokens=256, hub="speed/JDocQA", task="jdocqa", hub_tasks={"": "default"}
)
def read_jdocqa(path: Path, folders: PictureFolders, request: Request) -> Iterator[Item]:
    """JDocQA's test rows, Parquet with `question_id`, `question`, `answer`, `answer_type` (0 to 3) and the pages
    `image_0` to `image_3`.

    Raises:
        FileNotFoundError: There is no Parquet file.
        ValueError: A column is missing, or holds something else.
    """
    for file in parquet_files(path):
        for row in rows(file, JDocQARow):
            pages = tuple(page for page in (row.image_0, row.image_1, row.image_2, row.image_3) if page is not None)
            ids = tuple(f"jdocqa:{cell_name(page)}" for page in pages)
            fields = {"answer_type": JDOCQA_KINDS[row.answer_type], "pages": str(len(pages))}
            yield Item(str(row.question_id), ask(row.question, len(pages)), pages, (row.answer,), ids, fields)


@benchmark(
    "ja-multi-image-vqa", scoring="questions", max_new_tokens=256, hub="SakanaAI/JA-Multi-Image-VQA",
    task="ja-multi-image-vqa", protocols=("sakana", "llm-jp"), hub_tasks={"sakana": "default"},
)  # fmt: skip
def read_ja_multi_image_vqa(path: Path, folders: PictureFolders, request: Request) -> Iterator[Item]:
    """Sakana AI's JA-Multi-Image-VQA, Parquet with `images` (a list), `question` and `answer`. The places that
    questions mark with `<image> ` are taken out and the pictures come first, as in llm-jp-eval-mm; ids are row
    numbers.

    Raises:
        FileNotFoundError: There is no Parquet file.
        ValueError: A column is missing, or holds something else.
    """
    every = (row for file in parquet_files(path) for row in rows(file, SeveralRow))
    for number, row in enumerate(every):
        question = re.sub(r"<image> ?", "", row.question)
        ids = tuple(f"ja-multi-image-vqa:{cell_name(picture)}" for picture in row.images)
        fields = {"pictures": str(len(ids))}
        yield Item(str(number), ask(question, len(ids)), tuple(row.images), (row.answer,), ids, fields)


@benchmark("business-slide-vqa", scoring="questions", max_new_tokens=256, hub="llm-jp/BusinessSlideVQA")
def read_business_slide_vqa(path: Path, folders: PictureFolders, request: Request) -> Iterator[Item]:
    """BusinessSlideVQA, Parquet with `image`, `question`, `answer` and `question_id`; published scores are a judge's.

    Raises:
        FileNotFoundError: There is no Parquet file.
        ValueError: A column is missing, or holds something else.
    """
    yield from _about_one(path, "business-slide-vqa")


@benchmark("jgraphqa", scoring="questions", max_new_tokens=256, dataset="JGraphQA")
def read_jgraphqa(path: Path, folders: PictureFolders, request: Request) -> Iterator[Item]:
    """JGraphQA, Parquet with `image`, `question` and `answer`; published scores are a judge's.

    Raises:
        FileNotFoundError: There is no Parquet file.
        ValueError: A column is missing, or holds something else.
    """
    yield from _about_one(path, "jgraphqa")


@benchmark("hakusho-bench", scoring="questions", max_new_tokens=256, dataset="llm-jp/HakushoBench")
def read_hakusho_bench(path: Path, folders: PictureFolders, request: Request) -> Iterator[Item]:
    """HakushoBench's test rows, Parquet with `image`, `question`, `answer`, `original_id` and `image_type`, asked in
    the wording of llm-jp/simple-evals-mm; published scores are a judge's. On the Hub only the revision
    41de46f6bbd418eb0c2a1041bcd810448b80e045 has pictures, later ones have their addresses.

    Raises:
        FileNotFoundError: There is no Parquet file.
        ValueError: A column is missing, or holds something else.
    """
    for file in parquet_files(path):
        for row in rows(file, HakushoRow):
            name, fields = str(row.original_id), {"image_type": row.image_type} if row.image_type else {}
            ids = (f"hakusho-bench:{cell_name(row.image)}",)
            yield Item(name, ask(row.question + HAKUSHO_WORDING), (row.image,), (row.answer,), ids, fields)


def _about_one(path: Path, namespace: str) -> Iterator[Item]:
    every = (row for file in parquet_files(path, split="") for row in rows(file, OneRow))
    for number, row in enumerate(every):
        name = str(number if row.question_id is None else row.question_id)
        yield Item(name, ask(row.question), (row.image,), (row.answer,), (f"{namespace}:{cell_name(row.image)}",))
