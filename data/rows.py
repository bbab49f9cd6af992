"""The one schema that every reader produces: a conversation, its pictures, and where it comes from."""

from dataclasses import dataclass
from typing import Any

from .pictures import Picture, TablePicture

PICTURE = None
"""The part of a turn that stands for a picture; every other part is text."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One message: `role` is `system`, `user` or `assistant`; `parts` are texts and, for pictures, `PICTURE`."""

    role: str
    parts: tuple[str | None, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """One training example.

    Args:
        turns: The conversation; it ends with an answer.
        pictures: The pictures in the order in which the turns mention them.
        image_ids: One namespaced id per picture, such as `coco:9` or `vg:2317429`; what splits and exclusions go by.
        source: Name of the data set, for mixing and for the loss per source.

    Raises:
        ValueError: Pictures and places for them differ in number, or there is nothing to learn.
    """

    turns: tuple[Turn, ...]
    pictures: tuple[Picture | TablePicture, ...]
    image_ids: tuple[str, ...]
    source: str

    def __post_init__(self):
        places = sum(part is PICTURE for turn in self.turns for part in turn.parts)
        if places != len(self.pictures) or len(self.image_ids) != len(self.pictures):
            raise ValueError(
                f"{places} places for pictures, {len(self.pictures)} pictures and {len(self.image_ids)} image ids: "
                "they must be equally many."
            )
        if not self.turns or self.turns[-1].role != "assistant":
            raise ValueError("a conversation must end with an answer of the assistant.")
        if not all("".join(part for part in turn.parts if part) for turn in self.turns if turn.role == "assistant"):
            raise ValueError("an answer is empty.")

    @property
    def is_caption(self) -> bool:
        """Whether nothing is asked: the pictures alone, then the answer. Only such rows can take a caption prompt."""
        *before, _ = self.turns
        return len(before) == 1 and all(part is PICTURE for part in before[0].parts)

    def messages(self, prompt: str = "") -> list[dict[str, Any]]:
        """The conversation in the format of `processor.apply_chat_template`, without the pictures themselves.

        Args:
            prompt: What a caption row is asked with.
        """
        messages = [{"role": turn.role, "content": [_content(part) for part in turn.parts]} for turn in self.turns]
        if prompt and self.is_caption:
            messages[0]["content"].append({"type": "text", "text": prompt})
        return messages


def _content(part: str | None) -> dict[str, str]:
    return {"type": "image"} if part is PICTURE else {"type": "text", "text": part}


def caption_row(caption: str, picture: Picture | TablePicture, image_id: str, source: str) -> Row:
    """A picture and what is said of it, with nothing asked."""
    return Row((Turn("user", (PICTURE,)), Turn("assistant", (caption,))), (picture,), (image_id,), source)


def question_row(question: str, answer: str, picture: Picture | TablePicture, image_id: str, source: str) -> Row:
    """A picture, a question and its answer."""
    turns = (Turn("user", (PICTURE, question)), Turn("assistant", (answer,)))
    return Row(turns, (picture,), (image_id,), source)


@dataclass(frozen=True, slots=True)
class Group:
    """Rows about the same pictures, which travel behind one copy of them."""

    rows: tuple[Row, ...]

    @property
    def pictures(self) -> tuple[Picture | TablePicture, ...]:
        return self.rows[0].pictures

    @property
    def image_ids(self) -> tuple[str, ...]:
        return self.rows[0].image_ids

    @property
    def source(self) -> str:
        return self.rows[0].source


def group_rows(rows: list[Row], rows_per_picture: int | None = None) -> list[Group]:
    """Rows with the same source and pictures together, at most `rows_per_picture` in a group (`None`: all).

    Groups and the rows in them keep the order of first appearance. Rows without a picture stay alone.
    """
    if rows_per_picture is not None and rows_per_picture < 1:
        raise ValueError(f"rows_per_picture must be at least 1, got {rows_per_picture}.")
    together: dict[Any, list[Row]] = {}
    for number, row in enumerate(rows):
        key = (row.source, row.pictures) if row.pictures else number
        together.setdefault(key, []).append(row)
    groups = []
    for members in together.values():
        size = rows_per_picture or len(members)
        groups += [Group(tuple(members[start : start + size])) for start in range(0, len(members), size)]
    return groups
