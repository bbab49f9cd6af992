"""The scores of image captioning, BLEU-1..4, ROUGE-L and CIDEr-D, on MeCab's words.

They are those of `pycocoevalcap` (coco-caption), whose own tokenizer needs Java and leaves a Japanese sentence whole.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from .measure import Measure, mean_of
from .tokenization import tokenizer_name, version_of, words

Words = list[str]
LONGEST = 4  # n-grams of BLEU and CIDEr-D
SIGMA = 6.0  # width of CIDEr-D's length penalty (Vedantam et al. 2015, eq. 5)
BETA = 1.2  # how much more coco-caption's ROUGE-L weighs recall than precision


def caption_measures(answers: Sequence[str], references: Sequence[Sequence[str]]) -> list[Measure]:
    """BLEU-1 to BLEU-4, ROUGE-L and CIDEr-D, all x 100 (CIDEr-D reaches 1000), and sacrebleu's own Japanese BLEU."""
    said = [words(answer) for answer in answers]
    right = [[words(reference) for reference in of] for of in references]
    return [
        *(bleu(said, right, order) for order in range(1, LONGEST + 1)),
        coco_rouge_l(said, right),
        cider_d(said, right),
        sacrebleu_ja(answers, references),
    ]


def bleu(said: Sequence[Words], right: Sequence[Sequence[Words]], order: int) -> Measure:
    """Corpus BLEU up to `order`-grams, unsmoothed, by sacrebleu on words already split."""
    from sacrebleu.metrics.bleu import BLEU

    metric = BLEU(tokenize="none", smooth_method="none", max_ngram_order=order, force=True)
    pairs = [(" ".join(answer), [" ".join(each) for each in of]) for answer, of in zip(said, right, strict=True)]
    name = f"BLEU-{order} [{tokenizer_name()}, {version_of('sacrebleu')}]"
    return _bleu_measure(name, metric, pairs, order, "none")


def sacrebleu_ja(answers: Sequence[str], references: Sequence[Sequence[str]]) -> Measure:
    """BLEU exactly as `sacrebleu --tokenize ja-mecab` prints it, with IPADIC and exponential smoothing."""
    from sacrebleu.metrics.bleu import BLEU

    metric = BLEU(tokenize="ja-mecab")
    pairs = list(zip(answers, map(list, references), strict=True))
    name = f"BLEU [{version_of('sacrebleu')}, ja-mecab-{version_of('ipadic')}, smooth exp]"
    return _bleu_measure(name, metric, pairs, LONGEST, "exp")


def _bleu_measure(name: str, metric, pairs: list[tuple[str, list[str]]], order: int, smoothing: str) -> Measure:
    from sacrebleu.metrics.bleu import BLEU

    scores = [metric.sentence_score(answer, of) for answer, of in pairs]
    statistics = [[*score.counts, *score.totals, score.sys_len, score.ref_len] for score in scores]

    def combine(sums: np.ndarray) -> np.ndarray:
        def one(row: np.ndarray) -> float:
            whole = np.rint(row).astype(int).tolist()
            correct, total, (length, expected) = whole[:order], whole[order : 2 * order], whole[2 * order :]
            if length == 0:
                return 0.0
            score = BLEU.compute_bleu(correct, total, length, expected, smooth_method=smoothing, max_ngram_order=order)
            return score.score

        return np.apply_along_axis(one, -1, sums)

    return Measure(name, np.asarray(statistics, dtype=np.float64), combine, np.array([each.score for each in scores]))


def coco_rouge_l(said: Sequence[Words], right: Sequence[Sequence[Words]]) -> Measure:
    """coco-caption's ROUGE-L: best precision and best recall over the references, combined with beta 1.2."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], tokenizer=_Split())
    scores = []
    for answer, of in zip(said, right, strict=True):
        each = [scorer.score("\n".join(reference), "\n".join(answer))["rougeL"] for reference in of]
        precision, recall = max(score.precision for score in each), max(score.recall for score in each)
        both = precision * recall > 0
        scores.append(100 * (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision) if both else 0.0)
    return mean_of(f"ROUGE-L [{tokenizer_name()}, beta 1.2]", scores)


class _Split:
    def tokenize(self, text: str) -> Words:
        return text.split("\n") if text else []


def cider_d(said: Sequence[Words], right: Sequence[Sequence[Words]]) -> Measure:
    """CIDEr-D x 100 (Vedantam, Zitnick, Parikh 2015, eq. 5) as coco-caption computes it; it calls it CIDEr.

    The rarity of n-grams comes from the references themselves, so a score belongs to its set of pictures.
    """
    frequency: Counter[tuple[str, ...]] = Counter()
    counted = [[_ngrams(reference) for reference in of] for of in right]
    for of in counted:
        frequency.update({ngram for counts in of for ngram in counts})
    rarity = np.log(len(counted)) if counted else 0.0

    def weigh(counts: Counter[tuple[str, ...]]) -> list[dict[tuple[str, ...], float]]:
        vectors: list[dict[tuple[str, ...], float]] = [{} for _ in range(LONGEST)]
        for ngram, count in counts.items():
            vectors[len(ngram) - 1][ngram] = count * (rarity - np.log(max(1.0, frequency[ngram])))
        return vectors

    scores = []
    for answer, of in zip(said, counted, strict=True):
        vectors, length = weigh(_ngrams(answer)), _length(answer)
        similar = [
            _similarity(vectors, weigh(counts))
            * _penalty(length - sum(counts[ngram] for ngram in counts if len(ngram) == 2))
            for counts in of
        ]
        scores.append(100 * 10 * float(np.mean(similar)))
    return mean_of(f"CIDEr-D [{tokenizer_name()}, idf of {len(counted)} pictures]", scores)


def _ngrams(text: Words) -> Counter[tuple[str, ...]]:
    spans = ((start, start + size) for size in range(1, LONGEST + 1) for start in range(len(text) - size + 1))
    return Counter(tuple(text[start:end]) for start, end in spans)


def _length(text: Words) -> int:
    return max(0, len(text) - 1)  # coco-caption measures length in bigrams


def _penalty(difference: int) -> float:
    return float(np.exp(-(difference**2) / (2 * SIGMA**2)))


def _similarity(answer: list[dict], reference: list[dict]) -> float:
    """Cosine of two texts' weights, clipped to the reference's, the mean over n-gram sizes."""
    total = 0.0
    for said, right in zip(answer, reference, strict=True):
        norms = np.sqrt(sum(weight**2 for weight in said.values()) * sum(weight**2 for weight in right.values()))
        overlap = sum(min(weight, right.get(ngram, 0.0)) * right.get(ngram, 0.0) for ngram, weight in said.items())
        total += overlap / norms if norms else overlap
    return total / LONGEST
