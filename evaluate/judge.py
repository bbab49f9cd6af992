"""A judge that is asked: a language model behind a server says how good answers are, several times each."""

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from pydantic import BaseModel, Field

from ..data.growing_lines import append, read_back
from ..inference.endpoint import Endpoint, RefusedRequest
from .items import Item
from .metrics.judging import COMPARE, COMPARE_SCHEMA, RIGHT, RIGHT_SCHEMA, SYSTEM, said_json
from .predictions import Prediction

VOTES_FILE = "judge_votes.jsonl"
VOTES = 3
AT_ONCE = 16  # requests
# Votes at temperature 0 would be one vote three times.
TEMPERATURE = 0.7


class Rating(BaseModel):
    """What the judge says of two answers, 1 to 10 each."""

    score_1: float = Field(ge=1, le=10)
    score_2: float = Field(ge=1, le=10)


class Rightness(BaseModel):
    """Whether the judge takes an answer for right."""

    right: bool


class Votes(BaseModel):
    """A line of `judge_votes.jsonl`: the votes on one answer.

    Args:
        id, answer: Of the item, and what was judged.
        judge: Name of the judging model.
        votes: `{"score", "score_gpt"}` where two answers were compared, else `{"right"}`.
    """

    id: str
    answer: str
    judge: str
    votes: list[dict[str, float | bool]] = Field(min_length=1)

    @property
    def scores(self) -> tuple[float, float]:
        """Means of the model's and of GPT-4's score."""
        return fmean(each["score"] for each in self.votes), fmean(each["score_gpt"] for each in self.votes)

    @property
    def right(self) -> bool:
        """What most votes say."""
        return sum(bool(each["right"]) for each in self.votes) * 2 > len(self.votes)


@dataclass(frozen=True)
class Judge:
    """Judges answers to open questions.

    Two answers are compared in both orders for every vote, since judges prefer the first one (Zheng et al. 2023,
    arXiv:2306.05685, section 3.3).

    Args:
        endpoint: The judging model.
        votes: How often it is asked about an answer.
    """

    endpoint: Endpoint
    votes: int = VOTES

    def judged(self, items: Sequence[Item], predictions: Sequence[Prediction], folder: Path) -> Iterator[Votes]:
        """The votes on every answer, kept in `judge_votes.jsonl` as they come; what is there is not asked again.

        Args:
            items, predictions: Equally many, in the same order.
            folder: Where the file lies.

        Raises:
            ValueError: The judge answers in no form that can be read, or refuses a request.
            ConnectionError: The server stopped answering.
        """
        path = folder / VOTES_FILE
        kept = {(each.id, each.answer): each for each in read_back(path, Votes) if each.judge == self.endpoint.model}
        wanted = []
        for item, said in zip(items, predictions, strict=True):
            if (found := kept.get((item.id, said.answer))) and len(found.votes) >= self.votes:
                yield found
            else:
                wanted.append((item, said))
        folder.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            try:
                for done in as_completed([pool.submit(self._vote, *each) for each in wanted]):
                    append(path, [done.result().model_dump()])
                    yield done.result()
            finally:
                pool.shutdown(cancel_futures=True)

    def _vote(self, item: Item, said: Prediction) -> Votes:
        ask = self._compare if "gpt4_answer" in item.details else self._right
        votes = [vote for number in range(self.votes) for vote in ask(item, said.answer, number)]
        return Votes(id=item.id, answer=said.answer, judge=self.endpoint.model, votes=votes)

    def _compare(self, item: Item, answer: str, number: int) -> Iterator[dict[str, float | bool]]:
        facts = {"context": item.details["context"], "question": item.question}
        other = item.details["gpt4_answer"]
        first = self._ask(COMPARE.format(**facts, first=answer, second=other), COMPARE_SCHEMA, Rating, item, number)
        yield {"score": first.score_1, "score_gpt": first.score_2}
        second = self._ask(COMPARE.format(**facts, first=other, second=answer), COMPARE_SCHEMA, Rating, item, number)
        yield {"score": second.score_2, "score_gpt": second.score_1}

    def _right(self, item: Item, answer: str, number: int) -> Iterator[dict[str, float | bool]]:
        references = "\n".join(f"- {each}" for each in item.references)
        text = RIGHT.format(question=item.question, references=references, answer=answer)
        yield {"right": self._ask(text, RIGHT_SCHEMA, Rightness, item, number).right}

    def _ask(self, text: str, schema: dict[str, Any], kind: type[BaseModel], item: Item, number: int) -> Any:
        messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}]
        options = {"temperature": TEMPERATURE, "seed": number}
        shape = {"type": "json_schema", "json_schema": {"name": "verdict", "strict": True, "schema": schema}}
        try:
            said = self.endpoint.complete(messages, 256, **options, response_format=shape)
        except RefusedRequest:  # servers without structured output: the prompt asks for JSON as well
            said = self.endpoint.complete(messages, 256, **options)
        try:
            return kind.model_validate(said_json(said.text))
        except (ValueError, IndexError):
            raise ValueError(
                f"{self.endpoint.model} gives no verdict on {item.id} but {said.text[:120]!r}: name a judge that can "
                "answer in JSON."
            ) from None


def agreement(votes: Sequence[Votes]) -> float:
    """Share, in percent, of answers on which all votes say the same."""
    return 100 * fmean(len({json.dumps(each, sort_keys=True) for each in one.votes}) == 1 for one in votes)
