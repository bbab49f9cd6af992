"""Tokenizers: rinna's SentencePiece model as a `tokenizer.json` that gives the same ids, and the image token for all.

transformers' own reading of rinna's tokenizer folders (class `T5Tokenizer`) gives other ids for nearly every Japanese
string: it puts a dummy space in front, joins spaces, has no byte fallback and turns unknown characters into `<s>`.
Its reading of LLaMA's is right but for where the dummy space goes: once a prompt, and not once a segment.
"""

import json
import os
import random
import re
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import Unigram
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from ..processing_jminigpt4 import GUARD, IMAGE_TOKEN

# Stands in for ～ (U+FF5E) while NFKC would turn it into ~, which nmt_nfkc does not; a noncharacter, in no text.
TILDE = "\ufdd1"
UNIGRAM, BPE = 1, 2
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
CORPUS_SIZE = 5_000
BRACKETED = re.compile(r"<.+>|\[.+\]|\{.+\}|\|.+\|")
SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "cls_token", "sep_token", "mask_token")


def convert_sentencepiece(
    model_file: str | os.PathLike, tokenizer_config: dict[str, Any] | None = None
) -> PreTrainedTokenizerFast:
    """A SentencePiece model as a tokenizer of transformers.

    With `split_special_tokens=True` the ids are those of SentencePiece; without it, special tokens spelt in the text
    are read as such, as the slow `T5Tokenizer` did. No special token is added.

    Other ids are possible for the noncharacters U+FDD0 and U+FDD1, for U+0344, for several combining marks in a row
    that Unicode's canonical order rearranges and SentencePiece leaves (none of them in ordinary Japanese), and for
    runs of more spaces than the longest symbol for them (see [`corpus_with_sentencepiece`]).

    Args:
        model_file: A `spiece.model` of type unigram with byte fallback.
        tokenizer_config: Contents of `tokenizer_config.json`, which names the special tokens; by default the file
            beside the model, or the names rinna uses.

    Raises:
        ValueError: The model has a setting that no pipeline of `tokenizers` reproduces exactly; it is named.
    """
    proto = _read_proto(model_file)
    _refuse_unsupported(proto, model_file)
    tokenizer = Tokenizer(
        Unigram(_vocabulary(proto), unk_id=proto.trainer_spec.unk_id, byte_fallback=proto.trainer_spec.byte_fallback)
    )
    tokenizer.normalizer = _normalizer(proto, model_file)
    controls = [piece.piece for piece in proto.pieces if piece.type in (UNKNOWN, CONTROL)]
    tokenizer.pre_tokenizer = _split_in_controls(controls)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if proto.normalizer_spec.add_dummy_prefix:
        steps.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(steps)
    symbols = [piece.piece for piece in proto.pieces if piece.type == USER_DEFINED]
    # Runs of ▁ are spaces, seen only after normalisation: they stay with the model, which matches them by score.
    tokenizer.add_tokens([AddedToken(s, normalized=False, special=False) for s in symbols if set(s) != {"▁"}])
    tokenizer.add_special_tokens(
        [AddedToken(piece, lstrip=True, rstrip=True, normalized=False, special=True) for piece in controls]
    )
    names = _special_names(model_file, tokenizer_config)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        clean_up_tokenization_spaces=False,
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
        **{key: AddedToken(name, lstrip=True, rstrip=True, normalized=False) for key, name in names.items()},
    )


def _read_proto(model_file: str | os.PathLike) -> Any:
    classes: Any = sentencepiece_model_pb2  # made by protobuf when it is imported, unseen by type checkers
    return classes.ModelProto.FromString(Path(model_file).read_bytes())


def _refuse_unsupported(proto: Any, model_file: str | os.PathLike):
    spec, trainer = proto.normalizer_spec, proto.trainer_spec
    short = [piece.piece for piece in proto.pieces if piece.type == CONTROL and len(piece.piece) == 1]
    # Each would part a text in two, and the dummy space of `add_dummy_prefix` would stand before both.
    parting = [piece.piece for piece in proto.pieces if piece.type == USER_DEFINED and set(piece.piece) != {"▁"}]
    parting = parting if spec.add_dummy_prefix else []
    settings = {
        "model_type": (trainer.model_type, (UNIGRAM,), "unigram"),
        "byte_fallback": (trainer.byte_fallback, (True,), "on"),
        "remove_extra_whitespaces": (spec.remove_extra_whitespaces, (False,), "off"),
        "escape_whitespaces": (spec.escape_whitespaces, (True,), "on"),
        "treat_whitespace_as_suffix": (trainer.treat_whitespace_as_suffix, (False,), "off"),
        "normalization_rule_name": (spec.name, ("nmt_nfkc", "nfkc", "identity"), "nmt_nfkc, nfkc or identity"),
        "user_defined_symbols": (parting, ([],), "none beside add_dummy_prefix"),
        "control_symbols": (short, ([],), "of two characters or more"),
    }
    _refuse_others(settings, model_file, "rinna's")


def _refuse_others(settings: dict[str, tuple[Any, tuple, str]], model_file: str | os.PathLike, whose: str):
    for name, (found, exact, words) in settings.items():
        if found not in exact:
            raise ValueError(
                f"{model_file}: {name} is {found}; only models with {name} {words}, as {whose}, are converted "
                "exactly. Give a folder that has the tokenizer as tokenizer.json, and not this file."
            )


def _vocabulary(proto: Any) -> list[tuple[str, float]]:
    """Pieces and scores; a user-defined symbol has none and enters SentencePiece's lattice with -0.1, so that it
    beats everything it covers (unigram_model.cc: length times the best score, less 0.1; the best score begins at
    `FLT_MIN`, which is not the lowest number but practically zero: no logarithm of a probability is above that)."""
    return [(piece.piece, -0.1 if piece.type == USER_DEFINED else piece.score) for piece in proto.pieces]


def _normalizer(proto: Any, model_file: str | os.PathLike) -> normalizers.Normalizer:
    charsmap = proto.normalizer_spec.precompiled_charsmap
    steps = [normalizers.Replace(GUARD, "")]
    if charsmap:
        # `Precompiled` looks at each grapheme cluster as a whole and passes over longer ones: ｶﾞ, か with a combining
        # dakuten and Hangul jamo would stay as they are. After NFKC they are single characters.
        normalize = SentencePieceProcessor(model_file=str(model_file)).normalize
        if normalize("あ\rい").endswith("あ▁い"):
            steps.append(normalizers.Replace("\r", " "))  # \r\n is one cluster
        nfkc = [normalizers.NFKC()]
        if normalize("～").endswith("～"):
            nfkc = [normalizers.Replace("～", TILDE), *nfkc, normalizers.Replace(TILDE, "～")]
        steps += [*nfkc, normalizers.Precompiled(charsmap)]
    steps.append(normalizers.Replace(" ", "▁"))
    if proto.normalizer_spec.add_dummy_prefix:
        steps.append(normalizers.Prepend("▁"))
    return normalizers.Sequence(steps)


def _split_in_controls(spellings: Iterable[str]) -> pre_tokenizers.PreTokenizer:
    """Parts text behind the first character of every control token and byte piece that is spelt in it, so that the
    model never sees one whole: among the pieces of a unigram model they are."""
    rests = {"<": ["0x[0-9A-F]{2}>"]}
    for spelling in spellings:
        if len(spelling) > 1:
            rests.setdefault(spelling[0], []).append(re.escape(spelling[1:]))
    starts = "|".join(f"{re.escape(first)}(?={'|'.join(rest)})" for first, rest in rests.items())
    return pre_tokenizers.Split(Regex(starts), "merged_with_previous")


def _special_names(model_file: str | os.PathLike, tokenizer_config: dict[str, Any] | None) -> dict[str, str]:
    beside = Path(model_file).parent / "tokenizer_config.json"
    if tokenizer_config is None and beside.is_file():
        tokenizer_config = json.loads(beside.read_text(encoding="utf-8"))
    rinna = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "[UNK]", "pad_token": "[PAD]"}
    given = tokenizer_config if tokenizer_config is not None else rinna
    named = {key: given[key] for key in SPECIAL_TOKENS if given.get(key)}
    return {key: name["content"] if isinstance(name, dict) else name for key, name in named.items()}


def prepare_tokenizer(
    folder: str | os.PathLike, vocab_size: int, image_token: str = IMAGE_TOKEN
) -> tuple[PreTrainedTokenizerFast, int]:
    """The tokenizer of a language model, with the image token, ready to be saved with a checkpoint.

    The image token gets the first id that the tokenizer does not use. Where the embedding table is padded this is one
    of its spare rows; where it is exactly full, it is `vocab_size`, and the caller has to grow the table by a row. The
    ids of all other tokens stay what they are.

    Args:
        folder: Folder of the language model, with `spiece.model` (converted, whatever lies beside it) or the files of
            a fast tokenizer.
        vocab_size: Rows of the embedding table.
        image_token: How the image token is spelt in prompts.

    Returns:
        The tokenizer and the id of the image token.

    Raises:
        FileNotFoundError: The folder holds no tokenizer.
        ValueError: It has no fast tokenizer, or one with a setting that cannot be kept, or the tokenizer has more
            tokens than the table has rows.
    """
    tokenizer = _load(Path(folder))
    if len(tokenizer) > vocab_size:
        raise ValueError(
            f"The tokenizer of {folder} has {len(tokenizer)} tokens but the embedding table {vocab_size} rows: "
            "tokenizer and weights are not of the same model."
        )
    backend = _read_through_the_guard(tokenizer.backend_tokenizer)
    # It would add tokens behind the back of the chat template, which writes BOS itself.
    backend.post_processor = None
    names = {key: name for key, name in tokenizer.special_tokens_map.items() if key in SPECIAL_TOKENS}
    names.setdefault("pad_token", tokenizer.eos_token)
    known = backend.get_added_tokens_decoder().values()
    prepared = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        extra_special_tokens={"image_token": AddedToken(image_token, normalized=False, special=True)},
        clean_up_tokenization_spaces=False,
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
        **{key: next((token for token in known if token.content == name), name) for key, name in names.items()},
    )
    image_token_id: Any = prepared.convert_tokens_to_ids(image_token)
    return prepared, image_token_id


def sentencepiece_file(folder: Path) -> Path | None:
    """The SentencePiece model that is the tokenizer of a folder; `None` where another file is.

    A tokenizer.json beside spiece.model is what transformers made of it, and wrong; beside a tokenizer.model of
    LLaMA's settings it is what one of its versions made of it, and they differ in where the dummy space goes. Beside
    any other model it is the publisher's own.
    """
    if (folder / "spiece.model").is_file():
        return folder / "spiece.model"
    model_file = next(iter(sorted(folder.glob("*.model"))), None)
    if model_file is None or not (folder / "tokenizer.json").is_file():
        return model_file
    return model_file if _is_llamas(model_file) else None


def _is_llamas(model_file: Path) -> bool:
    try:
        proto = _read_proto(model_file)
    except Exception:  # no SentencePiece model at all (Llama 3 and Mistral call other files so); protobuf's own error
        return False
    stated = _llamas_settings(proto)
    return proto.trainer_spec.model_type == BPE and all(found in exact for found, exact, _ in stated.values())


def dummy_space_everywhere(folder: Path) -> bool:
    """Whether LLaMA's dummy space stands before every segment of a prompt, as the originals' slow tokenizer has it,
    and not, as `legacy: false` says of later models, before the first alone."""
    path = folder / "tokenizer_config.json"
    return not path.is_file() or json.loads(path.read_text(encoding="utf-8")).get("legacy") is not False


def _load(folder: Path) -> PreTrainedTokenizerFast:
    model_file = sentencepiece_file(folder)
    if model_file is not None:
        proto = _read_proto(model_file)
        is_llamas = proto.trainer_spec.model_type == BPE and model_file.name != "spiece.model"
        return _convert_llamas(folder, model_file, proto) if is_llamas else convert_sentencepiece(model_file)
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise FileNotFoundError(f"{folder} has neither tokenizer.json nor a SentencePiece model: it has no tokenizer.")
    return _load_fast(folder)


def _load_fast(folder: Path) -> PreTrainedTokenizerFast:
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ValueError(
            f"{folder}: {type(tokenizer).__name__} has no fast tokenizer, which prompts with pictures need."
        )
    return tokenizer


def _convert_llamas(folder: Path, model_file: Path, proto: Any) -> PreTrainedTokenizerFast:
    """LLaMA's tokenizer with a dummy space before every segment of text, also behind BOS and behind a picture, where
    the originals' slow tokenizer puts one: MiniGPT-4 tokenizes each segment by itself (mini_gpt4.py, `prompt_wrap`).
    """
    _refuse_others(_llamas_settings(proto), model_file, "LLaMA's")
    tokenizer = _load_fast(folder)
    backend = tokenizer.backend_tokenizer
    if dummy_space_everywhere(folder):
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        backend.pre_tokenizer = pre_tokenizers.Sequence([])
    return tokenizer


def _llamas_settings(proto: Any) -> dict[str, tuple[Any, tuple, str]]:
    spec, trainer = proto.normalizer_spec, proto.trainer_spec
    return {
        "byte_fallback": (trainer.byte_fallback, (True,), "on"),
        "add_dummy_prefix": (spec.add_dummy_prefix, (True,), "on"),
        "remove_extra_whitespaces": (spec.remove_extra_whitespaces, (False,), "off"),
        "normalization_rule_name": (spec.name, ("identity",), "identity"),
    }


def control_tokens(added: Iterable[AddedToken]) -> list[str]:
    """Spellings of the added tokens that user text must not become: those that are special, and those that look so
    (`<think>`, `[INST]`, rinna's `<NL>`). The rest, runs of spaces and words of another language, are text."""
    return [token.content for token in added if token.special or BRACKETED.fullmatch(token.content)]


def _read_through_the_guard(backend: Tokenizer) -> Tokenizer:
    """Control tokens are sought in the text as it was written; then the normalizer removes the guard, and a spelling
    that it parted stays in parts."""
    spellings = control_tokens(backend.get_added_tokens_decoder().values())
    state = json.loads(backend.to_str())  # added tokens cannot be changed in place
    for token in state["added_tokens"]:
        token["normalized"] = token["normalized"] and token["content"] not in spellings
    backend = Tokenizer.from_str(json.dumps(state))
    own = [step for step in (backend.normalizer,) if step is not None]
    backend.normalizer = normalizers.Sequence([normalizers.Replace(GUARD, ""), *own])
    if _can_spell(state["model"], spellings):
        own = [step for step in (backend.pre_tokenizer,) if step is not None]
        backend.pre_tokenizer = pre_tokenizers.Sequence([*own, _split_in_controls(spellings)])
    return backend


def _can_spell(model: dict[str, Any], spellings: list[str]) -> bool:
    """Whether a model may make a special token out of plain text. BPE makes nothing but what a merge makes, and a
    split would only stand in the way of its other merges (`</`)."""
    if model["type"] != "BPE" or model.get("ignore_merges"):
        return True
    merged = {"".join(merge.split(" ") if isinstance(merge, str) else merge) for merge in model["merges"]}
    return not merged.isdisjoint(spellings)


def corpus_with_sentencepiece(
    tokenizer: PreTrainedTokenizerFast, model_file: str | os.PathLike
) -> list[tuple[str, list[int], list[int]]]:
    """Strings of a built-in corpus, each with the tokenizer's ids and with SentencePiece's.

    Left out are runs of more spaces than the longest symbol for them, where there is one (rinna's 4b): they can be cut
    in several equally good ways, among which SentencePiece's choice hangs on the rounding of its sums. So are texts of
    which nothing is left (a zero-width space alone): SentencePiece gives them its dummy space.
    """
    reference = SentencePieceProcessor(model_file=str(model_file))
    pieces = map(reference.id_to_piece, range(reference.get_piece_size()))
    longest = max((len(piece) for piece in pieces if set(piece) == {"▁"}), default=1)
    long_run = re.compile(f"▁{{{longest + 1}}}" if longest > 1 else "(?!)")
    dummy_space = _read_proto(model_file).normalizer_spec.add_dummy_prefix
    normalized = ((text, reference.normalize(text)) for text in generated_text(CORPUS_SIZE))
    corpus = [text for text, normal in normalized if not (dummy_space and normal == "▁" or long_run.search(normal))]
    ids = tokenizer(corpus, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return list(zip(corpus, ids, reference.encode(corpus), strict=True))


def corpus_with_source(tokenizer: PreTrainedTokenizerFast, folder: Path) -> list[tuple[str, list[int], list[int]]]:
    """Strings of the built-in corpus, each with the tokenizer's ids and with those of the folder's own tokenizer;
    without strings that spell a special token, which users of this package cannot type."""
    theirs = _load_fast(folder)
    starts = re.compile("|".join(re.escape(token[0]) for token in (*theirs.all_special_tokens, IMAGE_TOKEN)))
    corpus = [text for text in generated_text(CORPUS_SIZE) if not starts.search(unicodedata.normalize("NFKC", text))]
    ids = tokenizer(corpus, add_special_tokens=False)["input_ids"]
    return list(zip(corpus, ids, theirs(corpus, add_special_tokens=False)["input_ids"], strict=True))


ALPHABETS = (
    "".join(map(chr, range(0x3041, 0x30FF))),  # hiragana, katakana
    "".join(map(chr, range(0x4E00, 0x4E00 + 2000))),
    "".join(map(chr, range(0xFF01, 0xFF9F))),  # full-width Latin, half-width katakana
    "ｶﾞｷﾞﾊﾟか゛が\u3099は\u309aウ\u3099～〜ー…―‥・「」、。？！",
    "abcXYZ019 .,!?-_'\"()#@/\\",
    "     　\t\n\r\u00a0\u200b\ufeff",
    "😀🐈👨‍👩‍👧🇯🇵①㌔㍻ﬁéüßΩжक한글ᄒ\u1161\u11abไทย",
    "\u0001\u0007\u007f\u0085\u2028\ufffd",
)
SPELLINGS = ("<s>", "</s>", "[PAD]", "[UNK]", "[MASK]", "<0x41>", "＜／ｓ＞", "<NL>", "ユーザー: ", "▁", "</", "0x0A>")


def generated_text(count: int, seed: int = 0) -> Iterator[str]:
    """Yields `count` strings of Japanese and mixed text with all that makes tokenizers differ: half-width kana,
    combining marks, runs of spaces, line breaks, control characters, emoji, spelt control pieces."""
    chance = random.Random(seed)
    for _ in range(count):
        parts = []
        for _ in range(chance.randint(1, 5)):
            if chance.random() < 0.15:
                parts.append(chance.choice(SPELLINGS))
            else:
                alphabet = chance.choice(ALPHABETS)
                parts.append("".join(chance.choice(alphabet) for _ in range(chance.randint(1, 8))))
        yield "".join(parts)
