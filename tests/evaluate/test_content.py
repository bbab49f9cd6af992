"""Content words: what is answered, without the sentence around it."""

import numpy as np
import pytest

from jminigpt4.evaluate.metrics.content import content_measures, content_words


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("りんごが写っています。", ["林檎", "写る"]),
        ("リンゴが写ってる", ["林檎", "写る"]),
        ("赤いです。", ["赤い"]),
        ("３頭の牛がいます", ["3", "牛"]),
        ("いいえ、食べられません。", ["いいえ", "食べる", "ない"]),
        ("食べられます", ["食べる"]),
        ("です。", []),
    ],
)
def test_words_that_carry_meaning(text, found):
    assert content_words(text) == found


def scores(answers, references, questions) -> tuple[list[float], list[float]]:
    return tuple(measure.items.tolist() for measure in content_measures(answers, references, questions))


def test_the_frame_of_a_question_earns_nothing():
    things = ["りんご", "猫", "鍵", "船", "犬"]
    references = [(f"{thing}が写っています。",) for thing in things]
    answers = ["りんごです", "犬が写っています。", "鍵と船が写っています。", "写っています。", "犬が写っています。"]
    exact, overlap = scores(answers, references, ["何が写ってる?"] * 5)
    assert exact == [100, 0, 0, 0, 100]
    assert overlap == pytest.approx([100, 0, 200 / 3, 0, 100])


def test_an_answer_is_never_frame():
    """はい is right of four in five, and still an answer."""
    references = [("はい",)] * 4 + [("いいえ",)]
    exact, _ = scores(["はい"] * 5, references, ["食べられる?"] * 5)
    assert exact == [100, 100, 100, 100, 0]


def test_the_same_words_in_another_question_are_no_frame():
    references = [(f"{thing}が写っています。",) for thing in ("りんご", "猫", "鍵", "船")]
    _, overlap = scores(["犬が写っています。"] * 4, references, list("abcd"))
    assert overlap == [50] * 4  # too few answers to a question to know its frame


def test_negation_the_best_reference_and_what_is_not_counted():
    exact, overlap = scores(
        ["食べられます", "猫", "です", ""], [("食べられません",), ("犬", "猫"), ("です。",), ("犬",)], list("abcd")
    )
    assert exact[:2] == [0, 100] and np.isnan(exact[2]) and exact[3] == overlap[3] == 0
