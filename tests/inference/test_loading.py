"""One way to load a checkpoint: chat, evaluation and training follow the same rules and give the same sentences."""

import json
import re
import shutil

import pytest
import torch
from transformers.utils import logging as transformers_logging

from jminigpt4 import JMiniGPT4ForConditionalGeneration
from jminigpt4.chat.serving import guarded_server
from jminigpt4.chat.settings import Settings
from jminigpt4.evaluate.benchmarks import parse_request
from jminigpt4.evaluate.running import EvaluationPlan, run
from jminigpt4.inference import loading
from jminigpt4.inference.loading import checkpoint_config, fingerprint, load_checkpoint
from jminigpt4.train.frozen import load_model
from jminigpt4.train.recipe import Recipe


@pytest.fixture(scope="module")
def half(chat_model, processor, tmp_path_factory):
    """The tiny model stored in float16."""
    folder = tmp_path_factory.mktemp("half") / "checkpoint"
    model = JMiniGPT4ForConditionalGeneration(chat_model.config)
    model.load_state_dict(chat_model.state_dict())
    model.half().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def by_chat(folder, tmp_path, device=None, dtype=None) -> str:
    return str(Settings(str(folder), device=device, dtype=dtype).open_session().model.dtype)


def by_evaluate(folder, tmp_path, device=None, dtype=None) -> str:
    from PIL import Image

    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    questions = tmp_path / "own.jsonl"
    questions.write_text(json.dumps({"image": "a.png", "question": "何色?", "answer": "赤"}, ensure_ascii=False))
    run(EvaluationPlan([parse_request(str(questions))], tmp_path / "out", str(folder), device=device, dtype=dtype))
    settings = next((tmp_path / "out").rglob("settings.json"))
    return "torch." + json.loads(settings.read_text(encoding="utf-8"))["dtype"]


def by_train(folder, tmp_path, device=None, dtype=None) -> str:
    return str(load_model(str(folder), None, Recipe(dtype=dtype or "auto"))[0].dtype)


def by_serve(folder, tmp_path, device="auto", dtype="auto") -> str:
    return str(guarded_server(str(folder), "127.0.0.1", 1, device, dtype))


DOORS = {"chat": by_chat, "evaluate": by_evaluate, "train": by_train}


@pytest.fixture(params=DOORS.values(), ids=DOORS)
def load(request, monkeypatch):
    monkeypatch.setattr(loading, "best_device", lambda: "cpu")
    return request.param


@pytest.mark.parametrize(
    "largest, computed", [(10**9, "float32"), (24 * 32**2, "float32"), (24 * 32**2 - 1, "bfloat16")]
)
def test_float16_on_a_cpu(load, half, tmp_path, monkeypatch, capsys, largest, computed):
    monkeypatch.setattr(loading, "LARGEST_IN_FLOAT32", largest)  # the tiny model counts 12 x 2 x 32^2 parameters
    assert load(half, tmp_path) == f"torch.{computed}"
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("jminigpt4: ")]
    rounds = ["jminigpt4: computing in bfloat16, which rounds the weights: the stored float16 is slow on a CPU."]
    assert notes == (rounds if computed == "bfloat16" else [])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_named_dtype_is_the_one(load, half, tmp_path, capsys, dtype):
    assert load(half, tmp_path, dtype=dtype) == f"torch.{dtype}"
    assert "jminigpt4:" not in capsys.readouterr().err


def test_the_stored_dtype_is_the_default(load, checkpoint, tmp_path, capsys):
    assert load(checkpoint, tmp_path) == "torch.float32"
    assert "jminigpt4:" not in capsys.readouterr().err


def test_no_folder(load, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for name in ("./nofolder", "nofolder", str(tmp_path / "nofolder")):
        with pytest.raises(FileNotFoundError, match="No folder .*nofolder: name a checkpoint folder"):
            load(name, tmp_path)
    with pytest.raises(ValueError, match=r"empty holds no config\.json"):
        load("./empty", tmp_path)


def test_unknown_dtypes(load, checkpoint, tmp_path):
    for dtype in ("float31", "float8_e4m3fn", "int8"):
        with pytest.raises(ValueError, match=f"'?{dtype}'?") as raised:
            load(checkpoint, tmp_path, dtype=dtype)
        assert "device" not in str(raised.value) and "bfloat16" in str(raised.value)


ABSENT = [name for name in ("cuda", "mps") if not getattr(torch, name).is_available()]


@pytest.mark.parametrize("device", ["nosuch", "meta", "cuda:99", *ABSENT])
def test_unknown_devices(checkpoint, tmp_path, device):
    doors = (
        by_chat,
        by_evaluate,
        lambda folder, _, device: guarded_server(str(folder), "127.0.0.1", 1, device, "auto"),
    )
    for load in doors:
        with pytest.raises(ValueError, match=f"There is no device '{device}' on this machine") as raised:
            load(checkpoint, tmp_path, device)
        assert "dtype" not in str(raised.value)


def test_serving_names_the_dtypes_too(checkpoint):
    with pytest.raises(ValueError, match="'float31' is not one of float32, float16, bfloat16"):
        by_serve(checkpoint, None, "cpu", "float31")


def test_missing_and_unused_weights_are_not_hushed(checkpoint, tmp_path, capsys):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "spoilt"
    shutil.copytree(checkpoint, folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.left_over"] = weights.pop("model.language_projection.bias")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    verbosity = transformers_logging.get_verbosity()
    try:
        loading.be_quiet()
        load_checkpoint(folder, "cpu")
    finally:
        transformers_logging.set_verbosity(verbosity)
        transformers_logging.enable_progress_bar()
    lines = capsys.readouterr().err.splitlines()
    assert [re.sub(r" of \S+", "", line) for line in lines] == [
        "jminigpt4: 1 weights are missing: initialised at random, model.language_projection.bias among them.",
        "jminigpt4: 1 weights are not used, model.left_over among them.",
    ]


def test_fingerprint(checkpoint, tmp_path):
    from jminigpt4 import DEMO

    assert fingerprint(checkpoint) is None
    assert fingerprint(DEMO) == loading.sha256(DEMO / "SHA256SUMS") and len(fingerprint(DEMO) or "") == 64


def test_other_models_are_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="is a bert checkpoint"):
        checkpoint_config(tmp_path)
