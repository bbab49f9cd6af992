"""The texts about pictures with all that happened to them, on disk from the first word on."""

import json
from pathlib import Path

from pydantic import BaseModel

from ..checkpoint import finished_file

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
