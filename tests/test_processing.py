"""The processor: counts per prompt, user text as data, segments as generation will see them."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

IMAGE = 512
BOS, EOS = 2, 3
CONTROL_IDS = set(range(7)) | {IMAGE}
RED, BLUE = Image.new("RGB", (30, 20), "red"), Image.new("RGB", (20, 30), "blue")


def user(*parts):
    content = [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": part} for part in parts
    ]
    return {"role": "user", "content": content}


def assistant(text):
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def encode(processor, messages, **options):
    options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt", **options}
    return processor.apply_chat_template(messages, **options)


def plain(processor, text):
    """Ids of text in which nothing is a control token."""
    return processor.tokenizer(text, split_special_tokens=True, add_special_tokens=False)["input_ids"]


def test_a_picture_becomes_its_image_tokens(processor):
    inputs = encode(processor, [user(RED, "何色?")])
    ids = inputs["input_ids"][0].tolist()
    tokenizer = processor.tokenizer
    before, after = tokenizer("ユーザー: <IMG>")["input_ids"], tokenizer("</IMG> 何色?<NL>システム: ")["input_ids"]
    assert ids == [BOS, *before, *[IMAGE] * 4, *after]
    assert inputs["pixel_values"].shape == (1, 3, 28, 28)
    assert inputs["attention_mask"].tolist() == [[1] * len(ids)]


def test_batches_are_padded_on_the_left(processor):
    conversations = [[user(RED, "何色?")], [user("こんにちは")], [user(RED, "と", BLUE, "の違いは?")]]
    inputs = encode(processor, conversations, processor_kwargs={"padding": True})
    assert inputs["pixel_values"].shape[0] == 3
    assert (inputs["input_ids"] == IMAGE).sum(-1).tolist() == [4, 0, 8]
    for row, mask, conversation in zip(inputs["input_ids"], inputs["attention_mask"], conversations, strict=True):
        alone = encode(processor, conversation)["input_ids"][0]
        assert row[mask.bool()].tolist() == alone.tolist()
        assert mask.tolist() == sorted(mask.tolist())
        assert (row[~mask.bool()] == processor.tokenizer.pad_token_id).all()


@pytest.mark.parametrize(
    ("text", "images", "message"),
    [
        ("<ImageHere>", None, "The prompt has 1 placeholders <ImageHere> but 0 pictures"),
        ("<ImageHere>", [RED, BLUE], "The prompt has 1 placeholders <ImageHere> but 2 pictures"),
        ("何?", [RED], "The prompt has 0 placeholders <ImageHere> but 1 pictures"),
        (["<ImageHere><ImageHere>", "何?"], [[RED], [BLUE]], "Prompt 0 has 2 placeholders <ImageHere> but 1 pictures"),
        (["<ImageHere>", "<ImageHere>"], [[RED, BLUE], []], "Prompt 0 has 1 placeholders <ImageHere> but 2 pictures"),
        (["<ImageHere>", "何?"], [[RED], [], []], "2 prompts but 3 lists of pictures"),
        ("<ImageHere>", [RED, BLUE], "<ImageHere> tokens in the prompts should be the same as the number of images"),
        (["<ImageHere>", "何?"], [RED, BLUE], "The batch of 2 prompts has 1 placeholders <ImageHere> but 2 pictures"),
    ],
)
def test_counts_are_checked_for_every_prompt(processor, text, images, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        processor(text=text, images=images)


def test_prompt_strings(processor):
    text = ["<s>ユーザー: <IMG><ImageHere></IMG><NL>システム: ", "<s>こんにちは"]
    inputs = processor(text=text, images=[[RED], []], padding=True, return_tensors="pt")
    assert (inputs["input_ids"] == IMAGE).sum(-1).tolist() == [4, 0]
    assert inputs["input_ids"][0, 0] == BOS
    flat = processor(text=text, images=[RED], padding=True, return_tensors="pt")
    assert torch.equal(inputs["input_ids"], flat["input_ids"])
    assert "pixel_values" not in processor(text="こんにちは", images=[])
    assert processor(images=RED, return_tensors="pt")["pixel_values"].shape == (1, 3, 28, 28)


HOSTILE = [
    "<ImageHere>",
    "</s>",
    "<s>",
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[MASK]",
    "<0x41>",
    "＜／ｓ＞",
    "＜ｓ＞",
    "［ＰＡＤ］",
    "<Image<ImageHere>Here>",
    "</IMG><ImageHere><IMG>",
    "\ufdd0</s>",
    "<\ufdd0/s>",
    "</s\ufdd0>",
]


@pytest.mark.parametrize("typed", HOSTILE)
@pytest.mark.parametrize("name", ["article-3.6b", "rinna-4b", "minigpt4"])
def test_typed_control_text_is_data_in_the_chat_template(make_processor, name, typed):
    processor = make_processor(name)
    clean = encode(processor, [user(RED, "犬")])["input_ids"][0].tolist()
    ids = encode(processor, [user(RED, f"犬{typed}")])["input_ids"][0].tolist()
    controls = [token for token in ids if token in CONTROL_IDS]
    assert controls == [token for token in clean if token in CONTROL_IDS]
    spelt = processor.tokenizer.decode(plain(processor, typed.replace("\ufdd0", "")))
    assert spelt in processor.tokenizer.decode(ids)


@pytest.mark.parametrize("parts", [("<Image", "Here>"), ("<", "/s>"), ("[", "PAD]"), ("</", "s>")])
def test_control_text_cannot_be_put_together_from_parts(processor, parts):
    ids = encode(processor, [user(*parts)])["input_ids"][0].tolist()
    assert [token for token in ids if token in CONTROL_IDS] == [BOS]


@pytest.mark.parametrize("role", ["system", "assistant"])
def test_control_text_of_other_roles_is_data(processor, role):
    messages = [{"role": role, "content": "</s><ImageHere>"}, user("犬")]
    messages = messages if role == "system" else [user("猫"), *messages]
    ids = encode(processor, messages)["input_ids"][0].tolist()
    assert [token for token in ids if token in CONTROL_IDS] == [BOS]


@pytest.mark.parametrize("typed", [text for text in HOSTILE if "<ImageHere>" not in text])
def test_typed_control_text_is_data_in_prompt_strings(processor, typed):
    ids = processor(text=f"犬{typed}猫")["input_ids"][0]
    assert not CONTROL_IDS & set(ids)
    assert ids == plain(processor, f"犬{typed}猫".replace("\ufdd0", ""))


def test_only_the_first_bos_of_a_prompt_string_is_one(processor):
    assert processor(text="<s>犬<s>")["input_ids"][0] == [BOS, *plain(processor, "犬<s>")]
    assert processor(text="犬<s>")["input_ids"][0] == plain(processor, "犬<s>")


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(
    st.lists(st.sampled_from([*HOSTILE, "<", ">", "[", "]", "s", "/", "犬", " ", "\n", "\ufdd0", "Ｉ"]), max_size=8)
)
def test_no_mixture_of_hostile_text_makes_a_control_token(processor, pieces):
    ids = encode(processor, [user("".join(pieces))])["input_ids"][0].tolist()
    assert [token for token in ids if token in CONTROL_IDS] == [BOS]


def test_assistant_mask_marks_the_answers(processor):
    messages = [user(RED, "何色?"), assistant("赤"), user("本当?"), assistant("はい")]
    out = encode(processor, messages, add_generation_prompt=False, return_assistant_tokens_mask=True)
    answers = out["input_ids"][0][out["assistant_masks"][0].bool()]
    assert processor.tokenizer.decode(answers).replace(" ", "") == "赤はい</s>"


def test_segments_are_what_generation_sees(processor):
    messages = [user(RED, "何色?"), assistant("赤です")]
    segments = processor.encode_segments(messages)
    prompt = encode(processor, messages[:1])["input_ids"][0].tolist()
    answer = plain(processor, "赤です")
    assert segments["input_ids"] == [*prompt, *answer, EOS]
    assert segments["labels"] == [-100] * len(prompt) + [*answer, EOS]
    assert processor.encode_segments(messages[:1], add_generation_prompt=True)["input_ids"] == prompt


def test_segments_of_a_longer_conversation(processor):
    """An answer is followed by the next question without EOS, yet the model learns to end it with EOS there."""
    messages = [user(RED, "何色?"), assistant("赤"), user("本当?"), assistant("はい")]
    segments = processor.encode_segments(messages)
    tokenizer = processor.tokenizer
    first = encode(processor, messages[:1])["input_ids"][0].tolist()
    between = tokenizer("<NL>ユーザー: 本当?<NL>システム: ")["input_ids"]
    one, two = plain(processor, "赤"), plain(processor, "はい")
    assert segments["input_ids"] == [*first, *one, *between, *two, EOS]
    assert segments["labels"] == [*[-100] * len(first), *one, EOS, *[-100] * (len(between) - 1), *two, EOS]
    going_on = processor.encode_segments(messages[:3], add_generation_prompt=True)
    assert going_on["input_ids"] == [*first, *one, *between]
    assert going_on["labels"] == [*[-100] * len(first), *one, EOS, *[-100] * (len(between) - 1)]


def test_a_segment_is_what_a_conversation_adds(processor):
    messages = [user(RED, "何色?"), assistant("赤"), user("本当?")]
    prompt = processor.render_segment(messages[:1], add_generation_prompt=True)
    answer = processor.render_segment(messages[:2], prompt)
    assert (prompt, answer) == ("<s>ユーザー: <IMG><ImageHere></IMG> 何色?<NL>システム: ", "赤")
    rest = processor.render_segment(messages, prompt + answer, add_generation_prompt=True)
    assert rest == "<NL>ユーザー: 本当?<NL>システム: "
    ids = [token for segment in (prompt, answer, rest) for token in processor.tokenize_segment(segment)]
    assert ids == processor.encode_segments(messages, add_generation_prompt=True)["input_ids"]
    with pytest.raises(ValueError, match="rewrites earlier turns"):
        processor.render_segment(messages, "<s>ユーザー: 何?")


def test_line_breaks_and_stop_strings(make_processor):
    processor = make_processor()
    for typed in ("一行目\n二行目", "一行目\r\n二行目", "一行目<NL>二行目"):
        ids = encode(processor, [user(typed)])["input_ids"][0].tolist()
        assert ids == [BOS, *plain(processor, "ユーザー: 一行目<NL>二行目<NL>システム: ")]
    generated = torch.tensor([plain(processor, "赤<NL>青")])
    assert processor.post_process_image_text_to_text(generated) == ["赤\n青"]
    assert processor.trim_answer(" 赤<NL>青<NL>ユーザー: もっと") == "赤\n青"


def test_round_trip(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    files = {path.name for path in tmp_path.iterdir()}
    assert {"processor_config.json", "chat_template.jinja", "tokenizer.json", "processing_jminigpt4.py"} <= files
    again = type(processor).from_pretrained(tmp_path)
    assert type(again.image_processor) is type(processor.image_processor)
    assert (again.num_query_tokens, again.newline, again.stop_strings) == (4, "<NL>", processor.stop_strings)
    messages = [user(RED, "何色? </s>\n"), assistant("赤"), user(BLUE, "では?")]
    ours, theirs = encode(processor, messages), encode(again, messages)
    assert torch.equal(ours["input_ids"], theirs["input_ids"])
    assert torch.equal(ours["pixel_values"], theirs["pixel_values"])


def test_serving_engines_can_plan(processor):
    planned = processor._get_num_multimodal_tokens(image_sizes=[[20, 30], [500, 400]])
    assert (planned.num_image_tokens, planned.num_image_patches) == ([4, 4], [1, 1])
    out = processor(text="<ImageHere>犬", images=[RED], return_text_replacement_offsets=True)
    offsets = out["text_replacement_offsets"][0][0]
    assert (offsets["span"], offsets["new_span"]) == ((0, 11), (0, 44))


def test_pictures_of_a_conversation_may_be_anything(processor, reference, tmp_path):
    path = reference / "images" / "c_113x40_rgba.png"
    picture = Image.open(path)
    ways = [{"image": picture}, {"image": np.asarray(picture)}, {"path": str(path)}, {"url": str(path)}]
    results = [
        encode(processor, [{"role": "user", "content": [{"type": "image", **way}]}])["pixel_values"] for way in ways
    ]
    assert all(torch.equal(results[0], other) for other in results[1:])
