"""Visual question answering: Japanese Visual Genome VQA, JA-VG-VQA-500 and JA-VLM-Bench-In-the-Wild."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...data.ids import coco_twin
from ...data.json_files import read_json
from ...data.pictures import Picture, PictureFolders
from ..items import Item, ask
from .registry import Request, benchmark
from .tables import cell_name, parquet_files, rows

COMMON = {"scoring": "questions", "protocols": ("sakana", "llm-jp")}


def _items(image_id: int, picture: Picture, qas: list[dict[str, Any]], request: Request, twin: Any) -> Iterator[Item]:
    details = {"coco_id": twin} if twin else {}
    # Sakana AI asks the first question of a picture, llm-jp all.
    for qa in qas[:1] if request.protocol == "sakana" else qas:
        yield Item(
            str(qa["qa_id"]), ask(qa["question"]), (picture,), (qa["answer"],), (f"vg:{image_id}",), details=details
        )


@benchmark("ja-vg-vqa", dataset="Japanese Visual Genome VQA", max_new_tokens=64, **COMMON)
def read_ja_vg_vqa(path: Path, folders: PictureFolders, request: Request) -> Iterator[Item]:
    """Yahoo Japan's `question_answers.json`, `[{"id", "qas": [{"qa_id", "question", "answer"}]}]`, with
    `{id}.jpg` in `VG_100K` or `VG_100K_2`. The data set has no split: without a list of one's own all is asked.

    Raises:
        ValueError: The file is of another layout.
    """
    try:
        entries = [(entry["id"], entry["qas"]) for entry in read_json(path)]
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{path} is not Japanese Visual Genome VQA: [{{id, qas: […]}}, …].") from None
    for image_id, qas in entries:
        yield from _items(image_id, folders.find(f"{image_id}.jpg"), qas, request, None)


@benchmark("ja-vg-vqa-500", hub="SakanaAI/JA-VG-VQA-500", task="ja-vg-vqa-500", max_new_tokens=64, **COMMON)
def read_ja_vg_vqa_500(path: Path, folders: PictureFolders, request: Request) -> Iterator[Item]:
    """Sakana AI's JA-VG-VQA-500, Parquet with `image_id`, `coco_id`, `image` and `qas`.

    Raises:
        FileNotFoundError: There is no Parquet file.
        ValueError: A column is missing.
    """
    for file in parquet_files(path):
        for row in rows(file, ("image_id", "image", "qas")):
            twin = coco_twin(row.get("coco_id"))
            yield from _items(row["image_id"], row["image"], row["qas"], request, twin)


@benchmark(
    "ja-vlm-bench-in-the-wild", hub="SakanaAI/JA-VLM-Bench-In-the-Wild", task="ja-vlm-bench-in-the-wild",
    max_new_tokens=256, **COMMON,
)  # fmt: skip
def read_wild(path: Path, folders: PictureFolders, request: Request) -> Iterator[Item]:
    """Sakana AI's JA-VLM-Bench-In-the-Wild, Parquet with `image`, `question` and `answer`; ids are row numbers, as in
    llm-jp-eval-mm.

    Raises:
        FileNotFoundError: There is no Parquet file.
        ValueError: A column is missing.
    """
    every = (row for file in parquet_files(path) for row in rows(file, ("image", "question", "answer")))
    for number, row in enumerate(every):
        image_id = f"wild:{cell_name(row['image'])}"
        yield Item(str(number), ask(row["question"]), (row["image"],), (row["answer"],), (image_id,))
