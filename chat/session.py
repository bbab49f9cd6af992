"""One conversation with the model: its turns, the pictures, and the keys and values of both.

To the model a conversation is a list of token ids that grows at its end: prompt, answer, prompt, answer. The KV cache
holds the beginning of that list. Whatever changes it (the next question, an undone turn, another persona), the cache
is cropped to what the old list and the new one have in common, and only the rest is computed.
"""

import threading
import warnings
from collections.abc import Callable, Generator, Hashable, Sequence
from typing import Any

import torch
from transformers import Cache

from ..inference.answer_text import AnswerText
from ..inference.answering import AnswerGenerator, Prompt
from ..modeling_jminigpt4 import JMiniGPT4ForConditionalGeneration
from ..processing_jminigpt4 import JMiniGPT4Processor
from .pictures import ShownPicture
from .streaming import TokenQueue
from .turns import Messages, Prompts, Turn, messages_of, read_messages


class ChatSession:
    """A conversation of many turns, with pictures at any of them. For one thread at a time.

    Args:
        model: A `JMiniGPT4ForConditionalGeneration`; several sessions may share one.
        processor: Its `JMiniGPT4Processor`.
        persona: System text: who the model is to be.
        examples: Few-shot examples, turns that stand before the conversation and are never forgotten; messages in the
            format of `apply_chat_template`, with a PIL image under `"image"`.
        on_forget: Called with the oldest turns when they have to make room; by default a warning is issued.

    Raises:
        ValueError: `examples` are no alternation of user and assistant, or the chat template rewrites earlier turns.

    Example:

    ```python
    >>> session = ChatSession(model, processor)
    >>> session.ask("何が写ってる?", [Image.open("drawing.png")])
    >>> session.ask("何色?")
    ```
    """

    def __init__(
        self,
        model: JMiniGPT4ForConditionalGeneration,
        processor: JMiniGPT4Processor,
        persona: str | None = None,
        examples: Sequence[dict[str, Any]] = (),
        on_forget: Callable[[list[Turn]], None] | None = None,
    ):
        self.model = model
        self.processor = processor
        self.turns: list[Turn] = []
        self.on_forget = on_forget or _warn_forgotten
        self._persona = persona or None
        self._prompts = Prompts(processor)
        self._generator = AnswerGenerator(model, processor)
        self._query_features: dict[str, torch.Tensor] = {}
        self._cache: Cache | None = None
        self._cached: list[Hashable] = []
        self._stop = threading.Event()
        self._generating: threading.Thread | None = None
        self._examples = self._prompts.follow(self._persona, [], read_messages(examples, self._picture)[1])

    def ask(self, question: str, images: Sequence[Any] = (), **options: Any) -> str:
        """Asks and returns the answer.

        Args:
            question: Text; whatever it spells, it never becomes a control token.
            images: Pictures shown with the question: PIL images or anything else that `to_rgb` of the image processor
                takes, or a [`ShownPicture`], which is taken as it is.
            **options: Arguments of `generate` for this answer (`do_sample`, `temperature`, `max_new_tokens`, …); by
                default the checkpoint's generation config decides.

        Raises:
            ValueError: Neither text nor picture was given, a picture cannot be read, or the question alone is longer
                than the context window. The conversation is then as it was.
        """
        self.stop()
        turns, options = self._append(question, self._pictures(images), options)
        return self._answer(turns, options, streamer=None).answer

    def stream(self, question: str, images: Sequence[Any] = (), **options: Any) -> Generator[str]:
        """Asks and yields the answer as it is generated, in pieces that are never taken back; see [`ask`].

        Leaving the iteration early stops the model; what was generated until then stays in the conversation.
        """
        self.stop()
        turns, options = self._append(question, self._pictures(images), options)
        queue, failures = TokenQueue(self._generator.eos_ids(options)), []

        def generate():
            try:
                self._answer(turns, options, queue)
            except BaseException as failure:
                failures.append(failure)
            finally:
                queue.end()

        self._generating = threading.Thread(target=generate, daemon=True)
        self._generating.start()
        text = AnswerText(self.processor)
        try:
            yield from filter(None, map(text.push, queue))
        finally:
            self.stop()
        if failures:
            raise failures[0]
        if rest := text.finish():
            yield rest

    def stop(self):
        """Ends the answer that is being streamed, if any, and waits until the model is idle."""
        if (generating := self._generating) is not None:
            self._stop.set()
            generating.join()
            self._generating = None
        self._stop.clear()

    def ask_many(self, images: Any, questions: Sequence[str], **options: Any) -> list[str]:
        """Asks many questions about the same picture or pictures, each as if it were the next turn of the
        conversation, which stays as it is.

        What the prompts have in common, the picture above all, is computed once and its keys and values are shared;
        all are answered in one batch.

        Args:
            images: One picture or a list of them, as in [`ask`].
            questions: At least one.
            **options: As in [`ask`].

        Returns:
            The answers in the order of `questions`. Greedy ones equal those of [`ask`] in float32, as long as the
            context window does not force turns out for a longer question of the same call.

        Raises:
            ValueError: As [`ask`].
        """
        self.stop()
        if not questions:
            raise ValueError("Ask at least one question.")
        pictures = self._pictures(images if isinstance(images, list | tuple) else [images])
        appended = [self._append(question, pictures, options, announce=False)[0] for question in questions]
        # The longest question decides how many of the oldest turns make room.
        fewest = min(map(len, appended))
        appended = [turns if len(turns) == fewest else self._follow([], turns[-fewest:]) for turns in appended]
        pictures = self._all_pictures(appended[0])
        self._encode(pictures)
        keys = tuple(picture.sha256 for picture in pictures)
        prompts = [Prompt(self._ids(turns), keys) for turns in appended]
        return [answer.text for answer in self._generator.answers(prompts, self._query_features, **options)]

    @property
    def persona(self) -> str | None:
        """System text before the conversation. Setting it renders every prompt anew; answers keep their
        tokens."""
        return self._persona

    @persona.setter
    def persona(self, text: str | None):
        self._rewrite(text or None, self.turns)

    @property
    def examples(self) -> Messages:
        """The few-shot examples before the conversation, in the format of `apply_chat_template`."""
        return messages_of(None, self._examples)

    @property
    def has_pictures(self) -> bool:
        """Whether a picture was shown anywhere in the conversation; those of the examples do not count."""
        return any(turn.pictures for turn in self.turns)

    def undo(self) -> Turn:
        """Takes the last turn back and returns it.

        Raises:
            ValueError: There is no turn yet.
        """
        self.stop()
        if not self.turns:
            raise ValueError("There is nothing to undo.")
        return self.turns.pop()

    def edit(self, index: int, question: str, **options: Any) -> str:
        """Asks turn `index` anew with other words and the same pictures; the turns behind it are taken back.

        Raises:
            ValueError: There is no such turn, or as [`ask`]; the conversation is then as it was.
        """
        self.stop()
        if not 0 <= index < len(self.turns):
            raise ValueError(f"There is no turn {index}: the conversation has {len(self.turns)}.")
        kept, self.turns = self.turns, self.turns[:index]
        try:
            return self.ask(question, kept[index].pictures, **options)
        except BaseException:
            self.turns = kept
            raise

    def reset(self):
        """Forgets the conversation; persona and examples stay."""
        self.stop()
        self.turns = []
        self._query_features.clear()

    def messages(self) -> Messages:
        """The conversation, without the examples, in the format of `apply_chat_template`."""
        return messages_of(self._persona, self.turns)

    def restore(self, messages: Sequence[dict[str, Any]]):
        """Replaces the conversation by `messages` as [`messages`] gives them; a system message is the persona.

        Raises:
            ValueError: They are no alternation of user and assistant; the conversation is then as it was.
        """
        persona, turns = read_messages(messages, self._picture)
        self._rewrite(persona, turns)

    def token_ids(self) -> list[int]:
        """Everything the model has read and generated, examples included, image tokens and all."""
        return self._ids(self.turns)

    def _rewrite(self, persona: str | None, turns: Sequence[Turn]):
        self.stop()
        examples = self._prompts.follow(persona, [], self._examples)
        turns = self._prompts.follow(persona, examples, turns)
        self._persona, self._examples, self.turns = persona, examples, turns

    def _follow(self, before: list[Turn], turns: list[Turn]) -> list[Turn]:
        return self._prompts.follow(self._persona, [*self._examples, *before], turns)

    def _ids(self, turns: list[Turn]) -> list[int]:
        return [token for turn in [*self._examples, *turns] for token in turn.prompt_ids + (turn.answer_ids or [])]

    def _append(
        self, question: str, pictures: list[ShownPicture], options: dict[str, Any], announce: bool = True
    ) -> tuple[list[Turn], dict[str, Any]]:
        """The turns with the new one at their end, oldest ones left out until all fits the context window; and the
        options, `max_new_tokens` cut to what there is room for."""
        if not question.strip() and not pictures:
            raise ValueError("Ask something, or show a picture.")
        wanted, window = self._generator.max_new_tokens(0, options), self._generator.window
        turns = [*self.turns, *self._follow(self.turns, [Turn(question, pictures)])]
        while len(self._ids(turns)) + wanted > window and len(turns) > 1:
            turns = self._follow([], turns[1:])
        length = len(self._ids(turns))
        if length >= window:
            raise ValueError(
                f"The question takes {length} tokens with its {len(pictures)} pictures, the persona and the examples, "
                f"but the context window of this model has {window}: ask shorter, or show fewer pictures."
            )
        forgotten = self.turns[: len(self.turns) + 1 - len(turns)]
        if forgotten and announce:
            self.on_forget(forgotten)
        return turns, {**options, "max_new_tokens": self._generator.max_new_tokens(length, options)}

    def _answer(self, turns: list[Turn], options: dict[str, Any], streamer: TokenQueue | None) -> Turn:
        """Generates the answer to the last of `turns`, which then are the conversation."""
        answer = self._generator.read(self._generate(turns, options, streamer), options)
        turns[-1].answer, turns[-1].answer_ids = answer.text, answer.token_ids
        self.turns = turns
        return turns[-1]

    def _picture(self, image: Any, name: str = "picture") -> ShownPicture:
        if isinstance(image, ShownPicture):
            return image
        return ShownPicture(self.processor.image_processor.to_rgb(image, name))

    def _pictures(self, images: Sequence[Any]) -> list[ShownPicture]:
        return [self._picture(image, f"picture {number}") for number, image in enumerate(images, 1)]

    def _encode(self, pictures: list[ShownPicture]) -> list[torch.Tensor]:
        """Query features of the pictures; each picture is encoded once in a conversation."""
        for picture in pictures:
            if picture.sha256 not in self._query_features:
                pixel_values = self._generator.pixel_values([picture.image])
                self._query_features[picture.sha256] = self._generator.query_features(pixel_values)[0]
        return [self._query_features[picture.sha256] for picture in pictures]

    def _all_pictures(self, turns: list[Turn]) -> list[ShownPicture]:
        return [picture for turn in (*self._examples, *turns) for picture in turn.pictures]

    def _generate(self, turns: list[Turn], options: dict[str, Any], streamer: TokenQueue | None) -> list[int]:
        """New tokens behind the last of `turns`, as `generate` gives them."""
        token_ids, pictures = self._ids(turns), self._all_pictures(turns)
        if self._generator.searches_with_beams(options):
            # Beams reorder the cache: it could not be kept. The answer is known when the best beam is.
            turns[-1].prefilled_tokens = len(token_ids)
            generated = self._generator.new_tokens([token_ids], self._encode(pictures), options)[0]
            if streamer is not None:
                streamer.put_all(self._generator.before_end(generated, options))
            return generated
        # What the keys and values of each position depend on: its token, or at image tokens the picture.
        image_token_id, per_picture = self.processor.image_token_id, self.processor.num_query_tokens
        hashes = (picture.sha256 for picture in pictures for _ in range(per_picture))
        identities: list[Hashable] = [next(hashes) if token == image_token_id else token for token in token_ids]
        cache, common = self._cropped(identities)
        turns[-1].prefilled_tokens = len(token_ids) - common
        behind = pictures[token_ids[:common].count(image_token_id) // per_picture :]
        generated = self._generator.new_tokens(
            [token_ids], self._encode(behind), options, cache, streamer=streamer, stop=self._stop
        )[0]
        if cache is not None:
            self._cache, self._cached = cache, [*identities, *generated][: int(cache.get_seq_length())]
        return generated

    def _cropped(self, identities: list[Hashable]) -> tuple[Cache | None, int]:
        """The cache, cropped to what it has in common with `identities`, and its length: at least one position short
        of them, since the first token is chosen from the last one's logits. The session has none until it is put back:
        a failure half-way leaves no cache that nobody knows the contents of. None is kept of a language model
        that keeps more than keys and values."""
        cache, self._cache = self._cache, None
        common = _length_in_common(self._cached, identities[:-1]) if cache is not None else 0
        if cache is None or common == 0:
            return self._generator.new_cache(), 0
        if excess := int(cache.get_seq_length()) - common:
            cache.crop(-excess)
        return cache, common


def _length_in_common(one: Sequence[Hashable], other: Sequence[Hashable]) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((index for index, (left, right) in pairs if left != right), min(len(one), len(other)))


def _warn_forgotten(turns: list[Turn]):
    warnings.warn(
        f"The context window is full: the oldest {len(turns)} turns of the conversation are forgotten.", stacklevel=4
    )
