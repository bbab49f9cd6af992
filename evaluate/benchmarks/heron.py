"""Japanese-Heron-Bench: 21 pictures, three categories of questions, a judge instead of references."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...data.json_files import json_lines
from ...data.pictures import PictureFolders
from ..items import Item, ask
from .registry import Request, benchmark
from .tables import cell_name, parquet_files, rows

CATEGORIES = ("conv", "detail", "complex")


HUB = "turing-motors/Japanese-Heron-Bench"


@benchmark("heron-bench", scoring="judge", max_new_tokens=256, hub=HUB, task="japanese-heron-bench")
def read_heron(path: Path, folders: PictureFolders, request: Request) -> Iterator[Item]:
    """Turing's own folder, `questions_ja.jsonl`, `context_ja.jsonl` and `answers_gpt4.jsonl` with the pictures in
    `images/`; or the Parquet file that llm-jp-eval-mm reads, with the answers of GPT-4 in `answer`.

    Raises:
        FileNotFoundError: Files are missing.
        ValueError: A file is of another layout.
    """
    if path.is_dir() and (path / "questions_ja.jsonl").is_file():
        yield from _from_folder(path, folders)
        return
    for file in parquet_files(path, split=""):
        for row in rows(file, ("question_id", "image", "category", "text", "context", "answer")):
            answers = [text for text in row["answer"].values() if text] if row["answer"] else []
            image_id = f"heron:{cell_name(row['image'])}"
            yield _item(row, row["image"], image_id, row["context"], answers[0] if answers else "")


def _from_folder(path: Path, folders: PictureFolders) -> Iterator[Item]:
    questions = _lines(path / "questions_ja.jsonl", ("question_id", "image", "category", "text"))
    contexts = {row["image"]: row["caption"] for row in _lines(path / "context_ja.jsonl", ("image", "caption"))}
    answers = {row["question_id"]: row["text"] for row in _lines(path / "answers_gpt4.jsonl", ("question_id", "text"))}
    for row in questions:
        context, answer = contexts.get(row["image"]), answers.get(row["question_id"])
        if context is None or answer is None:
            raise ValueError(f"{path}: question {row['question_id']} lacks its context or GPT-4's answer.")
        yield _item(row, folders.find(row["image"]), f"heron:{row['image']}", context, answer)


def _item(row: dict[str, Any], picture: Any, image_id: str, context: str, answer: str) -> Item:
    if row["category"] not in CATEGORIES:
        raise ValueError(f"Question {row['question_id']} is of the unknown category {row['category']!r}.")
    fields = {"category": row["category"]}
    if row.get("image_category"):
        fields["image_category"] = row["image_category"]
    details = {"context": context, "gpt4_answer": answer, "image": image_id.partition(":")[2]}
    return Item(str(row["question_id"]), ask(row["text"]), (picture,), (), (image_id,), fields, details)


def _lines(path: Path, needed: tuple[str, ...]) -> list[dict[str, Any]]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: Japanese-Heron-Bench is questions, contexts and GPT-4's answers.")
    found = list(json_lines(path))
    for number, row in found:
        if missing := [name for name in needed if name not in row]:
            raise ValueError(f"{path}, line {number}: {', '.join(missing)} is missing.")
    return [row for _, row in found]
