"""Answers without the sentence around them: a score of this package's own.

Where every reference is 「りんごが写っています。」 but for one word, ROUGE and chrF of a wrong word are high. Here
only words with a meaning of their own count, and of these not the ones that most right answers to the same question
have in common: they are the frame, not the answer.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from ...japanese_text import tagger
from .measure import Measure, mean_of
from .tokenization import JapaneseTokenizer

# UniDic's parts of speech, and those of their kinds that only carry grammar: 事, する, いる, です.
_CONTENT = {"名詞", "動詞", "形容詞", "形状詞", "副詞", "代名詞", "感動詞"}
_GRAMMAR = {"非自立可能", "助動詞語幹"}
_NEGATIONS = {"ず", "ない", "無い"}
FRAME_SHARE = 0.5  # of the right answers to a question
FRAME_ITEMS = 5  # fewer answers show no frame


def content_words(text: str) -> list[str]:
    """Lemmas of the words that carry meaning, negations among them, in order; numbers and words that UniDic does not
    know as they stand."""
    found = []
    for word in tagger()(JapaneseTokenizer("llm-jp").normalize(text)):
        feature = word.feature
        if feature.lemma in _NEGATIONS:
            found.append("ない")
        elif feature.pos1 in _CONTENT and feature.pos2 not in _GRAMMAR and feature.pos3 not in _GRAMMAR:
            lemma = (feature.lemma or word.surface).partition("-")[0]
            found.append(word.surface if feature.pos2 == "数詞" else lemma)
    return found


def content_measures(
    answers: Sequence[str], references: Sequence[Sequence[str]], questions: Sequence[str]
) -> list[Measure]:
    """Share of answers whose content words are a reference's, in whatever order, and F1 of the two, the mean of items.

    Items whose references hold nothing but grammar are not counted.

    Args:
        answers, references, questions: Equally many; the best of several references counts.
    """
    right = [[content_words(each) for each in of] for of in references]
    frames = _frames(right, questions)
    exact, overlap = [], []
    for answer, of, question in zip(answers, right, questions, strict=True):
        frame = frames[question]
        said = Counter(word for word in content_words(answer) if word not in frame)
        wanted = [counts for each in of if (counts := Counter(word for word in each if word not in frame))]
        exact.append(100.0 * (said in wanted) if wanted else np.nan)
        overlap.append(max(_f1(said, each) for each in wanted) if wanted else np.nan)
    name = "content words [ours, without the frame of a question]"
    return [mean_of(f"exact {name}", exact, share=True), mean_of(f"F1 {name}", overlap)]


def _frames(right: Sequence[Sequence[Sequence[str]]], questions: Sequence[str]) -> dict[str, set[str]]:
    """Question -> words that more than half of its right answers have."""
    together: dict[str, list[set[str]]] = {}
    for of, question in zip(right, questions, strict=True):
        together.setdefault(question, []).extend(set(each) for each in of)
    return {question: _common(answers) for question, answers in together.items()}


def _common(answers: list[set[str]]) -> set[str]:
    if len(answers) < FRAME_ITEMS:
        return set()
    counts = Counter(word for answer in answers for word in answer)
    frame = {word for word, count in counts.items() if count > FRAME_SHARE * len(answers)}
    # Where nothing would be left of an answer (はい to a question that is mostly affirmed), it is no frame.
    return frame if all(answer - frame for answer in answers if answer) else set()


def _f1(said: Counter, wanted: Counter) -> float:
    common = (said & wanted).total()
    return 200.0 * common / (said.total() + wanted.total()) if common else 0.0
