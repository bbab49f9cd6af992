"""Visual question answering: Japanese Visual Genome VQA, JA-VG-VQA-500 and JA-VLM-Bench-In-the-Wild."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...data.ids import coco_twin
from ..items import Item, Picture, PictureFolders, ask, require_pictures
from .tables import parquet_files, rows


def _items(image_id: int, picture: Picture, qas: list[dict[str, Any]], first_only: bool, twin: Any) -> Iterator[Item]:
    details = {"coco_id": twin} if twin else {}
    for qa in qas[:1] if first_only else qas:
        yield Item(
            str(qa["qa_id"]), ask(qa["question"]), (picture,), (qa["answer"],), (f"vg:{image_id}",), details=details
        )


def read_ja_vg_vqa(
    path: Path, folders: PictureFolders, first_only: bool, only: set[str] | None = None
) -> Iterator[Item]:
    """Yahoo Japan's `question_answers.json`, `[{"id", "qas": [{"qa_id", "question", "answer"}]}]`, with
    `{id}.jpg` in `VG_100K` or `VG_100K_2`.

    Args:
        first_only: Whether only the first question of a picture is asked, as Sakana AI does.
        only: Image ids (`vg:…`) to be kept. The data set has no split: without a list of one's own all is asked.

    Raises:
        ValueError: The file is of another layout, or nothing is left.
        FileNotFoundError: Pictures are missing.
    """
    try:
        entries = [entry for entry in json.loads(path.read_text(encoding="utf-8-sig")) if entry["qas"]]
        entries = [entry for entry in entries if only is None or f"vg:{entry['id']}" in only]
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{path} is not Japanese Visual Genome VQA: [{{id, qas: […]}}, …].") from None
    if not entries:
        raise ValueError(f"{path} holds no question" + (" on a wanted picture." if only else "."))
    pictures = require_pictures(
        {f"{entry['id']}.jpg": folders.find(f"{entry['id']}.jpg") for entry in entries}, folders
    )
    for entry in entries:
        yield from _items(entry["id"], pictures[f"{entry['id']}.jpg"], entry["qas"], first_only, None)


def read_ja_vg_vqa_500(path: Path, first_only: bool) -> Iterator[Item]:
    """Sakana AI's JA-VG-VQA-500, Parquet with `image_id`, `coco_id`, `image` and `qas`.

    Raises:
        FileNotFoundError: There is no Parquet file.
        ValueError: A column is missing.
    """
    for file in parquet_files(path):
        for _, row in rows(file, ("image_id", "image", "qas")):
            twin = coco_twin(row.get("coco_id"))
            yield from _items(row["image_id"], row["image"], row["qas"], first_only, twin)


def read_wild(path: Path) -> Iterator[Item]:
    """Sakana AI's JA-VLM-Bench-In-the-Wild, Parquet with `image`, `question` and `answer`; ids are row numbers, as in
    llm-jp-eval-mm.

    Raises:
        FileNotFoundError: There is no Parquet file.
        ValueError: A column is missing.
    """
    number = 0
    for file in parquet_files(path):
        for _, row in rows(file, ("image", "question", "answer")):
            image_id = f"wild:{row['image'].name}"
            yield Item(str(number), ask(row["question"]), (row["image"],), (row["answer"],), (image_id,))
            number += 1
