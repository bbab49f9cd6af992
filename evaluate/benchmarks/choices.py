"""Questions with options besides JMMMU's: MECHA-ja and the Japanese part of CVQA."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from ...data.pictures import PictureFolders, TablePicture
from ..items import Item, ask
from .jmmmu import letters, with_options
from .registry import Request, benchmark
from .tables import TableRow, cell_name, parquet_files, rows

CVQA_JAPANESE = "('Japanese', 'Japan')"


class Choice(TableRow):
    """What every row with options has: the right one is a place among them."""

    question: str
    options: Annotated[list[str], Field(min_length=2, max_length=26)]
    answer: Annotated[int, Field(ge=0)]
    image: TablePicture

    @model_validator(mode="after")
    def _is_one_of_them(self) -> "Choice":
        if self.answer >= len(self.options):
            raise ValueError(f"`answer` is {self.answer}, but there are {len(self.options)} options")
        return self


class MechaRow(Choice):
    """A row of MECHA-ja."""

    answer_type: Literal[0, 1]
    background_text: Annotated[str, BeforeValidator(lambda value: value or "")] = ""


class CvqaRow(TableRow):
    """A row of CVQA."""

    image: TablePicture
    question: str = Field(alias="Question")
    options: list[str] = Field(alias="Options")
    label: int = Field(alias="Label")
    subset: str = Field(alias="Subset")
    category: str | None = Field(alias="Category", default=None)


def choice_item(row: Choice, name: str, image_id: str, fields: dict[str, str], turned: int = 0) -> Item:
    """A question with lettered options, turned to the left by `turned` places."""
    options = [*row.options[turned:], *row.options[:turned]]
    right = letters(options)[(row.answer - turned) % len(options)]
    details: dict[str, Any] = {"options": options}
    return Item(name, ask(with_options(row.question, options)), (row.image,), (right,), (image_id,), fields, details)


@benchmark(
    "mecha-ja", scoring="letters", max_new_tokens=64, hub="llm-jp/MECHA-ja", task="mecha-ja",
    protocols=("rotated", "plain"), hub_tasks={"rotated": "default"},
)  # fmt: skip
def read_mecha_ja(path: Path, folders: PictureFolders, request: Request) -> Iterator[Item]:
    """MECHA-ja, Parquet with `question`, `options`, `answer` (0 to 3), `answer_type` (0: factoid), `background_text`
    and `image`. `rotated` asks every question once for each place that the right option can stand in, `plain` once;
    prompt and ids as in llm-jp-eval-mm, which shows no background text.

    Raises:
        FileNotFoundError: There is no Parquet file.
        ValueError: A column is missing, or holds something else.
    """
    every = (row for file in parquet_files(path) for row in rows(file, MechaRow))
    for number, row in enumerate(every):
        fields = {
            "answer_type": "non-factoid" if row.answer_type else "factoid",
            "background": "with" if row.background_text.strip() else "without",
        }
        image_id = f"mecha-ja:{cell_name(row.image)}"
        if request.protocol == "plain":
            yield choice_item(row, str(number), image_id, fields)
            continue
        for turned in range(len(row.options)):
            yield choice_item(row, f"{number}_rot{turned}", image_id, {**fields, "rotation": str(turned)}, turned)


@benchmark("cvqa-ja", scoring="letters", max_new_tokens=64, hub="afaji/cvqa", task="cvqa")
def read_cvqa(path: Path, folders: PictureFolders, request: Request) -> Iterator[Item]:
    """The rows of CVQA whose `Subset` is Japanese: Parquet with `Question`, `Options`, `Label` and `image`; ids count
    these rows, as in llm-jp-eval-mm.

    Raises:
        FileNotFoundError: There is no Parquet file.
        ValueError: A column is missing, or holds something else.
    """
    every = (row for file in parquet_files(path) for row in rows(file, CvqaRow))
    for number, row in enumerate(row for row in every if row.subset == CVQA_JAPANESE):
        asked = Choice(question=row.question, options=row.options, answer=row.label, image=row.image)
        fields = {"category": row.category} if row.category else {}
        yield choice_item(asked, str(number), f"cvqa:{cell_name(row.image)}", fields)
