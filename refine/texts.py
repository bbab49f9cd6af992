"""The texts about pictures with all that happened to them, on disk from the first word on."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from ..checkpoint import finished_file, naming_full_disk
from ..data.json_files import json_lines
from ..schema import explain

DESCRIBED, EDITED, SETTINGS = "described.jsonl", "edited.jsonl", "settings.json"


class Described(BaseModel):
    """What the model said about a picture.

    Args:
        id: Of the text: number of the picture and of the prompt.
        picture: Name of the picture.
        image_id: Its id.
        prompt: What was asked.
        text: The answer, with its continuation.
        continued: Whether it was asked to go on.
        cut_off: Whether the token limit ended it.
    """

    id: str
    picture: str
    image_id: str
    prompt: str
    text: str
    continued: bool
    cut_off: bool


class Edited(BaseModel):
    """What the editor made of a text.

    Args:
        id: Of the text.
        editor: Name of the editing model.
        shown: Whether it saw the picture.
        before, text: The text that it got, and the one that it gave; the latter is empty where it gave the text up.
        prompt_tokens, completion_tokens: As the server counts them.
        refused: Why the server did not take the text.
    """

    id: str
    editor: str
    shown: bool
    before: str
    text: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    refused: str | None = None


Line = TypeVar("Line", bound=BaseModel)


def read_lines(path: Path, kind: type[Line]) -> list[Line]:
    """The lines of a file that grew; nothing where it is not there. A last line that was being written when the run
    was killed is removed.

    Raises:
        ValueError: A line is damaged; the message names it.
    """
    if not path.is_file():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        with open(path, "r+b") as file:
            file.truncate(len(whole))
    found = []
    for number, row in json_lines(path):
        try:
            found.append(kind.model_validate(row))
        except ValidationError as error:
            raise explain(error, f"{path}, line {number}") from None
    return found


def add_lines(path: Path, lines: Iterable[BaseModel]):
    """Appends lines; they are on the disk when this returns."""
    with naming_full_disk(path), open(path, "a", encoding="utf-8") as file:
        file.write("".join(json.dumps(each.model_dump(), ensure_ascii=False) + "\n" for each in lines))
        file.flush()
        os.fsync(file.fileno())


def keep_settings(folder: Path, settings: dict):
    """Writes what the texts of a folder depend on.

    Raises:
        ValueError: It holds texts that were made with other settings; the message names the first.
    """
    path, settings = folder / SETTINGS, json.loads(json.dumps(settings))
    if path.is_file() and (folder / DESCRIBED).is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        for name in {**before, **settings}:
            if before.get(name) != settings.get(name):
                raise ValueError(
                    f"{folder} holds texts made with {name}={before.get(name)!r:.80}, not {settings.get(name)!r:.80}: "
                    "choose another --output, or remove the folder."
                )
    with finished_file(path) as file:
        file.write_text(json.dumps(settings, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
