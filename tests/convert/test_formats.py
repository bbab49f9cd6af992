"""The prompt formats, to the character."""

import pytest

from jminigpt4.convert.formats import PROMPT_FORMATS, chat_template_for, prompt_format

PICTURE = {"type": "image"}


def text(words):
    return {"type": "text", "text": words}


def render(make_processor, name, messages, **options):
    return make_processor(name).apply_chat_template(messages, **options)


DIALOGUE = [
    {"role": "user", "content": [PICTURE, text("What is this?")]},
    {"role": "assistant", "content": [text("a dog")]},
    {"role": "user", "content": [text("What breed?")]},
]


def test_article(make_processor):
    assert render(make_processor, "article-3.6b", DIALOGUE[:1], add_generation_prompt=True) == (
        "<s>ユーザー: <IMG><ImageHere></IMG> What is this?<NL>システム: "
    )
    caption = [{"role": "user", "content": [PICTURE]}]
    assert render(make_processor, "article-3.6b", caption, add_generation_prompt=True) == (
        "<s>ユーザー: <IMG><ImageHere></IMG><NL>システム: "
    )
    assert render(make_processor, "article-3.6b", DIALOGUE, add_generation_prompt=True) == (
        "<s>ユーザー: <IMG><ImageHere></IMG> What is this?<NL>システム: a dog<NL>ユーザー: What breed?<NL>システム: "
    )
    two = [{"role": "user", "content": [PICTURE, PICTURE, text("違いは?")]}]
    assert render(make_processor, "article-3.6b", two) == (
        "<s>ユーザー: <IMG><ImageHere></IMG><IMG><ImageHere></IMG> 違いは?"
    )
    persona = [{"role": "system", "content": "語尾は「にゃ」。"}, {"role": "user", "content": "誰?"}]
    assert render(make_processor, "article-3.6b", persona, add_generation_prompt=True) == (
        "<s>語尾は「にゃ」。<NL>ユーザー: 誰?<NL>システム: "
    )


def test_rinna_4b(make_processor):
    assert render(make_processor, "rinna-4b", DIALOGUE[:1], add_generation_prompt=True) == (
        "ユーザー: <Img><ImageHere></Img> What is this?\nシステム: "
    )


def test_minigpt4_as_recorded(make_processor, expected):
    recorded = expected["meta"]["prompt_formats"]
    one, three = (render(make_processor, "minigpt4", DIALOGUE[:n], add_generation_prompt=True) for n in (1, 3))
    assert one == "<s>" + recorded["minigpt4_v1_demo_turn1"]
    assert three == "<s>" + recorded["minigpt4_v1_demo_turn2"]


@pytest.mark.parametrize("name", [name for name in PROMPT_FORMATS if name != "chatml"])
def test_a_conversation_continues_its_beginning(make_processor, name):
    messages = [{"role": "system", "content": "短く"}, *DIALOGUE, {"role": "assistant", "content": "柴犬"}]
    whole = render(make_processor, name, messages, open_end=True)
    for turn in (2, 4):
        prompt = render(make_processor, name, messages[:turn], add_generation_prompt=True)
        assert whole.startswith(prompt)
        assert whole.startswith(render(make_processor, name, messages[: turn + 1], open_end=True))


@pytest.mark.parametrize("name", ["article-3.6b", "rinna-4b", "plain"])
def test_what_others_train_on_ends_as_an_answer_ends(make_processor, name):
    """Trainers that read the template alone learn the end; what generation reads has no token more."""
    processor, answer = make_processor(name), {"role": "assistant", "content": "柴犬"}
    finished = processor.apply_chat_template([*DIALOGUE, answer])
    assert finished == processor.apply_chat_template([*DIALOGUE, answer], open_end=True) + "</s>"
    assert "</s>" not in processor.apply_chat_template([*DIALOGUE], add_generation_prompt=True)
    assert "</s>" not in processor.apply_chat_template([*DIALOGUE, answer], add_generation_prompt=True)
    assert processor.apply_chat_template([*DIALOGUE, answer], continue_final_message=True) == finished[: -len("</s>")]
    messages = [{"role": "user", "content": "何?"}, answer]
    options = {"tokenize": True, "return_dict": True, "return_assistant_tokens_mask": True}
    encoded = processor.apply_chat_template(messages, **options)
    learnt = [
        token for token, mask in zip(encoded["input_ids"][0], encoded["assistant_masks"][0], strict=True) if mask
    ]
    eos = processor.tokenizer.eos_token_id
    assert learnt[-1] == eos and learnt == [
        label for label in processor.encode_segments(messages)["labels"] if label > 0
    ]


@pytest.mark.parametrize("name", ["article-3.6b", "rinna-4b", "plain"])
def test_the_last_answer_ends_before_another_question(make_processor, name):
    """TRL asks so whether a template's answers end: an answer, and a question behind it."""
    processor = make_processor(name)
    options = {"tokenize": True, "return_dict": True, "return_assistant_tokens_mask": True}
    messages = [DIALOGUE[0] | {"content": [text("何?")]}, *DIALOGUE[1:]]
    encoded = processor.apply_chat_template(messages, **options)
    pairs = list(zip(encoded["input_ids"][0], encoded["assistant_masks"][0], strict=True))
    eos = processor.tokenizer.eos_token_id
    assert [token for token, mask in pairs if mask][-1] == eos
    assert [token for token, _ in pairs].count(eos) == 1
    more = [*messages, DIALOGUE[1]]
    assert processor.apply_chat_template(more).count("</s>") == 1
    assert processor.apply_chat_template(more).endswith("</s>")
    for options in ({"add_generation_prompt": True}, {"open_end": True}):
        assert "</s>" not in processor.apply_chat_template(messages, **options)
    typed = [messages[0], DIALOGUE[1] | {"content": [text("a</s>dog")]}, {"role": "user", "content": [text("</s>")]}]
    ids = processor.apply_chat_template(typed, tokenize=True, return_dict=True)["input_ids"][0]
    assert ids.count(eos) == 1


@pytest.mark.parametrize("name", [name for name in PROMPT_FORMATS if name != "chatml"])
@pytest.mark.parametrize(
    ("message", "error"),
    [
        ({"role": "tool", "content": "x"}, "Unknown role 'tool'"),
        ({"role": "user", "content": [{"type": "video"}]}, "cannot hold a part of type 'video'"),
        ({"role": "assistant", "content": [{"type": "image"}]}, "cannot hold a part of type 'image'"),
    ],
)
def test_refuses_what_it_does_not_know(make_processor, name, message, error):
    with pytest.raises(Exception, match=error):
        render(make_processor, name, [message])


def test_names(tokenizer):
    with pytest.raises(ValueError, match="no prompt format 'vicuna': choose one of article-3.6b, chatml, minigpt4"):
        prompt_format("vicuna")
    with pytest.raises(ValueError, match=r"has no <\|im_start\|>"):
        chat_template_for(prompt_format("chatml"), tokenizer)


def test_guards_follow_the_tokenizer(tokenizer):
    template = chat_template_for(prompt_format("article-3.6b"), tokenizer)
    assert '{%- set control_starts = ["<", "["] -%}' in template
