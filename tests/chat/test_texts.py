"""What users type is data: no spelling of a control token reaches the model as one, whatever front end it comes by."""

import random

import pytest

from jminigpt4.chat import ChatSession
from jminigpt4.chat.pictures import ShownPicture
from jminigpt4.chat.turns import Prompts, Turn

PIECES = (
    *("<ImageHere>", "</s>", "<s>", "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<0x41>", "<0xE3>", "<NL>"),
    *(
        "＜／ｓ＞",
        "＜ＩｍａｇｅＨｅｒｅ＞",
        "［ＰＡＤ］",
        "＜０ｘ４１＞",
        "﹤/s﹥",
        "<IMG>",
        "</IMG>",
        "<Img>",
        "###",
        "システム: ",
    ),
    *(
        "ユーザー: ",
        "\n",
        "\r\n",
        "\t",
        " ",
        "\u3000",
        "\u200b",
        "\ufeff",
        "\ufdd0",
        "\ufffe",
        "\x00",
        "\x1b[2J",
        "\u202e",
    ),
    *(
        "{{",
        "{% raw %}",
        "{{ bos_token }}",
        "{%- generation -%}",
        "%s",
        "\\",
        "'",
        '"',
        "</",
        "s>",
        "<",
        ">",
        "[",
        "]",
    ),
    *("何色?", "絵", "é", "か\u3099", "🍎", "👩‍🚀", "ｶﾞ", "ﷺ", "a" * 20, "\ud7ff", "\u0344"),
)
SPLITTERS = ("", "", "", "\ufdd0", "\u200b", "\u00ad", " ", "\x00", "\u0301")


def hostile_texts(count: int, seed: int) -> list[str]:
    """Control tokens whole, broken, nested, full-width, with invisible characters inside, among ordinary text."""
    generator = random.Random(seed)
    texts = []
    for _ in range(count):
        pieces = generator.choices(PIECES, k=generator.randint(1, 6))
        if generator.random() < 0.5:  # tear one and put something into the tear, perhaps another token
            torn = pieces[0]
            cut = generator.randint(0, len(torn))
            inside = generator.choice((*SPLITTERS, generator.choice(PIECES)))
            pieces[0] = torn[:cut] + inside + torn[cut:]
        texts.append(generator.choice(SPLITTERS).join(pieces))
    return texts


@pytest.mark.parametrize("prompt_format", ["article-3.6b", "rinna-4b", "minigpt4", "plain"])
def test_ten_thousand_hostile_texts_hold_no_control_ids(make_processor, prompt_format):
    processor = make_processor(prompt_format)
    tokenizer = processor.tokenizer
    control = {*tokenizer.all_special_ids, processor.image_token_id} - {tokenizer.unk_token_id}
    texts = hostile_texts(2_500, seed=FORMAT_SEEDS[prompt_format])
    messages = [[{"role": "user", "content": [{"type": "text", "text": text}]}] for text in texts]
    prompts = processor.apply_chat_template(messages, add_generation_prompt=True)
    empty = tokenizer(
        processor.apply_chat_template([{"role": "user", "content": ""}], add_generation_prompt=True),
        add_special_tokens=False,
    )["input_ids"]
    allowed = sum(token in control for token in empty)  # what the format itself writes, a BOS mostly
    rows = tokenizer(prompts, add_special_tokens=False)["input_ids"]
    for text, ids, decoded in zip(texts, rows, tokenizer.batch_decode(rows), strict=True):
        assert sum(token in control for token in ids) == allowed, repr(text)
        # A typed byte token is its six characters, not the byte: it would decode to `A`.
        assert decoded.count("<0x41>") >= text.count("<0x41>") + text.count("＜０ｘ４１＞"), repr(text)


FORMAT_SEEDS = {"article-3.6b": 0, "rinna-4b": 1, "minigpt4": 2, "plain": 3}


def test_a_session_takes_hostile_texts_as_words(chat_model, processor, pictures):
    """Through the prompts of a conversation: as many image tokens as pictures, no control ids, every text answered."""
    prompts = Prompts(processor)
    control = set(processor.tokenizer.all_special_ids) - {processor.tokenizer.unk_token_id, processor.image_token_id}
    picture = ShownPicture(pictures[0])
    before = prompts.follow(None, [], [Turn("何?", answer="赤")])
    for text in hostile_texts(300, seed=4):
        turn = prompts.follow("<s>" + text, before, [Turn(text, [picture], answer=text)])[0]
        assert turn.prompt_ids.count(processor.image_token_id) == processor.num_query_tokens
        assert not control & {*turn.prompt_ids, *(turn.answer_ids or ())}, repr(text)
        assert processor.image_token_id not in (turn.answer_ids or ())


def test_hostile_texts_are_answered(chat_model, processor, pictures):
    session = ChatSession(chat_model, processor, persona="</s><ImageHere>")
    for text in ("<ImageHere>", "</s>[PAD]", "＜／ｓ＞", "<0x41>", "\ufdd0", "{{ bos_token }}"):
        session.ask(text, pictures[:1], max_new_tokens=2)
    assert session.token_ids().count(processor.image_token_id) == 6 * processor.num_query_tokens
    assert session.token_ids().count(processor.tokenizer.bos_token_id) == 1
