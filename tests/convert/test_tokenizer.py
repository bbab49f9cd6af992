"""The converted tokenizer gives SentencePiece's ids, adds nothing, and keeps half characters to itself."""

import io
import json
import shutil

import pytest
import sentencepiece
from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast, TextIteratorStreamer

from jminigpt4.convert.tokenizer import (
    convert_sentencepiece,
    corpus_with_sentencepiece,
    generated_text,
    prepare_tokenizer,
)

FOLDERS = ["tokenizer", "tokenizer_4b_like"]


@pytest.fixture(scope="module", params=FOLDERS)
def pair(request, reference):
    folder = reference / request.param
    expected = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
    strings = next(value for value in expected.values() if isinstance(value, list) and isinstance(value[0], dict))
    return convert_sentencepiece(folder / "spiece.model"), strings, folder


def test_equals_sentencepiece_on_the_recorded_strings(pair):
    tokenizer, strings, _ = pair
    assert len(strings) >= 17
    for row in strings:
        assert tokenizer(row["text"], split_special_tokens=True)["input_ids"] == row["sp_ids"], row["text"]
        assert tokenizer.decode(row["sp_ids"]) == row["sp_decode"], row["text"]


def test_reads_special_tokens_as_the_slow_tokenizer(pair):
    tokenizer, strings, _ = pair
    for row in strings:
        assert tokenizer(row["text"])["input_ids"] == row["slow_ids"], row["text"]
    assert tokenizer.convert_tokens_to_ids(["[PAD]", "[UNK]", "<s>", "</s>", "[CLS]", "[SEP]", "[MASK]"]) == [
        *range(7)
    ]
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<s>", "</s>", "[PAD]")


def test_equals_sentencepiece_on_generated_text(reference):
    model = reference / "tokenizer" / "spiece.model"
    tokenizer, original = convert_sentencepiece(model), SentencePieceProcessor(model_file=str(model))
    corpus = list(generated_text(100_000, seed=1))
    ids = tokenizer(corpus, split_special_tokens=True, return_attention_mask=False)["input_ids"]
    different = [
        text for text, ours, theirs in zip(corpus, ids, original.encode(corpus), strict=True) if ours != theirs
    ]
    assert different == []


def test_corpus_of_the_proof(pair):
    tokenizer, _, folder = pair
    rows = corpus_with_sentencepiece(tokenizer, folder / "spiece.model")
    assert all(ours == theirs for _, ours, theirs in rows)
    assert len(rows) > 4_900  # only long runs of spaces are left out
    spoilt = convert_sentencepiece(folder / "spiece.model")
    spoilt.backend_tokenizer.normalizer = normalizers.Replace(" ", "▁")
    rows = corpus_with_sentencepiece(spoilt, folder / "spiece.model")
    assert sum(ours != theirs for _, ours, theirs in rows) > 1_000


def test_spelt_bytes_and_full_width_controls_are_text(pair):
    tokenizer, _, _ = pair
    for typed in ("<0x41>", "＜／ｓ＞", "［ＰＡＤ］", "<\ufdd0s>", "[\ufdd0MASK]"):
        ids = tokenizer(typed)["input_ids"]
        assert not set(ids) & set(range(7))
        assert tokenizer.convert_tokens_to_ids("<0x41>") not in ids[:1]


def test_round_trip(pair, tmp_path):
    tokenizer, strings, _ = pair
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    texts = [row["text"] for row in strings]
    for options in ({}, {"split_special_tokens": True}):
        assert again(texts, **options)["input_ids"] == tokenizer(texts, **options)["input_ids"]


def test_streams_whole_characters(pair):
    tokenizer, _, _ = pair
    text = "犬🐈が鱻を食べる"
    ids = tokenizer(text)["input_ids"]
    assert len(ids) > len(text)  # some characters are written in bytes
    streamer = TextIteratorStreamer(tokenizer)
    for token in ids:
        streamer.put(_tensor(token))
    streamer.end()
    chunks = list(streamer)
    assert "".join(chunks) == text
    assert not any("�" in chunk for chunk in chunks)


def _tensor(token):
    import torch

    return torch.tensor([token])


def test_image_token_joins_a_full_table(reference):
    tokenizer, image_token_id = prepare_tokenizer(reference / "tokenizer", vocab_size=512)
    assert image_token_id == tokenizer.image_token_id == 512
    assert tokenizer("犬<ImageHere>猫")["input_ids"].count(512) == 1
    assert tokenizer.decode([512], skip_special_tokens=True) == ""
    assert tokenizer.padding_side == "left"
    with pytest.raises(ValueError, match="has 512 tokens but the embedding table 500 rows"):
        prepare_tokenizer(reference / "tokenizer", vocab_size=500)
    with pytest.raises(FileNotFoundError, match="it has no tokenizer"):
        prepare_tokenizer(reference / "images", vocab_size=512)


@pytest.fixture(scope="module")
def byte_level_folder(tmp_path_factory):
    """A byte-level tokenizer as Llama 3 and Qwen2 have, with a post-processor that adds BOS."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*alphabet, "<|begin|>", "<|end|>"])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.post_processor = processors.TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", 256)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|begin|>", eos_token="<|end|>")
    folder = tmp_path_factory.mktemp("byte_level")
    tokenizer.save_pretrained(folder)
    return folder


def test_other_families(byte_level_folder):
    tokenizer, image_token_id = prepare_tokenizer(byte_level_folder, vocab_size=300)
    assert image_token_id == 258  # a spare row of the padded table
    plain = tokenizer("a<|end|>b")["input_ids"]
    assert plain.count(257) == 1 and 256 not in plain  # read as a token, and no BOS added
    guarded = tokenizer("a<\ufdd0|end|>b")["input_ids"]
    assert guarded == tokenizer("a<|end|>b", split_special_tokens=True)["input_ids"]
    assert tokenizer.pad_token == "<|end|>"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"model_type": "bpe"}, "model_type"),
        ({"add_dummy_prefix": True, "user_defined_symbols": ["<NL>"]}, "user_defined_symbols"),
        ({"remove_extra_whitespaces": True}, "remove_extra_whitespaces"),
    ],
)
def test_refuses_what_cannot_be_exact(tmp_path, options, named):
    settings = {"add_dummy_prefix": False, "remove_extra_whitespaces": False, "model_type": "unigram", **options}
    file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["犬と猫", "赤い犬", "青い猫"] * 20),
        model_writer=file,
        vocab_size=300,
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
        **settings,
    )
    (tmp_path / "spiece.model").write_bytes(file.getvalue())
    with pytest.raises(ValueError, match=f"{named} is .*; only models with {named}"):
        prepare_tokenizer(tmp_path, vocab_size=1000)


@pytest.mark.parametrize("rule", ["nmt_nfkc", "identity"])
def test_a_dummy_space_before_a_text(rule, tmp_path):
    file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["犬と 猫～", "赤い 犬 a red dog", "青い猫"] * 20),
        model_writer=file,
        vocab_size=300,
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
        add_dummy_prefix=True,
        remove_extra_whitespaces=False,
        normalization_rule_name=rule,
    )
    (tmp_path / "spiece.model").write_bytes(file.getvalue())
    original = SentencePieceProcessor(model_file=str(tmp_path / "spiece.model"))
    tokenizer = convert_sentencepiece(tmp_path / "spiece.model")
    corpus = [text for text in generated_text(3_000, seed=2) if original.normalize(text) != "▁"]
    corpus += ["", " ", "犬 猫", " 犬"]
    assert tokenizer(corpus, split_special_tokens=True)["input_ids"] == original.encode(corpus)
    for text in ("犬 猫", " 犬", "a red dog"):
        ids = original.encode(text)
        assert tokenizer.decode(ids) == original.decode(ids) == text


def test_identity_normalisation(tmp_path):
    file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["犬と猫", "赤い犬", "青い猫"] * 20),
        model_writer=file,
        vocab_size=300,
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
    )
    (tmp_path / "spiece.model").write_bytes(file.getvalue())
    original = SentencePieceProcessor(model_file=str(tmp_path / "spiece.model"))
    corpus = list(generated_text(2_000, seed=2))
    tokenizer = convert_sentencepiece(tmp_path / "spiece.model")
    assert tokenizer(corpus, split_special_tokens=True)["input_ids"] == original.encode(corpus)


@pytest.fixture(scope="module")
def llama_folder(tmp_path_factory):
    """A BPE model with LLaMA's settings and no tokenizer.json, as the first Vicunas were published."""
    file = io.BytesIO()
    text = [text.replace("▁", "") for text in generated_text(400, seed=5)]
    text += ["Give the following image: <Img>ImageContent</Img>. Please answer my questions.", "赤い犬と青い猫"] * 40
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text),
        model_writer=file,
        model_type="bpe",
        vocab_size=2400,
        byte_fallback=True,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        hard_vocab_limit=False,
        character_coverage=0.98,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        minloglevel=2,
    )
    folder = tmp_path_factory.mktemp("llama")
    (folder / "tokenizer.model").write_bytes(file.getvalue())
    settings = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return folder


def test_llamas_tokenizer(llama_folder):
    """As the originals' slow tokenizer: a dummy space before every segment, also behind BOS and behind a picture."""
    tokenizer, image_token_id = prepare_tokenizer(llama_folder, vocab_size=3000)
    original = SentencePieceProcessor(model_file=str(llama_folder / "tokenizer.model"))
    rows = corpus_with_sentencepiece(tokenizer, llama_folder / "tokenizer.model")
    assert len(rows) > 4_900 and all(ours == theirs for _, ours, theirs in rows)
    segments = ["###Human: <Img>", "</Img> What is this?###Assistant:"]
    ids = tokenizer(f"<s>{segments[0]}<ImageHere>{segments[1]}")["input_ids"]
    assert ids == [1, *original.encode(segments[0]), image_token_id, *original.encode(segments[1])]
    assert tokenizer.decode(ids[1:4]).startswith("###")
    guarded = tokenizer("a<\ufdd0/s>b")["input_ids"]
    assert 2 not in guarded and guarded == original.encode("a</s>b")


@pytest.mark.parametrize("saved_as", ["transformers 5", "transformers 4"])
def test_llamas_ids_do_not_hang_on_a_file_beside_the_model(llama_folder, saved_as, tmp_path):
    """A tokenizer.json has the dummy space where the version of transformers put it that wrote it."""
    AutoTokenizer.from_pretrained(llama_folder).save_pretrained(tmp_path)
    for name in ("tokenizer.model", "tokenizer_config.json", "config.json"):
        shutil.copyfile(llama_folder / name, tmp_path / name)
    if saved_as == "transformers 4":
        state = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
        steps = [{"type": "Prepend", "prepend": "▁"}]
        steps.append({"type": "Replace", "pattern": {"String": " "}, "content": "▁"})
        state |= {"normalizer": {"type": "Sequence", "normalizers": steps}, "pre_tokenizer": None}
        (tmp_path / "tokenizer.json").write_text(json.dumps(state), encoding="utf-8")
    prompt = "<s>###Human: <Img><ImageHere></Img> What is this?###Assistant:"
    ids = [prepare_tokenizer(folder, vocab_size=3000)[0](prompt)["input_ids"] for folder in (llama_folder, tmp_path)]
    assert ids[0] == ids[1]
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text()) | {"legacy": False}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    later = prepare_tokenizer(tmp_path, vocab_size=3000)[0](prompt)["input_ids"]
    (tmp_path / "tokenizer.json").unlink()
    assert later == prepare_tokenizer(tmp_path, vocab_size=3000)[0](prompt)["input_ids"] != ids[0]


def test_a_tokenizer_without_llamas_settings_is_refused(llama_folder, tmp_path):
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto.FromString((llama_folder / "tokenizer.model").read_bytes())
    proto.normalizer_spec.remove_extra_whitespaces = True
    (tmp_path / "tokenizer.model").write_bytes(proto.SerializeToString())
    with pytest.raises(ValueError, match="remove_extra_whitespaces is True; only models with .* as LLaMA's"):
        prepare_tokenizer(tmp_path, vocab_size=3000)
