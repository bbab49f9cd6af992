"""Visual question answering: Japanese Visual Genome VQA, JA-VG-VQA-500 and JA-VLM-Bench-In-the-Wild."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from ...data.fields import Answer, CocoId, Id, Number, checked
from ...data.ids import coco_twin
from ...data.json_entries import list_entries
from ...data.pictures import Picture, PictureFolders, TablePicture
from ..items import Item, ask
from .registry import Request, benchmark
from .tables import TableRow, cell_name, parquet_files, rows

COMMON = {"scoring": "questions", "protocols": ("sakana", "llm-jp")}


class Question(BaseModel):
    """A question about a picture of Visual Genome. Answers that are numbers or booleans are texts."""

    qa_id: Id
    question: str
    answer: Answer


class Entry(BaseModel):
    """A picture of Japanese Visual Genome VQA and what is asked about it."""

    id: Number
    qas: list[Question]


class VisualGenomeRow(TableRow):
    """A row of JA-VG-VQA-500."""

    image_id: Number
    image: TablePicture
    qas: list[Question]
    coco_id: CocoId = None


class WildRow(TableRow):
    """A row of JA-VLM-Bench-In-the-Wild."""

    image: TablePicture
    question: str
    answer: Answer


def _items(image_id: int, picture: Picture, qas: list[Question], request: Request, twin: Any) -> Iterator[Item]:
    details = {"coco_id": twin} if twin else {}
    # Sakana AI asks the first question of a picture, llm-jp all.
    for qa in qas[:1] if request.protocol == "sakana" else qas:
        yield Item(str(qa.qa_id), ask(qa.question), (picture,), (qa.answer,), (f"vg:{image_id}",), details=details)


@benchmark("ja-vg-vqa", dataset="Japanese Visual Genome VQA", max_new_tokens=64, **COMMON)
def read_ja_vg_vqa(path: Path, folders: PictureFolders, request: Request) -> Iterator[Item]:
    """Yahoo Japan's `question_answers.json`, `[{"id", "qas": [{"qa_id", "question", "answer"}]}]`, with
    `{id}.jpg` in `VG_100K` or `VG_100K_2`. The data set has no split: without a list of one's own all is asked.

    Raises:
        ValueError: The file is of another layout; the message names entry and field.
    """
    for number, each in enumerate(list_entries(path)):
        entry = checked(Entry, each, path, f"entry {number}")
        yield from _items(entry.id, folders.find(f"{entry.id}.jpg"), entry.qas, request, None)


@benchmark(
    "ja-vg-vqa-500", hub="SakanaAI/JA-VG-VQA-500", task="ja-vg-vqa-500", max_new_tokens=64,
    hub_tasks={"sakana": "default"}, **COMMON,
)  # fmt: skip
def read_ja_vg_vqa_500(path: Path, folders: PictureFolders, request: Request) -> Iterator[Item]:
    """Sakana AI's JA-VG-VQA-500, Parquet with `image_id`, `coco_id`, `image` and `qas`.

    Raises:
        FileNotFoundError: There is no Parquet file.
        ValueError: A column is missing, or holds something else.
    """
    for file in parquet_files(path):
        for row in rows(file, VisualGenomeRow):
            yield from _items(row.image_id, row.image, row.qas, request, coco_twin(row.coco_id))


@benchmark(
    "ja-vlm-bench-in-the-wild", hub="SakanaAI/JA-VLM-Bench-In-the-Wild", task="ja-vlm-bench-in-the-wild",
    max_new_tokens=256, hub_tasks={"sakana": "default"}, **COMMON,
)  # fmt: skip
def read_wild(path: Path, folders: PictureFolders, request: Request) -> Iterator[Item]:
    """Sakana AI's JA-VLM-Bench-In-the-Wild, Parquet with `image`, `question` and `answer`; ids are row numbers, as in
    llm-jp-eval-mm.

    Raises:
        FileNotFoundError: There is no Parquet file.
        ValueError: A column is missing, or holds something else.
    """
    every = (row for file in parquet_files(path) for row in rows(file, WildRow))
    for number, row in enumerate(every):
        yield Item(str(number), ask(row.question), (row.image,), (row.answer,), (f"wild:{cell_name(row.image)}",))
