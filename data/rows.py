"""The one schema that every reader produces: a conversation, its pictures, and where it comes from."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from ..schema import explain
from .pictures import Picture

IMAGE = "<image>"  # what stands for a picture in a text, in rows of one's own as in LLaVA's
ROLES = ("system", "user", "assistant")
MAX_TEXT = 1_000_000  # characters of a row: no language model reads so many, and a tokenizer takes seconds for them


class Placeholder(Enum):
    """What stands for a picture in a message. Members of an enumeration stay the same object in other processes."""

    PICTURE = "picture"


PICTURE = Placeholder.PICTURE
Made = TypeVar("Made")


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation.

    Args:
        role: `system`, `user` or `assistant`.
        parts: Texts and, for pictures, `PICTURE`.

    Raises:
        ValueError: The role is another, a part is neither text nor picture, or a text holds `<image>`, which would be
            learnt as a word.
    """

    role: str
    parts: tuple[str | Placeholder, ...]

    def __post_init__(self):
        if self.role not in ROLES:
            raise ValueError(f"role {self.role!r} is none of {', '.join(ROLES)}.")
        for part in self.parts:
            if part is not PICTURE and not isinstance(part, str):
                raise ValueError(f"{part!r} stands where a text belongs.")
        if IMAGE in self.text:
            raise ValueError(f"{IMAGE} stands in a text of the {self.role}, where no picture can be.")

    @property
    def text(self) -> str:
        texts = [part for part in self.parts if isinstance(part, str)]
        return texts[0] if len(texts) == 1 else "".join(texts)


@dataclass(frozen=True, slots=True)
class Row:
    """One training example.

    Args:
        conversation: Its messages; the last one is an answer.
        pictures: The pictures in the order in which the messages mention them.
        image_ids: One id per picture, such as `coco:9` or `vg:2317429`; what splits and exclusions go by.
        source: Name of the data set, for mixing and for the loss per source.

    Raises:
        ValueError: Pictures and places for them differ in number, there is nothing to learn, or more than `MAX_TEXT`.
    """

    conversation: tuple[Message, ...]
    pictures: tuple[Picture, ...]
    image_ids: tuple[str, ...]
    source: str

    def __post_init__(self):
        places = sum([message.parts.count(PICTURE) for message in self.conversation])
        if places != len(self.pictures) or len(self.image_ids) != len(self.pictures):
            raise ValueError(
                f"{places} places for pictures, {len(self.pictures)} pictures and {len(self.image_ids)} image ids: "
                "they must be equally many."
            )
        if not self.conversation or self.conversation[-1].role != "assistant":
            raise ValueError("a conversation must end with an answer of the assistant.")
        size = 0
        for message in self.conversation:
            text = message.text
            if message.role == "assistant" and not text.strip():
                raise ValueError("an answer is empty or only white space.")
            size += len(text)
        if size > MAX_TEXT:
            raise ValueError(f"its texts have {size:,} characters; at most {MAX_TEXT:,} are read.")

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


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be used, and why.

    Args:
        file: Its data file.
        place: Where in it: `line 3`, `annotation 7`.
        reason: One sentence that names file, place and, where there is one, field.
    """

    file: str
    place: str
    reason: str


def row_or_fault(file: Path, place: str, make: Callable[..., Made], *arguments: Any) -> Made | BadRow:
    """What `make` makes of the arguments or, where it finds a fault in them, the fault with its file and place."""
    try:
        return make(*arguments)
    except ValidationError as error:  # is a ValueError too
        reason = str(explain(error, f"{file}, {place}"))
    except ValueError as error:
        reason = f"{file}, {place}: {error}"
    return BadRow(str(file), place, reason)


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
