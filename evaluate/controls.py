"""Was the picture used? The same questions without their pictures, and with those of others.

A model that answers as well without the picture has learnt the questions and not to see; and an item that a blind
model gets right measures nothing. JAMMEval (arXiv:2604.00909) found many such items in older Japanese sets.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from .benchmarks import Request
from .intervals import RESAMPLES
from .items import Item
from .metrics.measure import Measure
from .predictions import Prediction
from .scoring import Score, measures_of, scored_measure

BLIND, SHUFFLED = "blind", "shuffled"


@dataclass(frozen=True)
class ControlScores:
    """The benchmark's own metric on the sample, with the pictures, without any, and with those of other items.

    Args:
        pictured: With the items' own pictures.
        blind: Without pictures; `None` where no item has a question to be asked then.
        shuffled: With pictures of other items; `None` where there are no others.
        answered_blind: Items that were right without a picture, with the answer.
    """

    pictured: Score
    blind: Score | None
    shuffled: Score | None
    answered_blind: list[tuple[Item, str]]


def control_items(items: Sequence[Item], size: int, seed: int = 0) -> dict[str, list[Item]]:
    """The items of each control, drawn from those with a picture; ids are those of the items they stand for.

    Args:
        items: All items of a benchmark.
        size: Most items of a control; 0: no control.
        seed: Of the drawing.
    """
    pictured = [item for item in items if item.pictures]
    drawn = set(random.Random(seed).sample(range(len(pictured)), min(size, len(pictured))))
    sample = [item for number, item in enumerate(pictured) if number in drawn]
    made = {
        BLIND: [_without_pictures(item) for item in sample if item.question.strip()],
        SHUFFLED: _with_other_pictures(sample, seed),
    }
    return {name: chosen for name, chosen in made.items() if chosen}


def _without_pictures(item: Item) -> Item:
    messages = []
    for message in item.messages:
        content = message["content"]
        if not isinstance(content, str):
            content = [part for part in content if part["type"] != "image"]
        messages.append({**message, "content": content})
    return replace(item, messages=messages, pictures=())


def _with_other_pictures(sample: Sequence[Item], seed: int) -> list[Item]:
    """Each item with the pictures of one that shows others, as many; items for which there is none are left out.

    Which one, is drawn: pictures with neighbouring names often show things of one kind.
    """
    clusters = sorted({item.cluster for item in sample})
    place = {cluster: number for number, cluster in enumerate(random.Random(seed).sample(clusters, len(clusters)))}
    changed = []
    for count in sorted({len(item.pictures) for item in sample}):
        alike = sorted((item for item in sample if len(item.pictures) == count), key=lambda item: place[item.cluster])
        sizes = [sum(item.cluster == cluster for item in alike) for cluster in {item.cluster for item in alike}]
        shift = max(sizes)  # the items of a cluster lie side by side: so far on, another one has begun
        for number, item in enumerate(alike):
            other = alike[(number + shift) % len(alike)]
            if other.cluster != item.cluster:
                changed.append(replace(item, pictures=other.pictures))
    order = {item.id: number for number, item in enumerate(sample)}
    return sorted(changed, key=lambda item: order[item.id])


def score_controls(
    request: Request,
    items: Sequence[Item],
    predictions: Sequence[Prediction],
    answered: dict[str, list[Prediction]],
    resamples: int = RESAMPLES,
) -> ControlScores | None:
    """What the controls say, by the first metric of the benchmark; `None` where only a judge can score it.

    Args:
        request: The benchmark.
        items, predictions: All of it, in the same order.
        answered: The answers to each control.
        resamples: Of the bootstrap.
    """
    if request.benchmark.scoring == "judge" or not answered:
        return None
    known = {item.id: (item, said) for item, said in zip(items, predictions, strict=True)}
    asked = dict.fromkeys(each.id for said in answered.values() for each in said)
    pictured = [known[name] for name in asked]
    own = _measured(request, [item for item, _ in pictured], [said for _, said in pictured])
    of = {name: [known[each.id][0] for each in said] for name, said in answered.items()}
    measured = {name: _measured(request, of[name], said) for name, said in answered.items()}
    scores = {
        name: scored_measure(measures[0], [item.cluster for item in of[name]], resamples)
        for name, measures in measured.items()
    }
    return ControlScores(
        scored_measure(own[0], [item.cluster for item, _ in pictured], resamples),
        scores.get(BLIND),
        scores.get(SHUFFLED),
        [(known[each.id][0], each.answer) for each in _right(measured.get(BLIND, []), answered.get(BLIND, []))],
    )


def _measured(request: Request, items: Sequence[Item], said: Sequence[Prediction]) -> list[Measure]:
    return measures_of(request, items, [each.answer for each in said])[0]


def _right(measures: Sequence[Measure], said: Sequence[Prediction]) -> list[Prediction]:
    """The answers that are right, by the first metric by which an answer is right or wrong."""
    share = next((each.items for each in measures if each.share and each.items is not None), None)
    return [] if share is None else [each for each, value in zip(said, share, strict=True) if value == 100]
