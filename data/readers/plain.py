"""Data of one's own: JSON lines, folders with `metadata.jsonl`, and Parquet with `messages` and `images`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..pictures import Picture, PictureRoots, TablePicture
from ..rows import PICTURE, Row, Turn, caption_row, question_row


def json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers (from 1) and objects of a JSON-lines file; empty lines are passed over.

    Raises:
        ValueError: A line is not a JSON object.
    """
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}, line {number}, is not JSON: {error}") from None
            if not isinstance(row, dict):
                raise ValueError(f"{path}, line {number}, is not a JSON object.")
            yield number, row


def read_jsonl(path: Path, roots: PictureRoots, source: str) -> Iterator[Row]:
    """Lines `{"image", "caption"}`, `{"image", "question", "answer"}` or `{"images": […], "messages": […]}`.

    A line may carry `image_id` (with a namespace, such as `coco:9`); without one the picture's path is its id.

    Raises:
        ValueError: A line lacks something; the message names it.
    """
    for number, row in json_lines(path):
        try:
            yield _plain_row(row, roots, source)
        except (KeyError, ValueError) as error:
            said = f"{error} is missing." if isinstance(error, KeyError) else str(error)
            raise ValueError(f"{path}, line {number}: {said}") from None


def _plain_row(row: dict[str, Any], roots: PictureRoots, source: str) -> Row:
    if "messages" in row:
        names = row.get("images") or ([row["image"]] if row.get("image") else [])
        pictures = tuple(roots.find(name) for name in names)
        return messages_row(row["messages"], pictures, _ids(row, names, source), source)
    picture, (image_id,) = roots.find(row["image"]), _ids(row, [row["image"]], source)
    if "question" in row:
        return question_row(row["question"], row["answer"], picture, image_id, source)
    if "caption" not in row and "text" in row:
        return caption_row(row["text"], picture, image_id, source)
    return caption_row(row["caption"], picture, image_id, source)


def _ids(row: dict[str, Any], names: list[str], source: str) -> tuple[str, ...]:
    if "image_id" in row and len(names) == 1:
        given = str(row["image_id"])
        return (given if ":" in given else f"{source}:{given}",)
    return tuple(f"{source}:{name}" for name in names)


def messages_row(
    messages: list[dict[str, Any]], pictures: tuple[Picture | TablePicture, ...], ids: tuple[str, ...], source: str
) -> Row:
    """A row from messages in the format of chat templates: `content` is a text, or a list of parts `{"type": "image"}`
    and `{"type": "text", "text": …}`. Pictures that no part mentions go before the first question."""
    turns = []
    for message in messages:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        kept = [PICTURE if part["type"] == "image" else part["text"] for part in parts]
        turns.append(Turn(message["role"], tuple(part for part in kept if part is PICTURE or part)))
    if pictures and not any(part is PICTURE for turn in turns for part in turn.parts):
        first = next((index for index, turn in enumerate(turns) if turn.role == "user"), 0)
        turns[first] = Turn(turns[first].role, (PICTURE,) * len(pictures) + turns[first].parts)
    return Row(tuple(turns), pictures, ids, source)


def read_imagefolder(path: Path, roots: PictureRoots, source: str) -> Iterator[Row]:
    """The `imagefolder` layout of `datasets`: pictures and `metadata.jsonl` with `file_name` and `text`, `caption`,
    `question` and `answer`, or `messages`.

    Raises:
        ValueError: A line lacks something; the message names it.
    """
    metadata = path / "metadata.jsonl" if path.is_dir() else path
    for number, row in json_lines(metadata):
        try:
            yield _plain_row({**row, "image": row["file_name"]}, roots, source)
        except (KeyError, ValueError) as error:
            said = f"{error} is missing." if isinstance(error, KeyError) else str(error)
            raise ValueError(f"{metadata}, line {number}: {said}") from None


def read_parquet(path: Path, roots: PictureRoots, source: str) -> Iterator[Row]:
    """Parquet with `messages` and `images` (lists of `datasets.Image`), or `image` and `caption` / `question` and
    `answer`, as trainers of the Hub exchange them; one file, or every file of a folder. Pictures stay in the file
    until they are needed.

    Raises:
        ValueError: A row lacks something; the message names it.
    """
    for file in sorted(path.glob("*.parquet")) if path.is_dir() else [path]:
        yield from _read_table(file, source)


def _read_table(path: Path, source: str) -> Iterator[Row]:
    import pyarrow.compute as pc
    from datasets import Image, List, load_dataset

    table = load_dataset("parquet", data_files=str(path), split="train")
    column = "images" if "images" in table.column_names else "image"
    if column not in table.column_names:
        raise ValueError(f"{path} has no column `images` or `image`; it has {', '.join(table.column_names)}.")
    several = column == "images"
    # Undecoded, a damaged picture is one bad picture and not the end of the iteration.
    table = table.cast_column(column, List(Image(decode=False)) if several else Image(decode=False))
    texts = table.select_columns([name for name in table.column_names if name != column])
    counts = (
        pc.call_function("list_value_length", [table.data.column(column)]).to_pylist() if several else [1] * len(table)
    )
    for number, (row, count) in enumerate(zip(texts, counts, strict=True)):
        pictures = tuple(TablePicture(str(path), number, column, position, table) for position in range(count or 0))
        names = [f"{path.stem}:{number}.{position}" for position in range(count or 0)]
        try:
            yield _table_row(row, pictures, _ids(row, names, source), source)
        except (KeyError, ValueError) as error:
            said = f"{error} is missing." if isinstance(error, KeyError) else str(error)
            raise ValueError(f"{path}, row {number}: {said}") from None


def _table_row(row: dict[str, Any], pictures: tuple[TablePicture, ...], ids: tuple[str, ...], source: str) -> Row:
    if row.get("messages"):
        return messages_row(row["messages"], pictures, ids, source)
    if row.get("question"):
        return question_row(row["question"], row["answer"], pictures[0], ids[0], source)
    return caption_row(row.get("caption") or row["text"], pictures[0], ids[0], source)
