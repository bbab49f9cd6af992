"""Ten whole conversations with the finished model about pictures by artists that no stage has seen, good and bad ones.

Pictures and questions are drawn at random, once: `report.py` writes what was said to conversations.md.
"""

from pathlib import Path

import numpy as np
from align import scene_of
from corpus import Scene, Turn, conversation
from drawings import Concept
from examine import CANDIDATES, Examination, encode
from questions import Asked
from scenes import View
from wordings import COUNTS, SIDES

ARTISTS = {"twemoji": "Twemoji", "openmoji": "OpenMoji"}
KINDS = ("plain", "two", "several", "plain", "two")  # of picture, one conversation each an artist
TURNS, SEED = 5, 16
ROW = "trained projection, seed 0"
SIDES_ENGLISH = {"左": "left", "右": "right", "上": "above", "下": "below"}
HEAD = """# Ten conversations

Pictures by two artists of whom no stage has seen anything, and questions of the corpus, both drawn at random with a
fixed seed: nothing was chosen or left out. The projection is that of seed 0, and the model reads its own answers as
the conversation goes on. ✓: the expected answer to the letter; ✗ stands before the one that was expected.
"""


def drawn(examination: Examination) -> list[tuple[Asked, Scene]]:
    """The conversations to be held, with what their pictures show."""
    rng, listed, held = np.random.default_rng(SEED), list(examination.concepts.values()), []
    for kind in KINDS:
        for artist in ARTISTS:
            pool = [n for n, view in enumerate(examination.views) if _is(view, kind, artist, examination)]
            number = pool[rng.integers(len(pool))]
            scene = scene_of(examination.views[number], examination.drawings, examination.concepts)
            questions, truth = zip(*_in_words(scene, rng, listed), strict=True)
            held.append((Asked(number, questions, truth), scene))
    return held


def _is(view: View, kind: str, artist: str, examination: Examination) -> bool:
    return not view.training and view.kind == kind and examination.drawings[view.drawings[0]].artist == artist


def _in_words(scene: Scene, rng: np.random.Generator, listed: list[Concept]) -> list[Turn]:
    """A conversation of TURNS different questions. The corpus also asks twice, and shows a picture without a word."""
    turns = conversation(scene, rng, listed, TURNS)
    asked = {question.rstrip("。?") for question, _ in turns} - {""}
    return turns if len(asked) == TURNS else _in_words(scene, rng, listed)


def shown(asked: Asked, scene: Scene, examination: Examination) -> str:
    """`Twemoji: りんご (left), 犬 (right)`, `OpenMoji: りんご, 三つ`, `Twemoji: 握手 (beyond the list)`."""
    drawings = [examination.drawings[i] for i in examination.views[asked.view].drawings]
    sides = [f" ({SIDES_ENGLISH[side]})" for side in SIDES.get(scene.arrangement, ())] or [""]
    things = [
        f"{drawing.concept}{side}{'' if thing.concept else ' (beyond the list)'}"
        for drawing, thing, side in zip(drawings, scene.things, sides, strict=True)
    ]
    count = f", {COUNTS[scene.count - 1]}" if scene.count > 1 else ""
    return f"{ARTISTS[drawings[0].artist]}: {', '.join(things)}{count}"


def write(work: Path, examination: Examination, path: Path) -> None:
    """Holds the conversations and writes them down."""
    held = drawn(examination)
    speaker = CANDIDATES[ROW].speaker(work)
    views = sorted({asked.view for asked, _ in held})
    features = dict(zip(views, encode(speaker.model, work / "eyes", views), strict=True))
    answers = speaker.hold([asked for asked, _ in held], features).answers
    parts = [HEAD]
    for number, ((asked, scene), said) in enumerate(zip(held, answers, strict=True), 1):
        lines = [f"## {number}. {shown(asked, scene, examination)}", "", "| asked | said | |", "|---|---|---|"]
        for question, answer, truth in zip(asked.questions, said, asked.truth, strict=True):
            lines.append(f"| {question} | {answer} | {'✓' if answer == truth else f'✗ {truth}'} |")
        parts.append("\n".join(lines) + "\n")
    path.write_text("\n".join(parts), encoding="utf-8")
