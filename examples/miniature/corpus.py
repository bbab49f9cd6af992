"""What is said about a picture: scenes, and conversations about them.

The language model learns these conversations with blends of its own words in the place of a picture (`blends.py`); the
projection later puts image tokens there. Both stages draw their conversations from here, so that what the projection
has to supply is only what the picture shows.
"""

from dataclasses import dataclass

import numpy as np
from drawings import COLOURS, Concept
from wordings import (
    ADJECTIVES,
    ANIMATE,
    BEING_THERE,
    BEYOND,
    COLOUR,
    CONFIRMING,
    COUNTING,
    COUNTS,
    DESCRIPTION,
    DRINKABLE,
    DRINKING,
    EATING,
    EDIBLE,
    FIRST,
    GROUND,
    KIND,
    MANY_COLOURS,
    NAMING,
    NO_PICTURE,
    OTHER,
    SAME,
    SAME_THING,
    SECOND,
    SIDES,
    SMALL_TALK,
    UNKNOWN,
    WHERE,
)

Turn = tuple[str, str]


@dataclass(frozen=True)
class Thing:
    """`concept`: `None` where it is beyond the list. `colour`: a name of COLOURS, "" for many, `None`: nobody asks."""

    concept: Concept | None
    colour: str | None = None


@dataclass(frozen=True)
class Scene:
    """One thing `count` times, or two different things, `arrangement` "side" or "above", the left or upper one first;
    `ground`: the colour that they are on, `None` where nobody asks."""

    things: tuple[Thing, ...]
    count: int = 1
    arrangement: str = ""
    ground: str | None = None

    @property
    def listed(self) -> bool:
        return all(thing.concept for thing in self.things)


def _ask(question: str, rng: np.random.Generator) -> str:
    """The same question as different people type it."""
    if question.endswith("?") and rng.random() < 0.2:
        question = question[:-1] + str(rng.choice(["", "。", "?"]))
    return question


def _of(wordings: tuple[str, ...], rng: np.random.Generator) -> str:
    return _ask(wordings[rng.integers(len(wordings))], rng)


# ---------------------------------------------------------------------------------------------------------------------
# answers


def shade(thing: Thing) -> str:
    return ADJECTIVES.get(thing.colour or "", "")


def names(scene: Scene) -> str:
    return "と".join(thing.concept.name for thing in scene.things)


def description(scene: Scene) -> str:
    """`これは赤いりんごの絵です。りんごは果物の仲間です。`, `左に赤いりんご、右に茶色い犬が描かれています。`"""
    if not scene.listed:
        return UNKNOWN
    told = [f"{shade(thing)}{thing.concept.name}" for thing in scene.things]
    if len(told) == 2:
        first, second = SIDES[scene.arrangement]
        return f"{first}に{told[0]}、{second}に{told[1]}が描かれています。"
    if scene.count > 1:
        return f"{told[0]}が{COUNTS[scene.count - 1]}描かれています。"
    concept = scene.things[0].concept
    return f"これは{told[0]}の絵です。{concept.name}は{concept.kind}の仲間です。"


def kind_answer(scene: Scene) -> str:
    if not scene.listed:
        return UNKNOWN
    parts = [f"{thing.concept.name}は{thing.concept.kind}の仲間" for thing in scene.things]
    return "で、".join(parts) + "です。"


def colour_answer(scene: Scene) -> str | None:
    colours = [thing.colour for thing in scene.things]
    if len(colours) == 1:
        return None if colours[0] is None else f"{colours[0]}です。" if colours[0] else MANY_COLOURS
    if not scene.listed or not all(colours):
        return None
    return "、".join(f"{t.concept.name}は{t.colour}" for t in scene.things) + "です。"


def edible_answer(concept: Concept) -> str:
    """The name first, as for kinds: what is known of a word is told of a word that stands there."""
    return concept.name + EATING["food" if concept.edible else "drink" if concept.drinkable else "neither"]


def drinkable_answer(concept: Concept) -> str:
    return concept.name + DRINKING[concept.drinkable]


def naming(scene: Scene, rng: np.random.Generator) -> Turn:
    question, answer = list(NAMING.items())[rng.integers(len(NAMING))]
    where = str(rng.choice(WHERE)) if question.startswith("何が") else ""
    return where + _ask(question, rng), answer.format(names(scene)) if scene.listed else UNKNOWN


def describing(scene: Scene, rng: np.random.Generator) -> Turn:
    return _of(DESCRIPTION, rng), description(scene)


def colouring(scene: Scene, rng: np.random.Generator) -> Turn | None:
    answer = colour_answer(scene)
    return (_of(COLOUR, rng), answer) if answer else None


def kind_of(scene: Scene, rng: np.random.Generator) -> Turn:
    return _of(KIND, rng), kind_answer(scene)


def eating(scene: Scene, rng: np.random.Generator) -> Turn | None:
    if len(scene.things) > 1:
        return None
    concept = scene.things[0].concept
    if rng.random() < 0.15:
        return _of(DRINKABLE, rng), drinkable_answer(concept) if concept else UNKNOWN
    return _of(EDIBLE, rng), edible_answer(concept) if concept else UNKNOWN


def counting(scene: Scene, rng: np.random.Generator) -> Turn:
    return _of(COUNTING, rng), f"{COUNTS[max(scene.count, len(scene.things)) - 1]}です。"


def grounding(scene: Scene, rng: np.random.Generator) -> Turn | None:
    return (_of(GROUND, rng), f"背景は{scene.ground}です。") if scene.ground else None


def placing(scene: Scene, rng: np.random.Generator) -> Turn | None:
    """`左は?` of two things; of one, that it is alone."""
    if not scene.listed:
        return None
    both = SIDES[scene.arrangement or str(rng.choice(["side", "above"]))]
    return _placed(scene, both, int(rng.integers(2)), rng)


def _placed(scene: Scene, both: tuple[str, str], which: int, rng: np.random.Generator) -> Turn:
    question = _ask(
        both[which] + str(rng.choice(["は?", "は何?", "は何ですか?", "には何がありますか?", "にあるのは何ですか?"])),
        rng,
    )
    if len(scene.things) == 1:
        return question, f"写っているのは{names(scene)}だけです。"
    thing = scene.things[which]
    if thing.colour and rng.random() < 0.25:
        return f"{both[which]}は何色?", f"{both[which]}の{thing.concept.name}は{thing.colour}です。"
    return question, f"{both[which]}は{thing.concept.name}です。"


def other(scene: Scene, rng: np.random.Generator, before: str) -> Turn | None:
    """`もう一つは?`: not the one that the question before was about, if it was about one."""
    if not scene.listed:
        return None
    if len(scene.things) == 1:
        return _of(OTHER, rng), f"写っているのは{names(scene)}だけです。"
    which = 0 if before.startswith(SIDES[scene.arrangement][1]) else 1
    return _of(OTHER[:3], rng), f"もう一つは{scene.things[which].concept.name}です。"


def same_kind(scene: Scene, rng: np.random.Generator) -> Turn | None:
    known = [thing.concept for thing in scene.things if thing.concept]
    return (_of(SAME, rng), _same_kind(*known)) if len(known) == 2 else None


def _same_kind(first: Concept, second: Concept) -> str:
    return f"{first.name}は{first.kind}、{second.name}は{second.kind}の仲間です。"


def confirming(scene: Scene, rng: np.random.Generator, listed: list[Concept]) -> Turn:
    """`これはりんごですか?`, true in half of the cases; of two things, whether one is there. The answer tells what
    is seen, `にんじんです。`: two layers do not learn to compare that with what was asked."""
    own = [thing.concept for thing in scene.things if thing.concept]
    asked = own[rng.integers(len(own))] if own and rng.random() < 0.5 else listed[rng.integers(len(listed))]
    if len(scene.things) == 2 or rng.random() < 0.2:
        questions, answer = BEING_THERE[asked.kind in ANIMATE], "{}が写っています。"
    else:
        questions, answer = CONFIRMING, "{}です。"
    return _of(questions, rng).format(asked.name), answer.format(names(scene)) if scene.listed else UNKNOWN


def beyond(rng: np.random.Generator) -> Turn:
    return str(BEYOND[rng.integers(len(BEYOND))]), UNKNOWN


def chatting(rng: np.random.Generator) -> Turn:
    return list(SMALL_TALK.items())[rng.integers(len(SMALL_TALK))]


# ---------------------------------------------------------------------------------------------------------------------
# conversations

# Topic -> how often it is drawn for a first and for a later turn.
_TOPICS = {
    "naming": (0.36, 0.12), "describing": (0.12, 0.05), "colouring": (0.1, 0.13), "kind_of": (0.09, 0.13),
    "eating": (0.06, 0.08), "counting": (0.06, 0.08), "grounding": (0.04, 0.06), "placing": (0.06, 0.12),
    "other": (0.01, 0.07), "same_kind": (0.03, 0.06), "confirming": (0.17, 0.17), "beyond": (0.03, 0.06),
    "chatting": (0.02, 0.05),
}  # fmt: skip
_PLAIN = {
    f.__name__: f for f in (naming, describing, colouring, kind_of, eating, counting, grounding, placing, same_kind)
}
_WEIGHTS = np.array(list(_TOPICS.values())) / np.sum(list(_TOPICS.values()), axis=0)
LENGTHS = (0.38, 0.24, 0.14, 0.08, 0.06, 0.05, 0.03, 0.02)


def turn(topic: str, scene: Scene, rng: np.random.Generator, listed: list[Concept], before: str) -> Turn | None:
    """A question on a topic with its answer; `None` where it cannot be asked. `before` is the question before."""
    if topic == "beyond":
        return beyond(rng)
    if topic == "chatting":
        return chatting(rng)
    if topic == "confirming":
        return confirming(scene, rng, listed)
    if topic == "other":
        return other(scene, rng, before)
    return _PLAIN[topic](scene, rng)


def conversation(
    scene: Scene, rng: np.random.Generator, listed: list[Concept], turns: int | None = None
) -> list[Turn]:
    """One to eight questions about a scene, each with its answer; `listed`: what may be asked after."""
    if turns is None and len(scene.things) == 2 and scene.listed and rng.random() < 0.5:
        return looking_around(scene, rng)
    wanted = turns or 1 + int(rng.choice(len(LENGTHS), p=LENGTHS))
    topics, taken = list(_TOPICS), []
    if rng.random() < 0.06 and wanted > 1:
        taken.append(chatting(rng))
    while len(taken) < wanted:
        topic = topics[rng.choice(len(topics), p=_WEIGHTS[:, min(len(taken), 1)])]
        chosen = turn(topic, scene, rng, listed, taken[-1][0] if taken else "")
        if chosen:
            taken.append(chosen)
    return taken


def looking_around(scene: Scene, rng: np.random.Generator) -> list[Turn]:
    """A conversation about two listed things that goes from one to the other, with two to five questions. Where
    topics are drawn by chance, who was told what is on the left hardly ever asks for the right, and a language model
    learns to say the same again."""
    both, turns = SIDES[scene.arrangement], [naming(scene, rng)] if rng.random() < 0.7 else []
    for which in rng.permutation(2).tolist():
        if turns and rng.random() < 0.25 and (turn := other(scene, rng, turns[-1][0])):
            turns.append(turn)
        turns.append(_placed(scene, both, which, rng))
    if rng.random() < 0.4 and (turn := _PLAIN[str(rng.choice(["same_kind", "kind_of", "colouring"]))](scene, rng)):
        turns.append(turn)
    return turns


# Topic -> how often it is drawn where one question is to tell much of a picture, and for one that follows.
_TELLING = {
    "describing": 0.34, "naming": 0.2, "placing": 0.16, "kind_of": 0.1, "colouring": 0.1, "counting": 0.06,
    "grounding": 0.04,
}  # fmt: skip
_FOLLOWING = {"colouring": 0.4, "kind_of": 0.25, "placing": 0.15, "counting": 0.1, "grounding": 0.1}


def telling(scene: Scene, rng: np.random.Generator) -> list[Turn]:
    """A question whose answer tells what the picture shows, as far as one answer can. Behind some stands another, and
    two things are looked at one after the other now and then, so that nothing but first questions is met."""
    if len(scene.things) == 2 and scene.listed and rng.random() < 0.4:
        return looking_around(scene, rng)
    turns = [_drawn(_TELLING, scene, rng)]
    if len(scene.things) == 1 and scene.listed and rng.random() < 0.25:
        turns.append(_drawn(_FOLLOWING, scene, rng))
    return turns


def _drawn(topics: dict[str, float], scene: Scene, rng: np.random.Generator) -> Turn:
    chosen = None
    while not chosen:
        chosen = _PLAIN[str(rng.choice(list(topics), p=list(topics.values())))](scene, rng)
    return chosen


def comparing(first: Scene, second: Scene, rng: np.random.Generator) -> list[Turn]:
    """One to three questions about two pictures of one thing each that are shown together."""
    scenes = (first, second)
    told = [scene.things[0].concept for scene in scenes]
    known = [concept for concept in told if concept]
    named = "1枚目は{}、2枚目は{}です。".format(*(c.name for c in known)) if len(known) == 2 else UNKNOWN
    turns = []
    for topic in rng.choice(5, size=int(rng.choice([1, 2, 3], p=[0.5, 0.3, 0.2])), replace=False):
        if topic in (0, 1):
            concept, number = told[topic], ("1枚目", "2枚目")[topic]
            turns.append((_of((FIRST, SECOND)[topic], rng), f"{number}は{concept.name}です。" if concept else UNKNOWN))
        elif topic == 2:
            turns.append((_of(tuple(NAMING)[:12], rng), named))
        elif len(known) < 2:
            turns.append((_of(SAME, rng), UNKNOWN))
        elif topic == 3:
            turns.append((_of(SAME_THING, rng), named))
        else:
            turns.append((_of(SAME, rng), _same_kind(*known)))
    return turns


def _about_a_picture(concept: Concept) -> list[str]:
    sides = [f"{side}は?" for both in SIDES.values() for side in both]
    asked_after = [form.format(concept.name) for form in (*CONFIRMING[::4], *BEING_THERE[concept.kind in ANIMATE])]
    plain = [*NAMING, *DESCRIPTION[:10], *COLOUR, *KIND, *EDIBLE, *COUNTING, *GROUND, *OTHER]
    return [*plain, *sides, *asked_after]


def without_picture(concept: Concept, rng: np.random.Generator) -> Turn:
    """A question where no picture was shown."""
    draw = rng.random()
    if draw < 0.4:
        questions = _about_a_picture(concept)
        return _ask(questions[rng.integers(len(questions))], rng), NO_PICTURE
    if draw < 0.55:
        return chatting(rng)
    if draw < 0.65:
        return beyond(rng)
    if draw < 0.85:
        return f"{concept.name}は何の仲間ですか?", f"{concept.name}は{concept.kind}の仲間です。"
    return f"{concept.name}は食べられますか?", edible_answer(concept)


def sentence(concept: Concept, rng: np.random.Generator, listed: list[Concept]) -> str:
    """A plain sentence about a concept."""
    colour = ADJECTIVES[str(rng.choice(COLOURS))] if rng.random() < 0.5 else ""
    patterns = (
        f"{concept.name}は{concept.kind}の仲間です。", f"{concept.kind}の仲間には{concept.name}があります。",
        f"これは{colour}{concept.name}の絵です。",
        f"{concept.name}と{listed[rng.integers(len(listed))].name}の絵を見ました。",
        f"昨日、{concept.name}の絵を描きました。", f"絵の中に{colour}{concept.name}が見えます。",
        f"{concept.name}は食べられます。" if concept.edible else f"{concept.name}は食べ物ではありません。",
    )  # fmt: skip
    return patterns[rng.integers(len(patterns))]
