"""Texts to be read out of pictures: the Japanese part of CC-OCR, and JaWildText."""

import json
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

from pydantic import BaseModel, Field

from ...data.pictures import PictureFolders, TablePicture
from ..items import Item, ask
from .registry import Request, benchmark
from .tables import TableRow, cell_name, configuration_files, encoded_picture, parquet_files, rows

SCALARS = ("store_name", "store_address", "receipt_id", "date", "time", "total_amount", "tax_amount")
"""Fields of a receipt with one value."""
LINE_ITEM = ("item_name", "item_price", "item_quantity")
"""Fields of each line of a receipt."""

# The benchmark's own instructions, as llm-jp-eval-mm has them (src/eval_mm/tasks/jawildtext_*.py).
BOXED = (
    "\n画像を参照して回答してください。推論過程は出力しても構いませんが、"
    "最終回答は必ず \\boxed{...} で囲み、ボックス内には最終回答のみを1つだけ記載してください。"
)
READ_ALL = "OCR:\n画像内の文字をすべて読んでください。 改行されている部分には必ず\\nを挿入してください。"
EXTRACT = (
    "レシート画像からキー情報を抽出し、JSON形式で返してください。 "
    "フィールド: store_name, store_address, receipt_id, date, time, total_amount, tax_amount, line_items[]. "
    "値は画像の文字をそのまま出力してください（推測・正規化・整形しない）。無い項目は null にしてください。 "
    'line_items は {"item_name": "", "item_price": "", "item_quantity": ""} の配列で返してください。'
)


class CcOcrRow(TableRow):
    """A row of CC-OCR's `multi_lan_ocr`; pictures are base64."""

    image: str
    question: str
    answer: str
    language: str = Field(alias="l2-category")


@benchmark("cc-ocr-ja", scoring="characters", max_new_tokens=1024, hub="wulipc/CC-OCR", task="cc-ocr")
def read_cc_ocr(path: Path, folders: PictureFolders, request: Request) -> Iterator[Item]:
    """The rows of CC-OCR's configuration `multi_lan_ocr` whose `l2-category` is Japanese: Parquet with `image`
    (base64), `question` and `answer`; ids count these rows, as in llm-jp-eval-mm.

    Raises:
        FileNotFoundError: There is no Parquet file of the configuration.
        ValueError: A column is missing, or holds something else.
    """
    files = parquet_files(path)
    named = [file for file in files if "multi_lan_ocr" in file.as_posix()]
    number = 0
    for file in named or files:
        for place, row in enumerate(rows(file, CcOcrRow)):
            if row.language == "Japanese":
                picture = encoded_picture(row.image, f"{file}#{place}.image")
                yield Item(str(number), ask(row.question), (picture,), (row.answer,), (f"cc-ocr:{number}",))
                number += 1


class BoardRow(TableRow):
    """A row of JaWildText's `board_vqa`."""

    image: TablePicture
    question: str | None
    answer: str | None


class Line(BaseModel):
    """A text with the corners around it, `[[x, y], …]`."""

    text: str | None = None
    polygon: list[list[float]] | None = None

    @property
    def centre(self) -> tuple[float, float]:
        """Mean of the corners, y first."""
        corners = self.polygon or [[0.0, 0.0]]
        return fmean(corner[1] for corner in corners), fmean(corner[0] for corner in corners)


class HandwritingRow(TableRow):
    """A row of JaWildText's `handwriting_ocr`."""

    image: TablePicture
    polygons: list[Line] | None


class ReceiptRow(TableRow):
    """A row of JaWildText's `receipt_kie`."""

    image: TablePicture
    fields: dict[str, Any] | None


HUB = "llm-jp/jawildtext"


@benchmark("jawildtext-board-vqa", scoring="boxed", max_new_tokens=512, hub=HUB, task="jawildtext-board-vqa")
def read_board_vqa(path: Path, folders: PictureFolders, request: Request) -> Iterator[Item]:
    """JaWildText's questions about boards: Parquet with `image`, `question` and `answer`; the published score is a
    judge's, here `--judge`.

    Raises:
        FileNotFoundError: There is no Parquet file of the configuration.
        ValueError: A column is missing, or holds something else.
    """
    every = (row for file in configuration_files(path, "board_vqa") for row in rows(file, BoardRow))
    for number, row in enumerate(every):
        question = (row.question or "") + BOXED
        yield Item(str(number), ask(question), (row.image,), (row.answer or "",), (_id(row.image),))


@benchmark(
    "jawildtext-handwriting-ocr", scoring="edits", max_new_tokens=1024, hub=HUB, task="jawildtext-handwriting-ocr",
    hub_tasks={"": "handwriting_ocr"},
)  # fmt: skip
def read_handwriting(path: Path, folders: PictureFolders, request: Request) -> Iterator[Item]:
    """JaWildText's handwriting: Parquet with `image` and `polygons` (`{"text", "polygon"}`), whose texts are the
    reference, a line each, from top to bottom and left to right by their centres.

    Raises:
        FileNotFoundError: There is no Parquet file of the configuration.
        ValueError: A column is missing, or holds something else.
    """
    every = (row for file in configuration_files(path, "handwriting_ocr") for row in rows(file, HandwritingRow))
    for number, row in enumerate(every):
        lines = sorted(row.polygons or [], key=lambda line: line.centre)
        reference = "\n".join(line.text for line in lines if line.text)
        yield Item(str(number), ask(READ_ALL), (row.image,), (reference,), (_id(row.image),))


@benchmark(
    "jawildtext-receipt-kie", scoring="receipts", max_new_tokens=1024, hub=HUB, task="jawildtext-receipt-kie",
    hub_tasks={"": "receipt_kie"},
)  # fmt: skip
def read_receipts(path: Path, folders: PictureFolders, request: Request) -> Iterator[Item]:
    """JaWildText's receipts: Parquet with `image` and `fields`, whose values are to be found.

    Raises:
        FileNotFoundError: There is no Parquet file of the configuration.
        ValueError: A column is missing, or holds something else.
    """
    every = (row for file in configuration_files(path, "receipt_kie") for row in rows(file, ReceiptRow))
    for number, row in enumerate(every):
        reference = json.dumps(_values(row.fields or {}), ensure_ascii=False)
        yield Item(str(number), ask(EXTRACT), (row.image,), (reference,), (_id(row.image),))


def _values(fields: dict[str, Any]) -> dict[str, Any]:
    items = [each for each in fields.get("line_items") or [] if isinstance(each, dict)]
    lines = [{name: _value(each.get(name)) for name in LINE_ITEM} for each in items]
    return {name: _value(fields.get(name)) for name in SCALARS} | {"line_items": lines}


def _value(field: Any) -> Any:
    return field.get("value") if isinstance(field, dict) else None


def _id(picture: TablePicture) -> str:
    return f"jawildtext:{cell_name(picture)}"
