"""Any causal language model may take GPT-NeoX's place: every family, every state its weights come in."""

import json
import os
import shutil
import subprocess
import sys
import textwrap

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)
from transformers.models.auto import CONFIG_MAPPING

from jminigpt4.checkpoint import write_manifest
from jminigpt4.convert import assemble, swap, trust_language_code, verify_folder
from jminigpt4.convert.account import Account

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "initializer_range": 0.3,
}
FAMILIES = {
    "gpt_neox": {"intermediate_size": 64},
    "llama": {"intermediate_size": 64, "num_key_value_heads": 2},
    "qwen2": {"intermediate_size": 64, "num_key_value_heads": 2, "tie_word_embeddings": True},
    "gpt2": {"n_inner": 64},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 16},
    "mistral": {"intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 8},
}
EXPERTS = {
    "qwen3_moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "head_dim": 8,
        "num_key_value_heads": 2,
    },
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 16, "num_key_value_heads": 2},
    "granitemoe": {
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "intermediate_size": 16,
        "num_key_value_heads": 2,
    },
    "qwen3_next": {
        "num_experts": 4,
        "num_key_value_heads": 2,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
        "head_dim": 8,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "layer_types": ["linear_attention", "full_attention"],
    },
    "deepseek_v3": {
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "first_k_dense_replace": 1,
        "n_group": 1,
        "topk_group": 1,
        "num_key_value_heads": 4,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
    },
}
WORDS = 40


def language_model(folder, family="llama", vocab_size=WORDS, seed=0, **options):
    """A tiny random language model with a tokenizer of 40 words, as `save_pretrained` leaves them."""
    overrides = {key: options.pop(key) for key in list(options) if key not in ("max_shard_size",)}
    config = AutoConfig.for_model(
        family, **{**SIZES, **(FAMILIES | EXPERTS)[family], "vocab_size": vocab_size, **overrides}
    )
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.normal_(0, 0.3)
    model.save_pretrained(folder, **options)
    words = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3} | {chr(0x3042 + i): 4 + i for i in range(WORDS - 4)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="<unk>")),
        **{"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    )
    tokenizer.save_pretrained(folder)
    return model


def convert(originals, language, out, **options):
    sources = originals | {"language": language, "projection": None, "prompt_format": "article-3.6b"}
    return assemble(**sources | options, out=out)


def load(folder):
    return AutoModelForImageTextToText.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)


def check_equal(theirs, ours, image_token_id):
    """Same logits for the same text; the image token alone is masked."""
    ids = torch.arange(4, 24)[None]
    with torch.no_grad():
        expected, logits = theirs(input_ids=ids).logits, ours(input_ids=ids).logits
    kept = [i for i in range(expected.shape[-1]) if i != image_token_id]
    torch.testing.assert_close(logits[..., kept], expected[..., kept], rtol=0, atol=1e-5)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(originals, family, tied, tmp_path):
    theirs = language_model(tmp_path / "llm", family, tie_word_embeddings=tied)
    proof = convert(originals, tmp_path / "llm", tmp_path / "out")
    assert "language model" in {row["stage"] for row in proof.rows()}
    ours, processor = load(tmp_path / "out")
    assert processor.image_token_id == ours.config.image_token_id == WORDS
    check_equal(theirs, ours, WORDS)
    embeddings = ours.get_input_embeddings().weight
    old = theirs.get_input_embeddings().weight
    assert torch.equal(embeddings[:WORDS], old) and embeddings.shape[0] == WORDS + 1
    torch.testing.assert_close(embeddings[WORDS], old.mean(0))
    assert (ours.lm_head.weight is embeddings) == tied
    saved = load_file(tmp_path / "out" / "model.safetensors")
    assert ("lm_head.weight" in saved) == (not tied)
    ids = torch.arange(4, 10)[None]
    assert WORDS not in ours.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=5)[0]


@pytest.mark.parametrize("folder_states", [[2, 5], 5, None], ids=["several", "another", "nothing"])
def test_generation_stops_where_training_ends_answers(originals, folder_states, tmp_path):
    """As Llama 3 is published: config.json names one end, generation_config.json others, the tokenizer a third."""
    language_model(tmp_path / "llm", eos_token_id=7)
    stated = {} if folder_states is None else {"eos_token_id": folder_states}
    (tmp_path / "llm" / "generation_config.json").write_text(json.dumps(stated))
    assert convert(originals, tmp_path / "llm", tmp_path / "out").passed
    ours, processor = load(tmp_path / "out")
    expected = {7, 2} | ({5} if folder_states else set())
    assert set(ours.generation_config.eos_token_id) == expected
    messages = [{"role": "user", "content": "あ"}, {"role": "assistant", "content": "い"}]
    assert processor.encode_segments(messages)["labels"][-1] in expected
    assert verify_folder(tmp_path / "out") == []
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    generation["eos_token_id"] = 7
    (tmp_path / "out" / "generation_config.json").write_text(json.dumps(generation))
    write_manifest(tmp_path / "out")
    (problem,) = verify_folder(tmp_path / "out")
    assert problem.startswith("Training ends an answer with </s> (2), at which generation does not stop")


def test_a_mark_of_the_format_that_is_one_token_ends_generation(originals, tmp_path):
    language_model(tmp_path / "llm", vocab_size=WORDS + 4)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "llm")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.save_pretrained(tmp_path / "llm")
    assert convert(originals, tmp_path / "llm", tmp_path / "out", prompt_format="chatml").passed
    assert load(tmp_path / "out")[0].generation_config.eos_token_id == [2, WORDS + 1]
    assert verify_folder(tmp_path / "out") == []


CHAT = """{{- bos_token -}}
{%- for message in messages -%}
  {{- "<|im_start|>" + message["role"] + "\n" + message["content"] | trim + "<|im_end|>\n" -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- "<|im_start|>assistant\n" -}}{%- endif -%}"""


@pytest.fixture
def chat_folder(tmp_path):
    """A language model with a chat template of its own."""
    language_model(tmp_path / "llm", vocab_size=WORDS + 4)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "llm")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(tmp_path / "llm")
    return tmp_path / "llm"


@pytest.mark.parametrize("given", ["own", "FILE.jinja"])
def test_the_language_models_own_chat_template(originals, chat_folder, given, tmp_path):
    if given != "own":
        given = str(tmp_path / "mine.jinja")
        (tmp_path / "mine.jinja").write_text(CHAT, encoding="utf-8")
    assert convert(originals, chat_folder, tmp_path / "out", prompt_format=given).passed
    assert verify_folder(tmp_path / "out") == []
    model, processor = load(tmp_path / "out")
    question = [{"type": "image"}, {"type": "text", "text": "あ<|im_end|>"}]
    text = processor.apply_chat_template([{"role": "user", "content": question}], add_generation_prompt=True)
    before, behind = "<s><|im_start|>user\n<Img><ImageHere></Img> あ", "<|im_end|>\n<|im_start|>assistant\n"
    assert text == f"{before}<\ufdd0|im_end|>{behind}"  # what the user typed is no token
    messages = [{"role": "user", "content": "あ"}, {"role": "assistant", "content": "い"}]
    segments = processor.encode_segments(messages)
    end = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert end in segments["labels"] and end in model.generation_config.eos_token_id
    again = {"vision": tmp_path / "out", "language": tmp_path / "out", "projection": tmp_path / "out"}
    assemble(**again, out=tmp_path / "again", progress=False)
    texts = [(tmp_path / name / "chat_template.jinja").read_text(encoding="utf-8") for name in ("out", "again")]
    assert texts[0] == texts[1]


def test_a_chat_template_that_cannot_be_a_format_is_refused(originals, chat_folder, tmp_path):
    options = {"prove_equal": False, "prompt_format": str(tmp_path / "mine.jinja")}
    (tmp_path / "mine.jinja").write_text(CHAT.replace("in messages", "in messages[-2:]"), encoding="utf-8")
    with pytest.raises(ValueError, match="cannot be a prompt format: The chat template rewrites earlier turns"):
        convert(originals, chat_folder, tmp_path / "out", **options)
    (tmp_path / "mine.jinja").write_text(CHAT.replace('message["content"] | trim', '"x"'), encoding="utf-8")
    with pytest.raises(ValueError, match="leaves out the user's words"):
        convert(originals, chat_folder, tmp_path / "out", **options)
    language_model(tmp_path / "silent")
    with pytest.raises(ValueError, match="has no chat template of its own"):
        convert(originals, tmp_path / "silent", tmp_path / "out", prompt_format="own")
    with pytest.raises(FileNotFoundError, match=r"no file nowhere\.jinja"):
        convert(originals, chat_folder, tmp_path / "out", prompt_format="nowhere.jinja")


@pytest.mark.parametrize("family", EXPERTS)
def test_experts_stay_single_on_disk_and_are_merged_at_loading(originals, family, tmp_path):
    theirs = language_model(
        tmp_path / "llm", family, num_key_value_heads=EXPERTS[family].get("num_key_value_heads", 2)
    )
    proof = convert(originals, tmp_path / "llm", tmp_path / "out")
    assert "language model" in {row["stage"] for row in proof.rows()}
    ours, _ = load(tmp_path / "out")
    check_equal(theirs, ours, WORDS)
    source = load_file(tmp_path / "llm" / "model.safetensors")
    saved = load_file(tmp_path / "out" / "model.safetensors")
    experts = {name: tensor for name, tensor in source.items() if "experts." in name or "_moe." in name}
    stored = {name.removeprefix("model.language_model."): tensor for name, tensor in saved.items()}
    assert experts
    for name, tensor in experts.items():
        # Under its own name, or, where transformers does no more than rename it, under the one that it has in memory.
        own = stored.get(name.removeprefix("model."))
        same = [each for each in stored.values() if each.shape == tensor.shape and torch.equal(each, tensor)]
        assert same and (own is None or torch.equal(own, tensor))


def test_an_expert_that_is_missing_is_named(originals, tmp_path):
    language_model(tmp_path / "llm", "qwen3_moe")
    path = tmp_path / "llm" / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.1.mlp.experts.3.up_proj.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 tensors of the model .*layers.1.mlp.experts.gate_up_proj first"):
        convert(originals, tmp_path / "llm", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_padded_table_has_room_for_the_image_token(originals, tmp_path):
    theirs = language_model(tmp_path / "llm", vocab_size=48)
    convert(originals, tmp_path / "llm", tmp_path / "out")
    ours, _ = load(tmp_path / "out")
    assert ours.config.text_config.vocab_size == 48 and ours.config.image_token_id == WORDS
    assert torch.equal(ours.get_input_embeddings().weight, theirs.get_input_embeddings().weight)
    check_equal(theirs, ours, WORDS)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_dtype(originals, dtype, tmp_path):
    """The language model in the chosen dtype; Q-Former and projection stay in float32."""
    language_model(tmp_path / "llm")
    convert(originals, tmp_path / "llm", tmp_path / "out", dtype=dtype)
    saved = load_file(tmp_path / "out" / "model.safetensors")
    wide = ("query_tokens", "qformer", "vision_layernorm", "language_projection")
    for name, tensor in saved.items():
        expected = torch.float32 if any(part in name.split(".") for part in wide) else getattr(torch, dtype)
        assert tensor.dtype == expected, name
    ours, _ = load(tmp_path / "out")
    assert ours.dtype == getattr(torch, dtype)
    loaded = {name: tensor for name, tensor in ours.state_dict().items() if name in saved}
    assert len(loaded) == len(saved) and all(torch.equal(loaded[name], saved[name]) for name in saved)
    assert all(loaded[name].dtype == saved[name].dtype for name in saved)
    ours.save_pretrained(tmp_path / "again")
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert all(again[name].dtype == saved[name].dtype and torch.equal(again[name], saved[name]) for name in saved)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_another_language_model_behind_a_folder_of_half_precision(originals, dtype, tmp_path):
    for seed, name in enumerate(("a", "b")):
        language_model(tmp_path / name, seed=seed).to(getattr(torch, dtype)).save_pretrained(tmp_path / name)
    convert(originals, tmp_path / "a", tmp_path / "out", prove_equal=False)
    swapped = {"language": tmp_path / "b", "prompt_format": "article-3.6b", "progress": False}
    proof = swap(tmp_path / "out", out=tmp_path / "out2", **swapped)
    assert proof.passed and {"language model", "Q-Former"} <= {row["stage"] for row in proof.rows()}
    old, new = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "out2"))
    kept = [name for name in old if "qformer" in name or "query_tokens" in name]
    assert kept and all(old[name].dtype == torch.float32 and torch.equal(old[name], new[name]) for name in kept)


def test_dtype_of_the_language_model_is_kept(originals, tmp_path):
    language_model(tmp_path / "llm", dtype="bfloat16").bfloat16().save_pretrained(tmp_path / "llm")
    convert(originals, tmp_path / "llm", tmp_path / "out", prove_equal=False)
    assert json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))["dtype"] == "bfloat16"
    with pytest.raises(ValueError, match="no dtype 'int8': choose one of float32"):
        convert(originals, tmp_path / "llm", tmp_path / "out2", dtype="int8")


def test_values_too_large_for_float16_are_named(originals, tmp_path):
    language_model(tmp_path / "llm")
    state = load_file(tmp_path / "llm" / "model.safetensors")
    state["model.norm.weight"][0] = 70000
    save_file(state, tmp_path / "llm" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="language_model.norm.weight holds values too large for torch.float16"):
        convert(originals, tmp_path / "llm", tmp_path / "out", dtype="float16")
    assert not (tmp_path / "out").exists()


def test_shards_in_and_shards_out(originals, tmp_path):
    language_model(tmp_path / "llm", max_shard_size="10KB")
    assert (tmp_path / "llm" / "model.safetensors.index.json").is_file()
    proof = convert(originals, tmp_path / "llm", tmp_path / "out", shard_bytes=160_000)
    assert proof.passed
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 2 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert all((tmp_path / "out" / name).stat().st_size < 180_000 for name in files)
    ours, _ = load(tmp_path / "out")
    ours.save_pretrained(tmp_path / "again", max_shard_size=160_000)
    index, theirs = (
        json.loads((tmp_path / name / "model.safetensors.index.json").read_text()) for name in ("out", "again")
    )
    assert index["metadata"] == theirs["metadata"]
    assert index["weight_map"].keys() == theirs["weight_map"].keys()
    assert list(index["weight_map"]) == sorted(index["weight_map"]) and set(index["weight_map"].values()) == set(files)


def test_pickled_shards(originals, tmp_path):
    """An index of `.bin` files, as most models of 2023 have it."""
    theirs = language_model(tmp_path / "llm", "llama")
    state = load_file(tmp_path / "llm" / "model.safetensors")
    (tmp_path / "llm" / "model.safetensors").unlink()
    names = sorted(state)
    files = {"pytorch_model-00001-of-00002.bin": names[:9], "pytorch_model-00002-of-00002.bin": names[9:]}
    for file, keys in files.items():
        torch.save({key: state[key] for key in keys}, tmp_path / "llm" / file)
    index = {"metadata": {}, "weight_map": {key: file for file, keys in files.items() for key in keys}}
    (tmp_path / "llm" / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert convert(originals, tmp_path / "llm", tmp_path / "out").passed
    check_equal(theirs, load(tmp_path / "out")[0], WORDS)


def test_rinnas_4b(originals, reference, tmp_path):
    """A padded table, dropout in the configuration, a tokenizer that knows line breaks."""
    options = {
        "vocab_size": 576,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "attention_dropout": 0.1,
        "hidden_dropout": 0.1,
    }
    theirs = language_model(tmp_path / "llm", "gpt_neox", use_parallel_residual=False, **options)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (tmp_path / "llm" / name).unlink(missing_ok=True)
    for name in ("spiece.model", "tokenizer_config.json"):
        shutil.copyfile(reference / "tokenizer_4b_like" / name, tmp_path / "llm" / name)
    proof = convert(originals, tmp_path / "llm", tmp_path / "out", prompt_format=None)
    assert any(row["stage"].startswith("tokenizer") and row["tolerance"] == 0 for row in proof.rows())
    ours, processor = load(tmp_path / "out")
    assert (
        json.loads((tmp_path / "out" / "conversion.json").read_text(encoding="utf-8"))["prompt_format"] == "rinna-4b"
    )
    assert ours.config.text_config.hidden_dropout == 0.1 and ours.config.text_config.vocab_size == 576
    assert processor.image_token_id == len(processor.tokenizer) - 1 < 576
    check_equal(theirs, ours, processor.image_token_id)


def test_legacy_buffers_are_left_out_and_counted(originals, reference, tmp_path):
    convert(originals, reference / "llm", tmp_path / "out")
    account = json.loads((tmp_path / "out" / "conversion.json").read_text(encoding="utf-8"))
    left_out = account["sources"]["language"]["left_out"]
    assert left_out == {"causal mask of an attention": 6, "frequencies of the rotary embedding": 3}


def test_a_tensor_of_another_model_is_named(originals, tmp_path):
    language_model(tmp_path / "llm")
    state = load_file(tmp_path / "llm" / "model.safetensors")
    save_file(state | {"model.layers.2.mlp.up_proj.weight": torch.ones(2)}, tmp_path / "llm" / "model.safetensors")
    with pytest.raises(ValueError, match=r"neither used nor known to be of no use: model\.layers\.2\.mlp\.up_proj"):
        convert(originals, tmp_path / "llm", tmp_path / "out")
    state.pop("model.norm.weight")
    save_file(state, tmp_path / "llm" / "model.safetensors")
    with pytest.raises(ValueError, match="1 tensors of the model are in no source, model.language_model.norm.weight"):
        convert(originals, tmp_path / "llm", tmp_path / "out")


def test_a_tied_head_that_differs_is_refused(originals, tmp_path):
    language_model(tmp_path / "llm", "qwen2", tie_word_embeddings=True)
    state = load_file(tmp_path / "llm" / "model.safetensors")
    same = state | {"lm_head.weight": state["model.embed_tokens.weight"].clone()}
    save_file(same, tmp_path / "llm" / "model.safetensors", metadata={"format": "pt"})
    convert(originals, tmp_path / "llm", tmp_path / "out")
    other = state | {"lm_head.weight": state["model.embed_tokens.weight"] + 1}
    save_file(other, tmp_path / "llm" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="holds two different tables"):
        convert(originals, tmp_path / "llm", tmp_path / "out2")


def test_code_of_a_language_model_is_never_run(originals, tmp_path):
    language_model(tmp_path / "llm")
    config = json.loads((tmp_path / "llm" / "config.json").read_text())
    auto_map = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    config |= {"model_type": "mystery", "auto_map": auto_map}
    (tmp_path / "llm" / "config.json").write_text(json.dumps(config))
    (tmp_path / "llm" / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(ValueError, match="'mystery', which transformers does not know: it needs code of its own"):
        convert(originals, tmp_path / "llm", tmp_path / "out")
    with pytest.raises(ValueError, match="only for a model you name, not 'another'"):
        convert(originals, tmp_path / "llm", tmp_path / "out", trust_language_code="another")
    assert not (tmp_path / "ran").exists()


def test_code_beside_a_model_that_transformers_knows_is_not_run(originals, tmp_path):
    language_model(tmp_path / "llm")
    config = json.loads((tmp_path / "llm" / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "code.Config", "AutoModel": "code.Model", "AutoModelForCausalLM": "code.LM"}
    (tmp_path / "llm" / "config.json").write_text(json.dumps(config))
    (tmp_path / "llm" / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    convert(originals, tmp_path / "llm", tmp_path / "out", trust_language_code="llm")
    assert not (tmp_path / "ran").exists()
    text_config = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))["text_config"]
    assert "auto_map" not in text_config and text_config["model_type"] == "llama"


CONFIGURATION_CODE = """
from transformers import LlamaConfig


class MysteryConfig(LlamaConfig):
    model_type = "mystery"
"""
MODELING_CODE = """
from transformers import LlamaForCausalLM, LlamaModel

from .configuration_mystery import MysteryConfig


class MysteryModel(LlamaModel):
    config_class = MysteryConfig


class MysteryForCausalLM(LlamaForCausalLM):
    config_class = MysteryConfig
"""
STRANGER = """
    import importlib.util, json, pathlib, sys
    sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
    sys.path = [path for path in sys.path if not path.startswith("__editable__")]
    sys.path = [path for path in sys.path if not pathlib.Path(path, "jminigpt4").exists()]
    assert importlib.util.find_spec("jminigpt4") is None
    import torch
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
    print(type(model.model.language_model).__name__)
    print(json.dumps(model(input_ids=torch.arange(4, 24)[None]).logits[0, -1, :40].tolist()))
"""


@pytest.fixture
def mystery(tmp_path):
    """A language model of a type that comes with its own code, and the LLaMA that computes the same."""
    theirs = language_model(tmp_path / "llm")
    config = json.loads((tmp_path / "llm" / "config.json").read_text())
    auto_map = {"AutoConfig": "configuration_mystery.MysteryConfig"}
    auto_map |= {"AutoModel": "modeling_mystery.MysteryModel"}
    auto_map |= {"AutoModelForCausalLM": "modeling_mystery.MysteryForCausalLM"}
    (tmp_path / "llm" / "config.json").write_text(json.dumps(config | {"model_type": "mystery", "auto_map": auto_map}))
    (tmp_path / "llm" / "configuration_mystery.py").write_text(CONFIGURATION_CODE)
    (tmp_path / "llm" / "modeling_mystery.py").write_text(MODELING_CODE)
    yield theirs
    CONFIG_MAPPING._extra_content.pop("mystery", None)


def test_code_of_a_named_language_model_is_run_and_carried_along(originals, mystery, tmp_path):
    proof = convert(originals, tmp_path / "llm", tmp_path / "out", trust_language_code=str(tmp_path / "llm"))
    assert proof.passed and "language model" in {row["stage"] for row in proof.rows()}
    assert verify_folder(tmp_path / "out") == []
    del CONFIG_MAPPING._extra_content["mystery"]  # as another process would find it
    trust_language_code(tmp_path / "out")
    ours, _ = load(tmp_path / "out")
    assert type(ours.model.language_model).__name__ == "MysteryModel"
    check_equal(mystery, ours, WORDS)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(STRANGER), str(tmp_path / "out")],
        env={**os.environ, "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    name, logits = done.stdout.splitlines()[-2:]
    assert name == "MysteryModel"
    with torch.no_grad():
        expected = mystery(input_ids=torch.arange(4, 24)[None]).logits[0, -1]
    torch.testing.assert_close(torch.tensor(json.loads(logits)), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("auto_map", "match"),
    [
        ({"AutoModel": "modeling_mystery.MysteryModel"}, "lacks AutoConfig, AutoModelForCausalLM"),
        ({"AutoConfig": "another/repo--configuration_mystery.MysteryConfig"}, "code of another repository"),
    ],
)
def test_code_that_is_incomplete_or_elsewhere_is_refused(originals, mystery, auto_map, match, tmp_path):
    config = json.loads((tmp_path / "llm" / "config.json").read_text())
    config["auto_map"] = auto_map if "lacks" in match else config["auto_map"] | auto_map
    (tmp_path / "llm" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=match):
        convert(originals, tmp_path / "llm", tmp_path / "out", trust_language_code="llm")


def test_a_folder_without_language_code_has_none_to_trust(converted):
    with pytest.raises(ValueError, match="carries no code of a language model"):
        trust_language_code(converted.folder)


def test_swap_language(originals, converted, tmp_path):
    """The article's title act: another language model for a checkpoint."""
    theirs = language_model(tmp_path / "llm", "qwen2")
    proof = swap(
        converted.folder, language=tmp_path / "llm", out=tmp_path / "out", prompt_format="article-3.6b", progress=False
    )
    assert proof.passed
    old, new = (load_file(folder / "model.safetensors") for folder in (converted.folder, tmp_path / "out"))
    kept = [name for name in old if ".vision_model." in name or "qformer" in name or "query_tokens" in name]
    assert kept and all(torch.equal(old[name], new[name]) for name in kept)
    ours, _ = load(tmp_path / "out")
    check_equal(theirs, ours, WORDS)
    assert Account.read(tmp_path / "out").fresh_projection
    with pytest.raises(ValueError, match="is no checkpoint of jminigpt4"):
        swap(tmp_path / "llm", language=tmp_path / "llm", out=tmp_path / "out2")
