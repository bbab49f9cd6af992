"""Faults planted in a converted folder, each by itself: the proof sees every one in every dtype."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from jminigpt4.convert import image_encoder, qformer, tokenizer
from jminigpt4.convert.assembly import write_plan
from jminigpt4.convert.plan import plan_conversion
from jminigpt4.convert.proof import built_in_pictures, compare_folder, prove
from jminigpt4.convert.source_outputs import source_outputs

DTYPES = ["float32", "float16", "bfloat16"]
PARTS = ("vision", "qformer", "language", "projection")


@pytest.fixture(autouse=True)
def short_corpus(monkeypatch):
    """What a fault in the tokenizer changes is seen in few strings; elsewhere the proof reads thousands."""
    monkeypatch.setattr(tokenizer, "CORPUS_SIZE", 100)


def planned(originals, dtype):
    names = {part: originals[part] for part in PARTS}
    return plan_conversion(names, None, dtype, {"vision": 4, "qformer": 4})


@pytest.fixture(scope="module", params=DTYPES)
def written(request, originals, tmp_path_factory):
    """The reference checkpoints as a folder of one dtype, and what their sources compute."""
    plan = planned(originals, request.param)
    folder = tmp_path_factory.mktemp("proof") / request.param
    write_plan(plan, folder, prove_equal=False, progress=False)
    return SimpleNamespace(plan=plan, folder=folder, expected=source_outputs(plan, built_in_pictures()))


def setting(file, path, value):
    """A fault: another value in a JSON file; a function changes the value that is there."""

    def plant(folder):
        stated = json.loads((folder / file).read_text(encoding="utf-8"))
        *parents, key = path.split(".")
        inner = stated
        for parent in parents:
            inner = inner[parent]
        inner[key] = value(inner[key]) if callable(value) else value
        (folder / file).write_text(json.dumps(stated), encoding="utf-8")

    return plant


def tensor(change):
    """A fault: other tensors in the file of weights."""

    def plant(folder):
        state = load_file(folder / "model.safetensors")
        change(state)
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})

    return plant


def swapped_rows(state):
    table = state["model.language_model.embed_in.weight"]
    table[[100, 101]] = table[[101, 100]]


def rounded(state):
    name = "model.qformer.encoder.layer.0.attention.attention.query.weight"
    state[name] = state[name].bfloat16().float()


def other_dtype(state):
    state["model.language_projection.weight"] = state["model.language_projection.weight"].half()


def turned_queries(state):
    state["model.query_tokens"] = state["model.query_tokens"].flip(1)


def one_byte(folder):
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1000] ^= 1
    path.write_bytes(data)


def template(old, new):
    def plant(folder):
        path = folder / "chat_template.jinja"
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_text(text.replace(old, new), encoding="utf-8")

    return plant


def without_byte_fallback(folder):
    path = folder / "tokenizer.json"
    stated = json.loads(path.read_text(encoding="utf-8"))
    stated["model"]["byte_fallback"] = False
    path.write_text(json.dumps(stated), encoding="utf-8")


CONFIG, PICTURES = "config.json", "processor_config.json"
# Name of the fault: what plants it, and the row of the proof that must see it.
FAULTS = {
    "epsilon of the ViT": (setting(CONFIG, "vision_config.layer_norm_eps", 1e-12), "settings"),
    "epsilon of the layer norm": (setting(CONFIG, "vision_layernorm_eps", 1e-6), "settings"),
    "epsilon of the Q-Former": (setting(CONFIG, "qformer_config.layer_norm_eps", 1e-6), "settings"),
    "epsilon of the language model": (setting(CONFIG, "text_config.layer_norm_eps", 1e-6), "settings"),
    "heads of the ViT": (setting(CONFIG, "vision_config.num_attention_heads", 2), "first block"),
    "heads of the Q-Former": (setting(CONFIG, "qformer_config.num_attention_heads", 2), "Q-Former"),
    "heads of the language model": (setting(CONFIG, "text_config.num_attention_heads", 2), "language model"),
    "activation of the ViT": (setting(CONFIG, "vision_config.hidden_act", "gelu_new"), "first block"),
    "base of the rotary embedding": (
        setting(CONFIG, "text_config.rope_parameters.rope_theta", 20000.0),
        "language model",
    ),
    "part that is rotated": (
        setting(CONFIG, "text_config.rope_parameters.partial_rotary_factor", 0.25),
        "language model",
    ),
    "residual": (setting(CONFIG, "text_config.use_parallel_residual", True), "language model"),
    "tied head": (setting(CONFIG, "tie_word_embeddings", True), "settings"),
    "two rows of the embeddings": (tensor(swapped_rows), "tensors"),
    "order of the query tokens": (tensor(turned_queries), "Q-Former"),
    "Q-Former rounded": (tensor(rounded), "tensors"),
    "projection in half precision": (tensor(other_dtype), "tensors"),
    "dtype of the folder": (setting(CONFIG, "dtype", lambda dtype: DTYPES[DTYPES.index(dtype) - 1]), "tensors"),
    "one byte": (one_byte, "tensors"),
    "image mean": (setting(PICTURES, "image_processor.image_mean", [0.5, 0.5, 0.5]), "pixel values"),
    "image standard deviation": (setting(PICTURES, "image_processor.image_std", [0.5, 0.5, 0.5]), "pixel values"),
    "filter": (setting(PICTURES, "image_processor.resample", 2), "pixel values"),
    "mark that ends an answer": (setting(PICTURES, "stop_strings", []), "settings"),
    "no EOS": (setting("generation_config.json", "eos_token_id", None), "ends of answers"),
    "another EOS": (setting("generation_config.json", "eos_token_id", 7), "ends of answers"),
    "image token may be generated": (setting("generation_config.json", "suppress_tokens", None), "settings"),
    "a space in the template": (template('"システム: "', '"システム:"'), "prompts"),
    "no BOS in the template": (template("{{- bos_token -}}", ""), "prompts"),
    "no byte fallback": (without_byte_fallback, "tokenizer"),
}


def test_a_folder_without_fault_passes(written):
    proof = compare_folder(written.folder, written.plan, written.expected)
    assert proof.passed, proof.table()
    assert all(row["tolerance"] <= 1e-5 * 20 for row in proof.rows())


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_seen(written, fault, tmp_path):
    plant, stage = FAULTS[fault]
    folder = shutil.copytree(written.folder, tmp_path / "folder")
    plant(folder)
    proof = compare_folder(folder, written.plan, written.expected)
    failed = [row["stage"] for row in proof.rows() if not row["passed"]]
    assert any(each.startswith(stage) for each in failed), proof.table()


@pytest.mark.parametrize(
    ("module", "name", "value"), [(image_encoder, "BLOCK_EPS", 1e-12), (qformer, "EPS", 1e-6)], ids=["ViT", "Q-Former"]
)
def test_a_wrong_constant_of_the_conversion_is_seen(originals, module, name, value, monkeypatch, tmp_path):
    """What the plan has wrong, the folder has wrong as well: the originals' own numbers are the measure."""
    monkeypatch.setattr(module, name, value)
    plan = planned(originals, "bfloat16")
    write_plan(plan, tmp_path / "out", prove_equal=False, progress=False)
    proof = prove(tmp_path / "out", plan, [], progress=False)
    assert not proof.passed and "epsilon of" in proof.table()


def test_what_differs_is_named(written, tmp_path):
    folder = shutil.copytree(written.folder, tmp_path / "folder")
    tensor(swapped_rows)(folder)
    table = compare_folder(folder, written.plan, written.expected).table()
    assert "DIFFERS: model.language_model.embed_in.weight" in table
    assert torch.equal(written.expected.pixel_values, source_outputs(written.plan, built_in_pictures()).pixel_values)
