"""A stranger's or damaged checkpoint: refused in one sentence, before anything of it answers or runs."""

import builtins
import copy
import json
import math
import random
import resource
import shutil
import subprocess
import sys
import time

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from jminigpt4 import JMiniGPT4Config, JMiniGPT4ForConditionalGeneration
from jminigpt4.chat.serving import build_server, vllm_command
from jminigpt4.chat.settings import Settings
from jminigpt4.convert import assemble, verify_folder
from jminigpt4.inference.loading import check_checkpoint, checkpoint_config, load_checkpoint, load_processor
from jminigpt4.train.commands import data, features
from jminigpt4.train.frozen import load_model
from jminigpt4.train.recipe import Recipe


@pytest.fixture
def folder(checkpoint, tmp_path):
    """A copy that a test may spoil."""
    return shutil.copytree(checkpoint, tmp_path / "stranger")


def change_weights(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def change_json(folder, name, *path, **values):
    stated = json.loads((folder / name).read_text(encoding="utf-8"))
    part = stated
    for key in path:
        part = part[key]
    part.update(values)
    (folder / name).write_text(json.dumps(stated), encoding="utf-8")


def drop(prefix):
    def change(tensors):
        for name in [name for name in tensors if name.startswith(prefix)]:
            del tensors[name]

    return change


def put(name, value):
    return lambda tensors: tensors.update({name: value})


def spoil(name, value):
    def change(tensors):
        tensors[name].view(-1)[3] = value

    return change


PROJECTION = "model.language_projection.weight"
WRONG_WEIGHTS = {
    "projection missing": (
        drop("model.language_projection."),
        "2 of its parts .* lack model.language_projection.bias",
    ),
    "Q-Former missing": (
        drop("model.qformer."),
        r"lack model.qformer.layernorm.weight.* and \d+ more",
    ),
    "language model missing": (drop("model.language_model."), "lack model.language_model.embed_in.weight"),
    "head missing": (drop("lm_head"), "lack lm_head.weight"),
    "one too many": (put("model.left_over", torch.zeros(2)), "hold model.left_over, which the .* model does not have"),
    "another shape": (
        put(PROJECTION, torch.zeros(32, 16)),
        r"weight is \(32, 16\); the configuration says \(32, 32\)",
    ),
    "one dimension": (put(PROJECTION, torch.zeros(1024)), r"weight is \(1024,\); the configuration says \(32, 32\)"),
    "integers": (
        put(PROJECTION, torch.zeros(32, 32, dtype=torch.int64)),
        "weight is not stored as the floating point",
    ),
    "NaN": (spoil(PROJECTION, math.nan), "weight holds 1 values that are NaN or infinite"),
    "infinite": (spoil("model.language_model.layers.1.mlp.dense_h_to_4h.bias", -math.inf), "bias holds 1 values"),
}


@pytest.mark.parametrize("change, sentence", WRONG_WEIGHTS.values(), ids=WRONG_WEIGHTS)
def test_weights_of_another_model(folder, change, sentence):
    change_weights(folder, change)
    for load in (lambda: load_checkpoint(folder, "cpu"), lambda: check_checkpoint(folder)):
        with pytest.raises(ValueError, match=f"stranger is not whole, .*{sentence}.* Get it anew") as raised:
            load()
        assert "\n" not in str(raised.value)


def captions_about_nothing(folder) -> str:
    path = folder.parent / "captions.jsonl"
    Image.new("RGB", (8, 8)).save(folder.parent / "none.png")
    path.write_text('{"image": "none.png", "caption": "a"}')
    return str(path)


DOORS = {
    "chat": lambda folder: Settings(str(folder), device="cpu").open_session(),
    "train": lambda folder: load_model(str(folder), None, Recipe()),
    "features": lambda folder: features(str(folder), folder / "cache", [captions_about_nothing(folder)]),
    "serve": lambda folder: build_server(str(folder), "cpu", "auto"),
}


@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
def test_every_verb_refuses_missing_weights(folder, door):
    change_weights(folder, drop("model.language_projection."))
    with pytest.raises(ValueError, match="stranger is not whole"):
        door(folder)


@pytest.mark.parametrize("layers", [1, 3, 10**5, 10**9])
def test_another_number_of_layers(folder, layers):
    change_json(folder, "config.json", "text_config", num_hidden_layers=layers)
    before = time.process_time()
    with pytest.raises(ValueError, match=r"layers\.[12]\.|far more than are stored|no such model has"):
        load_checkpoint(folder, "cpu")
    assert time.process_time() - before < 5


def test_quantised_loading_looks_at_the_values_too(folder):
    change_weights(folder, spoil("model.language_model.layers.0.mlp.dense_h_to_4h.weight", math.nan))
    with pytest.raises(ValueError, match="weight holds 1 values that are NaN"):
        load_checkpoint(folder, "cpu", quantize="int8")


def test_values_too_large_for_the_dtype(folder):
    change_weights(folder, spoil("model.language_model.layers.0.mlp.dense_h_to_4h.weight", 1e6))
    load_checkpoint(folder, "cpu")
    with pytest.raises(ValueError, match=r"weight holds 1 values that are NaN or infinite \(in torch.float16\)"):
        load_checkpoint(folder, "cpu", "float16")


def test_the_report_of_transformers_shows_elsewhere(folder):
    """A library user's `from_pretrained` is transformers' own, with its own report: nothing here hushes it."""
    change_weights(folder, drop("model.language_projection."))
    code = f"""if True:
        import jminigpt4
        from transformers import AutoModelForImageTextToText
        AutoModelForImageTextToText.from_pretrained({str(folder)!r})
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "MISSING" in done.stderr and "language_projection" in done.stderr


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
DAMAGE = {
    "weights of git-lfs": ("model.safetensors", lambda good: LFS, "model.safetensors is a pointer of git-lfs"),
    "weights cut off": ("model.safetensors", lambda good: good[:-9], "not a complete safetensors file"),
    "weights cut in the header": ("model.safetensors", lambda good: good[:50], "not a complete safetensors file"),
    "weights empty": ("model.safetensors", lambda good: b"", "not a complete safetensors file"),
    "weights missing": ("model.safetensors", None, "neither model.safetensors nor model.safetensors.index.json"),
    "config of git-lfs": ("config.json", lambda good: LFS, "config.json is a pointer of git-lfs"),
    "config no object": ("config.json", lambda good: b"[1]", "config.json holds a JSON list"),
    "config cut off": ("config.json", lambda good: good[:99], "config.json is not valid JSON"),
    "config in Shift_JIS": ("config.json", lambda good: "{'猫'}".encode("shift_jis"), "config.json is not valid JSON"),
    "config nested": ("config.json", lambda good: b"[" * 100_000, "config.json is not valid JSON"),
    "tokenizer broken": ("tokenizer.json", lambda good: good[:999], "The tokenizer or image processor of .* cannot"),
    "tokenizer of git-lfs": ("tokenizer.json", lambda good: LFS, "tokenizer.json is a pointer of git-lfs"),
    "template broken": ("chat_template.jinja", lambda good: b"{% for x %}", "chat_template.jinja cannot be used"),
    "template fails": ("chat_template.jinja", lambda good: b"{{ x.y.z }}", "chat_template.jinja cannot be used"),
    "processor no object": ("processor_config.json", lambda good: b"3", "processor_config.json holds a JSON int"),
}


@pytest.mark.parametrize("name, damage, sentence", DAMAGE.values(), ids=DAMAGE)
def test_damaged_files(folder, name, damage, sentence):
    good = (folder / name).read_bytes()
    (folder / name).unlink()
    if damage:
        (folder / name).write_bytes(damage(good))
    with pytest.raises((ValueError, OSError), match=sentence) as raised:
        load_checkpoint(folder, "cpu")
    assert "\n" not in str(raised.value)


INDEX = "model.safetensors.index.json"
INDICES = {
    "no map": ({}, "has no `weight_map`"),
    "map is a list": ({"weight_map": ["a"]}, "has no `weight_map`"),
    "outside": ({"weight_map": {"a": "../model.safetensors"}}, "no weight file of its own folder"),
    "absolute": ({"weight_map": {"a": "/etc/passwd"}}, "no weight file of its own folder"),
    "number": ({"weight_map": {"a": 3}}, "no weight file of its own folder"),
    "missing shard": ({"weight_map": {"a": "model-1.safetensors"}}, "model-1.safetensors does not exist"),
}


@pytest.mark.parametrize("index, sentence", INDICES.values(), ids=INDICES)
def test_an_index_that_is_none(folder, index, sentence):
    (folder / "model.safetensors").rename(folder.parent / "model.safetensors")
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises((ValueError, OSError), match=sentence):
        load_checkpoint(folder, "cpu")
    (folder.parent / "model.safetensors").rename(folder / "model.safetensors")
    with pytest.raises(ValueError, match="which of them counts"):
        load_checkpoint(folder, "cpu")


CODE = "from pathlib import Path\nPath({!r}).touch()\n"
CONFIG, TOKENIZER = ("config.json",), ("tokenizer_config.json",)
PROCESSOR, GENERATION = ("processor_config.json",), ("generation_config.json",)
TEXT, VISION, PICTURES = (*CONFIG, "text_config"), (*CONFIG, "vision_config"), (*PROCESSOR, "image_processor")
FOREIGN = {
    "another model": (CONFIG, {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil"}}, "a evil checkp"),
    "another known model": (CONFIG, {"model_type": "bert"}, "is a bert checkpoint"),
    "tokenizer": (TOKENIZER, {"auto_map": {"AutoTokenizer": ["evil.Evil", None]}}, "no code of"),
    "tokenizer class": (TOKENIZER, {"tokenizer_class": "Evil"}, "'Evil' is no tokenizer of transform"),
    "tokenizer file": (TOKENIZER, {"tokenizer_file": "/etc/passwd"}, "read from its own folder"),
    "processor": (PROCESSOR, {"auto_map": {"AutoProcessor": "evil.Evil"}}, "no code of"),
    "processor class": (PROCESSOR, {"processor_class": "CLIPProcessor"}, "`processor_class` must be"),
    "pictures": (PICTURES, {"auto_map": {"AutoImageProcessor": "e.E"}}, "no code of"),
    "no limit": (PICTURES, {"max_pixels": 10**12}, "`max_pixels` must be less than"),
    "a method": (PICTURES, {"to_rgb": "x"}, "`to_rgb` is no field that is known"),
    "huge pictures": ((*PICTURES, "size"), {"height": 10**6}, "`size.height` must be"),
    "kernel": (CONFIG, {"_attn_implementation": "evil/kernel"}, "a checkpoint may name eager, sdpa"),
    "kernel in a part": (TEXT, {"attn_implementation": "evil/kernel"}, "a checkpoint may name"),
    "kernel by dict": (CONFIG, {"attn_implementation": {"text_config": "evil/k"}}, "a checkpoint may name"),
    "experts": (TEXT, {"experts_implementation": "evil/kernel"}, "a checkpoint may name"),
    "quantised": (CONFIG, {"quantization_config": {"quant_method": "hqq"}}, "`quantization_config` .* not supp"),
    "labels": (VISION, {"num_labels": 10**9}, "`vision_config.num_labels` is 1000000000"),
    "generation": (GENERATION, {"max_new_tokens": "many"}, "`max_new_tokens` must be a valid integer"),
    "beams": (GENERATION, {"num_beams": 10**6}, "`num_beams` must be less than or equal to 64"),
    "code in generation": (GENERATION, {"custom_generate": "evil/g"}, "`custom_generate` is no field"),
}


@pytest.mark.parametrize("place, values, sentence", FOREIGN.values(), ids=FOREIGN)
def test_nothing_of_a_stranger_is_run_or_asked_for(folder, tmp_path, monkeypatch, place, values, sentence):
    (folder / "evil.py").write_text(CODE.format(str(tmp_path / "touched")))
    change_json(folder, *place, **values)
    monkeypatch.setattr(builtins, "input", lambda *args: pytest.fail("asked"))
    doors = [*DOORS.values(), checkpoint_config, load_processor, lambda name: vllm_command(name, "127.0.0.1", 8000)]
    doors.append(lambda folder: data([], str(folder)))
    for door in doors:
        with pytest.raises(ValueError, match=sentence) as raised:
            door(folder)
        assert "\n" not in str(raised.value)
    assert not (tmp_path / "touched").exists()


class Pickle:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_timm_opens_nothing(folder, reference, tmp_path):
    """Through the installed classes, the Auto classes' path, and the converter."""
    torch.save({"state_dict": Pickle(str(tmp_path / "touched"))}, tmp_path / "evil.pth")
    source = tmp_path / "timm"
    source.mkdir()
    hostile = [
        {"model_args": {"checkpoint_path": str(tmp_path / "evil.pth")}},
        {"model_args": {"pretrained": True}},
        {"model_args": {"pretrained_cfg": {"file": str(tmp_path / "evil.pth")}}},
        {"model_args": {"pretrained_cfg_overlay": {"file": str(tmp_path / "evil.pth")}}},
        {"model_args": {"cache_dir": str(tmp_path)}},
        {"model_args": {"norm_layer": {"a": 1}}},
        {"model_args": {"norm_layer": "os.system('x')"}},
        {"model_args": [1]},
        {"architecture": "hf-hub:evil/model"},
        {"architecture": f"local-dir:{tmp_path}"},
    ]
    for each in hostile:
        config = {"model_type": "timm_wrapper", "architecture": "test_vit", "num_classes": 2, **each}
        with pytest.raises(ValueError, match="vision_config"):
            JMiniGPT4Config(vision_config=config, qformer_config={"encoder_hidden_size": 64})
        stated = json.loads((folder / "config.json").read_text())
        stated["vision_config"] = config
        (folder / "config.json").write_text(json.dumps(stated))
        with pytest.raises(ValueError, match="vision_config"):
            load_checkpoint(folder, "cpu")
        with pytest.raises(ValueError, match="vision_config"):
            JMiniGPT4ForConditionalGeneration.from_pretrained(folder)
        save_file({"cls_token": torch.zeros(1)}, source / "model.safetensors")
        (source / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match="vision_config"):
            assemble(vision=source, qformer=folder, language=reference / "llm", out=tmp_path / "out", progress=False)
    assert not (tmp_path / "touched").exists() and not (tmp_path / "out").exists()


def test_a_model_that_describes_an_architecture_passes():
    arguments = {
        "img_size": 32,
        "depth": 2,
        "embed_dim": 24,
        "num_heads": 2,
        "norm_layer": "rmsnorm",
        "qkv_bias": True,
    }
    config = {"model_type": "timm_wrapper", "architecture": "vit_tiny_patch16_224.augreg", "model_args": arguments}
    config["num_classes"] = 2
    JMiniGPT4Config(vision_config=config, qformer_config={"encoder_hidden_size": 24})


# The fuzz: values that no field expects, and fields that would be worth something to an attacker.
VALUES = [None, True, -1, 0, 1, 7, 10**6, 10**9, 10**30, 1.5, math.nan, math.inf, "", "x", "../../etc/passwd"]
VALUES += ["hf-hub:evil/model", "a" * 10_000, [], [1], [[]], {}, {"a": 1}]
HOSTILE = {
    "auto_map": {"AutoConfig": "evil.Evil", "AutoTokenizer": ["evil.T", None]},
    "attn_implementation": "evil/kernel",
    "cross_attention_frequency": 0,
    "custom_generate": "evil/generate",
    "dtype": "float128",
    "hidden_act": "os.system",
    "is_encoder_decoder": True,
    "layer_types": ["x"],
    "model_args": {"checkpoint_path": "x.pth"},
    "model_type": "bert",
    "num_attention_heads": 0,
    "num_hidden_layers": 10**9,
    "num_labels": 10**9,
    "per_layer_config": [1],
    "processor_class": "Evil",
    "quantization_config": {"quant_method": "x"},
    "rope_parameters": {"rope_type": "yarn"},
    "tokenizer_class": "Evil",
    "tokenizer_file": "/etc/passwd",
}


def places(value, path=()):
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield (*path, key)
            yield from places(value[key], (*path, key))


def mutated(good: bytes, chance: random.Random) -> bytes:
    kind = chance.randrange(10)
    if kind == 0:
        return good[: chance.randrange(len(good))]
    if kind == 1:
        place = chance.randrange(len(good))
        return good[:place] + bytes([chance.randrange(256)]) + good[place + 1 :]
    value = json.loads(good)
    path = chance.choice(list(places(value)))
    parent = value
    for step in path[:-1]:
        parent = parent[step]
    if kind == 2:
        parent.pop(path[-1])
    elif kind in (3, 4):
        name = chance.choice(list(HOSTILE))
        (parent if isinstance(parent, dict) else value)[name] = copy.deepcopy(HOSTILE[name])
    elif kind == 5:
        parent[path[-1]] = [parent[path[-1]]]
    else:
        parent[path[-1]] = chance.choice(VALUES)
    return json.dumps(value).encode()


def test_mutated_files_are_refused_in_one_sentence(chat_model, processor, tmp_path):
    """500 seeded mutations of the five JSON files of a sharded checkpoint: it loads, or it is one `ValueError` or
    `OSError` of one line, within 5 seconds and 400 MiB."""
    folder = tmp_path / "stranger"
    chat_model.save_pretrained(folder, max_shard_size="100KB")
    processor.save_pretrained(folder)
    files = ["config.json"] * 4 + ["processor_config.json", "tokenizer_config.json", "generation_config.json", INDEX]
    chance = random.Random(0)
    refused = slowest = 0
    check_checkpoint(folder)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(500):
        file = folder / chance.choice(files)
        good = file.read_bytes()
        file.write_bytes(mutated(good, chance))
        start = time.process_time()
        try:
            check_checkpoint(folder)
        except (ValueError, OSError) as error:
            refused += 1
            assert "\n" not in str(error)
        slowest = max(slowest, time.process_time() - start)
        file.write_bytes(good)
    assert 250 < refused < 500  # many mutations change a number that means nothing
    assert slowest < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400 * 1024


def test_verify_says_what_loading_says(folder):
    from jminigpt4.checkpoint import write_manifest

    change_weights(folder, drop("model.language_projection."))
    change_json(folder, "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Evil", None]})
    write_manifest(folder)
    (problem,) = verify_folder(folder)
    assert "no code of a checkpoint is run" in problem
