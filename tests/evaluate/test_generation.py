"""Answers in batches are those of a plain loop, whatever is shared, however often the run is stopped."""

import itertools

import pytest
import torch
from PIL import Image

from jminigpt4.data.pictures import FilePicture
from jminigpt4.evaluate.benchmarks import parse_request, read_items
from jminigpt4.evaluate.generation import Answerer, Generation
from jminigpt4.evaluate.items import Item, ask
from jminigpt4.inference.answer_text import AnswerText

FORMATS = ("article-3.6b", "rinna-4b", "minigpt4")


@pytest.fixture(scope="module")
def answering_model(make_model):
    """A tiny model with room for several pictures, which ends some answers early."""
    model = make_model(max_position_embeddings=512)
    model.generation_config.eos_token_id = 3
    with torch.no_grad():
        model.lm_head.weight[3] *= 3  # so that EOS wins now and then
    return model


def answers_of(answerer: Answerer, done=frozenset()) -> dict[str, str]:
    return {each.id: each.answer for batch in answerer.answers(done) for each in batch}


def plain_loop(model, processor, items: list[Item], **options) -> dict[str, str]:
    """Processor and `generate`, one question at a time, pictures and all."""
    answers = {}
    for item in items:
        pictures = iter([Image.open(picture.name) for picture in item.pictures])
        messages = []
        for message in item.messages:
            content = [
                {**part, "image": next(pictures)} if part["type"] == "image" else part for part in message["content"]
            ]
            messages.append({**message, "content": content})
        inputs = processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        output = model.generate(**inputs, **options)[0, inputs["input_ids"].shape[1] :]
        answer = AnswerText(processor)
        for token in itertools.takewhile(lambda token: token != 3, output.tolist()):
            answer.push(token)
        answer.finish()
        answers[item.id] = answer.text
    return answers


@pytest.mark.parametrize("name", FORMATS)
def test_answers_are_those_of_a_plain_loop(answering_model, make_processor, own, name):
    items = read_items(parse_request(str(own)))
    processor = make_processor(name)
    answers = answers_of(Answerer(answering_model, processor, Generation(max_new_tokens=10, batch_size=5), items))
    assert answers == plain_loop(answering_model, processor, items, max_new_tokens=10, do_sample=False)
    assert len(set(answers.values())) > 6  # pictures and questions matter


def test_beams_are_those_of_a_plain_loop(answering_model, processor, own):
    items = read_items(parse_request(str(own)), limit=4)
    answers = answers_of(Answerer(answering_model, processor, Generation(max_new_tokens=6, num_beams=2), items))
    assert answers == plain_loop(answering_model, processor, items, max_new_tokens=6, num_beams=2, do_sample=False)


def test_several_pictures_and_none_stand_in_one_batch(answering_model, processor, own):
    first, second, *_ = dict.fromkeys(item.pictures[0] for item in read_items(parse_request(str(own))))
    items = [
        Item("two", ask("違いは?", 2), (first, second), (), ("a", "b")),
        Item("turned", ask("違いは?", 2), (second, first), (), ("b", "a")),
        Item("none", ask("こんにちは", 0), (), (), ()),
        Item("one", ask("何?"), (first,), (), ("a",)),
    ]
    answers = answers_of(Answerer(answering_model, processor, Generation(max_new_tokens=8), items))
    assert answers == plain_loop(answering_model, processor, items, max_new_tokens=8, do_sample=False)
    assert answers["two"] != answers["turned"]


def test_every_picture_is_encoded_once_for_all_its_questions(answering_model, processor, own, monkeypatch):
    items = read_items(parse_request(str(own)))
    encoded = []
    original = answering_model.get_query_features
    monkeypatch.setattr(
        answering_model, "get_query_features", lambda pixels: encoded.append(len(pixels)) or original(pixels)
    )
    answers_of(Answerer(answering_model, processor, Generation(max_new_tokens=2, batch_size=5), items))
    assert sum(encoded) == 4  # 12 questions; batches of 5 cut through pictures


def test_the_prefix_of_a_picture_is_computed_once(answering_model, processor, own, monkeypatch):
    items = read_items(parse_request(str(own)))
    rows = []
    original = type(answering_model.model.language_model).forward

    def forward(self, *args, **kwargs):
        rows.append(tuple(kwargs["inputs_embeds"].shape[:2]))
        return original(self, *args, **kwargs)

    monkeypatch.setattr(type(answering_model.model.language_model), "forward", forward)
    answers_of(Answerer(answering_model, processor, Generation(max_new_tokens=1, batch_size=12), items))
    (pictures, prefix), (questions, rest) = rows
    assert (pictures, questions) == (4, 12)
    longest = max(len(processor.encode_segments(item.messages, True)["input_ids"]) for item in items)
    assert prefix + rest == longest and prefix > processor.num_query_tokens


def test_a_stopped_run_goes_on_to_the_same_answers(answering_model, processor, own):
    items = read_items(parse_request(str(own)))
    settings = Generation(max_new_tokens=8, do_sample=True, temperature=1.5, seed=5, batch_size=5)
    whole = answers_of(Answerer(answering_model, processor, settings, items))
    batches = Answerer(answering_model, processor, settings, items).answers()
    first = {each.id: each.answer for each in next(batches)}
    torch.rand(7)  # whatever else draws random numbers in between
    batches.close()
    rest = answers_of(Answerer(answering_model, processor, settings, items), done=set(first) | {"3-edible"})
    assert first.keys().isdisjoint(rest) and "3-edible" not in rest
    assert {**first, **rest, "3-edible": whole["3-edible"]} == whole


def test_the_seed_decides_what_is_sampled(answering_model, processor, own):
    items = read_items(parse_request(str(own)), limit=5)

    def sampled(seed: int) -> dict[str, str]:
        return answers_of(
            Answerer(answering_model, processor, Generation(max_new_tokens=8, do_sample=True, seed=seed), items)
        )

    assert sampled(1) == sampled(1) != sampled(2)


def test_what_does_not_fit_the_context_window_is_unanswered(make_model, processor, own):
    small = make_model(max_position_embeddings=60)
    (item, *_) = read_items(parse_request(str(own)))
    long = Item("long", ask("犬" * 200), item.pictures, ("犬",), item.image_ids)
    answerer = Answerer(small, processor, Generation(max_new_tokens=500), [long, item])
    assert [each.id for each in answerer.unanswerable] == ["long"]
    predictions = {each.id: each for batch in answerer.answers() for each in batch}
    assert predictions["long"].answer == "" and predictions["long"].cut_off
    assert predictions[item.id].answer and predictions[item.id].cut_off


def test_cut_off_answers_are_told_from_finished_ones(answering_model, processor, own):
    items = read_items(parse_request(str(own)))
    answerer = Answerer(answering_model, processor, Generation(max_new_tokens=60), items)
    found = [each.cut_off for batch in answerer.answers() for each in batch]
    one = Answerer(answering_model, processor, Generation(max_new_tokens=1), items)
    assert all(each.cut_off for batch in one.answers() for each in batch)
    assert False in found


def test_a_damaged_picture_is_named(answering_model, processor, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    broken = FilePicture(str(tmp_path / "broken.png"))
    item = Item("1", ask("何?"), (broken,), (), ("x",))
    with pytest.raises(ValueError, match=r"broken\.png is not a picture"):
        answers_of(Answerer(answering_model, processor, Generation(), [item]))


@pytest.mark.parametrize("name", ["max_new_tokens", "num_beams", "batch_size"])
def test_settings_that_cannot_be_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        Generation(**{name: 0})
