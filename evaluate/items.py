"""The one schema that every benchmark is read into: a question about pictures, and what counts as right."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..data.pictures import Picture

if TYPE_CHECKING:
    from PIL import Image

CONTROLS = 100
"""Items of a benchmark that are asked again blind and with other pictures, where the user says nothing."""


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
        """The text of the last message."""
        content = self.messages[-1]["content"]
        if isinstance(content, str):
            return content
        return "".join(part["text"] for part in content if part["type"] == "text")

    @property
    def cluster(self) -> str:
        """Items about the same picture hang together: resampling draws all of them or none."""
        return "|".join(self.image_ids) or self.id

    @property
    def known_ids(self) -> tuple[str, ...]:
        """The ids of its pictures, and the COCO id that the benchmark states for one of Visual Genome."""
        return (*self.image_ids, *([self.details["coco_id"]] if "coco_id" in self.details else []))


def ask(question: str, pictures: int = 1) -> list[dict[str, Any]]:
    """One user message: the pictures, then the question; an empty question is the article's prompt for a caption."""
    content: list[dict[str, str]] = [{"type": "image"}] * pictures
    return [{"role": "user", "content": [*content, {"type": "text", "text": question}] if question else content}]


def decode_picture(picture: Picture, image_processor: Any) -> "Image.Image":
    """A picture, decoded to RGB by a [`JMiniGPT4ImageProcessor`].

    Raises:
        ValueError: It is not there or cannot be decoded; the message names it.
    """
    return image_processor.to_rgb(picture_content(picture), f"The picture {picture.name}")


def picture_content(picture: Picture) -> bytes:
    """The bytes of a picture's file.

    Raises:
        ValueError: It is not there; the message names it.
    """
    try:
        return picture.read()
    except OSError:
        raise ValueError(f"The picture {picture.name} cannot be read: is it still where it was?") from None
