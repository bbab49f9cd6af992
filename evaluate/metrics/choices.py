"""JMMMU's accuracy: which option or value an answer names, read by the rules of MMMU's own evaluation.

The rules are those of MMMU-Benchmark's `eval_utils.py` as JMMMU adapted them for Japanese (lmms-eval and
llm-jp-eval-mm carry the same). An answer that names no option is wrong; lmms-eval draws one at
random, which adds noise.
"""

import re
from collections.abc import Sequence

from ..benchmarks.jmmmu import letters
from .measure import Measure, mean_of

_ENDS = (",", ".", "!", "?", ";", ":", "'", "、", "。", "！", "？", "；", "：")
_JAPANESE = "[\u3040-\u30ff\u4e00-\u9fff]"
_INTRODUCTIONS = ("よって", "よって、", "答えは", "答えは、", "最終的に", "最終的に、", "解答は", "回答は、")
_NUMBERS = (
    r"-?\b\d{1,3}(?:,\d{3})+\b",
    r"-?\d+(?:\.\d+)?[eE][+-]?\d+",
    r"-?(?:\d+\.\d+|\.\d+|\d+)(?![eE][+-]?\d+)(?![,\d])",
    r"(\d+)(?:つ|個|度|円|人|年|匹|台|%)",
)


def accuracy(
    answers: Sequence[str], references: Sequence[Sequence[str]], options: Sequence[list[str] | None]
) -> Measure:
    """Share of right answers in percent; `options` is `None` where none are given to choose from."""
    hits = [
        100.0 * (chosen_option(answer, given) in of if given else names_value(answer, of))
        for answer, of, given in zip(answers, references, options, strict=True)
    ]
    return mean_of("accuracy", hits, share=True)


def chosen_option(answer: str, options: list[str]) -> str | None:
    """The letter of the option that an answer names, `None` where it names none."""
    for end in _ENDS:
        answer = answer.strip(end)
    answer = f" {answer} "
    named = letters(options)
    for pattern, place in (
        (r"\({}\)", r"({})"),
        (r"{} ", r" {} "),
        (_JAPANESE + "{}" + _JAPANESE, r" {} "),
        (r"{}\.", r" {} "),
    ):
        found = [letter for letter in named if re.search(pattern.format(letter), answer)]
        if found:
            return _last(found, [answer.rfind(place.format(letter)) for letter in found])
    if len(answer.split()) > 5:
        lower = answer.lower()
        spelt = {letter: text.lower() for letter, text in zip(named, options, strict=True) if text.lower() in lower}
        if spelt:
            return _last(list(spelt), [lower.rfind(text) for text in spelt.values()])
    return None


def _last(candidates: list[str], places: list[int]) -> str:
    return candidates[places.index(max(places))]


def names_value(answer: str, references: Sequence[str]) -> bool:
    """Whether an open answer contains a reference: as a number among its numbers, or as a text within it."""
    right = {value for reference in references for value in _values(reference)}
    spelt = [value for value in right if isinstance(value, str)]
    for value in {value for part in _key_parts(answer) for text in (part, *_numbers(part)) for value in _values(text)}:
        if any(each in value for each in spelt) if isinstance(value, str) else value in right:
            return True
    return False


def _values(text: str) -> Sequence[str | float]:
    """A number, to two decimals, or the text in lower case; a single character only with a space beside it."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
        return [f" {text}", f"{text} "] if len(text) == 1 else [text]


def _numbers(text: str) -> list[str]:
    return [number for pattern in _NUMBERS for number in re.findall(pattern, text)]


def _key_parts(answer: str) -> list[str]:
    """What stands behind "the answer is" and the like in each sentence, the shortest; else the whole answer."""
    answer = answer.strip().strip("。")
    sentences = re.split(r"[。！？.]\s*|\n", answer)
    parts = []
    for number, sentence in enumerate(sentences):
        # An equation counts in the last sentence only.
        introductions = _INTRODUCTIONS + (("＝", "=") if number == len(sentences) - 1 else ())
        shortest = ""
        for behind in (sentence.split(each)[-1].strip() for each in introductions if each in sentence):
            if not shortest or len(behind) < len(shortest):
                shortest = behind
        if shortest and shortest not in _ENDS:
            parts.append(shortest)
    return parts or [answer]
