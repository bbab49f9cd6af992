"""Japanese text to words, the way the field's scores are computed, and the names that say which way."""

import importlib
import importlib.metadata
import re
import unicodedata
from collections.abc import Callable

from ...japanese_text import tagger

# The ranges that Sakana AI removes besides single emoji (evolutionary-model-merge, evomerge/eval/metrics.py).
_PICTOGRAPHS = re.compile(
    "[\U0001f600-\U0001f64f\U0001f300-\U0001f5ff\U0001f680-\U0001f6ff\U0001f1e0-\U0001f1ff\u2702-\u27b0]+"
)


def version_of(package: str) -> str:
    return f"{package}-{importlib.metadata.version(package)}"


def words(text: str) -> list[str]:
    """Surface forms of `text`, in order; white space is dropped."""
    return [word.surface for word in tagger()(text)]


def tokenizer_name() -> str:
    """`fugashi-…+unidic-lite-…`, with versions."""
    return f"{version_of('fugashi')}+{version_of('unidic-lite')}"


def without_emoji(text: str) -> str:
    import emoji

    return _PICTOGRAPHS.sub("", "".join(character for character in text if not emoji.is_emoji(character)))


def _neologdn(text: str) -> str:
    return importlib.import_module("neologdn").normalize(text)


def _nfkc(text: str) -> str:
    return unicodedata.normalize("NFKC", text)


# What each protocol does to a text before it is split into words: the name of it, and the doing.
NORMALIZATIONS: dict[str, tuple[Callable[[], str], Callable[[str], str]]] = {
    "sakana": (lambda: version_of("neologdn"), _neologdn),
    "llm-jp": (lambda: "NFKC", _nfkc),
}


class JapaneseTokenizer:
    """The tokenizer object that `rouge_score.RougeScorer` needs for Japanese: its own one drops everything that is not
    ASCII, and two identical Japanese texts score 0.

    Emoji go, the text is normalised, white space collapses, MeCab splits.

    Args:
        protocol: `sakana` (neologdn; SakanaAI/evolutionary-model-merge) or `llm-jp` (NFKC; llm-jp-eval-mm).
    """

    def __init__(self, protocol: str):
        name, self._normalize = NORMALIZATIONS[protocol]
        self.name = f"{name()}, {tokenizer_name()}"

    def normalize(self, text: str) -> str:
        return " ".join(self._normalize(without_emoji(text)).split())

    def tokenize(self, text: str) -> list[str]:
        return words(self.normalize(text))
