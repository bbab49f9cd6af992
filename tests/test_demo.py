"""The embedded miniature keeps what its card says: whole, small, licensed, and right about drawings it never saw."""

import re

import pytest
from PIL import Image

from jminigpt4 import DEMO, JMiniGPT4ForConditionalGeneration, JMiniGPT4Processor
from jminigpt4.checkpoint import CODE_FILES
from jminigpt4.convert import verify_folder
from jminigpt4.convert.formats import chat_template_for, prompt_format

# What the samples show, in the words of examples/miniature/concepts.tsv.
SAMPLES = {
    "apple": "りんご",
    "carrot": "にんじん",
    "cat": "猫",
    "fire_engine": "消防車",
    "guitar": "ギター",
    "hamburger": "ハンバーガー",
    "key": "鍵",
    "octopus": "タコ",
    "penguin": "ペンギン",
    "rocket": "ロケット",
    "sunflower": "ひまわり",
    "umbrella": "傘",
}


@pytest.fixture(scope="module")
def demo():
    model = JMiniGPT4ForConditionalGeneration.from_pretrained(DEMO, dtype="float32").eval()
    return model, JMiniGPT4Processor.from_pretrained(DEMO)


def ask(demo, pictures, question: str) -> list[str]:
    model, processor = demo
    content = [{"type": "image"}, {"type": "text", "text": question}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(
        images=[[p] for p in pictures], text=[prompt] * len(pictures), return_tensors="pt", padding=True
    )
    ids = model.generate(**inputs, do_sample=False, max_new_tokens=24)[:, inputs["input_ids"].shape[1] :]
    return [text.strip() for text in processor.post_process_image_text_to_text(ids)]


def test_folder_is_whole_and_small():
    assert verify_folder(DEMO) == []
    assert sum(file.stat().st_size for file in DEMO.rglob("*") if file.is_file()) <= 40e6
    assert {file.stem for file in (DEMO / "samples").iterdir()} == {*SAMPLES, "two"}


def test_carries_the_code_of_this_version():
    for file in CODE_FILES:
        assert (DEMO / file).read_bytes() == (DEMO.parent / file).read_bytes(), f"{file}: build the demo anew"


def test_prompts_are_those_of_its_format(demo):
    processor = demo[1]
    assert processor.chat_template == chat_template_for(prompt_format("article-3.6b"), processor.tokenizer)


def test_names_the_samples(demo):
    pictures = [Image.open(DEMO / "samples" / f"{name}.png") for name in SAMPLES]
    said = ask(demo, pictures, "何が写ってる?")
    right = sum(f"{word}が写っています。" == answer for word, answer in zip(SAMPLES.values(), said, strict=True))
    assert right >= 10, said


def test_other_questions(demo):
    key, hamburger = (Image.open(DEMO / "samples" / f"{name}.png") for name in ("key", "hamburger"))
    assert ask(demo, [key, hamburger], "食べられる?") == ["鍵は食べ物ではありません。", "ハンバーガーは食べられます。"]
    assert ask(demo, [key, hamburger], "何の仲間?") == ["鍵は道具の仲間です。", "ハンバーガーは食べ物の仲間です。"]


def test_it_is_the_projection_that_does_it(demo):
    model, processor = demo
    layer = model.model.language_projection
    trained = layer.weight.detach().clone()
    pictures = [Image.open(DEMO / "samples" / f"{name}.png") for name in SAMPLES]
    try:
        layer.weight.data.normal_(std=0.02)
        said = ask(demo, pictures, "何が写ってる?")
    finally:
        layer.weight.data.copy_(trained)
    assert sum(f"{word}が写っています。" == answer for word, answer in zip(SAMPLES.values(), said, strict=True)) <= 1


def test_a_picture_that_is_no_drawing_gets_an_answer(demo, reference):
    answer = ask(demo, [Image.open(reference / "images" / "a_97x131_rgb.png")], "説明して")[0]
    assert re.search("[ぁ-んァ-ン一-龥]", answer)


def test_card_names_every_source():
    card = (DEMO / "README.md").read_text(encoding="utf-8")
    for owner in (
        "Google",
        "Microsoft",
        "Mozilla",
        "EmojiOne 2",
        "Streamline",
        "Twitter",
        "Unicode CLDR",
        "Apache-2.0",
    ):
        assert owner in card, owner
    assert "license: cc-by-4.0" in card
    assert "| vision | vision | apache-2.0 |" in card and "not stated" not in card and "| ? |" not in card
