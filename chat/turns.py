"""Turns of a conversation, their messages as chat templates read them, and the token ids between them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..processing_jminigpt4 import JMiniGPT4Processor
from .pictures import ShownPicture

Messages = list[dict[str, Any]]


@dataclass(eq=False)
class Turn:
    """A question with its pictures, and the answer.

    Args:
        question: What the user wrote.
        pictures: What the user showed with it.
        answer: The model's answer, as a person reads it.
        prompt_ids: Tokens between the answer before and this one, image tokens included.
        answer_ids: The tokens of the answer as generated, without the end-of-sequence token; `None` where there is no
            answer, or its text alone is known.
        prefilled_tokens: How many prompt positions had to be computed; the others were in the KV cache.
    """

    question: str
    pictures: list[ShownPicture] = field(default_factory=list)
    answer: str = ""
    prompt_ids: list[int] = field(default_factory=list)
    answer_ids: list[int] | None = None
    prefilled_tokens: int = 0

    def messages(self) -> Messages:
        """One message of the user and, where there is an answer, one of the assistant."""
        pictures = [{"type": "image", "image": picture.image} for picture in self.pictures]
        asked = {"role": "user", "content": [*pictures, {"type": "text", "text": self.question}]}
        if self.answer_ids is None and not self.answer:
            return [asked]
        return [asked, {"role": "assistant", "content": [{"type": "text", "text": self.answer}]}]


def messages_of(persona: str | None, turns: Sequence[Turn]) -> Messages:
    """Persona and turns as messages in the format of `apply_chat_template`, PIL images under `"image"`."""
    system = [{"role": "system", "content": [{"type": "text", "text": persona}]}] if persona else []
    return system + [message for turn in turns for message in turn.messages()]


def read_messages(
    messages: Sequence[dict[str, Any]], as_picture: Callable[[Any], ShownPicture]
) -> tuple[str | None, list[Turn]]:
    """The reverse of [`messages_of`].

    Args:
        messages: A system message or none, then user and assistant in alternation; content as text or as parts.
        as_picture: What makes a `ShownPicture` of what stands under `"image"`.

    Raises:
        ValueError: Another order, an unknown part, or a question without an answer at the end.
    """
    persona, turns = None, []
    for number, message in enumerate(messages, 1):
        if number == 1 and message.get("role") == "system":
            persona = _text(message, number)
            continue
        expected = "assistant" if turns and turns[-1].answer_ids is None and not turns[-1].answer else "user"
        if message.get("role") != expected:
            raise ValueError(f"Message {number} is by {message.get('role')!r}, expected {expected!r}.")
        if expected == "user":
            pictures = [as_picture(part["image"]) for part in _parts(message, number) if part["type"] == "image"]
            turns.append(Turn(_text(message, number), pictures))
        else:
            turns[-1].answer = _text(message, number)
            turns[-1].answer_ids = None if turns[-1].answer else []
    if turns and turns[-1].answer_ids is None and not turns[-1].answer:
        raise ValueError(f"Message {len(messages)} is a question without an answer.")
    return persona, turns


def _parts(message: dict[str, Any], number: int) -> Messages:
    content = message.get("content")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    known = isinstance(parts, list) and all(
        isinstance(part, dict) and part.get("type") in ("image", "text") and part["type"] in part for part in parts
    )
    if not known:
        raise ValueError(f"Message {number} has content that is neither text nor a list of image and text parts.")
    return parts


def _text(message: dict[str, Any], number: int) -> str:
    return "".join(str(part["text"]) for part in _parts(message, number) if part["type"] == "text")


class Prompts:
    """Token ids of a conversation, segment by segment, each tokenised by itself as the model meets it when it
    generates: a prompt is the difference of two renderings of the chat template, and generated answers stand between
    prompts with the tokens they were generated with.

    Args:
        processor: Renders and tokenises segments.

    Raises:
        ValueError: The template rewrites earlier turns when a conversation goes on.
    """

    def __init__(self, processor: JMiniGPT4Processor):
        self._processor = processor
        # What the format writes behind an answer, before anything follows (`###` of MiniGPT-4's, mostly nothing). The
        # model's own answer ends before it, so the next prompt begins with it.
        self._closing = self._render_answer([], Turn("?", answer="!")).partition("!")[2]

    def follow(self, persona: str | None, before: Sequence[Turn], turns: Sequence[Turn]) -> list[Turn]:
        """Copies of `turns` as they stand behind `before`: prompts rendered for that place, answers as generated, or
        tokenised where only their text is known."""
        placed: list[Turn] = []
        for turn in turns:
            earlier = messages_of(persona, [*before, *placed])
            placed.append(Turn(turn.question, turn.pictures, turn.answer, answer_ids=turn.answer_ids))
            placed[-1].prompt_ids = self._prompt_ids(earlier, turn)
            if turn.answer and turn.answer_ids is None:
                answer = self._render_answer(earlier, turn).removesuffix(self._closing)
                placed[-1].answer_ids = self._processor.tokenize_segment(answer)
        return placed

    def _prompt_ids(self, earlier: Messages, turn: Turn) -> list[int]:
        messages, before, closing = [*earlier, turn.messages()[0]], "", ""
        if earlier and earlier[-1]["role"] == "assistant":
            before, closing = self._processor.render_segment(earlier), self._closing
        text = closing + self._processor.render_segment(messages, before, add_generation_prompt=True)
        token_ids = self._processor.tokenize_segment(text)
        found = token_ids.count(self._processor.image_token_id)
        if found != len(turn.pictures) * self._processor.num_query_tokens:
            raise ValueError(f"The chat template wrote {found} image tokens for {len(turn.pictures)} pictures.")
        return token_ids

    def _render_answer(self, earlier: Messages, turn: Turn) -> str:
        question, answer = turn.messages()
        prompt = self._processor.render_segment([*earlier, question], add_generation_prompt=True)
        return self._processor.render_segment([*earlier, question, answer], prompt)
