"""Turns of a conversation, their messages as chat templates read them, and the token ids between them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..processing_jminigpt4 import JMiniGPT4Processor
from .pictures import Picture

Messages = list[dict[str, Any]]


@dataclass(eq=False)
class Turn:
    """A question with its pictures, and the answer.

    Args:
        question: What the user wrote.
        pictures: What the user showed with it.
        answer: What the model said, as a person reads it.
        prompt_ids: Tokens between the answer before and this one, image tokens included.
        answer_ids: Tokens that the model spoke, without the end-of-sequence token; `None` when it has not spoken.
        prefilled_tokens: How many prompt positions had to be computed; the others were in the KV cache.
    """

    question: str
    pictures: list[Picture] = field(default_factory=list)
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


def read_messages(messages: Sequence[dict[str, Any]], see: Callable[[Any], Picture]) -> tuple[str | None, list[Turn]]:
    """The reverse of [`messages_of`].

    Args:
        messages: A system message or none, then user and assistant in alternation; content as text or as parts.
        see: What makes a `Picture` of what stands under `"image"`.

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
            pictures = [see(part["image"]) for part in _parts(message, number) if part["type"] == "image"]
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
    """Token ids of prompts, each tokenised by itself as the model meets it when it generates: a prompt is the
    difference of two renderings of the chat template, and what the model spoke stands between them untouched.

    Args:
        processor: Its chat template renders, its tokenizer tokenises.

    Raises:
        ValueError: The template rewrites earlier turns when a conversation goes on.
    """

    def __init__(self, processor: JMiniGPT4Processor):
        self._processor = processor
        # What the format writes behind an answer, before anything follows (`###` of MiniGPT-4's, mostly nothing). The
        # model's own answer ends before it, so the next prompt begins with it.
        turn = Turn("?", answer="!")
        self._closing = self._answer([], turn).partition("!")[2]

    def follow(self, persona: str | None, before: Sequence[Turn], turns: Sequence[Turn]) -> list[Turn]:
        """Copies of `turns` as they stand behind `before`: prompts rendered for that place, answers as spoken, or
        tokenised where the model never spoke them."""
        told: list[Turn] = []
        for turn in turns:
            said = messages_of(persona, [*before, *told])
            told.append(Turn(turn.question, turn.pictures, turn.answer, answer_ids=turn.answer_ids))
            told[-1].prompt_ids = self._prompt_ids(said, turn)
            if turn.answer and turn.answer_ids is None:
                told[-1].answer_ids = self._tokenize(self._answer(said, turn).removesuffix(self._closing))
        return told

    def _prompt_ids(self, said: Messages, turn: Turn) -> list[int]:
        text = self._render([*said, turn.messages()[0]], add_generation_prompt=True)
        if said and said[-1]["role"] == "assistant":
            text = self._closing + _continuation(self._render(said), text)
        token_ids = self._tokenize(text)
        found = token_ids.count(self._processor.image_token_id)
        if found != len(turn.pictures) * self._processor.num_query_tokens:
            raise ValueError(f"The chat template wrote {found} image tokens for {len(turn.pictures)} pictures.")
        return token_ids

    def _answer(self, said: Messages, turn: Turn) -> str:
        asked, answered = turn.messages()
        prompt = self._render([*said, asked], add_generation_prompt=True)
        return _continuation(prompt, self._render([*said, asked, answered]))

    def _render(self, messages: Messages, add_generation_prompt: bool = False) -> str:
        return self._processor.apply_chat_template(messages, add_generation_prompt=add_generation_prompt)

    def _tokenize(self, text: str) -> list[int]:
        image_token = self._processor.image_token
        expanded = text.replace(image_token, image_token * self._processor.num_query_tokens)
        return self._processor.tokenizer(expanded, add_special_tokens=False)["input_ids"]


def _continuation(beginning: str, text: str) -> str:
    if not text.startswith(beginning):
        raise ValueError(
            "The chat template rewrites earlier turns when a conversation goes on; a conversation needs it not to."
        )
    return text[len(beginning) :]
