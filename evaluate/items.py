"""The one schema that every benchmark is read into: a question about pictures, and what counts as right."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture that is not opened yet.

    Args:
        name: What it is called in messages; equal names are the same picture.
        load: Gives the bytes of the picture file.
    """

    name: str
    load: Callable[[], bytes] = field(compare=False, repr=False)

    def read(self) -> bytes:
        """The bytes of the picture file.

        Raises:
            ValueError: They are not there; the message names the picture.
        """
        try:
            return self.load()
        except (OSError, TypeError, KeyError):
            raise ValueError(f"The picture {self.name} cannot be read: is it still where it was?") from None


@dataclass(frozen=True, slots=True)
class Item:
    """One question of a benchmark.

    Args:
        id: Unique within the benchmark; the owners' own id where they give one.
        messages: The conversation up to the answer, in the format of `processor.apply_chat_template`, with
            `{"type": "image"}` where the pictures go.
        pictures: The pictures, in the order of their places.
        references: Right answers; none where only a judge can tell.
        image_ids: One namespaced id per picture, such as `coco:9` or `vg:2317429`.
        fields: What scores are broken down by: field to value, such as `{"category": "conv"}`.
        details: What the protocol's scoring needs besides.
    """

    id: str
    messages: list[dict[str, Any]]
    pictures: tuple[Picture, ...]
    references: tuple[str, ...]
    image_ids: tuple[str, ...]
    fields: dict[str, str] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def question(self) -> str:
        """The text of the last turn."""
        content = self.messages[-1]["content"]
        if isinstance(content, str):
            return content
        return "".join(part["text"] for part in content if part["type"] == "text")

    @property
    def cluster(self) -> str:
        """Items about the same picture hang together: resampling draws all of them or none."""
        return "|".join(self.image_ids) or self.id


def ask(question: str, pictures: int = 1) -> list[dict[str, Any]]:
    """One user turn: the pictures, then the question; an empty question is the article's prompt for a caption."""
    content: list[dict[str, str]] = [{"type": "image"}] * pictures
    return [{"role": "user", "content": [*content, {"type": "text", "text": question}] if question else content}]


class PictureFolders:
    """Looks pictures up in several folders: Visual Genome's lie in two, COCO's in one for each split.

    Args:
        folders: Looked through in order, each with its direct subfolders.

    Raises:
        FileNotFoundError: A folder does not exist.
    """

    def __init__(self, folders: list[str | os.PathLike]):
        self.folders: list[Path] = []
        for folder in map(Path, folders):
            if not folder.is_dir():
                raise FileNotFoundError(f"The picture folder {folder} does not exist.")
            self.folders += [folder, *sorted(child for child in folder.iterdir() if child.is_dir())]

    def find(self, *names: str) -> Picture | None:
        """The first of `names`, relative paths, that is a file in one of the folders."""
        for folder in self.folders:
            for name in names:
                if (path := folder / name).is_file():
                    return Picture(str(path), path.read_bytes)
        return None


def require_pictures(wanted: dict[str, Picture | None], folders: PictureFolders) -> dict[str, Picture]:
    """`wanted` with nothing missing.

    Raises:
        FileNotFoundError: Some have not been found; the message counts them and names the first.
    """
    missing = [name for name, picture in wanted.items() if picture is None]
    if missing:
        searched = ", ".join(map(str, folders.folders[:4]))
        raise FileNotFoundError(
            f"{len(missing)} of {len(wanted)} pictures are not there, the first is {missing[0]}. Looked in "
            f"{searched}: name the folder with --images."
        )
    return {name: picture for name, picture in wanted.items() if picture is not None}
