"""Scores of texts that are read out of pictures or documents, as llm-jp-eval-mm computes them."""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..benchmarks.reading import LINE_ITEM, SCALARS
from .measure import Measure, mean_of
from .tokenization import version_of


def contained(answers: Sequence[str], references: Sequence[Sequence[str]]) -> Measure:
    """Share of answers that contain a reference, letter for letter."""
    return mean_of("contains the reference", _hits(answers, references), share=True)


def contained_by_domain(
    answers: Sequence[str], references: Sequence[Sequence[str]], domains: Sequence[str]
) -> Measure:
    """Mean over domains of the share of answers that contain the reference, as JIC-VQA is scored."""
    known = sorted(set(domains))
    hits = np.array(_hits(answers, references))
    statistics = np.zeros((len(hits), 2 * len(known)))
    for place, domain in enumerate(domains):
        column = 2 * known.index(domain)
        statistics[place, column : column + 2] = hits[place], 1.0

    def combine(sums: np.ndarray) -> np.ndarray:
        right, count = sums[..., 0::2], sums[..., 1::2]
        shares = np.where(count > 0, right / np.maximum(count, 1), 0)
        there = (count > 0).sum(-1)
        return np.where(there > 0, shares.sum(-1) / np.maximum(there, 1), np.nan)

    return Measure("contains the reference, mean of domains", statistics, combine, hits)


def _hits(answers: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    return [100.0 * any(one in answer for one in of) for answer, of in zip(answers, references, strict=True)]


def document_scores(
    answers: Sequence[str], references: Sequence[Sequence[str]], kinds: Sequence[str]
) -> list[Measure]:
    """JDocQA's: BLEU of open-ended answers, for all others whether the answer contains the reference (NFKC, without
    です, 。, 、 and spaces); the mean over all questions first, then either part by itself."""
    scores = []
    for answer, of, kind in zip(answers, references, kinds, strict=True):
        if kind == "open-ended":
            scores.append(max(_bleu(answer, reference) for reference in of))
        else:
            scores.append(100.0 * any(_bare(reference) in _bare(answer) for reference in of))
    is_open = np.array([kind == "open-ended" for kind in kinds])
    values = np.array(scores)
    return [
        mean_of(f"JDocQA score [{version_of('sacrebleu')}]", values),
        mean_of("contains the reference [closed questions]", np.where(is_open, np.nan, values), share=True),
        mean_of("BLEU ja-mecab [open-ended]", np.where(is_open, values, np.nan)),
    ]


def _bare(text: str) -> str:
    for each in ("です", "。", "、", " "):
        text = text.replace(each, "")
    return unicodedata.normalize("NFKC", text.strip())


def _bleu(answer: str, reference: str) -> float:
    """BLEU of one sentence with sacrebleu's Japanese tokenizer and its exponential smoothing."""
    from sacrebleu.metrics.bleu import BLEU

    # A corpus of one is the sentence; asked by sentence, sacrebleu advises against it on every call.
    return BLEU(tokenize="ja-mecab", smooth_method="exp").corpus_score([answer], [[reference]]).score


def character_f1(answers: Sequence[str], references: Sequence[Sequence[str]]) -> Measure:
    """CC-OCR's: F1 of the characters that answer and reference have in common, as often as each occurs, in lower case
    and without white space, `###` and `***`; the mean of items."""
    scores = [
        max(_overlap_f1(Counter(_characters(reference)), Counter(_characters(answer))) for reference in of)
        for answer, of in zip(answers, references, strict=True)
    ]
    return mean_of("character F1", scores)


def _characters(text: str) -> list[str]:
    text = text.replace("###", "").replace("***", "")
    return [lower for lower in (each.lower() for each in "".join(text.split())) if lower]


def _overlap_f1(reference: Counter, answer: Counter) -> float:
    common = (reference & answer).total()
    return 200.0 * common / (reference.total() + answer.total()) if common else 0.0


def edit_similarity(answers: Sequence[str], references: Sequence[Sequence[str]]) -> Measure:
    """JaWildText's: 100 less the character error rate in percent, and 0 where that is below; NFKC, in lower case,
    lines stripped."""
    scores = [
        max(_similarity(_lines(reference), _lines(answer)) for reference in of)
        for answer, of in zip(answers, references, strict=True)
    ]
    return mean_of("100 - CER", scores)


def _lines(text: str) -> str:
    text = unicodedata.normalize("NFKC", text).replace("\\n", "\n").replace("\r\n", "\n")
    return "\n".join(re.sub(r"[ \t]+", " ", line.strip()) for line in text.split("\n")).lower()


def _similarity(reference: str, answer: str) -> float:
    if not reference:
        return 0.0 if answer else 100.0
    return max(0.0, 100.0 * (1 - _edits(reference, answer) / len(reference)))


def _edits(first: str, second: str) -> int:
    """Levenshtein's distance, a row of the table at a time."""
    codes = np.array([ord(each) for each in second])
    steps = np.arange(len(second) + 1)
    row = steps.copy()
    for number, each in enumerate(first, 1):
        changed = np.concatenate([[number], np.minimum(row[1:] + 1, row[:-1] + (codes != ord(each)))])
        # An insertion follows its left neighbour by one: the least of what lies to the left, each a step further off.
        row = np.minimum.accumulate(changed - steps) + steps
    return int(row[-1])


def receipt_f1(answers: Sequence[str], references: Sequence[Sequence[str]]) -> list[Measure]:
    """JaWildText's: F1 of the fields that are read (NFKC, lower case, without yen signs and commas), and the share of
    answers that are JSON at all."""
    found = [_said_object(answer) for answer in answers]
    scores = [
        0.0 if said is None else _fields_f1(_fields(json.loads(of[0])), _fields(said))
        for said, of in zip(found, references, strict=True)
    ]
    return [
        mean_of("field F1", scores),
        mean_of("answers that are JSON", [100.0 * (said is not None) for said in found], share=True),
    ]


def _fields_f1(reference: Counter, answer: Counter) -> float:
    return 100.0 if not reference and not answer else _overlap_f1(reference, answer)


def _said_object(text: str) -> dict[str, Any] | None:
    """The JSON object of an answer, in a code block or between other words."""
    block = re.search(r"```(?:json)?\s*\n?(.*?)\n?```", text, re.DOTALL)
    for candidate in ([block[1].strip()] if block else []) + [text[text.find("{") :]] * ("{" in text):
        try:
            said, _ = json.JSONDecoder().raw_decode(candidate)
        except (ValueError, RecursionError):
            continue
        if isinstance(said, dict):
            return said
    return None


def _fields(said: dict[str, Any]) -> Counter:
    pairs = [(name, said.get(name)) for name in SCALARS]
    items = said.get("line_items")
    for each in items if isinstance(items, list) else []:
        if isinstance(each, dict):
            pairs += [(f"line_items.{name}", each.get(name)) for name in LINE_ITEM]
    spelt = [(name, _plain_value(value)) for name, value in pairs if value is not None]
    return Counter(f"{name}:{value}" for name, value in spelt if value)


def _plain_value(value: Any) -> str:
    text = unicodedata.normalize("NFKC", str(value)).lower().strip()
    return re.sub(r"\s+", " ", re.sub("[¥￥,]", "", text))


def boxed(answer: str) -> str:
    r"""What the last `\boxed{…}` of an answer holds, or the answer where it has none."""
    found, place = [], answer.find(r"\boxed{")
    while place >= 0:
        start = place + len(r"\boxed{")
        depth, end = 1, start
        while end < len(answer) and depth:
            depth += {"{": 1, "}": -1}.get(answer[end], 0)
            end += 1
        if not depth:
            found.append(answer[start : end - 1].strip())
        place = answer.find(r"\boxed{", end)
    return found[-1] if found else answer.strip()
