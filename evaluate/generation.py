"""Items of a benchmark in batches: what is answered together, and pictures read while the model answers."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import torch

from .. import JMiniGPT4ForConditionalGeneration, JMiniGPT4Processor
from ..data.pictures import Picture
from ..inference.answering import AnswerGenerator, Prompt
from .items import Item, decode_picture
from .predictions import Prediction

READING_THREADS = 2  # threads that decode pictures while the model answers


@dataclass(frozen=True)
class Generation:
    """How answers are generated; everything they depend on besides model and questions.

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
    """An item with its prompt."""

    item: Item
    prompt: Prompt


class Answerer:
    """A model that answers the items of a benchmark.

    Args:
        model: In eval mode.
        processor: That of the model.
        generation: How answers are generated.
        items: All items of the benchmark; their prompts are tokenised here, once.
    """

    def __init__(
        self,
        model: JMiniGPT4ForConditionalGeneration,
        processor: JMiniGPT4Processor,
        generation: Generation,
        items: Sequence[Item],
    ):
        self.generation = generation
        self._generator = AnswerGenerator(model, processor)
        self._image_processor = processor.image_processor
        rows = []
        for item in items:
            input_ids = processor.encode_segments(item.messages, add_generation_prompt=True)["input_ids"]
            rows.append(_Row(item, Prompt(input_ids, item.pictures)))
        window = self._generator.window
        self._rows = [row for row in rows if len(row.prompt.input_ids) < window]
        self.unanswerable = [row.item for row in rows if len(row.prompt.input_ids) >= window]
        """Items whose prompt alone fills the context window. They count as answered with nothing."""

    def answers(self, done: frozenset[str] | set[str] = frozenset()) -> Iterator[list[Prediction]]:
        """Answers, a batch at a time.

        Batches are cut from all items, and a batch of which anything is missing is answered as a whole: a run that
        goes on after a stop gives what it would have given without it, to the bit.

        Args:
            done: Ids that have been answered before; they are not given again.

        Raises:
            ValueError: A picture cannot be read or decoded; the message names it.
        """
        if empty := [
            Prediction(each.id, each.question, "", True) for each in self.unanswerable if each.id not in done
        ]:
            yield empty
        batches = enumerate(self._batches())
        wanted = [(number, batch) for number, batch in batches if any(row.item.id not in done for row in batch)]
        with ThreadPoolExecutor(READING_THREADS) as pool:
            features: dict[Any, torch.Tensor] = {}
            coming = self._read_ahead(pool, wanted[0][1]) if wanted else {}
            for place, (number, batch) in enumerate(wanted):
                read, coming = coming, self._read_ahead(pool, wanted[place + 1][1]) if place + 1 < len(wanted) else {}
                features = self._features(read, features)
                predictions = self._answer(batch, features, number)
                yield [each for each in predictions if each.id not in done]

    def _batches(self) -> Iterator[list[_Row]]:
        """Rows of the same pictures side by side, `batch_size` at a time."""
        together: dict[tuple[Any, ...], list[_Row]] = {}
        for row in self._rows:
            together.setdefault(row.item.pictures, []).append(row)
        ordered = [row for group in together.values() for row in group]
        for start in range(0, len(ordered), self.generation.batch_size):
            yield ordered[start : start + self.generation.batch_size]

    def _read_ahead(self, pool: ThreadPoolExecutor, batch: Sequence[_Row]) -> dict[Any, Future]:
        pictures = dict.fromkeys(picture for row in batch for picture in row.item.pictures)
        return {picture: pool.submit(self._pixel_values, picture) for picture in pictures}

    def _pixel_values(self, picture: Picture) -> torch.Tensor:
        return self._generator.pixel_values([decode_picture(picture, self._image_processor)])

    def _features(self, read: dict[Any, Future], known: dict[Any, torch.Tensor]) -> dict[Any, torch.Tensor]:
        """Query features by picture, `(num_query_tokens, qformer_hidden_size)` each."""
        found = {picture: known[picture] for picture in read if picture in known}
        if new := [picture for picture in read if picture not in known]:
            pixel_values = torch.cat([read[picture].result() for picture in new])
            found |= dict(zip(new, self._generator.query_features(pixel_values), strict=True))
        return found

    def _answer(self, batch: list[_Row], features: dict[Any, torch.Tensor], number: int) -> list[Prediction]:
        if self.generation.do_sample:
            torch.manual_seed(self.generation.seed + number)
        prompts = [row.prompt for row in batch]
        answers = self._generator.answers(prompts, features, **self.generation.options())
        return [
            Prediction(row.item.id, row.item.question, answer.text, not answer.finished)
            for row, answer in zip(batch, answers, strict=True)
        ]
