"""The one schema that every reader produces: a conversation, its pictures, and where it comes from."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from .pictures import Picture

ROLES = ("system", "user", "assistant")


class Placeholder(Enum):
    """What stands for a picture in a message. Members of an enumeration stay the same object in other processes."""

    PICTURE = "picture"


PICTURE = Placeholder.PICTURE


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation.

    Args:
        role: `system`, `user` or `assistant`.
        parts: Texts and, for pictures, `PICTURE`.

    Raises:
        ValueError: The role is another, or a part is neither text nor picture.
    """

    role: str
    parts: tuple[str | Placeholder, ...]

    def __post_init__(self):
        if self.role not in ROLES:
            raise ValueError(f"role {self.role!r} is none of {', '.join(ROLES)}.")
        if wrong := [part for part in self.parts if part is not PICTURE and not isinstance(part, str)]:
            raise ValueError(f"{wrong[0]!r} stands where a text belongs.")

    @property
    def text(self) -> str:
        return "".join(part for part in self.parts if isinstance(part, str))


@dataclass(frozen=True, slots=True)
class Row:
    """One training example.

    Args:
        conversation: Its messages; the last one is an answer.
        pictures: The pictures in the order in which the messages mention them.
        image_ids: One id per picture, such as `coco:9` or `vg:2317429`; what splits and exclusions go by.
        source: Name of the data set, for mixing and for the loss per source.

    Raises:
        ValueError: Pictures and places for them differ in number, or there is nothing to learn.
    """

    conversation: tuple[Message, ...]
    pictures: tuple[Picture, ...]
    image_ids: tuple[str, ...]
    source: str

    def __post_init__(self):
        places = sum(part is PICTURE for message in self.conversation for part in message.parts)
        if places != len(self.pictures) or len(self.image_ids) != len(self.pictures):
            raise ValueError(
                f"{places} places for pictures, {len(self.pictures)} pictures and {len(self.image_ids)} image ids: "
                "they must be equally many."
            )
        if not self.conversation or self.conversation[-1].role != "assistant":
            raise ValueError("a conversation must end with an answer of the assistant.")
        if not all(message.text for message in self.conversation if message.role == "assistant"):
            raise ValueError("an answer is empty.")

    @property
    def answer(self) -> str:
        """The text of the last message."""
        return self.conversation[-1].text

    @property
    def is_caption(self) -> bool:
        """Whether nothing is asked: the pictures alone, then the answer. Only such rows can take a caption prompt."""
        *before, _ = self.conversation
        return len(before) == 1 and all(part is PICTURE for part in before[0].parts)

    def messages(self, prompt: str = "") -> list[dict[str, Any]]:
        """The conversation in the format of `processor.apply_chat_template`, without the pictures themselves.

        Args:
            prompt: What a caption row is asked with.
        """
        messages = [
            {"role": each.role, "content": [_content(part) for part in each.parts]} for each in self.conversation
        ]
        if prompt and self.is_caption:
            messages[0]["content"].append({"type": "text", "text": prompt})
        return messages


def _content(part: str | Placeholder) -> dict[str, str]:
    return {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}


def caption_row(caption: str, picture: Picture, image_id: str, source: str) -> Row:
    """A picture and a caption of it, with nothing asked."""
    return Row((Message("user", (PICTURE,)), Message("assistant", (caption,))), (picture,), (image_id,), source)


def question_row(question: str, answer: str, picture: Picture, image_id: str, source: str) -> Row:
    """A picture, a question and its answer."""
    messages = (Message("user", (PICTURE, question)), Message("assistant", (answer,)))
    return Row(messages, (picture,), (image_id,), source)


@contextmanager
def naming_place(file: Path, place: str) -> Generator[None]:
    """Around the making of one row: what is wrong with it becomes a `ValueError` that names its file and place."""
    try:
        yield
    except KeyError as error:
        raise ValueError(f"{file}, {place}: {error} is missing.") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{file}, {place}: {error}") from None


@dataclass(frozen=True, slots=True)
class Group:
    """Rows about the same pictures, which travel behind one copy of them."""

    rows: tuple[Row, ...]

    @property
    def pictures(self) -> tuple[Picture, ...]:
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
