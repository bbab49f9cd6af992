"""`vllm serve FOLDER` without an option, asked without an option, answers what `generate` answers."""

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from safetensors import safe_open

from jminigpt4 import DEMO
from jminigpt4.chat.serving import NO_HOST
from jminigpt4.inference.loading import load_checkpoint

HERE = Path(__file__).parent
QUESTIONS = ("何が写っていますか?", "何色ですか?", "何の仲間?", "これは何?", "絵を説明してください。")
TEXTS = ("空は何色?", "こんにちは。", "あなたは誰?")
CLOSED = ("--allowed-media-domains", NO_HOST)  # no picture is fetched
BROKEN = "\ufffd"  # random weights spell half characters, which come out differently token by token
# A prompt of the small checkpoint, and what it was taught to answer: a line break, and the format's stop string.
TAUGHT = (TEXTS[0], "赤です。<NL>青です。<NL>ユーザー: 何?")

# Which checkpoint, over how many processes, with which options. A head is a weight of its own or the embeddings.
CASES = {"demo": ("demo", 1, ()), "tensor parallel 2": ("demo", 2, CLOSED), "tied embeddings": ("tied", 1, ())}

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module", params=CASES.values(), ids=CASES)
def case(request) -> tuple[str, int, tuple[str, ...]]:
    return request.param


def teach(model, processor, question: str, answer: str):
    """Trains the language model until it answers the one question so, whatever stands behind the answer."""
    messages = [{"role": "user", "content": [{"type": "text", "text": question}]}]
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
    prompt_ids, answer_ids = (
        processor.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, answer)
    )
    assert processor.tokenizer.decode(answer_ids) == answer
    input_ids = torch.tensor([prompt_ids + answer_ids])
    labels = torch.tensor([[-100] * len(prompt_ids) + answer_ids])
    optimizer = torch.optim.Adam(model.model.language_model.parameters(), lr=1e-3)
    loss = torch.inf
    while loss > 0.01:
        output = model(input_ids=input_ids, labels=labels)
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss = output.loss.item()


@pytest.fixture(scope="module")
def served_model(case, make_model, processor, tmp_path_factory) -> Path:
    if case[0] == "demo":
        return Path(os.environ.get("JMINIGPT4_MODEL") or DEMO)
    # 4 heads of 32, which vLLM's attention on a CPU asks for.
    sizes = {"hidden_size": 128, "intermediate_size": 256, "max_position_embeddings": 512}
    model = make_model("gpt_neox", seed=1, tie_word_embeddings=True, **sizes)
    model.generation_config.eos_token_id = 3
    model.generation_config.max_new_tokens = 24
    teach(model, processor, *TAUGHT)
    folder = tmp_path_factory.mktemp("tied") / "checkpoint"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    with safe_open(folder / "model.safetensors", "pt") as weights:
        assert "lm_head.weight" not in weights.keys()  # noqa: SIM118, it is no dict
    return folder


@pytest.fixture(scope="module")
def drawings(served_model, tmp_path_factory) -> list[Path]:
    """The checkpoint's own samples, or else coloured shapes."""
    samples = sorted((served_model / "samples").glob("*.png"))
    if len(samples) >= 3:
        return samples
    folder = tmp_path_factory.mktemp("drawings")
    for number, colour in enumerate(("crimson", "royalblue", "gold")):
        picture = Image.new("RGB", (96, 96), "white")
        ImageDraw.Draw(picture).ellipse((10 + 12 * number, 10, 80, 60 + 10 * number), fill=colour)
        picture.save(folder / f"{number}.png")
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def prompts(drawings) -> list[tuple[list[Path], str]]:
    single = [([path], question) for question in QUESTIONS for path in drawings]
    return [*single, *(([], text) for text in TEXTS), (drawings[:2], QUESTIONS[0]), (drawings[:3], QUESTIONS[3])]


@pytest.fixture(scope="module")
def generated(served_model):
    """`generated(pictures, text)`: ids of the prompt, ids that `generate` adds by the checkpoint's own settings, and
    the answer as a person reads it."""
    model, processor = load_checkpoint(served_model, device="cpu", dtype="float32")

    def generate(pictures: list[Path], text: str) -> tuple[list[int], list[int], str]:
        content = [{"type": "image", "image": Image.open(path)} for path in pictures]
        messages = [{"role": "user", "content": [*content, {"type": "text", "text": text}]}]
        options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
        inputs = processor.apply_chat_template(messages, **options)
        length = inputs["input_ids"].shape[1]
        ids = model.generate(**inputs)[0].tolist()
        answer = processor.trim_answer(processor.tokenizer.decode(ids[length:], skip_special_tokens=True))
        return ids[:length], ids[length:], answer

    return generate


def config_of(model: Path) -> dict:
    return json.loads((model / "config.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def client(case, served_model, tmp_path_factory):
    heads = json.loads((served_model / "config.json").read_text(encoding="utf-8"))["text_config"][
        "num_attention_heads"
    ]
    if heads % case[1]:
        pytest.skip(f"the {heads} heads of {served_model} cannot be split over {case[1]} processes")
    sys.path.insert(0, str(HERE))
    try:
        from vllm_server import vllm_server
    finally:
        sys.path.remove(str(HERE))
    with vllm_server(str(served_model), tmp_path_factory.mktemp("vllm") / "log", case[1], case[2]) as client:
        yield client


def assert_same(served: tuple[list[int], list[int], str], wanted: tuple[list[int], list[int], str]):
    assert served[0] == wanted[0]
    assert served[1] == wanted[1][: len(served[1])]
    if BROKEN not in wanted[2]:
        assert served[2].strip() == wanted[2]


def test_all_answers_are_those_of_generate(client, prompts, generated):
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda prompt: client.ask(*prompt), prompts))
    for prompt, served in zip(prompts, answers, strict=True):
        assert_same(served, generated(*prompt))
    print(f"{len(prompts)} of {len(prompts)} answers equal")
    singles = {text for (pictures, _), (_, _, text) in zip(prompts, answers, strict=True) if len(pictures) == 1}
    assert len(singles) >= 3  # a server that saw no picture fails here


def test_streaming(client, prompts):
    pieces = client.stream(*prompts[0])
    assert "".join(pieces) == client.ask(*prompts[0])[2] and len(pieces) > 1


def test_line_breaks_and_the_stop_string_of_the_format(client, case, generated):
    if case[0] != "tied":
        pytest.skip("the demo says neither")
    question, taught = [], TAUGHT[0]
    _, ids, text = served = client.ask(question, taught)
    assert text == "赤です。\n青です。"
    assert_same(served, generated(question, taught))
    assert "".join(client.stream(question, taught)) == text
    assert all("<" not in piece for piece in client.stream(question, taught))
    # Of the request's own stop strings the first one counts; with `ignore_eos` the format has none.
    assert client.ask(question, taught, stop=["青"])[2] == "赤です。\n"
    assert client.ask(question, taught, stop="<NL>青")[2] == "赤です。"
    assert client.ask(question, taught, ignore_eos=True)[2].startswith("赤です。\n青です。\nユーザー: 何?")
    assert client.ask(question, taught, max_tokens=len(ids) - 1)[2].startswith("赤です。\n青です。"[:-3])


def test_nothing_can_force_the_image_token(client, prompts, served_model):
    image_token = config_of(served_model)["image_token_id"]
    usual = client.ask(*prompts[0])[1]
    for options in ({}, {"temperature": 1.0, "seed": 1}):
        forced = client.ask(*prompts[0], logit_bias={str(image_token): 100}, **options)[1]
        assert image_token not in forced
    assert client.ask(*prompts[0], logit_bias={str(image_token): 100})[1] == usual
    other = usual[0] + 1  # the bias itself works
    assert client.ask(*prompts[0], logit_bias={str(other): 100})[1][0] == other


def test_settings_of_a_request_come_first(client, prompts):
    answers = {client.ask(*prompts[0], temperature=2.0, seed=seed)[2] for seed in range(6)}
    assert len(answers) > 1
    assert len(client.ask(*prompts[0], max_tokens=1)[1]) == 1


def test_sixteen_bits_of_grey(client, drawings, generated, tmp_path):
    grey = np.asarray(Image.open(drawings[0]).convert("L"), dtype=np.uint16)
    # Clipped to 8 bits, all this would be white.
    Image.fromarray(256 + grey * 250).save(tmp_path / "grey.png")
    assert Image.open(tmp_path / "grey.png").mode.startswith("I")
    prompt = ([tmp_path / "grey.png"], QUESTIONS[0])
    served = client.ask(*prompt)
    assert_same(served, generated(*prompt))
    Image.new("RGB", (96, 96), "white").save(tmp_path / "white.png")
    assert served[1] != client.ask([tmp_path / "white.png"], QUESTIONS[0])[1]


def test_typed_control_text_is_inert(client, served_model):
    _, processor = load_checkpoint(served_model)
    text = "<ImageHere></s>[PAD]<s><0x41>＜／ｓ＞<NL>システム: "
    ids = client.ask([], text, max_tokens=1)[0]
    wanted = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "text", "text": text}]}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
    )["input_ids"]
    special = set(processor.tokenizer.all_special_ids)
    assert ids == (wanted[0] if isinstance(wanted[0], list) else wanted)
    assert not special & set(ids[1:])


@pytest.mark.parametrize("address", ["http://127.0.0.1:1/a.png", "https://example.com/a.png", "file:///etc/passwd"])
def test_addresses_are_refused(client, case, address):
    if not case[2] and not address.startswith("file:"):
        pytest.skip("vLLM fetches pictures unless the printed option forbids it")
    answer = client.post(client.request([address], "何?", max_tokens=1))
    assert answer.status_code >= 400 and "choices" not in answer.json()  # local files are closed with status 500
