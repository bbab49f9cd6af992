"""JMMMU-Pro: JMMMU's questions, and the same as pictures that hold the question and its options."""

from collections.abc import Iterator
from pathlib import Path

from ...data.pictures import PictureFolders, TablePicture
from ..items import Item, ask
from .jmmmu import CHOOSE, Answers, JmmmuRow, jmmmu_item, listed_options, subject_fields
from .registry import Request, benchmark
from .tables import TableRow, configuration_files, rows


class VisionRow(TableRow):
    """A row of the configuration `vision`; options are a list, or one written as text."""

    id: str
    image: TablePicture | None = None
    image_1: TablePicture | None = None
    options: str | list[str]
    answer: Answers


@benchmark(
    "jmmmu-pro", scoring="choices", max_new_tokens=256, hub="JMMMU/JMMMU-Pro", protocols=("vision", "standard"),
    hub_tasks={"vision": "vision", "standard": "standard"},
)  # fmt: skip
def read_jmmmu_pro(path: Path, folders: PictureFolders, request: Request) -> Iterator[Item]:
    """Parquet files whose path names the configuration. `standard` has JMMMU's columns; `vision` has one picture a
    row, `image` or `image_1`, in which question and options stand, and is asked with JMMMU's instruction alone.

    Raises:
        FileNotFoundError: There is no Parquet file of the configuration.
        ValueError: A column or a picture is missing, or `options` is no list.
    """
    for file in configuration_files(path, request.protocol):
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
