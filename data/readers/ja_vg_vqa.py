"""Japanese Visual Genome VQA."""

from collections.abc import Iterator
from pathlib import Path

from ..json_files import begins_with, read_json
from ..pictures import PictureFolders
from ..rows import Row, naming_place, question_row
from .registry import reader


def _recognises(path: Path) -> bool:
    return begins_with(path, "[", "qas")


@reader("ja-vg-vqa", "Japanese Visual Genome VQA, question_answers.json", _recognises)
def read_ja_vg_vqa(path: Path, folders: PictureFolders, source: str) -> Iterator[Row]:
    """yahoojapan/ja-vg-vqa, `question_answers.json`: `[{"id": …, "qas": [{"image_id", "question", "answer"}]}]`.

    Pictures, `<id>.jpg`, are joined by `image_id`, never by position: Visual Genome lists 108,000 pictures, this file
    99,000.

    Raises:
        ValueError: A question lacks a key.
    """
    for entry in read_json(path):
        with naming_place(path, f"image {entry.get('id')}"):
            questions = entry["qas"]
        for qa in questions:
            with naming_place(path, f"question {qa.get('qa_id')} of image {entry.get('id')}"):
                number = qa["image_id"]
                picture = folders.find(f"{number}.jpg")
                row = question_row(qa["question"], qa["answer"], picture, f"vg:{number}", source)
            yield row
