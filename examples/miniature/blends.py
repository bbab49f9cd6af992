"""What stands for a picture while the language model learns to talk: blends of its own words, never exactly words.

A Linear layer can only lay the language model's own directions over each other, and it is never sure: a drawing by an
unseen artist lies at a cosine of 0.2 to 0.4 to the word that it shows. So the language model is taught on such vectors
from the beginning: unit vectors at every cosine to a word, and *the answer is drawn from what the vector says*, by a
softmax over its cosines to all words. It learns to read softly and by as many directions as it has words, which is
what decides whether a projection can be trained through it (README, "What it says").
"""

from dataclasses import dataclass

import numpy as np
import torch
from corpus import Scene, Thing
from drawings import COLOURS, Concept
from queries import ARRANGEMENTS, PARTS, QUERIES
from wordings import COUNTS

SHARPNESS = {"names": 32.0, "colours": 16.0, "counts": 16.0}  # of the softmax over cosines
BEYOND_AT = 0.17  # a thing whose cosine to every name is smaller is beyond the list
CERTAIN, BEYOND_SHARE = 0.08, 0.07
BEYOND, NOTHING = "分かりません", "なし"
# The words whose sum marks the places of a part.
MARKS = {
    "first": "左", "second": "右", "first colour": "左の色", "second colour": "右の色", "ground": "背景",
    "count": "数", "arrangement": "並び",
}  # fmt: skip
# Norms of the vectors. A word's embedding has 1.1, and what a layer adds to it has ten: only a long vector arrives at
# the last layer as it was.
NORM = (15.0, 120.0)
FIRST_PIECE = 1.5  # the weight of a word's first piece, which is said first


@dataclass
class Words:
    """Unit vectors of all that can be told, out of the current token embeddings.

    Attributes:
        names: `(concepts + 2, width)`; the last two are a thing beyond the list, and nothing.
        colours: `(13, width)`, the last one for many colours.
    """

    names: np.ndarray
    colours: np.ndarray
    counts: np.ndarray
    arrangements: np.ndarray
    marks: np.ndarray


class Dictionary:
    """The pieces of all words that can be told; makes [`Words`] of them as the embeddings change."""

    def __init__(self, encode, concepts: list[Concept], vocabulary: int):
        words = {
            "names": [*(c.name for c in concepts), BEYOND, NOTHING],
            "colours": [*COLOURS, "いろいろ"],
            "counts": COUNTS,
            "arrangements": ("一つだけ", "左右", "上下"),
            "marks": MARKS.values(),
        }
        self.bags = {kind: _bags([encode(word) for word in each], vocabulary) for kind, each in words.items()}

    @torch.no_grad()
    def words(self, embedding: torch.nn.Embedding) -> Words:
        weight = embedding.weight.float().cpu().numpy()
        vectors = {kind: bags @ weight for kind, bags in self.bags.items()}
        vectors["names"] -= vectors["names"][:-2].mean(0)
        for kind in ("colours", "counts", "arrangements"):  # what they have in common tells nothing
            vectors[kind] -= vectors[kind].mean(0)
        return Words(**{kind: _unit(each) for kind, each in vectors.items()})


def _bags(words: list[list[int]], vocabulary: int) -> np.ndarray:
    bags = np.zeros((len(words), vocabulary), np.float32)
    for row, pieces in enumerate(words):
        np.add.at(bags[row], pieces, [FIRST_PIECE] + [1.0] * (len(pieces) - 1))
    return bags


def _unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def at_cosine(vector: np.ndarray, cosine: float, rng: np.random.Generator) -> np.ndarray:
    """A random unit vector at a cosine to a unit vector."""
    away = rng.standard_normal(vector.shape).astype(np.float32)
    away = _unit(away - (away @ vector) * vector)
    return cosine * vector + (1 - cosine * cosine) ** 0.5 * away


class Blends:
    """Scenes and the vectors that tell of them."""

    def __init__(self, concepts: list[Concept]):
        self.concepts = concepts

    def draw(self, words: Words, rng: np.random.Generator, alone: bool = False) -> tuple[np.ndarray, Scene]:
        """Vectors `(QUERIES, width)`, and the scene that may be said of them.

        Args:
            alone: Only one thing.
        """
        share = 1.0 if alone else rng.random()
        arrangement = int(rng.choice([1, 2], p=[0.7, 0.3])) if share < 0.35 else 0
        first, one = self._name(words, rng)
        second, other = self._name(words, rng) if arrangement else self._nothing(words, rng)
        if arrangement and one == other:
            return self.draw(words, rng)
        count = int(rng.integers(1, 3)) if 0.35 <= share < 0.5 else int(arrangement > 0)
        told = {"first": first, "second": second}
        told["first colour"], colour = self._choice(words, "colours", int(rng.integers(13)), 0.2, rng)
        told["second colour"], other_colour = self._choice(words, "colours", int(rng.integers(13)), 0.2, rng)
        white = COLOURS.index("白")
        of_ground = white if rng.random() < 0.4 else int(rng.integers(12))
        told["ground"], ground = self._choice(words, "colours", of_ground, 0.3, rng, len(COLOURS))
        told["count"], count = self._choice(words, "counts", count, 0.4, rng)
        told["arrangement"] = at_cosine(words.arrangements[arrangement], float(rng.uniform(0.6, 1.0)), rng)
        things = [self._thing(one, colour, rng)]
        if other is not None:
            things.append(self._thing(other, other_colour, rng))
        scene = Scene(tuple(things), 1 if arrangement else count + 1, ARRANGEMENTS[arrangement], COLOURS[ground])
        return self._laid_out(told, words, rng), scene

    def _name(self, words: Words, rng: np.random.Generator) -> tuple[np.ndarray, int]:
        """A vector, and the name that is drawn from what it says; `len(concepts)` is a thing beyond the list."""
        beyond = len(self.concepts)
        meant = beyond if rng.random() < BEYOND_SHARE else int(rng.integers(beyond))
        cosine = 1.0 if rng.random() < CERTAIN else 0.12 + 0.88 * rng.random() ** 2
        vector = at_cosine(words.names[meant], float(cosine), rng)
        cosines = words.names[: beyond + 1] @ vector
        cosines[beyond] = max(cosines[beyond], BEYOND_AT)
        return vector, _drawn(SHARPNESS["names"] * cosines, rng)

    def _nothing(self, words: Words, rng: np.random.Generator) -> tuple[np.ndarray, None]:
        return at_cosine(words.names[-1], float(rng.uniform(0.5, 1.0)), rng), None

    def _choice(
        self, words: Words, kind: str, meant: int, lowest: float, rng: np.random.Generator, of: int | None = None
    ) -> tuple[np.ndarray, int]:
        table = getattr(words, kind)
        vector = at_cosine(table[meant], float(rng.uniform(lowest, 1.0)), rng)
        return vector, _drawn(SHARPNESS[kind] * (table[:of] @ vector), rng)

    def _thing(self, name: int, colour: int, rng: np.random.Generator) -> Thing:
        concept = self.concepts[name] if name < len(self.concepts) else None
        return Thing(concept, None if rng.random() < 0.1 else (*COLOURS, "")[colour])

    def _laid_out(self, told: dict[str, np.ndarray], words: Words, rng: np.random.Generator) -> np.ndarray:
        """Each part at its places with its mark; places of one part differ a little, and no norm is fixed."""
        vectors = np.zeros((QUERIES, words.names.shape[1]), np.float32)
        for (part, places), mark in zip(PARTS.items(), words.marks, strict=True):
            vectors[places] = told[part] + rng.uniform(0.5, 1.1) * mark
        apart = rng.uniform(0.0, 0.6) * np.where(np.arange(QUERIES) < PARTS["first colour"].start, 1.0, 0.5)
        vectors += apart[:, None] * _unit(rng.standard_normal(vectors.shape))
        return (vectors * np.exp(rng.uniform(*np.log(NORM)))).astype(np.float32)


def _drawn(scores: np.ndarray, rng: np.random.Generator) -> int:
    shares = np.exp((scores - scores.max()).astype(np.float64))
    return int(rng.choice(len(shares), p=shares / shares.sum()))
