"""Japanese Visual Genome VQA."""

import json
from collections.abc import Iterator
from pathlib import Path

from ..pictures import PictureRoots
from ..rows import Row, question_row


def read_visual_genome(path: Path, roots: PictureRoots, source: str) -> Iterator[Row]:
    """yahoojapan/ja-vg-vqa, `question_answers.json`: `[{"id": …, "qas": [{"image_id", "question", "answer"}]}]`.

    Pictures are joined by `image_id`, never by position: Visual Genome lists 108,000 pictures, this file 99,000. They
    are looked for as `<id>.jpg` in the folders given and in their `VG_100K` and `VG_100K_2`.

    Raises:
        ValueError: A question lacks a key.
    """
    for entry in json.loads(path.read_text(encoding="utf-8-sig")):
        for qa in entry["qas"]:
            try:
                number = qa["image_id"]
                name = f"{number}.jpg"
                picture = roots.find(name, f"VG_100K/{name}", f"VG_100K_2/{name}")
                yield question_row(qa["question"], qa["answer"], picture, f"vg:{number}", source)
            except (KeyError, ValueError) as error:
                said = f"{error} is missing." if isinstance(error, KeyError) else str(error)
                raise ValueError(f"{path}, question {qa.get('qa_id')} of image {entry.get('id')}: {said}") from None
