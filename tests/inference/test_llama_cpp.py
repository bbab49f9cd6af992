"""llama.cpp behind the image encoder: the same tokens as torch, and what it is given when it is not installed."""

import copy
import importlib.util
import sys

import pytest
import torch
from PIL import Image

from jminigpt4 import DEMO, JMiniGPT4ForConditionalGeneration, cli
from jminigpt4.chat import ChatSession
from jminigpt4.convert.gguf import write_gguf
from jminigpt4.inference.llama_cpp import GgufWeights, LlamaCppForConditionalGeneration
from jminigpt4.inference.loading import load_checkpoint

needs_llama_cpp = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("llama_cpp", "gguf")),
    reason="llama-cpp-python or gguf is not installed: pip install -e '.[gguf,llama]'",
)


@pytest.fixture(scope="module")
def front(checkpoint):
    """The model without a language model: what stands before it, loaded from the folder."""
    return LlamaCppForConditionalGeneration.from_pretrained(checkpoint).eval()


@pytest.fixture(scope="module")
def file(checkpoint, tmp_path_factory):
    return write_gguf(checkpoint, tmp_path_factory.mktemp("gguf") / "model.gguf", "float32", progress=False)


@pytest.fixture(scope="module")
def loaded(checkpoint, file):
    return load_checkpoint(checkpoint, "cpu", gguf=file)


def test_the_language_model_stays_on_disk(front, chat_model):
    names = {name for name, _ in chat_model.named_parameters()}
    language = {name for name in names if name.startswith(("model.language_model.", "lm_head."))}
    assert language and {name for name, _ in front.named_parameters()} == names - language
    for name, parameter in front.named_parameters():
        assert torch.equal(parameter, chat_model.get_parameter(name)), name


def test_tokens_where_text_stands_and_embeddings_where_pictures_do(front, chat_model, processor, pictures):
    image = front.config.image_token_id
    pixels = processor.image_processor(images=pictures[:2], return_tensors="pt").pixel_values
    with torch.no_grad():
        expected = chat_model.get_image_features(pixels).pooler_output.flatten(0, 1).numpy()
    # The first row is one token shorter, the second has its picture later.
    ids = torch.tensor([[0, *[image] * 4, 11, 12], [21, 22, *[image] * 4, 23]])
    mask = torch.tensor([[0, 1, 1, 1, 1, 1, 1], [1] * 7])
    positions = front._positions(ids, mask, front._embeddings(ids, pixels, None, None))
    assert [position.row for position in positions] == [0] * 6 + [1] * 7
    text = [(position.row, position.token_id) for position in positions if position.embedding is None]
    assert text == [(0, 11), (0, 12), (1, 21), (1, 22), (1, 23)]
    shown = [position.embedding for position in positions if position.embedding is not None]
    assert len(shown) == 8 and all((one == other).all() for one, other in zip(shown, expected, strict=True))
    assert [(position.row, position.token_id) for position in positions if position.wanted] == [(0, 12), (1, 23)]


def test_pictures_and_placeholders_have_to_agree(front):
    ids = torch.tensor([[front.config.image_token_id] * 4 + [11]])
    with pytest.raises(ValueError, match="4 image tokens but the pictures give 0"):
        front._embeddings(ids, None, None, None)
    with pytest.raises(ValueError, match="without beams"):
        front(input_ids=ids)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (None, '[llama]"'),
        ("missing.gguf", "No file"),
        ("text.gguf", "is no GGUF file"),
        ("empty.gguf", "is damaged, or of a kind"),
    ],
)
def test_mistakes_are_one_line(checkpoint, tmp_path, monkeypatch, capfd, name, message):
    (tmp_path / "text.gguf").write_text("絵")
    (tmp_path / "empty.gguf").write_bytes(b"GGUF\x03\x00\x00\x00")
    if name is None:
        monkeypatch.setitem(sys.modules, "llama_cpp", None)
    elif importlib.util.find_spec("llama_cpp") is None:
        pytest.skip("llama-cpp-python is not installed: pip install -e '.[llama]'")
    arguments = ["chat", str(checkpoint), "何色?", "--gguf", str(tmp_path / (name or "text.gguf"))]
    monkeypatch.setattr(sys, "argv", ["jminigpt4", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    printed = capfd.readouterr()
    assert stopped.value.code == 2 and printed.out == ""
    assert printed.err.startswith("jminigpt4: ") and message in printed.err and printed.err.count("\n") == 1


@needs_llama_cpp
def test_a_conversation_equals_that_of_torch(loaded, chat_model, processor, pictures):
    ours, theirs = ChatSession(*loaded), ChatSession(chat_model, processor)
    for question, images in (
        ("何が写ってる?", pictures[:1]),
        ("何色?\nくわしく。", []),
        ("これは?", pictures[1:]),
        ("食べられる?", []),
    ):
        assert ours.ask(question, images) == theirs.ask(question, images)
    assert [turn.answer_ids for turn in ours.turns] == [turn.answer_ids for turn in theirs.turns]
    assert [turn.prefilled_tokens for turn in ours.turns] == [turn.prefilled_tokens for turn in theirs.turns]
    assert len({turn.answer for turn in ours.turns}) > 1


@needs_llama_cpp
def test_what_is_taken_back_is_forgotten(loaded, pictures):
    session = ChatSession(*loaded)
    first = session.ask("何が写ってる?", [pictures[0]])
    session.ask("何色?")
    session.undo()
    session.ask("これは?", [pictures[1]])
    session.undo()
    again = ChatSession(*loaded)
    assert again.ask("何が写ってる?", [pictures[0]]) == first
    assert session.ask("鳥?") == again.ask("鳥?")
    session.persona = "あなたは猫です。"
    fresh = ChatSession(*loaded, persona="あなたは猫です。")
    assert session.edit(0, "これは?") == fresh.ask("これは?", [pictures[0]])


@needs_llama_cpp
def test_streaming_sampling_and_many_questions(loaded, pictures):
    session = ChatSession(*loaded)
    answer = session.ask("何が写ってる?", [pictures[0]])
    session.reset()
    assert "".join(session.stream("何が写ってる?", [pictures[0]])) == answer
    questions = ["何色?", "これは何ですか?\nくわしく。", "鳥?"]
    many = session.ask_many(pictures[1], questions)
    for question, one in zip(questions, many, strict=True):
        assert session.ask(question, [pictures[1]]) == one
        session.undo()
    options = {"do_sample": True, "temperature": 1.5, "top_p": 0.9}
    sampled = []
    for _ in range(2):
        torch.manual_seed(1)
        sampled.append(session.ask("何色?", **options))
        session.undo()
    assert sampled[0] == sampled[1] != session.ask("何色?")
    with pytest.raises(ValueError, match="without beams"):
        session.ask("何色?", num_beams=2)


@needs_llama_cpp
def test_answers_end_at_the_end_of_sentence(loaded, pictures):
    session = ChatSession(*loaded)
    whole = session.ask("何が写ってる?", [pictures[0]])
    spoken = session.undo().answer_ids
    end = spoken[-2]
    answer = session.ask("何が写ってる?", [pictures[0]], eos_token_id=end)
    assert session.turns[0].answer_ids == session._generator.read(spoken[: spoken.index(end)], {}).token_ids
    assert answer and answer != whole and whole.startswith(answer)


@needs_llama_cpp
def test_first_tokens_of_the_demo_in_eight_bits(tmp_path):
    file = write_gguf(DEMO, tmp_path / "demo.gguf", "q8_0", progress=False)
    ours, theirs = (ChatSession(*load_checkpoint(DEMO, "cpu", gguf=given)) for given in (file, None))
    for sample in sorted((DEMO / "samples").glob("*.png"))[:4]:
        for session in (ours, theirs):
            session.reset()
            session.ask("何が写ってる?", [Image.open(sample)], do_sample=False, max_new_tokens=3)
        assert ours.token_ids() == theirs.token_ids(), sample.name


@needs_llama_cpp
@pytest.mark.parametrize("tied", [True, False])
def test_scores_are_those_of_torch(make_model, processor, pictures, tmp_path, tied):
    model = make_model(seed=3, tie_word_embeddings=tied, use_parallel_residual=True)
    model.save_pretrained(tmp_path / "checkpoint")
    processor.save_pretrained(tmp_path / "checkpoint")
    file = write_gguf(tmp_path / "checkpoint", tmp_path / "model.gguf", "float32", progress=False)
    ours, _ = load_checkpoint(tmp_path / "checkpoint", "cpu", gguf=file)
    ids = torch.tensor([[11, *[512] * 4, 12, 13]])
    pixels = processor.image_processor(images=pictures[:1], return_tensors="pt").pixel_values
    with torch.no_grad():
        expected = model(input_ids=ids, pixel_values=pixels).logits[:, -1:]
    logits = ours(input_ids=ids, pixel_values=pixels, cache=ours.new_cache(16)).logits
    assert logits.shape == expected.shape and logits[..., 512] == expected[..., 512]
    torch.testing.assert_close(logits[..., :512], expected[..., :512], rtol=0, atol=2e-2)
    assert logits[..., :512].std() > 1


@needs_llama_cpp
def test_another_language_model_is_refused(make_config, file):
    weights = GgufWeights(file)
    weights.check(make_config())
    with pytest.raises(ValueError, match="its layers is 2, not 3"):
        weights.check(make_config(num_hidden_layers=3))
    with pytest.raises(ValueError, match="its vocabulary is 513, not 600"):
        weights.check(make_config(vocab_size=600))
    # llama.cpp's own converter knows no image token: a table without its row will do, where that is the last.
    weights.vocab_size = 512
    weights.check(make_config())


def test_a_projection_of_two_layers_stands_before_it_too(chat_model, processor, pictures, tmp_path):
    config = copy.deepcopy(chat_model.config)
    config.projector_hidden_act = "gelu"
    model = JMiniGPT4ForConditionalGeneration(config).eval()
    model.save_pretrained(tmp_path)
    front = LlamaCppForConditionalGeneration.from_pretrained(tmp_path).eval()
    assert front.dtype == torch.float32
    pixels = processor.image_processor(images=pictures[:1], return_tensors="pt").pixel_values
    with torch.no_grad():
        expected = model.get_image_features(pixels).pooler_output.flatten(0, 1).numpy()
    ids = torch.tensor([[*[front.config.image_token_id] * 4, 11]])
    assert (front._embeddings(ids, pixels, None, None) == expected).all()
    assert front._embeddings(ids[:, 4:], None, None, None).shape == (0, expected.shape[1])
