"""Answers to a batch of prompts: a picture is encoded once, and what prompts begin with in common is computed once.

Prompts of unequal length are padded on the left, behind their common beginning, so that all answers begin at the same
position. An answer ends at the end-of-sequence token, at a stop string of the prompt format, or where there is no room
left in the context window.
"""

import math
import os
import threading
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
from PIL import Image
from transformers import Cache, DynamicCache, StoppingCriteria, StoppingCriteriaList
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.generation.streamers import BaseStreamer

from ..modeling_jminigpt4 import CACHE_NAME, JMiniGPT4ForConditionalGeneration
from ..processing_jminigpt4 import JMiniGPT4Processor
from .answer_text import AnswerText
from .llama_cpp import LlamaCppForConditionalGeneration

MAX_NEW_TOKENS = 256  # where neither the caller nor the checkpoint's generation config names a number
DEFAULT_WINDOW = 2048  # positions llama.cpp makes room for where the language model states no context window


@dataclass(frozen=True)
class Prompt:
    """A prompt up to the place where its answer begins.

    Args:
        input_ids: Its tokens, `num_query_tokens` image tokens for every picture.
        pictures: Keys of its pictures, in order; equal keys are the same picture.
    """

    input_ids: list[int]
    pictures: tuple[Hashable, ...] = ()


@dataclass(frozen=True)
class Answer:
    """An answer as generated.

    Args:
        text: As a person reads it.
        token_ids: The tokens of `text`: without the end-of-sequence token, a stop string, or the bytes of a last
            character that was cut off.
        finished: Whether the model ended it; `False` where it was cut off.
    """

    text: str
    token_ids: list[int]
    finished: bool


class AnswerGenerator:
    """A model that answers prompts.

    Args:
        model: In eval mode; of torch or of llama.cpp.
        processor: That of the model; its `stop_strings` end answers.
    """

    def __init__(self, model: JMiniGPT4ForConditionalGeneration, processor: JMiniGPT4Processor):
        self.model = model
        self.processor = processor

    @property
    def window(self) -> float:
        """Positions of the context window; infinite where the language model states none."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None) or math.inf

    def pixel_values(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Pictures as `to_rgb` of the image processor gives them to `(len(images), 3, height, width)`."""
        processed = self.processor.image_processor(images=list(images), do_convert_rgb=False, return_tensors="pt")
        return processed.pixel_values

    @torch.no_grad()
    def query_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """`(n, 3, height, width)` to query features `(n, num_query_tokens, qformer_hidden_size)`."""
        weight = next(self.model.model.vision_model.parameters())
        return self.model.get_query_features(pixel_values.to(weight.device, weight.dtype))

    @torch.no_grad()
    def answers(
        self, prompts: Sequence[Prompt], query_features: Mapping[Any, torch.Tensor], **options: Any
    ) -> list[Answer]:
        """Answers prompts in one batch.

        Args:
            prompts: The prompts. One that fills the context window by itself has an empty, unfinished answer.
            query_features: `(num_query_tokens, qformer_hidden_size)` for every key of the prompts' pictures.
            **options: Arguments of `generate`; `max_new_tokens` is held inside the context window.

        Returns:
            The answers in the order of `prompts`.

        Raises:
            ValueError: llama.cpp is to search with beams, which it cannot.
        """
        fitting = [prompt for prompt in prompts if len(prompt.input_ids) < self.window]
        generated = iter(self._generate(fitting, query_features, options) if fitting else [])
        return [
            self.read(next(generated), options) if len(prompt.input_ids) < self.window else Answer("", [], False)
            for prompt in prompts
        ]

    def _generate(
        self, prompts: list[Prompt], query_features: Mapping[Any, torch.Tensor], options: dict[str, Any]
    ) -> list[list[int]]:
        rows = [prompt.input_ids for prompt in prompts]
        options = {**options, "max_new_tokens": self.max_new_tokens(max(map(len, rows)), options)}
        if self.searches_with_beams(options):  # beams multiply the rows, which a cache filled before would not follow
            every = [query_features[picture] for prompt in prompts for picture in prompt.pictures]
            return self.new_tokens(rows, every, options)
        common = self._common_length(prompts)
        prefixes = [self._pictures_within(prompt, common) for prompt in prompts]
        distinct = list(dict.fromkeys(prefixes))
        own_lengths = [len(row) - common + options["max_new_tokens"] for row in rows]
        cache = self.new_cache(common * len(distinct) + sum(own_lengths), len(rows))
        if common:
            features = [query_features[picture] for prefix in distinct for picture in prefix]
            inputs = self._inputs([rows[0][:common]] * len(distinct), features)
            self.model(**inputs, **{CACHE_NAME: cache}, use_cache=True, logits_to_keep=1)
            sources = torch.tensor([distinct.index(prefix) for prefix in prefixes], device=self.model.device)
            cache.batch_select_indices(sources)
        behind = [
            query_features[picture]
            for prompt, prefix in zip(prompts, prefixes, strict=True)
            for picture in prompt.pictures[len(prefix) :]
        ]
        return self.new_tokens(rows, behind, options, cache, common)

    def _common_length(self, prompts: list[Prompt]) -> int:
        """How many tokens that all prompts begin with are computed apart from them, once for each list of pictures."""
        if not self._keeps_keys_and_values:
            return 0
        rows = [prompt.input_ids for prompt in prompts]
        common = min(len(os.path.commonprefix(rows)), min(map(len, rows)) - 1)
        while rows[0][:common].count(self.processor.image_token_id) % self.processor.num_query_tokens:
            common -= 1  # a picture is whole on one side
        distinct = {self._pictures_within(prompt, common) for prompt in prompts}
        # A beginning shorter than a picture is not worth a pass of its own.
        shared = len(distinct) < len(prompts) and common >= self.processor.num_query_tokens
        return common if shared else 0

    def _pictures_within(self, prompt: Prompt, length: int) -> tuple[Hashable, ...]:
        image_tokens = prompt.input_ids[:length].count(self.processor.image_token_id)
        return prompt.pictures[: image_tokens // self.processor.num_query_tokens]

    def max_new_tokens(self, length: int, options: Mapping[str, Any]) -> int:
        """Longest answer to a prompt of `length` tokens: what the options or the checkpoint say, or less where the
        context window ends before."""
        wanted = options.get("max_new_tokens") or self.model.generation_config.max_new_tokens or MAX_NEW_TOKENS
        return int(min(wanted, self.window - length))

    def searches_with_beams(self, options: Mapping[str, Any]) -> bool:
        return (options.get("num_beams") or self.model.generation_config.num_beams or 1) > 1

    @cached_property
    def _keeps_keys_and_values(self) -> bool:
        """Whether keys and values of every position are all that the language model keeps, so that a cache of them
        can be cropped and shared. A state has run through all positions, and families have caches of their own."""
        if isinstance(self.model, LlamaCppForConditionalGeneration):
            return True
        if self.model._is_stateful or not self.model._supports_default_dynamic_cache():
            return False
        layers = DynamicCache(config=self.model.config.get_text_config(decoder=True)).layers
        return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)

    def new_cache(self, length: int | None = None, rows: int = 1) -> Cache | None:
        """An empty KV cache; none where `generate` has to make the language model's own.

        Args:
            length: Positions of all rows together, what they share counted once; the context window by default. Only
                llama.cpp makes room in advance.
            rows: Rows of the batch.
        """
        if isinstance(self.model, LlamaCppForConditionalGeneration):
            window = DEFAULT_WINDOW if self.window == math.inf else int(self.window)
            return self.model.new_cache(window if length is None else length, rows)
        return DynamicCache() if self._keeps_keys_and_values else None

    @torch.no_grad()
    def new_tokens(
        self,
        rows: list[list[int]],
        query_features: Sequence[torch.Tensor],
        options: dict[str, Any],
        cache: Cache | None = None,
        common: int = 0,
        streamer: BaseStreamer | None = None,
        stop: threading.Event | None = None,
    ) -> list[list[int]]:
        """The lower half of [`answers`]: tokens behind prompts as `generate` gives them, end and padding included.

        Args:
            rows: Token ids of the prompts, each a whole one.
            query_features: Of the pictures whose image tokens are not in the cache yet, row by row.
            options: Arguments of `generate`.
            cache: Keys and values of what the rows begin with; afterwards of all but the last new token.
            common: Number of tokens that all rows have in common; padding stands behind them.
            streamer: Gets the tokens of a single row one by one.
            stop: Once it is set, no further token is generated.
        """
        inputs = self._inputs(rows, query_features, common)
        length = inputs["input_ids"].shape[1]
        criteria = StoppingCriteriaList()
        if stop is not None:
            criteria.append(StopOnRequest(stop))
        if self.processor.stop_strings:
            criteria.append(StopAtMark(self.processor, length))
        if self.model.generation_config.pad_token_id is None:
            options = {"pad_token_id": self.processor.tokenizer.pad_token_id, **options}
        output = self.model.generate(
            **inputs,
            **{CACHE_NAME: cache},
            streamer=streamer,
            stopping_criteria=criteria,
            tokenizer=self.processor.tokenizer,
            **options,
        )
        return output[:, length:].tolist()

    def _inputs(
        self, rows: list[list[int]], query_features: Sequence[torch.Tensor], common: int = 0
    ) -> dict[str, torch.Tensor]:
        width = max(map(len, rows))
        pad = self.processor.tokenizer.pad_token_id or 0
        padded = [row[:common] + [pad] * (width - len(row)) + row[common:] for row in rows]
        mask = [[1] * common + [0] * (width - len(row)) + [1] * (len(row) - common) for row in rows]
        inputs = {"input_ids": torch.tensor(padded), "attention_mask": torch.tensor(mask)}
        inputs = {name: tensor.to(self.model.device) for name, tensor in inputs.items()}
        if query_features:
            inputs["query_features"] = torch.stack(list(query_features))
        return inputs

    def read(self, token_ids: Sequence[int], options: Mapping[str, Any]) -> Answer:
        """New tokens of a row, as [`new_tokens`] gives them, to the answer that they are."""
        spelt = self.before_end(token_ids, options)
        answer = AnswerText(self.processor)
        for token_id in spelt:
            answer.push(token_id)
        answer.finish()
        decoded = self.processor.tokenizer.decode(spelt, skip_special_tokens=True)
        finished = len(spelt) < len(token_ids) or any(stop in decoded for stop in self.processor.stop_strings)
        return Answer(answer.text, answer.token_ids, finished)

    def before_end(self, token_ids: Sequence[int], options: Mapping[str, Any]) -> list[int]:
        """New tokens of a row up to the end-of-sequence token."""
        ends = self.eos_ids(options)
        return list(token_ids[: next((i for i, token in enumerate(token_ids) if token in ends), len(token_ids))])

    def eos_ids(self, options: Mapping[str, Any]) -> set[int]:
        """Tokens that end an answer and are no part of it."""
        eos = options.get("eos_token_id", self.model.generation_config.eos_token_id)
        return set() if eos is None else {eos} if isinstance(eos, int) else set(eos)


class StopAtMark(StoppingCriteria):
    """Ends every row of a batch whose answer contains one of the format's stop strings, wherever the tokens divide it.

    Args:
        processor: Its `stop_strings` are looked for in the text that its tokenizer decodes.
        prompt_length: Number of positions before the answers begin; a mark in a prompt ends nothing.
    """

    def __init__(self, processor: JMiniGPT4Processor, prompt_length: int):
        self._processor = processor
        self._prompt_length = prompt_length
        # No token is shorter than a byte, so a mark that ends in the last token begins within as many tokens as it
        # has bytes; some slack for tokens that decode to nothing.
        self._window = max((len(stop.encode()) for stop in processor.stop_strings), default=0) + 8

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs) -> torch.BoolTensor:
        start = max(self._prompt_length, input_ids.shape[1] - self._window)
        texts = self._processor.tokenizer.batch_decode(input_ids[:, start:], skip_special_tokens=True)
        over = [any(stop in text for stop in self._processor.stop_strings) for text in texts]
        return cast(torch.BoolTensor, torch.tensor(over, dtype=torch.bool, device=input_ids.device))


class StopOnRequest(StoppingCriteria):
    """Ends the whole batch at the next token once `event` is set."""

    def __init__(self, event: threading.Event):
        self._event = event

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs) -> torch.BoolTensor:
        over = torch.full((input_ids.shape[0],), self._event.is_set(), dtype=torch.bool, device=input_ids.device)
        return cast(torch.BoolTensor, over)
