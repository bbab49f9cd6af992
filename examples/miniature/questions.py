"""What the finished model is asked about pictures by unseen artists, and which answers are right."""

from dataclasses import dataclass

import numpy as np
from align import scene_of
from corpus import Scene, colour_answer, description, edible_answer, kind_answer, names
from drawings import Concept, Drawing
from scenes import View
from wordings import COUNTS, NAMING, SIDES, UNKNOWN


@dataclass(frozen=True)
class Asked:
    """A conversation to be held about a picture.

    Attributes:
        view: The picture's place among the views.
        questions: What the user says, one turn after another; the model's own answers stand between.
        truth: The right answer to each, `None` where none is expected to be right or wrong.
    """

    view: int
    questions: tuple[str, ...]
    truth: tuple[str | None, ...]


# Title -> what is asked of every plain picture of a listed thing, and of the scenes.
NAME, KIND, COLOUR, EDIBLE, DESCRIBE, COUNT = (
    "何が写っていますか?",
    "何の仲間?",
    "何色?",
    "食べられる?",
    "説明して",
    "いくつ?",
)
ENGLISH = "What is this?"
FIFTH = (  # the four turns before the fifth one
    ("これは何?", "何色?", "食べられる?", "ありがとう"),
    ("こんにちは", "これは何ですか?", "食べられる?", "何色?"),
    ("何の仲間?", "食べられますか?", "何色ですか?", "すごいね"),
)


def asked(exam: str, views: list[View], drawings: list[Drawing], concepts: dict[str, Concept]) -> list[Asked]:
    """The conversations of one exam, in the order of the views.

    Args:
        exam: A key of EXAMS.
        concepts: The list, by name.
    """
    rng, pool, conversations = np.random.default_rng(17), list(concepts), []
    for number, view in enumerate(views):
        if view.training:
            continue
        scene = scene_of(view, drawings, concepts)
        held = EXAMS[exam](view, scene, rng, pool)
        if held:
            questions, truth = zip(*held, strict=True)
            conversations.append(Asked(number, questions, truth))
    return conversations


Turns = list[tuple[str, str | None]]


def name_answer(names: str) -> str:
    """The right answer to NAME."""
    return NAMING[NAME].format(names)


def _plain(view: View, scene: Scene) -> bool:
    return view.kind == "plain" and scene.listed


def _name(view, scene, rng, pool) -> Turns | None:
    return [(NAME, name_answer(names(scene)))] if _plain(view, scene) else None


def _beyond(view, scene, rng, pool) -> Turns | None:
    return None if scene.listed else [(NAME, UNKNOWN)]


def _kind(view, scene, rng, pool) -> Turns | None:
    return [(KIND, kind_answer(scene))] if _plain(view, scene) else None


def _colour(view, scene, rng, pool) -> Turns | None:
    return [(COLOUR, colour_answer(scene))] if _plain(view, scene) and scene.things[0].colour else None


def _edible(view, scene, rng, pool) -> Turns | None:
    return [(EDIBLE, edible_answer(scene.things[0].concept))] if _plain(view, scene) else None


def _description(view, scene, rng, pool) -> Turns | None:
    return [(DESCRIBE, description(scene))] if _plain(view, scene) else None


def _english(view, scene, rng, pool) -> Turns | None:
    return [(ENGLISH, f"{names(scene)}です。")] if _plain(view, scene) else None


def _confirmed(view, scene, rng, pool) -> Turns | None:
    """Whether it is what it is, or another thing of the list, in turn."""
    if not _plain(view, scene):
        return None
    own, other = names(scene), str(rng.choice(pool))
    return [(f"これは{own if rng.random() < 0.5 else other}ですか?", f"{own}です。")]


def _two(view, scene, rng, pool) -> Turns | None:
    if view.kind != "two":
        return None
    places = zip(SIDES[scene.arrangement], scene.things, strict=True)
    sides = [(f"{side}は?", f"{side}は{thing.concept.name}です。") for side, thing in places]
    return [(NAME, name_answer(names(scene))), *sides]


def _count(view, scene, rng, pool) -> Turns | None:
    if view.kind != "several" and not (_plain(view, scene) and rng.random() < 0.2):
        return None
    return [(COUNT, f"{COUNTS[scene.count - 1]}です。")]


def _fifth(view, scene, rng, pool) -> Turns | None:
    """Name or kind after four other turns; where the name is right at first, so should this be."""
    if not _plain(view, scene):
        return None
    before = [(question, None) for question in FIFTH[rng.integers(len(FIFTH))]]
    last = _name if rng.random() < 0.5 else _kind
    return [*before, *(last(view, scene, rng, pool) or ())]


EXAMS = {
    "name": _name, "kind": _kind, "colour": _colour, "edible": _edible, "description": _description,
    "confirmed": _confirmed, "two": _two, "count": _count, "fifth": _fifth, "english": _english, "beyond": _beyond,
}  # fmt: skip
