"""Answers on disk, one JSON line each, so that a run that was stopped goes on where it was."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ValidationError

from ..checkpoint import finished_file
from ..data.growing_lines import append, read_back
from ..data.json_files import json_lines
from ..schema import explain
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
        refused: Why a server did not take the question, which counts as answered with nothing.
    """

    id: str
    question: str
    answer: str
    cut_off: bool | None = None
    refused: str | None = None


Id = Annotated[str, BeforeValidator(lambda value: str(value) if type(value) is int else value)]


class _Answer(BaseModel):
    """A line of `predictions.jsonl`; only `id` and `answer` must be there."""

    id: Id
    answer: str
    question: str = ""
    cut_off: bool | None = None
    refused: str | None = None


class _ForeignAnswer(BaseModel):
    """A line of llm-jp-eval-mm's `prediction.jsonl`."""

    question_id: Id
    text: str
    input_text: str = ""


class RecordedSettings(BaseModel, extra="allow"):
    """What `settings.json` must say: which benchmark the answers beside it are to, and of which model."""

    model: str
    benchmark: str
    protocol: str | None
    path: str | None
    images: list[str]
    prompt: str
    only: str | None
    limit: int | None


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
        if self.path.is_file():
            if not recorded.is_file():
                raise ValueError(
                    f"{folder} holds answers but no {SETTINGS}, which says what they were made with: choose another "
                    "--output, or remove the folder."
                )
            before = read_settings(recorded)
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
        self.done = {each.id: each for each in read_back(self.path, Prediction)}

    def add(self, predictions: Sequence[Prediction]):
        """Appends answers; they are on the disk when this returns."""
        rows = [asdict(each) for each in predictions]
        append(self.path, [{k: v for k, v in row.items() if k != "refused" or v is not None} for row in rows])
        self.done |= {each.id: each for each in predictions}


def read_settings(path: Path) -> dict[str, Any]:
    """What a `settings.json` says.

    Raises:
        ValueError: It is damaged, or says too little.
    """
    try:
        return RecordedSettings.model_validate_json(path.read_bytes()).model_dump()
    except ValidationError as error:
        raise explain(error, path) from None


def read_predictions(path: str | os.PathLike) -> dict[str, Prediction]:
    """Answers by item id: `predictions.jsonl`, or `prediction.jsonl` of llm-jp-eval-mm (`question_id`, `text`).

    Raises:
        FileNotFoundError: The file is not there.
        ValueError: A line is no answer, or two lines have one id.
    """
    found: dict[str, Prediction] = {}
    for number, row in json_lines(Path(path)):
        try:
            if "question_id" in row:
                foreign = _ForeignAnswer.model_validate(row)
                given = Prediction(foreign.question_id, foreign.input_text, foreign.text)
            else:
                given = Prediction(**dict(_Answer.model_validate(row)))
        except ValidationError as error:
            raise ValueError(
                f"{explain(error, f'{path}, line {number}')} Expected id and answer, or question_id and text."
            ) from None
        if given.id in found:
            raise ValueError(f"{path}, line {number}: a second answer to {given.id}.")
        found[given.id] = given
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
