"""Japanese text: its words, and whether it is whole: repetition, broken sentences, silence, other languages, length.

MiniGPT-4 was found to repeat itself and to break off after its first training stage (Zhu et al. 2023, section 3.2).
"""

import functools
import importlib
import os
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .extras import install_command

REPEATED = 4  # words of the n-grams whose repetition is counted
# One character six times on end, or a longer piece three times on end.
_LOOP = re.compile(r"([^\W\d_])\1{5,}|(.{2,40}?)\2{2,}", re.DOTALL)
# No Japanese sentence or noun phrase ends on these parts of speech of UniDic.
_OPEN_ENDS = {("助詞", "格助詞"), ("助詞", "係助詞"), ("補助記号", "読点"), ("補助記号", "括弧開")}
_OPEN_KINDS = {"接頭辞", "連体詞"}
_BRACKETS = {"「": "」", "『": "』", "（": "）", "(": ")", "【": "】"}


@functools.cache
def tagger() -> Any:
    """MeCab with unidic-lite, whichever other dictionaries are installed.

    Raises:
        ImportError: fugashi or unidic-lite is not installed; the message names the remedy.
    """
    try:
        mecab: Any = importlib.import_module("fugashi")
        dictionary: Any = importlib.import_module("unidic_lite")
    except ImportError:
        raise ImportError(f"Japanese scores need fugashi and unidic-lite: {install_command('evaluate')}.") from None
    return mecab.Tagger(f'-r "{os.devnull}" -d "{dictionary.DICDIR}"')


@dataclass(frozen=True)
class Health:
    """Shares are in percent of the answers.

    Args:
        answers: How many there are.
        repeated_ngrams: Mean share of 4-grams of words that occurred before in the same answer.
        loops: Answers that say the same piece over and over.
        cut_off: Answers ended by the token limit; `None` where that is not known.
        unfinished: Answers that end where no sentence ends: on a case particle, a comma, an open bracket.
        empty: Answers without a visible character.
        not_japanese: Answers with letters, fewer than half of which are kana or kanji.
        characters: Mean length in characters.
        words: Mean length in words.
        longest: Length of the longest answer in characters.
    """

    answers: int
    repeated_ngrams: float
    loops: float
    cut_off: float | None
    unfinished: float
    empty: float
    not_japanese: float
    characters: float
    words: float
    longest: int

    def as_dict(self) -> dict[str, float | int | None]:
        return asdict(self)


def health(answers: Sequence[str], cut_off: Sequence[bool | None]) -> Health:
    """Looks through all answers of a benchmark.

    Args:
        answers: At least one.
        cut_off: Whether each was ended by the token limit, `None` where not known.
    """
    known = [each for each in cut_off if each is not None]
    tagged = [tagged_words(answer) for answer in answers]
    surfaces = [[surface for surface, _, _ in words] for words in tagged]
    return Health(
        answers=len(answers),
        repeated_ngrams=_percent(map(repeated_ngrams, surfaces)),
        loops=_percent(map(is_loop, answers)),
        cut_off=_percent(known) if known else None,
        unfinished=_percent(ends_open(answer, words) for answer, words in zip(answers, tagged, strict=True)),
        empty=_percent(not answer.strip() for answer in answers),
        not_japanese=_percent(japanese_share(answer) < 0.5 for answer in answers),
        characters=float(np.mean([len(answer) for answer in answers])),
        words=float(np.mean([len(words) for words in surfaces])),
        longest=max(map(len, answers)),
    )


def tagged_words(text: str) -> list[tuple[str, str, str]]:
    """Surface forms of a text with the first two of UniDic's parts of speech."""
    return [(word.surface, word.feature.pos1, word.feature.pos2) for word in tagger()(text)]


def _percent(values) -> float:
    return 100 * float(np.mean([float(value) for value in values]))


def repeated_ngrams(words: Sequence[str]) -> float:
    """Share of 4-grams that occurred before in the same text; 0 for texts too short to have any."""
    ngrams = [tuple(words[start : start + REPEATED]) for start in range(len(words) - REPEATED + 1)]
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def is_loop(text: str) -> bool:
    """Whether one character stands six times on end, or a longer piece three times, of twelve characters or more."""
    return any(match[1] or len(match[0]) >= 12 for match in _LOOP.finditer(text))


def ends_open(text: str, words: Sequence[tuple[str, str, str]]) -> bool:
    """Whether a text ends where no sentence ends; `words` are its surfaces with UniDic's parts of speech."""
    if not words:
        return False
    _, kind, subkind = words[-1]
    if (kind, subkind) in _OPEN_ENDS or kind in _OPEN_KINDS:
        return True
    return any(text.count(opening) > text.count(closing) for opening, closing in _BRACKETS.items())


def japanese_share(text: str) -> float:
    """Share of kana and kanji among the letters; 1 for texts without letters, such as "3"."""
    letters = [character for character in text if unicodedata.category(character).startswith("L")]
    if not letters:
        return 1.0
    names = [unicodedata.name(letter, "") for letter in letters]
    return sum(name.startswith(("HIRAGANA", "KATAKANA", "CJK", "HALFWIDTH KATAKANA")) for name in names) / len(letters)
