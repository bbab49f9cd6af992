"""JIC-VQA: recognising Japanese flowers, dishes, landmarks and facilities."""

import csv
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel

from ...data.fields import Id, checked
from ...data.pictures import PictureFolders, TablePicture
from ..items import Item, ask
from .registry import Request, benchmark
from .tables import TableRow, cell_name, parquet_files, rows

# What a question calls the domain, as llm-jp-eval-mm finds it (scripts/prepare_jic_vqa.py).
DOMAINS = {"花": "jaflower30", "食べ物": "jafood101", "ランドマーク": "jalandmark10", "施設": "jafacility20"}


class PreparedRow(TableRow):
    """A row of the Parquet file that llm-jp-eval-mm prepares."""

    image: TablePicture
    input_text: str
    answer: str
    question_id: Id


class AddressRow(BaseModel):
    """A row of the owners' table of addresses; its picture is `{id}.jpg`."""

    id: Id
    category: str
    question: str


@benchmark(
    "jic-vqa", dataset="line-corporation/JIC-VQA", scoring="domains", max_new_tokens=64, task="jic-vqa",
    hub_tasks={"": "default"},
)  # fmt: skip
def read_jic_vqa(path: Path, folders: PictureFolders, request: Request) -> Iterator[Item]:
    """The Parquet file that llm-jp-eval-mm prepares (`image`, `input_text`, `answer`, `question_id`), or the owners'
    CSV of addresses (`id`, `category`, `question`, `url`) with the pictures, downloaded by oneself, as `{id}.jpg`.

    Raises:
        FileNotFoundError: The file is missing.
        ValueError: A column is missing, or holds something else.
    """
    if path.suffix == ".csv":
        with open(path, encoding="utf-8-sig", newline="") as file:
            for number, each in enumerate(csv.DictReader(file), 2):
                row = checked(AddressRow, each, path, f"line {number}")
                yield _item(str(row.id), row.question, row.category, folders.find(f"{row.id}.jpg"), f"{row.id}.jpg")
        return
    for file in parquet_files(path, split=""):
        for row in rows(file, PreparedRow):
            yield _item(str(row.question_id), row.input_text, row.answer, row.image, cell_name(row.image))


def _item(name: str, question: str, answer: str, picture, picture_name: str) -> Item:
    domain = next((domain for word, domain in DOMAINS.items() if word in question), "other")
    return Item(name, ask(question), (picture,), (answer,), (f"jic-vqa:{picture_name}",), {"domain": domain})
