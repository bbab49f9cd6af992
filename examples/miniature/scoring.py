"""From answers to scores: what of a model's answers is right, whether they agree with one another, and whether it
knows what it does not know.

[`scores_of`] turns the answers of one model into [`Scores`] by measure, [`mean_and_interval`] those of one or more
seeds into a number; both are pure functions. `python scoring.py` checks [`well_formed`] against conversations of the
corpus.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import typer
from corpus import Scene, Thing, comparing, conversation, without_picture
from drawings import COLOURS, Concept, listed_concepts
from questions import Asked, name_answer
from sacrebleu.metrics import CHRF
from wordings import ADJECTIVES, COUNTS, DRINKING, EATING, MANY_COLOURS, NAMING, NO_PICTURE, SIDES, SMALL_TALK, UNKNOWN

RESAMPLES = 1000
LOST = 0.1  # of the listed things, where the share of refused things beyond the list is read
BINS = 10

# ---------------------------------------------------------------------------------------------------------------------
# numbers


@dataclass(frozen=True)
class Scores:
    """One number an item, all `(items,)`.

    Attributes:
        values: 0 or 1, chrF 0 to 100 or a probability; NaN where the item does not count.
        views: The picture that each is about.
        classes: The mean is the mean over these; "separation" and "refused" tell class 1 from class 0, "calibration"
            takes them for what is right.
        statistic: A key of STATISTICS.
    """

    values: np.ndarray
    views: np.ndarray
    classes: np.ndarray
    statistic: str = "mean"

    def about(self, views: np.ndarray) -> "Scores":
        """The items about some pictures only."""
        chosen = np.isin(self.views, views)
        return Scores(self.values[chosen], self.views[chosen], self.classes[chosen], self.statistic)


def mean_and_interval(of_seeds: Sequence[Scores]) -> tuple[float, float, float] | None:
    """The mean over seeds of their statistic, with the 95 % interval of a bootstrap over pictures; `None` where
    nothing counts. All seeds were asked about the same pictures."""
    views = np.unique(of_seeds[0].views)
    if not len(views):
        return None
    weights = _resampled(len(views))
    means = np.mean(
        [
            STATISTICS[each.statistic](each.values, each.classes, weights[:, np.searchsorted(views, each.views)])
            for each in of_seeds
        ],
        axis=0,
    )
    if np.isnan(means[0]):
        return None
    low, high = np.nanpercentile(means[1:], [2.5, 97.5])
    return float(means[0]), float(low), float(high)


@lru_cache(maxsize=8)
def _resampled(pictures: int) -> np.ndarray:
    """How often each picture is drawn, `(1 + RESAMPLES, pictures)`; the first row has each once."""
    drawn = np.random.default_rng(0).multinomial(pictures, np.full(pictures, 1 / pictures), size=RESAMPLES)
    return np.concatenate([np.ones((1, pictures)), drawn]).astype(np.float32)


def _mean(values: np.ndarray, classes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The mean over classes of their weighted means, for each row of weights `(resamples, items)`."""
    total, met = np.zeros(len(weights)), np.zeros(len(weights))
    counts = ~np.isnan(values)
    for one in np.unique(classes[counts]):
        mine = counts & (classes == one)
        weight = weights[:, mine].sum(1)
        total += weights[:, mine] @ values[mine] / np.maximum(weight, 1)
        met += weight > 0
    return np.where(met > 0, total / np.maximum(met, 1), np.nan)


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.where(below > 0, above / np.maximum(below, 1e-9), np.nan)


def _separation(values: np.ndarray, classes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """AUROC: how often an item of class 1 has a greater value than one of class 0; ties are halves."""
    zero, one = classes == 0, classes == 1
    difference = values[one][:, None] - values[zero]
    greater = (difference > 0) + 0.5 * (difference == 0)
    hits = ((weights[:, one] @ greater) * weights[:, zero]).sum(1)
    return _ratio(hits, weights[:, one].sum(1) * weights[:, zero].sum(1))


def _refused(values: np.ndarray, classes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The share of class 1 above the lowest threshold that at most LOST of class 0 exceed."""
    zero, one = np.flatnonzero(classes == 0), classes == 1
    zero = zero[np.argsort(-values[zero], kind="stable")]
    exceeding = weights[:, zero].cumsum(1, dtype=np.float64)
    if not len(zero):
        return np.full(len(weights), np.nan)
    threshold = values[zero][(exceeding > LOST * exceeding[:, -1:]).argmax(1)]
    above = values[one] > threshold[:, None]
    return _ratio((weights[:, one] * above).sum(1), weights[:, one].sum(1))


def _calibration(values: np.ndarray, classes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Expected calibration error: how far probability and share of right ones (class 1) are apart, over BINS bins."""
    inside = np.eye(BINS)[np.minimum((values * BINS).astype(int), BINS - 1)]
    return _ratio(np.abs(weights @ (inside * (values - classes)[:, None])).sum(1), weights.sum(1))


STATISTICS = {"mean": _mean, "separation": _separation, "refused": _refused, "calibration": _calibration}

# ---------------------------------------------------------------------------------------------------------------------
# one answer


def name_said(answer: str) -> str | None:
    """`りんごが写っています。` -> `りんご`; `None` where it names nothing."""
    return answer.removesuffix("が写っています。") if answer.endswith("が写っています。") else None


def kind_said(answer: str, kinds: str) -> tuple[str, str] | None:
    """`りんごは果物の仲間です。` -> (`りんご`, `果物`), also of a name that is on no list; `kinds`: a pattern."""
    # A kind may begin with は, as some names contain it.
    found = re.fullmatch(f"([^、。]+)は({kinds})の仲間です。", answer)
    return (found[1], found[2]) if found else None


def eating_said(answer: str) -> str | None:
    """`りんごは食べられます。` -> `は食べられます。`; `None` where it says nothing of eating."""
    return next((each for each in EATING.values() if answer.endswith(each)), None)


def kind_agrees(answer: str, kinds: str, concepts: Mapping[str, Concept]) -> float:
    """Whether the kind is that of the name in the same answer; NaN where the model says that it does not know."""
    if answer == UNKNOWN:
        return np.nan
    said = kind_said(answer, kinds)
    return float(said is not None and said[0] in concepts and concepts[said[0]].kind == said[1])


def same_name(named: str, answer: str, kinds: str) -> float:
    """Whether two answers about one picture, its name and its kind, say the same name; NaN where both refuse."""
    if named == answer == UNKNOWN:
        return np.nan
    said = kind_said(answer, kinds)
    return float(said is not None and said[0] == name_said(named))


def both_named(answer: str, names: Sequence[str]) -> float:
    """Whether it names two things, in any order; told from the whole, as と is also in names."""
    return float(answer in [name_answer("と".join(order)) for order in (names, names[::-1])])


# ---------------------------------------------------------------------------------------------------------------------
# well-formed answers


def well_formed(concepts: Iterable[Concept]) -> re.Pattern[str]:
    """A pattern of everything that the corpus can answer: its wordings with any names, kinds, colours and counts of
    the lists. Whether they fit each other is not its matter."""
    concepts = list(concepts)
    fixed = {UNKNOWN, NO_PICTURE, MANY_COLOURS, *SMALL_TALK.values()}
    name, kind = any_of(c.name for c in concepts), any_of(c.kind for c in concepts)
    forms = [any_of(fixed), *_of_one(name, kind), *_of_two(name, kind), *_of_two_pictures(name)]
    return re.compile("|".join(f"(?:{form})" for form in forms))


def any_of(texts: Iterable[str]) -> str:
    return f"(?:{'|'.join(re.escape(text) for text in sorted(set(texts)))})"


def _of_one(name: str, kind: str) -> list[str]:
    colour, shade = any_of(COLOURS), f"{any_of(ADJECTIVES.values())}?"
    naming = [re.escape(form).replace(r"\{\}", f"{name}(?:と{name})?") for form in dict.fromkeys(NAMING.values())]
    return [
        *naming,
        f"これは{shade}(?P<shown>{name})の絵です。(?P=shown)は{kind}の仲間です。",
        f"{shade}{name}が{any_of(COUNTS[1:])}描かれています。",
        f"{name}は{kind}の仲間です。",
        f"{name}{any_of([*EATING.values(), *DRINKING.values()])}",
        f"{colour}です。",
        f"{any_of(COUNTS)}です。",
        f"背景は{colour}です。",
        f"写っているのは{name}だけです。",
    ]


def _of_two(name: str, kind: str) -> list[str]:
    colour, shade = any_of(COLOURS), f"{any_of(ADJECTIVES.values())}?"
    sides = any_of(side for both in SIDES.values() for side in both)
    described = [f"{one}に{shade}{name}、{other}に{shade}{name}が描かれています。" for one, other in SIDES.values()]
    return [
        *described,
        f"{name}は{kind}の仲間で、{name}は{kind}の仲間です。",
        f"{name}は{colour}、{name}は{colour}です。",
        f"{sides}は{name}です。",
        f"{sides}の{name}は{colour}です。",
        f"もう一つは{name}です。",
        f"{name}は{kind}、{name}は{kind}の仲間です。",
    ]


def _of_two_pictures(name: str) -> list[str]:
    return [
        f"[12]枚目は{name}です。",
        f"1枚目は{name}、2枚目は{name}です。",
    ]


# ---------------------------------------------------------------------------------------------------------------------
# one model's answers


class Paper:
    """What one model answered, beside what it was asked.

    Args:
        said: What `examine.read_answers` gives of it, exam -> `answers`, `sure`, `unknown`.
        asked: Exam -> the conversations, in the same order.
        concepts: The list, by name.
        pattern: [`well_formed`] of it, which takes a while to be made.
    """

    def __init__(
        self,
        said: Mapping[str, Mapping[str, Any]],
        asked: Mapping[str, Sequence[Asked]],
        concepts: Mapping[str, Concept],
        pattern: re.Pattern[str],
    ):
        self.said, self.asked, self.concepts, self.pattern = said, asked, concepts, pattern
        self.kinds = any_of(c.kind for c in concepts.values())

    def views(self, exam: str) -> np.ndarray:
        return np.array([each.view for each in self.asked[exam]], dtype=int)

    def last(self, exam: str) -> list[str]:
        return [answers[-1] for answers in self.said[exam]["answers"]]

    def truth(self, exam: str) -> list[str]:
        return [each.truth[-1] or "" for each in self.asked[exam]]

    def pairs(self, exam: str) -> Iterable[tuple[str, str]]:
        """Last answers with the right ones."""
        return zip(self.last(exam), self.truth(exam), strict=True)

    def right(self, exam: str) -> list[float]:
        return [float(said == true) for said, true in self.pairs(exam)]

    def scores(
        self, exam: str, values: Iterable[float], classes: Iterable | None = None, statistic: str = "mean"
    ) -> Scores:
        views = self.views(exam)
        of = np.zeros(len(views), int) if classes is None else np.unique(list(classes), return_inverse=True)[1]
        return Scores(np.array(list(values), float), views, of, statistic)

    def by_view(self, exam: str, values: Iterable) -> dict[int, Any]:
        return dict(zip(self.views(exam).tolist(), values, strict=True))


def _exact(exam: str) -> Callable[[Paper], Scores]:
    return lambda paper: paper.scores(exam, paper.right(exam))


def _kind(paper: Paper) -> Scores:
    """The true kind, whatever the name."""
    kinds = [
        [found and found[1] for found in (kind_said(each, paper.kinds) for each in p)] for p in paper.pairs("kind")
    ]
    return paper.scores("kind", (float(said is not None and said == true) for said, true in kinds))


def _kind_agrees(paper: Paper) -> Scores:
    return paper.scores("kind", (kind_agrees(said, paper.kinds, paper.concepts) for said in paper.last("kind")))


def _same_name(paper: Paper) -> Scores:
    named = paper.by_view("name", paper.last("name"))
    both = zip(paper.views("kind").tolist(), paper.last("kind"), strict=True)
    return paper.scores("kind", (same_name(named[view], said, paper.kinds) for view, said in both))


def _edible(paper: Paper) -> Scores:
    """Whether it may be eaten, whatever the name; the mean over what is true, as most things are no food."""
    verdicts = [[eating_said(each) for each in pair] for pair in paper.pairs("edible")]
    hits = (float(said is not None and said == true) for said, true in verdicts)
    return paper.scores("edible", hits, (true for _, true in verdicts))


def _description(paper: Paper) -> Scores:
    chrf = CHRF()
    return paper.scores(
        "description", (chrf.sentence_score(said, [true]).score for said, true in paper.pairs("description"))
    )


def _confirmed(only: bool | None = None) -> Callable[[Paper], Scores]:
    """It says what the thing is; `only` where that is what was asked after, or where it is not."""

    def scores(paper: Paper) -> Scores:
        hits = np.array(paper.right("confirmed"))
        own = [f"これは{true.removesuffix('。')}か?" for true in paper.truth("confirmed")]
        asked = np.array([each.questions[-1] for each in paper.asked["confirmed"]]) == np.array(own)
        return paper.scores("confirmed", hits if only is None else np.where(asked == only, hits, np.nan))

    return scores


def _two(sides: bool, of_named: bool = False) -> Callable[[Paper], Scores]:
    """Both things named in the first answer, or `sides`: both later answers right, `of_named`: where both were."""

    def scores(paper: Paper) -> Scores:
        values = []
        for said, asked in zip(paper.said["two"]["answers"], paper.asked["two"], strict=True):
            names = [true[len("左は") : -len("です。")] for true in asked.truth[1:] if true]
            named = both_named(said[0], names)
            right = float(tuple(said[1:]) == asked.truth[1:]) if sides else named
            values.append(np.nan if of_named and not named else right)
        return paper.scores("two", values)

    return scores


def _count_each(paper: Paper) -> Scores:
    return paper.scores("count", paper.right("count"), paper.truth("count"))


def _fifth(paper: Paper) -> Scores:
    """The fifth answer, where the name was right at first."""
    known = paper.by_view("name", paper.right("name"))
    both = zip(paper.views("fifth").tolist(), paper.right("fifth"), strict=True)
    return paper.scores("fifth", (hit if known[view] else np.nan for view, hit in both))


def _says_unknown(exam: str) -> Callable[[Paper], Scores]:
    return lambda paper: paper.scores(exam, (float(said == UNKNOWN) for said in paper.last(exam)))


def _against_beyond(by: str, statistic: str) -> Callable[[Paper], Scores]:
    """Listed things against those beyond the list, both asked for their name, by how little the model knows.

    By `sure` that is the doubt of the name it says; where it says that it does not know, doubt is complete.
    """

    def doubts(paper: Paper, exam: str) -> Iterable[float]:
        if by == "unknown":
            return paper.said[exam]["unknown"]
        both = zip(paper.last(exam), paper.said[exam]["sure"], strict=True)
        return [1.0 if said == UNKNOWN else 1.0 - sure for said, sure in both]

    def scores(paper: Paper) -> Scores:
        listed, beyond = (paper.scores(exam, doubts(paper, exam)) for exam in ("name", "beyond"))
        views, values = np.concatenate([listed.views, beyond.views]), np.concatenate([listed.values, beyond.values])
        return Scores(values, views, np.repeat([0, 1], [len(listed.views), len(beyond.views)]), statistic)

    return scores


def _calibration_error(paper: Paper) -> Scores:
    right = np.array(paper.right("name"), int)
    return Scores(np.array(paper.said["name"]["sure"], float), paper.views("name"), right, "calibration")


def _well_formed(paper: Paper) -> Scores:
    """All answers of all exams and turns."""
    texts = [answer for exam in paper.said for answers in paper.said[exam]["answers"] for answer in answers]
    views = [
        view
        for exam in paper.said
        for view, answers in zip(paper.views(exam).tolist(), paper.said[exam]["answers"], strict=True)
        for _ in answers
    ]
    broken = set(malformed(texts, paper.pattern))
    return Scores(np.array([float(text not in broken) for text in texts]), np.array(views), np.zeros(len(views), int))


def malformed(answers: Iterable[str], pattern: re.Pattern[str]) -> list[str]:
    """Those of the answers, once each, that are not [`well_formed`]."""
    return [text for text in dict.fromkeys(answers) if not pattern.fullmatch(text)]


# Measure -> the exams that it needs, and how it is had from them.
MEASURES: dict[str, tuple[tuple[str, ...], Callable[[Paper], Scores]]] = {
    "name": (("name",), _exact("name")),
    "kind": (("kind",), _kind),
    "kind agrees": (("kind",), _kind_agrees),
    "same name": (("name", "kind"), _same_name),
    "colour": (("colour",), _exact("colour")),
    "edible": (("edible",), _edible),
    "description": (("description",), _description),
    "confirmed": (("confirmed",), _confirmed()),
    "confirmed, asked true": (("confirmed",), _confirmed(only=True)),
    "confirmed, asked false": (("confirmed",), _confirmed(only=False)),
    "both named": (("two",), _two(sides=False)),
    "left and right": (("two",), _two(sides=True)),
    "left and right, both named": (("two",), _two(sides=True, of_named=True)),
    "count": (("count",), _exact("count")),
    "count, balanced": (("count",), _count_each),
    "fifth": (("name", "fifth"), _fifth),
    "english": (("english",), _exact("english")),
    "refused beyond": (("beyond",), _says_unknown("beyond")),
    "refused listed": (("name",), _says_unknown("name")),
    "beyond by sure": (("name", "beyond"), _against_beyond("sure", "separation")),
    "beyond by unknown": (("name", "beyond"), _against_beyond("unknown", "separation")),
    "refused beyond at 10 % lost": (("name", "beyond"), _against_beyond("unknown", "refused")),
    "calibration error": (("name",), _calibration_error),
    "well-formed": ((), _well_formed),
}


def scores_of(
    said: Mapping[str, Mapping[str, Any]],
    asked: Mapping[str, Sequence[Asked]],
    concepts: Mapping[str, Concept],
    pattern: re.Pattern[str],
) -> dict[str, Scores]:
    """All measures of one model's answers that its exams allow; for the arguments see [`Paper`]."""
    paper = Paper(said, asked, concepts, pattern)
    return {measure: score(paper) for measure, (needs, score) in MEASURES.items() if all(n in said for n in needs)}


# ---------------------------------------------------------------------------------------------------------------------
# the check

BROKEN = (
    "こんを見て。絵についてお乗り物の仲間です。",
    "こんにちは。絵について聞いてください。りんごです。",
    "りんごは",
    "りんごが写っています",
    "りんごりんごが写っています。",
    "赤いです。",
    "いいえ、りんごです。",
    "左に赤いりんご、左に犬が描かれています。",
    "これはりんごの絵です。犬は果物の仲間です。",
    "",
)


def check(conversations: int = 3000) -> None:
    """Every answer of the corpus is well-formed, and broken ones are not."""
    concepts, rng = listed_concepts(), np.random.default_rng(0)
    pattern, told = well_formed(concepts), set()
    for _ in range(conversations):
        scene, other = _any_scene(concepts, rng), _any_scene(concepts, rng)
        told |= {answer for _, answer in conversation(scene, rng, concepts)}
        told |= {answer for _, answer in comparing(scene, other, rng)}
        told.add(without_picture(concepts[rng.integers(len(concepts))], rng)[1])
    if wrong := [text for text in told if not pattern.fullmatch(text)]:
        raise SystemExit(f"not well-formed, though the corpus says it: {wrong[:10]}")
    if wrong := [text for text in BROKEN if pattern.fullmatch(text)]:
        raise SystemExit(f"well-formed, though it is broken: {wrong}")
    print(f"{len(told)} different answers of the corpus are well-formed, {len(BROKEN)} broken ones are not")


def _any_scene(concepts: Sequence[Concept], rng: np.random.Generator) -> Scene:
    """One thing once to three times, or two; now and then one beyond the list or of a colour that nobody asks."""
    colours = (*COLOURS, "", None)
    pool = [*rng.choice(np.array(concepts, object), 9, replace=False), None]
    chosen = rng.choice(10, 1 + int(rng.random() < 0.4), replace=False)
    things = tuple(Thing(pool[i], colours[rng.integers(len(colours))]) for i in chosen)
    if len(things) == 2:
        return Scene(things, 1, str(rng.choice(list(SIDES))), COLOURS[rng.integers(12)])
    return Scene(things, int(rng.integers(1, 4)), "", (*COLOURS, None)[rng.integers(13)])


if __name__ == "__main__":
    typer.run(check)
