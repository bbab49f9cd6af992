"""Japanese-Heron-Bench needs a judge: what it is to be asked, its verdicts read back, and the score made of them."""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...data.json_files import json_lines
from ..benchmarks.heron import CATEGORIES
from ..items import Item
from .measure import Measure

SYSTEM = "You are a helpful and precise assistant for checking the quality of answers."
REQUEST = """Two assistants answered a question about a picture, which the context describes. Rate each answer by
itself for how well it answers the question given the context: helpfulness, relevance, accuracy and level of detail, on
a scale from 1 (wrong or meaningless) to 10 (right and complete).

Context: {context}
Question: {question}
Answer of GPT-4: {gpt4_answer}
Answer of the model: {answer}

Reply with JSON only: {{"score_gpt": <1-10>, "score": <1-10>}}, where `score` rates the model."""

# Asked in both orders, so neither answer is called the model's.
COMPARE = """Two assistants answered a question about a picture, which the context describes. Rate each answer by
itself for how well it answers the question given the context: helpfulness, relevance, accuracy and level of detail, on
a scale from 1 (wrong or meaningless) to 10 (right and complete). The order of the answers means nothing.

Context: {context}
Question: {question}
Answer 1: {first}
Answer 2: {second}

Reply with JSON only: {{"score_1": <1-10>, "score_2": <1-10>}}."""
RIGHT = """An assistant answered a question about a picture. Decide whether its answer says the same as one of the
right answers: other words, more words and another form of a number are right; another thing, a part of what is asked
for, or something that contradicts the right answers is wrong.

Question: {question}
Right answers:
{references}
Answer of the assistant: {answer}

Reply with JSON only: {{"right": true}} or {{"right": false}}."""


def _object(**properties: dict[str, Any]) -> dict[str, Any]:
    """A JSON schema as structured output wants it: every key needed, no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


_RATING = {"type": "integer", "minimum": 1, "maximum": 10}
COMPARE_SCHEMA = _object(score_1=_RATING, score_2=_RATING)
RIGHT_SCHEMA = _object(right={"type": "boolean"})


def said_json(text: str) -> dict[str, Any]:
    """The last JSON object in what a judge said, which may stand between other words.

    Raises:
        ValueError, IndexError: There is none.
    """
    return json.loads(re.findall(r"\{.*?\}", text, re.DOTALL)[-1])


def judge_requests(items: Sequence[Item], answers: Sequence[str], judge: str) -> list[dict[str, Any]]:
    """One request an item in the layout of OpenAI's batch interface, which serving engines take too.

    Args:
        judge: Name of the judging model.
    """
    requests = []
    for item, answer in zip(items, answers, strict=True):
        context, gpt4_answer = item.details["context"], item.details["gpt4_answer"]
        text = REQUEST.format(context=context, question=item.question, gpt4_answer=gpt4_answer, answer=answer)
        messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}]
        body = {"model": judge, "messages": messages, "temperature": 0, "seed": 0, "max_tokens": 64}
        requests.append({"custom_id": item.id, "method": "POST", "url": "/v1/chat/completions", "body": body})
    return requests


def heron_answers(items: Sequence[Item], answers: Sequence[str], model: str) -> list[dict[str, Any]]:
    """The answers in the layout of Japanese-Heron-Bench's own answer files."""
    return [
        {
            "question_id": int(item.id) if item.id.isdigit() else item.id,
            "images": item.details["image"],
            "category": item.fields["category"],
            "image_category": item.fields.get("image_category", ""),
            "prompt": item.question,
            "answer_id": "",
            "model_id": model,
            "text": answer,
        }
        for item, answer in zip(items, answers, strict=True)
    ]


def read_verdicts(path: str | os.PathLike) -> dict[str, tuple[float, float]]:
    """Item id to (score of the model, score of GPT-4).

    Lines may be `{"question_id", "score", "score_gpt"}`, LLaVA-style reviews `{"question_id", "tuple": [gpt, model]}`,
    or the output of a batch of [`judge_requests`].

    Raises:
        FileNotFoundError: The file is not there.
        ValueError: A line holds no two scores from 1 to 10; the message names it.
    """
    verdicts = {}
    for number, row in json_lines(Path(path)):
        try:
            name = str(row["custom_id"] if "custom_id" in row else row["question_id"])
            own, gpt4 = _verdict(row)
        except (KeyError, TypeError, ValueError, IndexError):
            raise ValueError(
                f"{path}, line {number}, holds no verdict: expected question_id, score, score_gpt."
            ) from None
        if not (1 <= own <= 10 and 1 <= gpt4 <= 10):
            raise ValueError(f"{path}, line {number}: scores are from 1 to 10, got {own:g} and {gpt4:g}.")
        verdicts[name] = (own, gpt4)
    return verdicts


def _verdict(row: dict[str, Any]) -> tuple[float, float]:
    if "tuple" in row:
        gpt4, own = row["tuple"]
        return float(own), float(gpt4)
    if "custom_id" in row:
        row = said_json(row["response"]["body"]["choices"][0]["message"]["content"])
    return float(row["score"]), float(row["score_gpt"])


def heron_score(items: Sequence[Item], verdicts: dict[str, tuple[float, float]]) -> Measure:
    """100 x mean score of the model / mean score of GPT-4, the mean over the categories `conv`, `detail`, `complex`.

    Raises:
        ValueError: Items have no verdict.
    """
    missing = [item.id for item in items if item.id not in verdicts]
    if missing:
        raise ValueError(f"{len(missing)} of {len(items)} questions have no verdict, the first is {missing[0]}.")
    statistics = np.zeros((len(items), 2 * len(CATEGORIES)))
    for row, item in zip(statistics, items, strict=True):
        place = 2 * CATEGORIES.index(item.fields["category"])
        row[place : place + 2] = verdicts[item.id]

    def combine(sums: np.ndarray) -> np.ndarray:
        own, gpt4 = sums[..., 0::2], sums[..., 1::2]
        with np.errstate(invalid="ignore", divide="ignore"):
            relative = np.where(gpt4 > 0, 100 * own / gpt4, np.nan)
            there = np.isfinite(relative)
            return np.where(there.any(-1), np.where(there, relative, 0).sum(-1) / there.sum(-1), np.nan)

    each = np.array([100 * verdicts[item.id][0] / verdicts[item.id][1] for item in items])
    return Measure("Heron-Bench relative score", statistics, combine, each)
