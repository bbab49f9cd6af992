"""Which texts are whole: the measures that `evaluate` shows, as reasons why a text falls; and which say the same."""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..japanese_text import ends_open, is_loop, japanese_share, repeated_ngrams, tagged_words

SHINGLE = 5  # characters
_NUMBERS_AND_NAMES = re.compile(r"\d+(?:[.,]\d+)*|[A-Za-z][A-Za-z0-9]+")


@dataclass(frozen=True)
class Limits:
    """Where a text falls.

    Args:
        repeated: Highest share of 4-grams of words that occurred before in the text.
        japanese: Lowest share of kana and kanji among the letters.
        characters: Fewest characters.
        grown: How many times as long as before an edited text may be.
        alike: Similarity (Jaccard, of 5-grams of characters) from which two texts are one.
    """

    repeated: float = 0.2
    japanese: float = 0.5
    characters: int = 20
    grown: float = 1.5
    alike: float = 0.8


def faults(text: str, cut_off: bool, limits: Limits) -> list[str]:
    """What is wrong with a text: `empty`, `not Japanese`, `loop`, `repeated`, `unfinished`, `short`."""
    if not text.strip():
        return ["empty"]
    words = tagged_words(text)
    checks = {
        "not Japanese": japanese_share(text) < limits.japanese,
        "loop": is_loop(text),
        "repeated": repeated_ngrams([surface for surface, _, _ in words]) > limits.repeated,
        "unfinished": (cut_off and not text.rstrip().endswith(("。", "！", "？", "!", "?", ".")))
        or ends_open(text, words),
        "short": len(text.strip()) < limits.characters,
    }
    return [name for name, wrong in checks.items() if wrong]


def invented(before: str, after: str, limits: Limits) -> list[str]:
    """What an editor added: `grew`, or `new number or name` for digits and Latin words that were not there."""
    known = set(_NUMBERS_AND_NAMES.findall(unicodedata.normalize("NFKC", before)))
    new = set(_NUMBERS_AND_NAMES.findall(unicodedata.normalize("NFKC", after))) - known
    grew = len(after) > limits.grown * len(before) + limits.characters
    return ["grew"] * grew + ["new number or name"] * bool(new)


def near_duplicates(texts: Sequence[tuple[str, str]], limits: Limits) -> dict[str, str]:
    """Id of each text that says what an earlier one says, and that one's id. MinHash finds candidates, their shingles
    decide.

    Args:
        texts: Ids and texts, in order.
        limits: From which likeness on.
    """
    from datasketch import MinHash, MinHashLSH

    # A lower threshold: what is alike must be among the candidates.
    index = MinHashLSH(threshold=0.7 * limits.alike, num_perm=128)
    kept: dict[str, set[str]] = {}
    found: dict[str, str] = {}
    for name, text in texts:
        shingles = _shingles(text)
        signature = MinHash(num_perm=128, seed=1)
        signature.update_batch([shingle.encode() for shingle in sorted(shingles)])
        candidates = set(index.query(signature))
        alike = (each for each in kept if each in candidates and _likeness(kept[each], shingles) >= limits.alike)
        if (earlier := next(alike, None)) is not None:
            found[name] = earlier
        else:
            index.insert(name, signature)
            kept[name] = shingles
    return found


def _likeness(first: set[str], second: set[str]) -> float:
    return len(first & second) / len(first | second)


def _shingles(text: str) -> set[str]:
    plain = "".join(unicodedata.normalize("NFKC", text).split())
    return {plain[start : start + SHINGLE] for start in range(max(1, len(plain) - SHINGLE + 1))}


def counted(reasons: Iterable[Sequence[str]]) -> dict[str, int]:
    """How often each reason was given, the most frequent first."""
    counts: dict[str, int] = {}
    for each in reasons:
        for reason in each:
            counts[reason] = counts.get(reason, 0) + 1
    return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))
