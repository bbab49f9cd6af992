"""JAMMEval: seven older Japanese sets, their wrong and picture-free items mended or taken out (arXiv:2604.00909)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...data.fields import Answer, Id
from ...data.pictures import PictureFolders, TablePicture
from ..items import Item, ask
from .jmmmu import letters, with_options
from .registry import Request, benchmark
from .tables import TableRow, cell_name, parquet_files, rows


class RefinedRow(TableRow):
    """A row of any of JAMMEval's configurations."""

    image: TablePicture | None = None
    images: list[TablePicture] | None = None
    question: str
    answer: Answer
    original_id: Id | None = None
    options: list[str] | None = None


@benchmark("jammeval", scoring="answers", max_new_tokens=256, hub="llm-jp/JAMMEval")
def read_jammeval(path: Path, folders: PictureFolders, request: Request) -> Iterator[Item]:
    """All configurations `…-Refined` below a folder, or one of them: Parquet with `image` (or `images`), `question`,
    `answer`, `original_id` and, where there are some, `options`. Scores are broken down by configuration.

    Raises:
        FileNotFoundError: There is no Parquet file.
        ValueError: A column is missing, or holds something else.
    """
    counts: dict[str, int] = {}
    for file in parquet_files(path, split=""):
        name = _configuration(file)
        for row in rows(file, RefinedRow):
            counts[name] = counts.get(name, -1) + 1
            yield _item(row, name, counts[name], file)


def _configuration(file: Path) -> str:
    """`CVQA-JA-Refined` of `CVQA-JA-Refined/test-00000-of-00001.parquet`, however deep below it the file lies."""
    return next((each for each in reversed(file.parts) if each.endswith("-Refined")), file.parent.name)


def _item(row: RefinedRow, name: str, number: int, file: Path) -> Item:
    pictures = tuple(row.images or ([row.image] if row.image else []))
    if not pictures:
        raise ValueError(f"{file}, row {number}: there is no picture.")
    question, right = row.question, row.answer
    if row.options:
        question, right = with_options(question, row.options), _letter(right, row.options)
    ids = tuple(f"jammeval:{name}.{cell_name(picture)}" for picture in pictures)
    fields = {"set": name.removesuffix("-Refined"), "kind": "choice" if row.options else "open"}
    details: dict[str, Any] = {"options": row.options or None, "original_id": row.original_id}
    return Item(f"{name}/{number}", ask(question, len(pictures)), pictures, (right,), ids, fields, details)


def _letter(answer: str, options: list[str]) -> str:
    """The letter of the right option, which the sets state as its text, its letter or its place."""
    named = letters(options)
    if answer in options:
        return named[options.index(answer)]
    if answer.isdigit() and int(answer) < len(options):
        return named[int(answer)]
    return answer
