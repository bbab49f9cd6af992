"""One conversation with the model: what was said, the pictures, and the keys and values of both.

To the model a conversation is a list of token ids that grows at its end: prompt, answer, prompt, answer. The KV cache
holds the beginning of that list. Whatever changes it (the next question, an undone turn, another persona), the cache
is cropped to what the old list and the new one have in common, and only the rest is computed.
"""

import os
import threading
import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import torch
from transformers import Cache, DynamicCache, PreTrainedModel, StaticCache, StoppingCriteriaList

from ..inference.llama_cpp import LlamaCppForConditionalGeneration
from ..modeling_jminigpt4 import CACHE_NAME
from ..processing_jminigpt4 import JMiniGPT4Processor
from .answer import AnswerText, StopAtMark, StopOnRequest, TokenQueue
from .fast import compiled_decoding, crop, static_cache
from .pictures import Picture
from .turns import Messages, Prompts, Turn, messages_of, read_messages

MAX_NEW_TOKENS = 256  # where the checkpoint's generation config names no number
DEFAULT_WINDOW = 2048  # positions llama.cpp makes room for where the language model states no context window


class ChatSession:
    """A conversation of many turns, with pictures at any of them. For one thread at a time.

    Args:
        model: A `JMiniGPT4ForConditionalGeneration`; several sessions may share one.
        processor: Its `JMiniGPT4Processor`.
        persona: System text: who the model is to be.
        examples: Few-shot examples, turns that stand before the conversation and are never forgotten; messages in the
            format of `apply_chat_template`, with a PIL image under `"image"`.
        on_forget: Called with the oldest turns when they have to make room; by default a warning is issued.
        fast: Whether to compile the decoding, for large language models on a CPU; see [`fast`]. The first answer waits
            for the compiler.

    Raises:
        ValueError: The language model cannot be `fast`, `examples` are no alternation of user and assistant, or the
            chat template rewrites earlier turns.

    Example:

    ```python
    >>> session = ChatSession(model, processor)
    >>> session.ask("何が写ってる?", [Image.open("drawing.png")])
    >>> session.ask("何色?")
    ```
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: JMiniGPT4Processor,
        persona: str | None = None,
        examples: Sequence[dict[str, Any]] = (),
        on_forget: Callable[[list[Turn]], None] | None = None,
        fast: bool = False,
    ):
        self.model = model
        self.processor = processor
        self.turns: list[Turn] = []
        self.on_forget = on_forget or _warn_forgotten
        self._persona = persona or None
        self._prompts = Prompts(processor)
        self._query_features: dict[str, torch.Tensor] = {}
        self._cache: Cache | None = None
        self._compile_config = compiled_decoding() if fast else None
        if fast:
            self._new_cache()  # to learn at once that there can be none
        self._cached: list[Hashable] = []
        self._stop = threading.Event()
        self._speaking: threading.Thread | None = None
        self._examples = self._prompts.follow(self._persona, [], read_messages(examples, self._see)[1])

    def ask(self, question: str, images: Sequence[Any] = (), **options: Any) -> str:
        """Asks and returns the answer.

        Args:
            question: Text; whatever it spells, it never becomes a control token.
            images: Pictures shown with the question: PIL images, or anything else that `to_rgb` of the image processor
                takes.
            **options: Arguments of `generate` for this answer (`do_sample`, `temperature`, `max_new_tokens`, …); by
                default the checkpoint's generation config decides.

        Raises:
            ValueError: Neither text nor picture was given, a picture cannot be read, or the question alone is longer
                than the context window. The conversation is then as it was.
        """
        self.stop()
        turns, options = self._begin(question, self._see_all(images), options)
        return self._answer(turns, options, streamer=None).answer

    def stream(self, question: str, images: Sequence[Any] = (), **options: Any) -> Iterator[str]:
        """Asks and yields the answer as it is spoken, in pieces that are never taken back; see [`ask`].

        Leaving the iteration early stops the model; what was spoken until then stays in the conversation.
        """
        self.stop()
        turns, options = self._begin(question, self._see_all(images), options)
        queue, failures = TokenQueue(self._eos_ids(options)), []

        def speak():
            try:
                self._answer(turns, options, queue)
            except BaseException as failure:
                failures.append(failure)
            finally:
                queue.end()

        self._speaking = threading.Thread(target=speak, daemon=True)
        self._speaking.start()
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
        """Ends the answer that is being streamed, if any, and waits until the model is silent."""
        if (speaking := self._speaking) is not None:
            self._stop.set()
            speaking.join()
            self._speaking = None
        self._stop.clear()

    def ask_many(self, images: Any, questions: Sequence[str], **options: Any) -> list[str]:
        """Asks many questions about the same picture or pictures, each as if it were the next turn of the
        conversation, which stays as it is.

        What the prompts have in common, the picture above all, is computed once and its keys and values are shared;
        the answers are spoken in one batch.

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
        pictures = self._see_all(images if isinstance(images, list | tuple) else [images])
        begun = [self._begin(question, pictures, options, tell=False) for question in questions]
        if not begun:
            raise ValueError("Ask at least one question.")
        # The longest question decides how many of the oldest turns make room, and how long the answers may be.
        kept = min((turns[:-1] for turns, _ in begun), key=len)
        options = min((options for _, options in begun), key=lambda options: options["max_new_tokens"])
        asked = [self._follow(kept, [Turn(question, pictures)])[0] for question in questions]
        spoken = self._speak_many([self._ids([*kept, turn]) for turn in asked], [*kept, asked[0]], options)
        return [self._read(token_ids).text for token_ids in spoken]

    @property
    def persona(self) -> str | None:
        """System text before the conversation. Setting it renders every prompt anew; the answers stay as spoken."""
        return self._persona

    @persona.setter
    def persona(self, text: str | None):
        self._rewrite(text or None, self.turns)

    @property
    def examples(self) -> Messages:
        """The few-shot examples before the conversation, in the format of `apply_chat_template`."""
        return messages_of(None, self._examples)

    def undo(self) -> Turn:
        """Takes the last turn back and returns it.

        Raises:
            ValueError: Nothing has been said yet.
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
        persona, turns = read_messages(messages, self._see)
        self._rewrite(persona, turns)

    def token_ids(self) -> list[int]:
        """Everything the model has read and said, examples included, image tokens and all."""
        return self._ids(self.turns)

    def _rewrite(self, persona: str | None, turns: Sequence[Turn]):
        self.stop()
        examples = self._prompts.follow(persona, [], self._examples)
        turns = self._prompts.follow(persona, examples, turns)
        self._persona, self._examples, self.turns = persona, examples, turns

    def _follow(self, before: list[Turn], turns: list[Turn]) -> list[Turn]:
        return self._prompts.follow(self._persona, [*self._examples, *before], turns)

    def _ids(self, turns: list[Turn]) -> list[int]:
        told = [*self._examples, *turns]
        return [token for turn in told for token in turn.prompt_ids + (turn.answer_ids or [])]

    def _begin(
        self, question: str, pictures: list[Picture], options: dict[str, Any], tell: bool = True
    ) -> tuple[list[Turn], dict[str, Any]]:
        """The turns with the new one at their end, oldest ones left out until all fits the context window; and the
        options, `max_new_tokens` cut to what there is room for."""
        if not question.strip() and not pictures:
            raise ValueError("Ask something, or show a picture.")
        wanted = options.get("max_new_tokens") or self.model.generation_config.max_new_tokens or MAX_NEW_TOKENS
        window = self._window() or float("inf")
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
        if forgotten and tell:
            self.on_forget(forgotten)
        return turns, {**options, "max_new_tokens": int(min(wanted, window - length))}

    def _answer(self, turns: list[Turn], options: dict[str, Any], streamer: TokenQueue | None) -> Turn:
        """Speaks the answer to the last of `turns`, which then are the conversation."""
        text = self._read(self._speak(turns, options, streamer))
        turns[-1].answer, turns[-1].answer_ids = text.text, text.token_ids
        self.turns = turns
        return turns[-1]

    def _read(self, token_ids: list[int]) -> AnswerText:
        text = AnswerText(self.processor)
        for token_id in token_ids:
            text.push(token_id)
        text.finish()
        return text

    def _see(self, image: Any, name: str = "picture") -> Picture:
        return image if isinstance(image, Picture) else Picture(self.processor.image_processor.to_rgb(image, name))

    def _see_all(self, images: Sequence[Any]) -> list[Picture]:
        return [self._see(image, f"picture {number}") for number, image in enumerate(images, 1)]

    @torch.no_grad()
    def _features(self, pictures: list[Picture]) -> torch.Tensor:
        """Query features, `(len(pictures), num_query_tokens, qformer_hidden_size)`; each picture is encoded once."""
        for picture in pictures:
            if picture.sha256 not in self._query_features:
                weight = next(self.model.model.vision_model.parameters())
                pixel_values = self.processor.image_processor(images=[picture.image], return_tensors="pt").pixel_values
                features = self.model.get_query_features(pixel_values.to(weight.device, weight.dtype))[0]
                self._query_features[picture.sha256] = features
        return torch.stack([self._query_features[picture.sha256] for picture in pictures])

    def _shown(self, turns: list[Turn], token_ids: list[int]) -> list[Picture]:
        """Those of the pictures whose image tokens are in `token_ids`, an end of the conversation."""
        pictures = [picture for turn in (*self._examples, *turns) for picture in turn.pictures]
        count = token_ids.count(self.processor.image_token_id) // self.processor.num_query_tokens
        return pictures[len(pictures) - count :]

    def _identities(self, turns: list[Turn], token_ids: list[int]) -> list[Hashable]:
        """What the keys and values of each position depend on: its token, or at image tokens the picture's hash."""
        image_token_id, per_picture = self.processor.image_token_id, self.processor.num_query_tokens
        hashes = (picture.sha256 for picture in self._shown(turns, token_ids) for _ in range(per_picture))
        return [next(hashes) if token == image_token_id else token for token in token_ids]

    def _speak(self, turns: list[Turn], options: dict[str, Any], streamer: TokenQueue | None) -> list[int]:
        """Tokens of the answer to the last of `turns`."""
        token_ids = self._ids(turns)
        if (options.get("num_beams") or self.model.generation_config.num_beams or 1) > 1:
            # Beams reorder the cache: it could not be kept. What is said is known when the best beam is.
            turns[-1].prefilled_tokens = len(token_ids)
            inputs = self._inputs([token_ids], self._shown(turns, token_ids))
            spoken = self._until_eos(self._generate(inputs, options, None, None)[0], options)
            if streamer is not None:
                streamer.put_all(spoken)
            return spoken
        identities = self._identities(turns, token_ids)
        cache, common = self._cropped(identities)
        turns[-1].prefilled_tokens = len(token_ids) - common
        inputs = self._inputs([token_ids], self._shown(turns, token_ids[common:]))
        generated = self._generate(inputs, options, cache, streamer)[0].tolist()
        self._cache, self._cached = cache, [*identities, *generated][: int(cache.get_seq_length())]
        return self._until_eos(generated, options)

    def _new_cache(self) -> Cache:
        if isinstance(self.model, LlamaCppForConditionalGeneration):
            return self.model.new_cache(self._window() or DEFAULT_WINDOW)
        if self._compile_config is None:
            return DynamicCache()
        if (window := self._window()) is None:
            raise ValueError("This language model states no context window; fast answers need one.")
        return static_cache(self.model, window)

    def _window(self) -> int | None:
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    def _cropped(self, identities: list[Hashable]) -> tuple[Cache, int]:
        """The cache, cropped to what it has in common with `identities`, and its length: at least one position short
        of them, since the first token is chosen from the last one's logits. The session has none until it is put back:
        a failure half-way leaves no cache that nobody knows the contents of."""
        cache, self._cache = self._cache, None
        common = _length_in_common(self._cached, identities[:-1]) if cache is not None else 0
        if cache is None or common == 0:
            return self._new_cache(), 0
        excess = int(cache.get_seq_length()) - common
        if isinstance(cache, StaticCache):
            crop(cache, excess)
        elif excess:
            cache.crop(-excess)
        return cache, common

    @torch.no_grad()
    def _speak_many(self, rows: list[list[int]], turns: list[Turn], options: dict[str, Any]) -> list[list[int]]:
        """Tokens of the answers to prompts that differ in their last turn's text only."""
        common = min(len(os.path.commonprefix(rows)), min(map(len, rows)) - 1)
        behind = self._shown(turns, rows[0][common:])
        shown = self._shown(turns, rows[0])
        cache = DynamicCache()
        if isinstance(self.model, LlamaCppForConditionalGeneration):
            own = sum(len(row) - common + options["max_new_tokens"] for row in rows)
            cache = self.model.new_cache(common + own, len(rows))
        if common:
            prefix = self._inputs([rows[0][:common]], shown[: len(shown) - len(behind)])
            self.model(**prefix, **{CACHE_NAME: cache}, use_cache=True, logits_to_keep=1)
            cache.batch_repeat_interleave(len(rows))
        generated = self._generate(self._inputs(rows, behind * len(rows), common), options, cache, None)
        return [self._until_eos(row.tolist(), options) for row in generated]

    def _inputs(self, rows: list[list[int]], pictures: list[Picture], common: int = 0) -> dict[str, torch.Tensor]:
        """Model inputs of prompts that have their first `common` tokens in common. Shorter ones are padded right
        behind those, so that all end at the same position."""
        width = max(map(len, rows))
        pad = self.processor.tokenizer.pad_token_id or 0
        padded = [row[:common] + [pad] * (width - len(row)) + row[common:] for row in rows]
        mask = [[1] * common + [0] * (width - len(row)) + [1] * (len(row) - common) for row in rows]
        inputs = {"input_ids": torch.tensor(padded), "attention_mask": torch.tensor(mask)}
        inputs = {name: tensor.to(self.model.device) for name, tensor in inputs.items()}
        if pictures:
            inputs["query_features"] = self._features(pictures)
        return inputs

    def _generate(
        self,
        inputs: dict[str, torch.Tensor],
        options: dict[str, Any],
        cache: Cache | None,
        streamer: TokenQueue | None,
    ) -> torch.LongTensor:
        """New tokens, `(rows, new_length)`."""
        length = inputs["input_ids"].shape[1]
        criteria = StoppingCriteriaList([StopOnRequest(self._stop)])
        if self.processor.stop_strings:
            criteria.append(StopAtMark(self.processor, length))
        if self.model.generation_config.pad_token_id is None:
            options = {"pad_token_id": self.processor.tokenizer.pad_token_id, **options}
        if isinstance(cache, StaticCache):
            options = {"compile_config": self._compile_config, **options}
        output = self.model.generate(
            **inputs,
            **{CACHE_NAME: cache},
            streamer=streamer,
            stopping_criteria=criteria,
            tokenizer=self.processor.tokenizer,
            **options,
        )
        return output[:, length:]

    def _eos_ids(self, options: dict[str, Any]) -> set[int]:
        eos = options.get("eos_token_id", self.model.generation_config.eos_token_id)
        return set() if eos is None else {eos} if isinstance(eos, int) else set(eos)

    def _until_eos(self, token_ids: Sequence[int] | torch.Tensor, options: dict[str, Any]) -> list[int]:
        token_ids = token_ids.tolist() if isinstance(token_ids, torch.Tensor) else list(token_ids)
        eos = self._eos_ids(options)
        return token_ids[: next((i for i, token in enumerate(token_ids) if token in eos), len(token_ids))]


def _length_in_common(one: Sequence[Hashable], other: Sequence[Hashable]) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((index for index, (left, right) in pairs if left != right), min(len(one), len(other)))


def _warn_forgotten(turns: list[Turn]):
    warnings.warn(
        f"The context window is full: the oldest {len(turns)} turns of the conversation are forgotten.", stacklevel=4
    )
