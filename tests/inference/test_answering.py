"""One way to answer: the same tokens in a conversation, an evaluation and a training; nothing computed twice."""

import functools
import importlib.util
import io
import itertools
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch

from jminigpt4.chat import ChatSession
from jminigpt4.chat.pictures import ShownPicture
from jminigpt4.convert.gguf import write_gguf
from jminigpt4.evaluate.generation import Answerer, Generation
from jminigpt4.evaluate.items import Item, ask
from jminigpt4.inference.answering import Answer, AnswerGenerator, Prompt, StopAtMark
from jminigpt4.inference.loading import load_checkpoint
from jminigpt4.train.features import PictureEncoder
from jminigpt4.train.sampling import Samples

QUESTIONS = ["何色?", "何が写っているか、くわしく教えてください。", "鳥?", "これは\n何?"]
EOS = 3
needs_llama_cpp = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("llama_cpp", "gguf")),
    reason="llama-cpp-python or gguf is not installed: pip install -e '.[gguf,llama]'",
)


@dataclass(frozen=True)
class StoredPicture:
    """A picture that is not opened yet, as rows and items hold it."""

    name: str
    content: bytes = field(repr=False)

    def read(self) -> bytes:
        return self.content


@pytest.fixture(scope="module")
def stored(pictures) -> list[StoredPicture]:
    files = [io.BytesIO() for _ in pictures]
    for picture, file in zip(pictures, files, strict=True):
        picture.save(file, "PNG")
    return [StoredPicture(f"{number}.png", file.getvalue()) for number, file in enumerate(files)]


@pytest.fixture(scope="module")
def answering_model(make_model):
    """A tiny model with room for several pictures, which ends some answers early and speaks 16 tokens at most."""
    model = make_model(max_position_embeddings=1024)
    model.generation_config.update(eos_token_id=EOS, max_new_tokens=16, do_sample=False)
    with torch.no_grad():
        model.lm_head.weight[EOS] *= 3
    return model


@pytest.fixture
def make_stopping_processor(make_processor, answering_model, pictures):
    """`make_stopping_processor(name)`: a processor with one more stop string, in the middle of one of the answers."""

    def make(name: str):
        processor = make_processor(name)
        answers = [ChatSession(answering_model, processor).ask(question, pictures[:1]) for question in QUESTIONS]
        words = (answer[len(answer) // 2] for answer in answers if len(answer) > 2)
        processor.stop_strings = [*processor.stop_strings, next(word for word in words if word.isalpha())]
        return processor

    return make


@pytest.fixture
def generated(monkeypatch) -> list[Answer]:
    """What [`AnswerGenerator.answers`] has given, in order."""
    kept = []
    answers = AnswerGenerator.answers

    def recorded(self, *args, **options):
        given = answers(self, *args, **options)
        kept.extend(given)
        return given

    monkeypatch.setattr(AnswerGenerator, "answers", recorded)
    return kept


def in_training(model, processor, stored, folder) -> list[str]:
    """The answers of [`Samples`] to the questions about `stored`."""
    answer = {"role": "assistant", "content": [{"type": "text", "text": "はい"}]}
    rows = [
        SimpleNamespace(
            pictures=tuple(stored), messages=lambda question=question: [*ask(question, len(stored)), answer]
        )
        for question in QUESTIONS
    ]
    encoder = PictureEncoder(model, processor)
    return Samples(model, processor, rows, encoder, folder, 1, max_new_tokens=16).answers()


@pytest.mark.parametrize("count", [0, 1, 2])
@pytest.mark.parametrize("name", ["article-3.6b", "minigpt4", "rinna-4b"])
def test_chat_evaluation_and_training_give_the_same_answers(
    answering_model, make_stopping_processor, pictures, stored, generated, tmp_path, name, count
):
    processor = make_stopping_processor(name)
    expected = []
    for question in QUESTIONS:
        session = ChatSession(answering_model, processor)
        session.ask(question, pictures[:count])
        expected.append((session.turns[0].answer, session.turns[0].answer_ids))
    texts = [text for text, _ in expected]

    def collect() -> list[tuple[str, list[int]]]:
        collected = [(answer.text, answer.token_ids) for answer in generated]
        generated.clear()
        return collected

    assert ChatSession(answering_model, processor).ask_many(list(pictures[:count]), QUESTIONS) == texts
    assert collect() == expected
    items = [Item(str(n), ask(q, count), tuple(stored[:count]), (), ()) for n, q in enumerate(QUESTIONS)]
    for batch_size in (4, 3, 1):
        answerer = Answerer(answering_model, processor, Generation(max_new_tokens=16, batch_size=batch_size), items)
        assert [each.answer for batch in answerer.answers() for each in batch] == texts
        assert collect() == expected
    assert in_training(answering_model, processor, stored[:count], tmp_path) == texts
    assert collect() == expected
    assert len(set(texts)) > 1


def test_the_pairs_above_end_in_every_way(answering_model, make_stopping_processor, pictures):
    """Else the test above would compare answers that nothing but their length ended."""
    ends = set()
    for name in ("article-3.6b", "minigpt4", "rinna-4b"):
        processor = make_stopping_processor(name)
        generator = AnswerGenerator(answering_model, processor)
        features = generator.query_features(generator.pixel_values(pictures[:1]))
        for question in QUESTIONS:
            ids = processor.encode_segments(ask(question), add_generation_prompt=True)["input_ids"]
            tokens = generator.new_tokens([ids], list(features), {})[0]
            text = processor.tokenizer.decode(tokens)
            stopped = any(stop in text for stop in processor.stop_strings)
            ends.add("stop string" if stopped else "eos" if EOS in tokens else "length")
    assert ends == {"stop string", "eos", "length"}


@pytest.mark.parametrize("way", ["samples", "overfit"])
def test_training_does_not_show_the_next_question(answering_model, make_processor, stored, monkeypatch, tmp_path, way):
    """A model that goes on with the next question: `赤です<NL>ユーザー: 何` is the answer `赤です`."""
    processor = make_processor("article-3.6b")
    spelt = processor.tokenizer("赤です<NL>ユーザー: 何色?", add_special_tokens=False)["input_ids"]
    step = itertools.count()

    forward = type(answering_model).forward

    @functools.wraps(forward)
    def scripted(self, *args, **kwargs):
        given = forward(self, *args, **kwargs)
        given.logits[...] = 0
        given.logits[..., -1, spelt[next(step) % len(spelt)]] = 1
        return given

    monkeypatch.setattr(type(answering_model), "forward", scripted)
    row = SimpleNamespace(
        pictures=(),
        image_ids=(),
        answer="赤です",
        messages=lambda: [*ask("何?", 0), {"role": "assistant", "content": "赤です"}],
    )
    samples = Samples(answering_model, processor, [row], PictureEncoder(answering_model, processor), tmp_path, 1)
    shown = samples.answers() if way == "overfit" else [line["answer"] for line in samples.lines(1)]
    assert shown == ["赤です"]
    assert next(step) < len(spelt)  # the model stops at the mark, before the question itself


def test_prefixes_are_computed_once_for_each_list_of_pictures(answering_model, processor, pictures, monkeypatch):
    generator = AnswerGenerator(answering_model, processor)
    features = dict(enumerate(generator.query_features(generator.pixel_values(pictures))))

    def prompt(question: str, *shown: int) -> Prompt:
        messages = ask(question, len(shown))
        return Prompt(processor.encode_segments(messages, add_generation_prompt=True)["input_ids"], shown)

    prompts = [prompt("何色?", 0), prompt("鳥?", 1), prompt("これは何?", 0), prompt("何?", 1), prompt("何?", 2)]
    alone = [generator.answers([each], features)[0] for each in prompts]
    shapes = []
    original = type(answering_model.model.language_model).forward

    def counted(self, *args, **kwargs):
        shapes.append(tuple(kwargs["inputs_embeds"].shape[:2]))
        return original(self, *args, **kwargs)

    monkeypatch.setattr(type(answering_model.model.language_model), "forward", counted)
    assert generator.answers(prompts, features) == alone
    (distinct, prefix), (rows, rest) = shapes[:2]
    assert (distinct, rows) == (3, 5) and prefix + rest == max(len(each.input_ids) for each in prompts)
    # Pictures behind what all have in common stay with their rows.
    mixed = [prompt("違いは?", 0, 1), prompt("何?", 0), prompt("違いは?", 0, 2), prompt("何?", 0)]
    assert generator.answers(mixed, features) == [generator.answers([each], features)[0] for each in mixed]
    shapes.clear()
    generator.answers(prompts[:2], features, max_new_tokens=1)
    assert [shape[0] for shape in shapes] == [2]  # nothing is shared


@needs_llama_cpp
def test_llama_cpp_answers_a_batch_of_several_pictures(chat_model, checkpoint, processor, pictures, tmp_path):
    file = write_gguf(checkpoint, tmp_path / "model.gguf", "float32", progress=False)
    generators = [
        AnswerGenerator(*load_checkpoint(checkpoint, "cpu", gguf=file)),
        AnswerGenerator(chat_model, processor),
    ]
    keys = [(0,), (1,), (0,), (1,), (2,), (1,)]
    batches = [
        list(zip(keys, [*QUESTIONS, "犬?", "何?"], strict=True)),
        [((0,), "何色?"), ((), "鳥?"), ((1, 2), "違いは?")],
    ]
    for batch in batches:  # one shares prefixes, the other shares nothing
        ours, theirs = (
            generator.answers(
                [
                    Prompt(processor.encode_segments(ask(question, len(key)), True)["input_ids"], key)
                    for key, question in batch
                ],
                dict(enumerate(generator.query_features(generator.pixel_values(pictures)))),
            )
            for generator in generators
        )
        assert ours == theirs and len(set(map(str, ours))) > 1


def test_answers_end_with_the_context_window(make_model, processor):
    model = make_model(max_position_embeddings=48)
    generator = AnswerGenerator(model, processor)
    prompts = [Prompt(list(range(10, 10 + length))) for length in (40, 48, 20, 60)]
    answers = generator.answers(prompts, {}, max_new_tokens=30)
    assert answers[1] == answers[3] == Answer("", [], False)
    assert answers[0].token_ids and len(answers[0].token_ids) <= 8 and not answers[0].finished
    assert generator.max_new_tokens(40, {}) == 8 and generator.max_new_tokens(40, {"max_new_tokens": 3}) == 3
    assert generator.answers([], {}) == []


def test_an_answer_is_finished_by_eos_or_a_stop_string(answering_model, make_processor):
    processor = make_processor("minigpt4")
    generator = AnswerGenerator(answering_model, processor)

    def tokenize(text: str) -> list[int]:
        return processor.tokenizer(text, add_special_tokens=False)["input_ids"]

    red = tokenize("赤です")
    assert generator.read(red, {}) == Answer("赤です", red, False)
    assert generator.read([*red, EOS, 0, 0], {}) == Answer("赤です", red, True)
    assert generator.read([*tokenize("赤です###Human:"), 0], {}) == Answer("赤です", red, True)
    assert generator.read([*red, EOS], {"eos_token_id": None}).finished is False
    assert generator.read([*red, 7, 8], {"eos_token_id": [7, 9]}) == Answer("赤です", red, True)


@pytest.fixture
def conversions(monkeypatch, processor) -> list[str]:
    """Names of the pictures that have passed `to_rgb`."""
    names = []
    to_rgb = type(processor.image_processor).to_rgb

    def counted(self, image, name="picture", **kwargs):
        names.append(name)
        return to_rgb(self, image, name, **kwargs)

    monkeypatch.setattr(type(processor.image_processor), "to_rgb", counted)
    return names


def test_a_picture_is_converted_once(answering_model, processor, pictures, stored, conversions, tmp_path):
    session = ChatSession(answering_model, processor)
    session.ask("何?", [stored[0].content, pictures[1]])
    session.ask("何色?")
    assert conversions == ["picture 1", "picture 2"]
    conversions.clear()
    session.ask("何?", [ShownPicture(pictures[2])])
    session.ask_many(ShownPicture(pictures[2]), QUESTIONS)
    assert conversions == []
    items = [Item(question, ask(question), (stored[0],), (), ()) for question in QUESTIONS]
    list(Answerer(answering_model, processor, Generation(max_new_tokens=2), items).answers())
    assert conversions == ["The picture 0.png"]
    conversions.clear()
    PictureEncoder(answering_model, processor, views=3).pixel_values(stored[0].content, "one", [None, 1, 2])
    assert conversions == ["one"]


def test_an_evaluation_tokenises_every_prompt_once(answering_model, processor, stored, monkeypatch):
    texts = []
    original = type(processor).tokenize_segment
    monkeypatch.setattr(
        type(processor), "tokenize_segment", lambda self, text: texts.append(text) or original(self, text)
    )
    items = [Item(question, ask(question), (stored[0],), (), ()) for question in QUESTIONS]
    answerer = Answerer(answering_model, processor, Generation(max_new_tokens=2), items)
    assert answerer.unanswerable == [] and len([each for batch in answerer.answers() for each in batch]) == 4
    assert len(texts) == len(QUESTIONS) == len(set(texts))


def test_a_picture_that_cannot_be_read_is_named(answering_model, processor):
    class Lost(StoredPicture):
        def read(self) -> bytes:
            raise FileNotFoundError("/mnt/lost.png")

    items = [Item("1", ask("何?"), (Lost("lost.png", b""),), (), ())]
    with pytest.raises(ValueError, match=r"The picture lost\.png cannot be read"):
        list(Answerer(answering_model, processor, Generation(), items).answers())


def test_every_row_stops_at_its_own_mark(processor):
    def tokenize(text):
        return processor.tokenizer(text, add_special_tokens=False)["input_ids"]

    prompt = tokenize("<NL>ユーザー: 何色?<NL>システム: ")
    answers = ["赤です<NL>ユーザー:", "赤です<NL>ユーザ", "<NL>ユーザー: 青"]
    rows = [prompt + tokenize(answer) for answer in answers]
    width = max(map(len, rows))
    rows = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    criterion = StopAtMark(processor, prompt_length=len(prompt))
    assert criterion(rows, None).tolist() == [True, False, True]
    assert criterion(rows[:, : len(prompt)], None).tolist() == [False] * 3
