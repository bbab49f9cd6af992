"""Conversations on disk: a JSON file of messages, and beside it the pictures by their hash."""

import json
from pathlib import Path
from typing import Any

from PIL import Image

from ..checkpoint import finished_file
from .pictures import PictureLimits, ShownPicture, open_file
from .session import ChatSession


def save_transcript(session: ChatSession, path: str | Path) -> Path:
    """Writes the conversation to `path`: `{"messages": [...]}` in the format of `apply_chat_template`, where a picture
    is `{"type": "image", "sha256": ...}`. The pictures are PNG files, each once, in the folder `<path>.pictures`.

    An existing transcript of that name is replaced, after the new one is complete.

    Returns:
        The path of the JSON file.

    Raises:
        OSError: The place cannot be written.
    """
    path = Path(path)
    folder = _folder(path)
    messages = session.messages()
    hashes = iter(picture.sha256 for turn in session.turns for picture in turn.pictures)
    for message in messages:
        for part in message["content"]:
            if part["type"] == "image":
                part["sha256"] = next(hashes)
                image = part.pop("image")
                folder.mkdir(parents=True, exist_ok=True)
                if not (file := folder / f"{part['sha256']}.png").exists():
                    with finished_file(file) as unfinished:
                        image.save(unfinished, "PNG")
    text = json.dumps({"messages": messages}, ensure_ascii=False, indent=2) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    with finished_file(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")
    return path


def load_transcript(session: ChatSession, path: str | Path):
    """Replaces the conversation of `session` by that of `path`; answers are tokenised, since a transcript holds text.

    Raises:
        FileNotFoundError, ValueError: As [`read_transcript`]. The conversation is then as it was.
    """
    session.restore(read_transcript(path))


def read_transcript(path: str | Path) -> list[dict[str, Any]]:
    """Messages of a transcript, each picture opened and compared with its hash.

    Raises:
        FileNotFoundError: The transcript, or a picture that it names, is not there.
        ValueError: It is no transcript, or a picture is another than its hash says.
    """
    path = Path(path)
    try:
        messages = json.loads(path.read_text(encoding="utf-8"))["messages"]
        for message in messages:
            for part in message["content"] if isinstance(message["content"], list) else []:
                if part["type"] == "image":
                    part["image"] = _picture(_folder(path), part["sha256"])
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
        raise ValueError(f"{path} is not a transcript written by this program.") from None
    return messages


def _folder(path: Path) -> Path:
    return path.with_name(f"{path.name}.pictures")


def _picture(folder: Path, sha256: Any) -> ShownPicture:
    # The name comes from a file that anyone may have written: it must not lead anywhere else.
    if not (isinstance(sha256, str) and len(sha256) == 64 and set(sha256) <= set("0123456789abcdef")):
        raise ValueError(f"The transcript names a picture {str(sha256)[:80]!r}, which is no SHA-256.")
    image = open_file(folder / f"{sha256}.png", PictureLimits(max_bytes=200_000_000, max_pixels=50_000_000))
    picture = ShownPicture(_rgb(image, folder / f"{sha256}.png"))
    if picture.sha256 != sha256:
        raise ValueError(f"{sha256}.png in {folder} is not the picture that the transcript was made with.")
    return picture


def _rgb(image: Image.Image, path: Path) -> Image.Image:
    try:
        return image.convert("RGB")
    except Exception:
        raise ValueError(f"{path} is damaged: it cannot be decoded.") from None
