"""Many questions at once: every picture is encoded once, and its questions share their prefix's keys and values."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import DynamicCache

from .. import JMiniGPT4ForConditionalGeneration, JMiniGPT4Processor
from ..data.pictures import Picture
from ..modeling_jminigpt4 import CACHE_NAME
from .items import Item, open_picture
from .predictions import Prediction

READERS = 2  # threads that decode pictures while the model answers


@dataclass(frozen=True)
class Generation:
    """How answers are spoken; everything they depend on besides model and questions.

    Args:
        max_new_tokens: Longest answer.
        do_sample: Sampling, or always the likeliest token.
        temperature, top_p: Of sampling; the checkpoint's own by default.
        num_beams: Of beam search.
        seed: Of sampling.
        batch_size: Questions answered at a time.
    """

    max_new_tokens: int = 128
    do_sample: bool = False
    temperature: float | None = None
    top_p: float | None = None
    num_beams: int = 1
    seed: int = 0
    batch_size: int = 32

    def __post_init__(self):
        for name in ("max_new_tokens", "num_beams", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def options(self) -> dict[str, Any]:
        """Arguments of `generate`."""
        options: dict[str, Any] = {
            "max_new_tokens": self.max_new_tokens,
            "do_sample": self.do_sample,
            "num_beams": self.num_beams,
        }
        if self.do_sample:
            options |= {"temperature": self.temperature, "top_p": self.top_p}
        return {name: value for name, value in options.items() if value is not None}


@dataclass(frozen=True)
class _Row:
    """An item with its prompt's token ids."""

    item: Item
    input_ids: list[int]


class Answerer:
    """A model that answers the items of a benchmark.

    Args:
        model: In eval mode.
        processor: That of the model.
        generation: How answers are spoken.
    """

    def __init__(
        self, model: JMiniGPT4ForConditionalGeneration, processor: JMiniGPT4Processor, generation: Generation
    ):
        self.model = model
        self.processor = processor
        self.generation = generation
        self._window = getattr(model.config.get_text_config(), "max_position_embeddings", None) or float("inf")

    def unanswerable(self, items: Sequence[Item]) -> list[Item]:
        """Items whose prompt alone fills the context window. They count as answered with nothing."""
        return [row.item for row in map(self._row, items) if len(row.input_ids) >= self._window]

    @torch.no_grad()
    def answers(
        self, items: Sequence[Item], done: frozenset[str] | set[str] = frozenset()
    ) -> Iterator[list[Prediction]]:
        """Answers, a batch at a time.

        Batches are cut from all of `items`, and a batch of which anything is missing is answered as a whole: a run
        that goes on after a stop gives what it would have given without it, to the bit.

        Args:
            items: All items of the benchmark.
            done: Ids that have been answered before; they are not given again.

        Raises:
            ValueError: A picture cannot be read or decoded; the message names it.
        """
        rows = list(map(self._row, items))
        long = [row.item for row in rows if len(row.input_ids) >= self._window]
        if silent := [Prediction(item.id, item.question, "", True) for item in long if item.id not in done]:
            yield silent
        batches = list(enumerate(self._batches([row for row in rows if len(row.input_ids) < self._window])))
        wanted = [(number, batch) for number, batch in batches if any(row.item.id not in done for row in batch)]
        with ThreadPoolExecutor(READERS) as pool:
            features: dict[str, torch.Tensor] = {}
            coming = self._read_ahead(pool, wanted[0][1]) if wanted else {}
            for place, (number, batch) in enumerate(wanted):
                read, coming = coming, self._read_ahead(pool, wanted[place + 1][1]) if place + 1 < len(wanted) else {}
                features = self._features(read, features)
                predictions = self._answer(batch, features, number)
                yield [each for each in predictions if each.id not in done]

    def _row(self, item: Item) -> _Row:
        return _Row(item, self.processor.encode_segments(item.messages, add_generation_prompt=True)["input_ids"])

    def _batches(self, rows: Sequence[_Row]) -> Iterator[list[_Row]]:
        """Rows of the same pictures side by side, `batch_size` at a time."""
        together: dict[tuple[Picture, ...], list[_Row]] = {}
        for row in rows:
            together.setdefault(row.item.pictures, []).append(row)
        ordered = [row for group in together.values() for row in group]
        for start in range(0, len(ordered), self.generation.batch_size):
            yield ordered[start : start + self.generation.batch_size]

    def _read_ahead(self, pool: ThreadPoolExecutor, batch: Sequence[_Row]) -> dict[str, Future]:
        pictures = {picture.name: picture for row in batch for picture in row.item.pictures}
        return {name: pool.submit(self._pixels, picture) for name, picture in pictures.items()}

    def _pixels(self, picture: Picture) -> torch.Tensor:
        image_processor = self.processor.image_processor
        return image_processor(images=[open_picture(picture, image_processor)], return_tensors="pt").pixel_values

    def _features(self, read: dict[str, Future], known: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Query features by picture, `(num_query_tokens, qformer_hidden_size)` each."""
        new = [name for name in read if name not in known]
        found = {name: known[name] for name in read if name in known}
        if new:
            weight = next(self.model.model.vision_model.parameters())
            pixel_values = torch.cat([read[name].result() for name in new]).to(weight.device, weight.dtype)
            found |= dict(zip(new, self.model.get_query_features(pixel_values), strict=True))
        return found

    def _answer(self, batch: list[_Row], features: dict[str, torch.Tensor], number: int) -> list[Prediction]:
        inputs = self._inputs(batch, features)
        options = self.generation.options()
        length = inputs["input_ids"].shape[1]
        options["max_new_tokens"] = int(
            min(options["max_new_tokens"], self._window - max(len(r.input_ids) for r in batch))
        )
        if self.model.generation_config.pad_token_id is None:
            options["pad_token_id"] = self.processor.tokenizer.pad_token_id
        if self.processor.stop_strings:
            options |= {"stop_strings": self.processor.stop_strings, "tokenizer": self.processor.tokenizer}
        if self.generation.do_sample:
            torch.manual_seed(self.generation.seed + number)
        output = self.model.generate(**inputs, **options)
        return [self._prediction(row.item, said) for row, said in zip(batch, output[:, length:].tolist(), strict=True)]

    def _prediction(self, item: Item, said: list[int]) -> Prediction:
        eos = self.model.generation_config.eos_token_id
        ends = {eos} if isinstance(eos, int) else set(eos or ())
        end = next((place for place, token in enumerate(said) if token in ends), len(said))
        text = self.processor.tokenizer.decode(said[:end], skip_special_tokens=True)
        finished = end < len(said) or any(stop in text for stop in self.processor.stop_strings)
        return Prediction(item.id, item.question, self.processor.trim_answer(text), not finished)

    def _inputs(self, batch: list[_Row], features: dict[str, torch.Tensor]) -> dict[str, Any]:
        """Inputs of `generate`, with the cache of what the prompts have in common where pictures are shared."""
        rows = [row.input_ids for row in batch]
        common = self._shared_length(batch)
        if not common:
            return self._padded(rows, 0, [row.item.pictures for row in batch], features)
        owners: dict[tuple[Picture, ...], int] = {}
        places = [owners.setdefault(row.item.pictures, len(owners)) for row in batch]
        cache = DynamicCache()
        prefix = self._padded([rows[0][:common]] * len(owners), 0, list(owners), features)
        self.model(**prefix, **{CACHE_NAME: cache}, use_cache=True, logits_to_keep=1)
        cache.batch_select_indices(torch.tensor(places, device=self.model.device))
        return {**self._padded(rows, common, [], features), CACHE_NAME: cache}

    def _shared_length(self, batch: list[_Row]) -> int:
        """Tokens that all prompts begin with, if all pictures are in them and some are asked about twice; else 0."""
        rows = [row.input_ids for row in batch]
        common = min(len(os.path.commonprefix(rows)), min(map(len, rows)) - 1)
        image_token = self.processor.image_token_id
        behind = any(image_token in row[common:] for row in rows)
        alone = len({row.item.pictures for row in batch}) == len(batch)
        # Beams multiply the rows behind the cache's back.
        return 0 if behind or alone or self.generation.num_beams > 1 else common

    def _padded(
        self,
        rows: list[list[int]],
        common: int,
        pictures: Sequence[tuple[Picture, ...]],
        features: dict[str, torch.Tensor],
    ) -> dict[str, torch.Tensor]:
        """Prompts of one length: shorter ones are padded behind the first `common` tokens, so all end together."""
        width = max(map(len, rows))
        pad = self.processor.tokenizer.pad_token_id or 0
        padded = [row[:common] + [pad] * (width - len(row)) + row[common:] for row in rows]
        mask = [[1] * common + [0] * (width - len(row)) + [1] * (len(row) - common) for row in rows]
        inputs = {"input_ids": torch.tensor(padded), "attention_mask": torch.tensor(mask)}
        inputs = {name: tensor.to(self.model.device) for name, tensor in inputs.items()}
        if shown := [features[picture.name] for each in pictures for picture in each]:
            inputs["query_features"] = torch.stack(shown)
        return inputs
