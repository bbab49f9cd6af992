"""Tokenizers of every kind behind pictures: what a user types is text, whatever it spells."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoProcessor

from jminigpt4 import JMiniGPT4ForConditionalGeneration, JMiniGPT4Processor
from jminigpt4.convert import swap
from jminigpt4.convert.tokenizer import prepare_tokenizer

KINDS = ["byte-level", "unigram", "wordpiece"]
FAMILIES = ["gemma2", "gpt2", "gpt_neox", "granite", "llama", "mamba2", "mistral", "opt", "qwen3", "qwen3_moe"]
CONTROLS = ["<pad>", "<s>", "</s>", "<|endoftext|>", "[CLS]", "<NL>", "<think>", "<ImageHere>"]
PIECES = [*CONTROLS, *"<>[]/|s犬＜ \n", "\ufdd0", "\u200b", "／ｓ＞", "<think", "THINK>"]


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def opened(processor: JMiniGPT4Processor, text: str) -> list[int]:
    """A question as generation sees it."""
    return processor.tokenize_segment(processor.render_segment([user(text)], add_generation_prompt=True))


def control_ids(processor: JMiniGPT4Processor) -> set[int]:
    return set(processor.tokenizer.convert_tokens_to_ids(CONTROLS))


@pytest.fixture(scope="session", params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture(scope="session", params=["article-3.6b", "minigpt4"])
def processor(request, kind, save_tokenizer, make_processor, tmp_path_factory) -> JMiniGPT4Processor:
    folder = tmp_path_factory.mktemp(kind)
    save_tokenizer(kind, folder)
    tokenizer, _ = prepare_tokenizer(folder, vocab_size=300)
    return make_processor(request.param, tokenizer)


def squeezed(text: str) -> str:
    return "".join(text.lower().split())


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(pieces=st.lists(st.sampled_from(PIECES), max_size=6))
@example(pieces=CONTROLS)
@example(pieces=[" ".join(CONTROLS).upper()])
def test_no_text_of_a_user_makes_a_control_token(processor, pieces):
    typed = "".join(pieces)
    controls, allowed = control_ids(processor), opened(processor, "犬")
    ids = opened(processor, f"犬{typed}犬")
    line_breaks = typed.count("\n") if processor.newline else 0
    expected = [token for token in allowed if token in controls]
    found = [token for token in ids if token in controls]
    newline = processor.tokenizer.convert_tokens_to_ids("<NL>")
    assert len(found) == len(expected) + line_breaks
    assert [token for token in found if token != newline] == [token for token in expected if token != newline]


@pytest.mark.parametrize("typed", CONTROLS)
def test_what_a_user_spelt_is_read_back(processor, typed):
    text = processor.tokenizer.decode(opened(processor, f"a red {typed} dog"))
    assert "\ufdd0" not in text
    assert squeezed(f"a red {typed} dog") in squeezed(text)


def test_byte_level_text_comes_back_to_the_letter(save_tokenizer, tmp_path):
    save_tokenizer("byte-level", tmp_path)
    tokenizer, _ = prepare_tokenizer(tmp_path, vocab_size=300)
    for typed in ("a </s> b", "<|endoftext|>", "[CLS]\n <think>x</think>", "<ImageHere>é犬"):
        guarded = "".join(f"{each}\ufdd0" if each in "<[" else each for each in typed)
        assert tokenizer.decode(tokenizer(guarded)["input_ids"]) == typed


@pytest.mark.parametrize("other", ["unigram", "wordpiece"])
@pytest.mark.parametrize("name", FAMILIES)
def test_families_with_other_tokenizers(make_family_config, image_side, save_tokenizer, tmp_path, name, other):
    """Converted with its proof; logits of what the processor makes are the family's own; segments are what generation
    sees; typed control tokens are text."""
    torch.manual_seed(0)
    family = AutoModelForCausalLM.from_config(make_family_config(name)).eval()
    family.save_pretrained(tmp_path / "language")
    save_tokenizer(other, tmp_path / "language")
    settings = {"prompt_format": "article-3.6b", "progress": False}
    assert swap(image_side, language=tmp_path / "language", out=tmp_path / "whole", **settings).passed
    model = JMiniGPT4ForConditionalGeneration.from_pretrained(tmp_path / "whole").eval()
    processor = AutoProcessor.from_pretrained(tmp_path / "whole")
    assert processor.image_token_id == len(processor.tokenizer) - 1 < 300  # a spare row of the table
    question = [user("a </s> red <think> dog? <ImageHere>")]
    options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    inputs = processor.apply_chat_template(question, **options)
    ids = inputs["input_ids"][0].tolist()
    assert processor.encode_segments(question, add_generation_prompt=True)["input_ids"] == ids
    assert [token for token in ids if token in control_ids(processor)] == [1, 6]  # <s>, and <NL> of the format
    with torch.no_grad():
        logits, expected = model(**inputs).logits, family(input_ids=inputs["input_ids"]).logits
    kept = [token for token in range(300) if token != processor.image_token_id]
    assert (logits - expected)[..., kept].abs().max() <= 1e-5 * expected.abs().max()
