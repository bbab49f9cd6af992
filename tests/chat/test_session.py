"""The conversation: equal to generating from the whole prompt, at the price of the new tokens only."""

import threading

import pytest
import torch

from jminigpt4.chat import ChatSession
from jminigpt4.inference.answering import MAX_NEW_TOKENS

FORMATS = ("article-3.6b", "rinna-4b", "minigpt4", "plain")


@pytest.fixture
def session(chat_model, processor):
    return ChatSession(chat_model, processor)


def fresh_answers(session) -> list[list[int]]:
    """Every answer of the conversation generated anew from its whole prompt, pictures as pixels, no cache kept."""
    answers, token_ids, shown = [], [], []
    for turn in [*session._examples, *session.turns]:
        token_ids = token_ids + turn.prompt_ids
        shown = shown + [picture.image for picture in turn.pictures]
        inputs = {"input_ids": torch.tensor([token_ids]), "attention_mask": torch.ones(1, len(token_ids), dtype=int)}
        if shown:
            inputs["pixel_values"] = session.processor.image_processor(images=shown, return_tensors="pt").pixel_values
        new = session.model.generate(**inputs)[0, len(token_ids) :].tolist()
        answers.append(new[: new.index(3)] if 3 in new else new)
        token_ids = token_ids + turn.answer_ids
    return answers[len(session._examples) :]


def assert_equal_to_fresh(session):
    """The kept tokens may be fewer: without a stop string and without a last character that was cut off."""
    for turn, fresh in zip(session.turns, fresh_answers(session), strict=True):
        kept, rest = fresh[: len(turn.answer_ids)], session.processor.tokenizer.decode(fresh[len(turn.answer_ids) :])
        assert kept == turn.answer_ids
        assert not rest.strip("\ufffd") or any(stop in rest for stop in session.processor.stop_strings)
        text = session.processor.trim_answer(session.processor.tokenizer.decode(kept))
        assert "\ufffd" in text or text == turn.answer


@pytest.mark.parametrize("prompt_format", FORMATS)
def test_answers_equal_those_of_the_whole_prompt(chat_model, make_processor, pictures, prompt_format):
    session = ChatSession(chat_model, make_processor(prompt_format))
    session.ask("何が写ってる?", [pictures[0]])
    session.ask("何色?\nくわしく。")
    session.ask("これは?", pictures[1:])
    session.ask("", [pictures[0]])
    session.ask("食べられる?")
    assert_equal_to_fresh(session)
    assert len({turn.answer for turn in session.turns}) > 1


EXPERTS = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_group": 1, "topk_group": 1}
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
OWN_CACHES = {
    "lfm2": {"intermediate_size": 64, "num_key_value_heads": 2, "layer_types": ["conv", "full_attention"]},
    "minimax": {"intermediate_size": 32, "num_key_value_heads": 2, "head_dim": 8, "num_local_experts": 4},
    "deepseek_v32": {"num_key_value_heads": 4, "index_head_dim": 8, "index_n_heads": 2, **EXPERTS, **LATENT},
}


@pytest.mark.parametrize("family", OWN_CACHES)
def test_language_models_with_caches_of_their_own(make_model, processor, pictures, family):
    """States run through all positions, indexed attention keeps more than keys: nothing is cropped or shared."""
    session = ChatSession(make_model(family, **OWN_CACHES[family]), processor)
    asked = {"max_new_tokens": 6}
    session.model.generation_config.max_new_tokens = 6
    session.ask("何が写ってる?", [pictures[0]])
    single = ["".join(session.stream("何色?")), session.edit(1, "鳥がいますか?", **asked)]
    session.undo()
    assert session.ask_many([], ["何色?", "鳥がいますか?"], **asked)[1] == single[1]
    session.ask("何色?", [pictures[1]])
    for turn, fresh in zip(session.turns, fresh_answers(session), strict=True):
        assert turn.answer_ids and fresh[: len(turn.answer_ids)] == turn.answer_ids


def test_pictures_change_answers(chat_model, processor, pictures):
    answers = [ChatSession(chat_model, processor).ask("これは?", [picture]) for picture in pictures]
    assert len(set(answers)) == 3


def test_a_turn_costs_its_own_tokens(session, pictures, monkeypatch):
    encoded = []
    encode = session.model.get_query_features
    monkeypatch.setattr(
        session.model, "get_query_features", lambda pixels: encoded.append(len(pixels)) or encode(pixels)
    )
    session.ask("何が写ってる?", [pictures[0]])
    assert session.turns[0].prefilled_tokens == len(session.turns[0].prompt_ids)
    for question, images in (("何色?", []), ("これは?", [pictures[1]]), ("もう一度", [pictures[0]]), ("鳥?", [])):
        session.ask(question, images)
        # The last generated token was never read by the model; at most that one is read beside the new prompt, unless
        # the answer was shortened, when nothing more is to be read.
        assert session.turns[-1].prefilled_tokens - len(session.turns[-1].prompt_ids) in (0, 1)
    assert sum(encoded) == 2  # two pictures, one of them shown twice


def test_generated_tokens_stay_as_generated(session, pictures):
    session.ask("何が写ってる?", [pictures[0]])
    generated = session.turns[0].answer_ids
    session.ask("何色?")
    assert session.turns[0].answer_ids == generated
    ids = session.token_ids()
    start = len(session.turns[0].prompt_ids)
    assert ids[start : start + len(generated)] == generated


def test_prompts_are_those_of_training(session, pictures):
    """Where answers are tokenised as text would be, the conversation has the ids of `encode_segments`."""
    messages = [
        {"role": "user", "content": [{"type": "image", "image": pictures[0]}, {"type": "text", "text": "何色?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "赤です。\n青も"}]},
        {"role": "user", "content": [{"type": "text", "text": "鳥?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "はい"}]},
    ]
    session.restore(messages)
    assert [*session.token_ids(), 3] == session.processor.encode_segments(messages)["input_ids"]
    assert session.messages()[1:] == messages[1:]


def test_stream_equals_ask(session, chat_model, processor, pictures):
    other = ChatSession(chat_model, processor)
    for question, images in (("何が写ってる?", pictures[:1]), ("何色?", []), ("これは?", pictures[1:])):
        pieces = list(session.stream(question, images))
        assert "".join(pieces) == other.ask(question, images) == session.turns[-1].answer
        assert len(pieces) > 1
    assert session.token_ids() == other.token_ids()


def test_stream_stops_when_left(session):
    stream = session.stream("何色?", max_new_tokens=400, eos_token_id=None)
    first = next(stream)
    stream.close()
    turn = session.turns[-1]
    assert turn.answer.startswith(first)
    assert len(turn.answer_ids) < 400
    session.ask("鳥?", max_new_tokens=4)
    assert session.turns[0] is not None and len(session.turns) == 2


def test_stream_stops_when_another_question_comes(session):
    abandoned = session.stream("何色?", max_new_tokens=900, eos_token_id=None)
    next(abandoned)
    session.ask("鳥?", max_new_tokens=4)
    assert [turn.question for turn in session.turns] == ["何色?", "鳥?"]
    assert threading.active_count() < 5


def test_failure_leaves_the_conversation_as_it_was(session, pictures, monkeypatch):
    session.ask("何が写ってる?", [pictures[0]])
    before = session.token_ids()
    monkeypatch.setattr(session.model, "generate", lambda **_: (_ for _ in ()).throw(RuntimeError("out of memory")))
    with pytest.raises(RuntimeError, match="out of memory"):
        list(session.stream("何色?"))
    with pytest.raises(RuntimeError, match="out of memory"):
        session.ask("何色?")
    monkeypatch.undo()
    assert session.token_ids() == before
    session.ask("何色?")
    assert_equal_to_fresh(session)


def test_undo_and_edit_crop_the_cache(session, pictures):
    first = session.ask("何が写ってる?", [pictures[0]])
    second = session.ask("何色?")
    third = session.ask("鳥?")
    assert session.undo().answer == third
    assert session.ask("鳥?") == third
    assert session.turns[-1].prefilled_tokens <= len(session.turns[-1].prompt_ids) + 1
    session.undo()
    edited = session.edit(0, "これは何の仲間?")
    assert len(session.turns) == 1 and len(session.turns[0].pictures) == 1
    # The picture is before the words, and its keys and values are still there.
    assert session.turns[0].prefilled_tokens < len(session.turns[0].prompt_ids) - 4
    assert_equal_to_fresh(session)
    assert (session.edit(0, "何が写ってる?"), session.ask("何色?")) == (first, second)
    assert edited != first
    with pytest.raises(ValueError, match="no turn 7"):
        session.edit(7, "?")
    session.reset()
    with pytest.raises(ValueError, match="nothing to undo"):
        session.undo()


def test_a_failed_edit_keeps_the_conversation(session, pictures):
    session.ask("何が写ってる?", [pictures[0]])
    session.ask("何色?")
    with pytest.raises(ValueError, match="context window"):
        session.edit(0, "長" * 2000)
    assert [turn.question for turn in session.turns] == ["何が写ってる?", "何色?"]


def test_another_picture_of_equal_tokens_is_not_taken_for_the_first(session, pictures):
    session.ask("これは?", [pictures[0]])
    session.undo()
    session.ask("これは?", [pictures[1]])
    assert_equal_to_fresh(session)


def test_full_window_forgets_whole_turns(make_model, processor, pictures):
    model = make_model(max_position_embeddings=128)
    model.generation_config.update(eos_token_id=3, max_new_tokens=12, do_sample=False)
    forgotten = []
    session = ChatSession(model, processor, on_forget=forgotten.append)
    for number in range(8):
        session.ask(f"{number}番目の絵は何色?", [pictures[number % 3]])
        assert len(session.token_ids()) <= 128
        image_tokens = session.token_ids().count(processor.image_token_id)
        assert image_tokens == 4 * sum(len(turn.pictures) for turn in session.turns)
    assert sum(map(len, forgotten)) + len(session.turns) == 8
    assert [turn.question[0] for turns in forgotten for turn in turns] == [
        str(n) for n in range(8 - len(session.turns))
    ]
    assert session.token_ids()[0] == processor.tokenizer.bos_token_id
    assert session.turns[-1].answer_ids == fresh_answers(session)[-1][: len(session.turns[-1].answer_ids)]
    with pytest.warns(UserWarning, match="oldest"):
        ChatSession.__init__(again := ChatSession.__new__(ChatSession), model, processor)
        for _ in range(8):
            again.ask("これは何色?", [pictures[0]])


def test_a_question_longer_than_the_window_is_refused(session, pictures):
    session.ask("何色?", [pictures[0]])
    with pytest.raises(ValueError, match=r"\d+ tokens with its 1 pictures.*1024"):
        session.ask("長" * 1100, [pictures[1]])
    assert [turn.question for turn in session.turns] == ["何色?"]
    with pytest.raises(ValueError, match="Ask something"):
        session.ask("  ")


def test_the_answer_is_shortened_to_the_room_there_is(make_model, processor):
    model = make_model(max_position_embeddings=64)
    session = ChatSession(model, processor)
    session.ask("これ", max_new_tokens=MAX_NEW_TOKENS)
    assert len(session.turns[0].prompt_ids) + len(session.turns[0].answer_ids) <= 64


@pytest.mark.parametrize("prompt_format", FORMATS)
def test_ask_many_equals_single_questions(chat_model, make_processor, pictures, prompt_format):
    session = ChatSession(chat_model, make_processor(prompt_format))
    session.ask("何が写ってる?", [pictures[1]])
    before = session.token_ids()
    questions = ["何色?", "何が写っているか、くわしく教えてください。", "鳥?", ""]
    answers = session.ask_many(pictures[0], questions)
    assert session.token_ids() == before
    singles = []
    for question in questions:
        singles.append(session.ask(question, [pictures[0]]))
        session.undo()
    assert answers == singles
    assert len(set(answers)) > 1
    assert session.ask_many(pictures[0], questions[:1]) == singles[:1]


def test_ask_many_reads_the_shared_prefix_once(session, pictures, monkeypatch):
    positions = []
    forward = type(session.model.model).forward

    def counted(self, *args, input_ids=None, **kwargs):
        positions.append(tuple(input_ids.shape))
        return forward(self, *args, input_ids=input_ids, **kwargs)

    monkeypatch.setattr(type(session.model.model), "forward", counted)
    session.ask_many(pictures[0], ["何色?", "鳥?", "何?"], max_new_tokens=2)
    assert positions[0][0] == 1 and positions[0][1] > 8
    assert positions[1][0] == 3 and positions[1][1] < positions[0][1]


def test_persona_and_examples(chat_model, processor, pictures):
    examples = [
        {"role": "user", "content": [{"type": "image", "image": pictures[0]}, {"type": "text", "text": "何色?"}]},
        {"role": "assistant", "content": "赤だよ!"},
    ]
    session = ChatSession(chat_model, processor, persona="あなたは猫です。", examples=examples)
    session.ask("これは?", [pictures[1]])
    session.ask("鳥?")
    assert_equal_to_fresh(session)
    text = processor.tokenizer.decode(session.token_ids())
    assert text.startswith("<s>あなたは猫です。<NL>ユーザー: ")
    assert text.count("赤だよ!") == 1
    assert [message["role"] for message in session.messages()] == ["system", *["user", "assistant"] * 2]
    generated = [turn.answer_ids for turn in session.turns]
    session.persona = None
    assert processor.tokenizer.decode(session.token_ids()).startswith("<s>ユーザー: ")
    assert [turn.answer_ids for turn in session.turns] == generated
    session.ask("何?")
    assert session.turns[-1].answer_ids == fresh_answers(session)[-1][: len(session.turns[-1].answer_ids)]
    with pytest.raises(ValueError, match="Message 1 is by 'assistant'"):
        ChatSession(chat_model, processor, examples=examples[1:])
    with pytest.raises(ValueError, match="without an answer"):
        ChatSession(chat_model, processor, examples=examples[:1])
    with pytest.raises(ValueError, match="Message 1 has content"):
        session.restore([{"role": "user", "content": [{"type": "video"}]}])


def test_beams(session, pictures):
    session.ask("何が写ってる?", [pictures[0]])
    answer = session.ask("何色?", num_beams=3)
    session.undo()
    assert "".join(session.stream("何色?", num_beams=3)) == answer
    ids = torch.tensor([session._ids(session.turns[:1]) + session.turns[1].prompt_ids])
    pixel_values = session.processor.image_processor(images=[pictures[0]], return_tensors="pt").pixel_values
    new = session.model.generate(ids, attention_mask=torch.ones_like(ids), pixel_values=pixel_values, num_beams=3)
    assert new[0, ids.shape[1] :].tolist()[: len(session.turns[1].answer_ids)] == session.turns[1].answer_ids
    session.ask("鳥?")
    assert session.turns[-1].answer_ids == fresh_answers(session)[-1][: len(session.turns[-1].answer_ids)]


def test_sampling_is_seeded(session, pictures):
    answers = set()
    for seed in (1, 1, 2, 3):
        torch.manual_seed(seed)
        answers.add(session.ask("何が写ってる?", [pictures[0]], do_sample=True, temperature=2.0))
        session.undo()
    assert len(answers) == 3


def test_sliding_windows_are_no_hindrance(make_model, processor, pictures):
    model = make_model("mistral", sliding_window=64, max_position_embeddings=1024)
    model.generation_config.update(eos_token_id=3, max_new_tokens=12, do_sample=False)
    session = ChatSession(model, processor)
    for question in ("何が写ってる?くわしく教えてください。", "何色?", "鳥?"):
        session.ask(question, pictures[:1])
    assert_equal_to_fresh(session)
