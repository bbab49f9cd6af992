"""JMMMU-Pro: JMMMU's questions, and the same as pictures that hold the question and its options."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator

from ...data.fields import Answer
from ...data.pictures import PictureFolders, TablePicture
from ..items import Item, ask
from .jmmmu import CHOOSE, JmmmuRow, jmmmu_item, listed_options, subject_fields
from .registry import Request, benchmark
from .tables import TableRow, parquet_files, rows


class VisionRow(TableRow):
    """A row of the configuration `vision`; options are a list, or one written as text."""

    id: str
    image: TablePicture | None = None
    image_1: TablePicture | None = None
    options: str | list[str]
    answer: Annotated[list[Answer], BeforeValidator(lambda answer: answer if isinstance(answer, list) else [answer])]


@benchmark("jmmmu-pro", scoring="choices", max_new_tokens=256, hub="JMMMU/JMMMU-Pro", protocols=("vision", "standard"))
def read_jmmmu_pro(path: Path, folders: PictureFolders, request: Request) -> Iterator[Item]:
    """Parquet files whose path names the configuration. `standard` has JMMMU's columns; `vision` has one picture a
    row, `image` or `image_1`, in which question and options stand, and is asked with JMMMU's instruction alone.

    Raises:
        FileNotFoundError: There is no Parquet file of the configuration.
        ValueError: A column or a picture is missing, or `options` is no list.
    """
    files = parquet_files(path, split="")
    chosen = (
        [file for file in files if request.protocol in file.relative_to(path).as_posix()] if path.is_dir() else files
    )
    if not chosen:
        raise FileNotFoundError(f"{path} holds no Parquet file of the configuration {request.protocol}.")
    for file in chosen:
        if request.protocol == "standard":
            yield from map(jmmmu_item, rows(file, JmmmuRow))
        else:
            yield from map(_item, rows(file, VisionRow))


def _item(row: VisionRow) -> Item:
    picture = row.image or row.image_1
    if picture is None:
        raise ValueError(f"JMMMU-Pro {row.id} has no picture.")
    details = {"options": listed_options(row.options, row.id)}
    ids = (f"jmmmu-pro:{row.id}",)
    return Item(row.id, ask(CHOOSE), (picture,), tuple(row.answer), ids, subject_fields(row.id), details)
