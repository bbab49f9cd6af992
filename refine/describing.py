"""First step: the model of stage 1 describes pictures, at length."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..data.pictures import Picture
from ..inference.answering import Answer, AnswerGenerator, Prompt
from .texts import Described

PROMPTS = (
    "この画像を詳しく説明してください。",
    "この写真に写っているものを、できるだけ詳しく教えてください。",
    "画像をよく見て、気づいたことを述べてください。",
    "この場面の様子を詳しく書いてください。",
)
GO_ON = "続けてください。"
# MiniGPT-4 asks for more where a description has fewer tokens (Zhu et al. 2023, section 3.2).
ENOUGH_TOKENS = 80


@dataclass(frozen=True)
class Describing:
    """How pictures are described.

    Args:
        prompts: What is asked; each picture gets the next `per_picture` of them.
        per_picture: Texts of a picture.
        enough_tokens: A shorter text is asked to go on, once.
        max_new_tokens: Longest answer, and longest continuation.
        temperature, top_p: Of sampling.
        seed: Of sampling.
        batch_size: Pictures at a time.
    """

    prompts: Sequence[str] = PROMPTS
    per_picture: int = 1
    enough_tokens: int = ENOUGH_TOKENS
    max_new_tokens: int = 160
    temperature: float = 1.0
    top_p: float = 0.9
    seed: int = 0
    batch_size: int = 8


@dataclass(frozen=True)
class BadPicture:
    """A picture that could not be read, and why."""

    name: str
    reason: str


class Describer:
    """A model that describes pictures.

    Args:
        model, processor: As `load_checkpoint` gives them.
        describing: How.
        pictures: All pictures, each with its id.
    """

    def __init__(self, model: Any, processor: Any, describing: Describing, pictures: Sequence[tuple[Picture, str]]):
        self.processor, self.describing, self.pictures = processor, describing, pictures
        self.bad: list[BadPicture] = []
        self._generator = AnswerGenerator(model, processor)

    def texts(self, done: set[str]) -> Iterator[list[Described]]:
        """Texts, a batch of pictures at a time. Batches are cut from all pictures and one of which anything is missing
        is described as a whole, so that a run that goes on after a stop gives what it would have given without it.

        Args:
            done: Names of pictures that have been described before.
        """
        size = self.describing.batch_size
        for start in range(0, len(self.pictures), size):
            batch = list(enumerate(self.pictures[start : start + size], start))
            if all(picture.name in done for _, (picture, _) in batch):
                continue
            texts = self._describe(batch)
            yield [text for text in texts if text.picture not in done]

    def _describe(self, batch: list[tuple[int, tuple[Picture, str]]]) -> list[Described]:
        readable = [
            (number, picture, image_id, image)
            for number, (picture, image_id) in batch
            if (image := self._read(picture))
        ]
        if not readable:
            return []
        encoded = self._generator.query_features(self._generator.pixel_values([image for *_, image in readable]))
        features = {picture: each for (_, picture, _, _), each in zip(readable, encoded, strict=True)}
        torch.manual_seed(self.describing.seed + batch[0][0])
        asked = [
            (f"{number}.{turn}", picture, image_id, self._prompt(number, turn))
            for number, picture, image_id, _ in readable
            for turn in range(self.describing.per_picture)
        ]
        conversations = [_ask(prompt) for *_, prompt in asked]
        first = self._answers(conversations, [picture for _, picture, _, _ in asked], features)
        short = [place for place, each in enumerate(first) if len(each.token_ids) < self.describing.enough_tokens]
        more = self._go_on(short, conversations, first, [picture for _, picture, _, _ in asked], features)
        return [
            Described(
                id=name,
                picture=picture.name,
                image_id=image_id,
                prompt=prompt,
                text=_joined(first[place].text, more[place].text if place in more else ""),
                continued=place in more,
                cut_off=not more.get(place, first[place]).finished,
            )
            for place, (name, picture, image_id, prompt) in enumerate(asked)
        ]

    def _read(self, picture: Picture) -> Any:
        """A picture decoded, or nothing where it cannot be read, which is noted."""
        try:
            return self.processor.image_processor.to_rgb(picture.read(), f"The picture {picture.name}")
        except (OSError, ValueError) as error:
            self.bad.append(BadPicture(picture.name, str(error)))
            return None

    def _prompt(self, number: int, turn: int) -> str:
        prompts = self.describing.prompts
        return prompts[(number * self.describing.per_picture + turn) % len(prompts)]

    def _go_on(
        self,
        short: list[int],
        conversations: list[list[dict[str, Any]]],
        first: list[Answer],
        pictures: list[Picture],
        features: dict[Picture, torch.Tensor],
    ) -> dict[int, Answer]:
        """Continuations of the texts at the places `short` that said anything at all."""
        places = [place for place in short if first[place].text.strip()]
        if not places:
            return {}
        longer = [
            [
                *conversations[place],
                {"role": "assistant", "content": [{"type": "text", "text": first[place].text}]},
                {"role": "user", "content": [{"type": "text", "text": GO_ON}]},
            ]
            for place in places
        ]
        return dict(zip(places, self._answers(longer, [pictures[place] for place in places], features), strict=True))

    def _answers(
        self, conversations: list[list[dict[str, Any]]], pictures: list[Picture], features: dict[Picture, torch.Tensor]
    ) -> list[Answer]:
        prompts = [
            Prompt(self.processor.encode_segments(each, add_generation_prompt=True)["input_ids"], (picture,))
            for each, picture in zip(conversations, pictures, strict=True)
        ]
        chosen = self.describing
        return self._generator.answers(
            prompts,
            features,
            max_new_tokens=chosen.max_new_tokens,
            do_sample=True,
            temperature=chosen.temperature,
            top_p=chosen.top_p,
        )


def _ask(prompt: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}]


def _joined(first: str, more: str) -> str:
    """A text and its continuation; a space between them where both sides are Latin letters."""
    first, more = first.strip(), more.strip()
    space = " " if first[-1:].isascii() and more[:1].isascii() and first and more else ""
    return first + space + more
