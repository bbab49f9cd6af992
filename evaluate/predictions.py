"""Answers on disk, one JSON line each, so that a run that was stopped goes on where it was."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..checkpoint import finished_file
from ..data.json_files import json_lines
from .items import Item

PREDICTIONS = "predictions.jsonl"
SETTINGS = "settings.json"


@dataclass(frozen=True)
class Prediction:
    """One answer.

    Args:
        id: Id of its item.
        question: What was asked.
        answer: The text that the model generated.
        cut_off: Whether the token limit ended it; `None` where that is not known.
    """

    id: str
    question: str
    answer: str
    cut_off: bool | None = None


class PredictionFile:
    """`predictions.jsonl` of one benchmark and the `settings.json` it was made with.

    Args:
        folder: Made if it is not there.
        settings: What the answers depend on.

    Raises:
        ValueError: The folder holds answers that were made with other settings; the message names the first.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]):
        self.path = folder / PREDICTIONS
        settings = json.loads(json.dumps(settings))
        recorded = folder / SETTINGS
        if recorded.is_file() and self.path.is_file():
            before = json.loads(recorded.read_text(encoding="utf-8"))
            changed = [name for name in {**before, **settings} if before.get(name) != settings.get(name)]
            if changed:
                name = changed[0]
                raise ValueError(
                    f"{folder} holds answers made with {name}={before.get(name)!r}, not {settings.get(name)!r}: "
                    "choose another --output, or remove the folder."
                )
        folder.mkdir(parents=True, exist_ok=True)
        with finished_file(recorded) as file:
            file.write_text(json.dumps(settings, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        self.done = {each.id: each for each in self._read_back()}

    def _read_back(self) -> list[Prediction]:
        """What is whole in the file; a last line that was being written when the run was killed is removed."""
        if not self.path.is_file():
            return []
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            with open(self.path, "r+b") as file:
                file.truncate(len(whole))
        # Not `splitlines`, which also parts lines at characters such as U+2028 that an answer may hold.
        return [Prediction(**json.loads(line)) for line in whole.decode("utf-8").split("\n")[:-1]]

    def add(self, predictions: Sequence[Prediction]):
        """Appends answers; they are on the disk when this returns."""
        lines = "".join(json.dumps(asdict(each), ensure_ascii=False) + "\n" for each in predictions)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())
        self.done |= {each.id: each for each in predictions}


def read_predictions(path: str | os.PathLike) -> dict[str, Prediction]:
    """Answers by item id: `predictions.jsonl`, or `prediction.jsonl` of llm-jp-eval-mm (`question_id`, `text`).

    Raises:
        FileNotFoundError: The file is not there.
        ValueError: A line is no answer, or two lines have one id.
    """
    found: dict[str, Prediction] = {}
    for number, row in json_lines(Path(path)):
        try:
            foreign = "question_id" in row
            name, answer = (row["question_id"], row["text"]) if foreign else (row["id"], row["answer"])
            question = row.get("input_text", "") if foreign else row.get("question", "")
        except KeyError:
            raise ValueError(
                f"{path}, line {number}, is no answer: expected id and answer, or question_id and text."
            ) from None
        if str(name) in found:
            raise ValueError(f"{path}, line {number}: a second answer to {name}.")
        found[str(name)] = Prediction(str(name), question, answer, row.get("cut_off"))
    return found


def in_order(items: Sequence[Item], predictions: dict[str, Prediction], path: object) -> list[Prediction]:
    """The answer to each item.

    Raises:
        ValueError: Items have no answer; the message counts them.
    """
    missing = [item.id for item in items if item.id not in predictions]
    if missing:
        raise ValueError(
            f"{path} has no answer to {len(missing)} of {len(items)} items, the first is {missing[0]}: run the "
            "benchmark again to go on, or set the --limit it was made with."
        )
    return [predictions[item.id] for item in items]
