"""The projection: taken where it fits, refused with the likely mix-up named, and given back bit for bit."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoTokenizer, Blip2Config, Blip2ForConditionalGeneration

from jminigpt4.checkpoint import save_projection
from jminigpt4.convert import assemble, verify_folder, write_minigpt4_checkpoint
from jminigpt4.convert.account import Account
from jminigpt4.convert.projection import projection_part
from jminigpt4.convert.sources import open_source


def projection_file(path, weight, bias=None):
    bias = torch.zeros(weight.shape[0]) if bias is None else bias
    torch.save({"model": {"llama_proj.weight": weight, "llama_proj.bias": bias}}, path)
    return path


@pytest.mark.parametrize(
    ("found", "needed", "named"),
    [
        ((4096, 768), (2816, 768), ["7B LLaMA", "768 to 4096", "768 to 2816", "rinna's GPT-NeoX"]),
        ((5120, 768), (4096, 768), ["13B LLaMA", "7B LLaMA", "768 to 5120", "768 to 4096"]),
        ((4096, 5632), (4096, 768), ["Llama-2 7B without a Q-Former", "5632 to 4096"]),
        ((48, 40), (48, 32), ["40 to 48", "32 to 48"]),
    ],
)
def test_a_wrong_size_names_both_sizes_and_the_likely_mix_up(found, needed, named, tmp_path):
    source = open_source(projection_file(tmp_path / "p.pth", torch.zeros(1, 1).expand(found).contiguous()))
    with pytest.raises(ValueError) as caught:
        projection_part(source, needed[1], needed[0], "the language model")
    assert all(words in str(caught.value) for words in named)


def test_a_fresh_projection_is_reproducible_and_said_to_be_fresh(originals, tmp_path):
    sources = originals | {"projection": None}
    for name in ("a", "b"):
        torch.rand(1)
        assemble(**sources, out=tmp_path / name, prove_equal=False)
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("a", "b"))
    weight = a["model.language_projection.weight"]
    assert torch.equal(weight, b["model.language_projection.weight"])
    assert 0 < weight.abs().max() <= 32**-0.5  # `nn.Linear`'s own initialisation
    assert "freshly initialised" in (tmp_path / "a" / "README.md").read_text(encoding="utf-8")


def test_a_fresh_projection_stays_fresh_in_another_checkpoint(originals, tmp_path):
    """Until it was trained: then the copy is not fresh either."""
    options = {"prove_equal": False, "progress": False}
    assemble(**originals | options | {"projection": None}, out=tmp_path / "a")
    parts = {"vision": tmp_path / "a", "language": tmp_path / "a", "projection": tmp_path / "a"}
    assemble(**parts, **options, out=tmp_path / "b")
    assert Account.read(tmp_path / "b").fresh_projection
    (tmp_path / "a" / "model-projection.safetensors").touch()
    assemble(**parts, **options, out=tmp_path / "c")
    assert not Account.read(tmp_path / "c").fresh_projection


def test_a_projection_file_of_this_package(originals, converted, tmp_path):
    path = save_projection(converted.model, tmp_path, {"language_model": "rinna/japanese-gpt-neox-3.6b"})
    assemble(**originals | {"projection": path}, out=tmp_path / "out", prove_equal=False)
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out", converted.folder))
    name = "model.language_projection.weight"
    assert torch.equal(ours[name], theirs[name])
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "trained for rinna/japanese-gpt-neox-3.6b, not for llm" in card


def test_the_way_back_is_bit_equal(originals, converted, reference, tmp_path):
    path = write_minigpt4_checkpoint(converted.folder, tmp_path / "checkpoint.pth")
    back = torch.load(path, weights_only=True)["model"]
    original = torch.load(reference / "checkpoints" / "checkpoint.pth", weights_only=True)["model"]
    assert sorted(back) == ["llama_proj.bias", "llama_proj.weight"]
    assert all(torch.equal(back[name], original[name]) and back[name].dtype == torch.float32 for name in back)
    assemble(**originals | {"projection": path}, out=tmp_path / "again", prove_equal=False)
    again, once = (load_file(folder / "model.safetensors") for folder in (tmp_path / "again", converted.folder))
    assert all(torch.equal(again[name], once[name]) for name in once)
    with pytest.raises(FileExistsError, match="exists already"):
        write_minigpt4_checkpoint(converted.folder, path)
    with pytest.raises(ValueError, match="is no checkpoint of jminigpt4"):
        write_minigpt4_checkpoint(reference / "llm", tmp_path / "b.pth")


def test_the_way_back_from_a_training_checkpoint(tmp_path):
    weight, bias = torch.randn(6, 4), torch.randn(6)
    save_file({"weight": weight, "bias": bias}, tmp_path / "projection.safetensors")
    back = torch.load(write_minigpt4_checkpoint(tmp_path, tmp_path / "c.pth"), weights_only=True)["model"]
    assert torch.equal(back["llama_proj.weight"], weight) and torch.equal(back["llama_proj.bias"], bias)


def test_the_projection_of_a_blip2_folder(reference, tmp_path):
    """With its own OPT the whole folder computes what BLIP-2 computes."""
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    qformer = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    text = {"hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 513}
    config = Blip2Config(
        vision_config={**vision, "image_size": 28, "patch_size": 14, "layer_norm_eps": 1e-6},
        qformer_config={**qformer, "encoder_hidden_size": 32, "vocab_size": 8, "max_position_embeddings": 16},
        text_config={**text, "model_type": "opt", "word_embed_proj_dim": 32, "max_position_embeddings": 64},
        num_query_tokens=4,
    )
    torch.manual_seed(0)
    whole = Blip2ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in whole.parameters():
            parameter.normal_(0, 0.3)
    whole.save_pretrained(tmp_path / "blip2")
    whole.language_model.save_pretrained(tmp_path / "opt")
    for name in ("spiece.model", "tokenizer_config.json"):
        shutil.copyfile(reference / "llm" / name, tmp_path / "opt" / name)
    parts = {"vision": tmp_path / "blip2", "projection": tmp_path / "blip2", "language": tmp_path / "opt"}
    assert assemble(**parts, prompt_format="plain", out=tmp_path / "out", progress=False).passed
    assert "was trained for the language model of that folder, opt of width 32" in " ".join(
        Account.read(tmp_path / "out").notes
    )
    ours = AutoModelForImageTextToText.from_pretrained(tmp_path / "out").eval()
    pictures = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        features = ours.get_image_features(pictures).pooler_output
        expected = whole.get_image_features(pictures).pooler_output
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-5)


def trained_file(originals, path, **tensors):
    """`checkpoint.pth` with more in it than a projection."""
    loaded = torch.load(originals["projection"], weights_only=True)
    loaded["model"] |= tensors
    torch.save(loaded, path)
    return path


@pytest.mark.parametrize(
    ("name", "part"),
    [("query_tokens", "qformer"), ("ln_vision.weight", "qformer"), ("visual_encoder.blocks.0.attn.q_bias", "vision")],
)
def test_parts_trained_with_a_projection_are_used_or_stop_the_conversion(originals, name, part, tmp_path):
    given = torch.load(originals[part], weights_only=True)
    frozen = given.get("model", given)[name.removeprefix("visual_encoder.")]
    copy = trained_file(originals, tmp_path / "copy.pth", **{name: frozen})
    assemble(**originals | {"projection": copy}, out=tmp_path / "same", prove_equal=False)
    trained = trained_file(originals, tmp_path / "trained.pth", **{name: frozen + 0.5})
    with pytest.raises(ValueError, match=f"1 tensors of the {part} beside its projection, {name} first"):
        assemble(**originals | {"projection": trained}, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_qformer_trained_with_its_projection_is_used(originals, tmp_path):
    whole = torch.load(originals["qformer"], weights_only=True)
    whole = whole.get("model", whole)
    whole["query_tokens"] = whole["query_tokens"] + 0.5
    trained = trained_file(originals, tmp_path / "trained.pth", **whole)
    proof = assemble(**originals | {"projection": trained, "qformer": trained}, out=tmp_path / "out")
    assert proof.passed
    written = load_file(tmp_path / "out" / "model.safetensors")["model.query_tokens"]
    assert torch.equal(written, whole["query_tokens"])


def test_adapters_and_a_language_model_beside_a_projection(originals, reference, tmp_path):
    layer = "gpt_neox.layers.0.attention.dense.weight"
    lora = {f"gpt_neox_model.base_model.model.{layer}.lora_{kind}.default.weight": torch.ones(2, 2) for kind in "AB"}
    with pytest.raises(ValueError, match="holds 2 tensors of an adapter beside its projection"):
        assemble(**originals | {"projection": trained_file(originals, tmp_path / "a.pth", **lora)}, out=tmp_path / "a")
    frozen = load_file(reference / "llm" / "model.safetensors")[layer]
    copy = trained_file(originals, tmp_path / "b.pth", **{f"gpt_neox_model.{layer}": frozen.half()})
    assemble(**originals | {"projection": copy}, out=tmp_path / "b", prove_equal=False)
    other = trained_file(originals, tmp_path / "c.pth", **{f"gpt_neox_model.{layer}": frozen + 1})
    with pytest.raises(ValueError, match="1 weights of a language model beside its projection"):
        assemble(**originals | {"projection": other}, out=tmp_path / "c")


def test_a_file_with_two_projections_is_refused(originals, tmp_path):
    state = {f"{name}.llama_proj.{kind}": torch.zeros(2, 2) for name in "ab" for kind in ("weight", "bias")}
    torch.save({"model": state}, tmp_path / "two.pth")
    with pytest.raises(ValueError, match="needs exactly one projection"):
        assemble(**originals | {"projection": tmp_path / "two.pth"}, out=tmp_path / "out")


def test_another_projection_for_a_checkpoint(originals, converted, tmp_path):
    """Every other part, tokenizer and prompt format come from the folder as they are."""
    weight, bias = torch.randn(48, 32), torch.randn(48)
    shutil.copyfile(converted.folder / "config.json", tmp_path / "config.json")  # as beside a training run's output
    save_file({"weight": weight, "bias": bias}, tmp_path / "projection.safetensors")
    parts = {"vision": converted.folder, "language": converted.folder}
    projection = tmp_path / "projection.safetensors"
    assert assemble(**parts, projection=projection, out=tmp_path / "out", progress=False).passed
    assert verify_folder(tmp_path / "out") == []
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out", converted.folder))
    changed = {name for name in theirs if not torch.equal(ours[name], theirs[name])}
    assert changed == {"model.language_projection.weight", "model.language_projection.bias"}
    assert torch.equal(ours["model.language_projection.weight"], weight)
    tokenizers = (AutoTokenizer.from_pretrained(folder) for folder in (tmp_path / "out", converted.folder))
    texts = ["犬と<ImageHere>猫</s>", "a<\ufdd0/s>b", "ユーザー: 何?<NL>"]
    assert len({json.dumps(tokenizer(texts)["input_ids"]) for tokenizer in tokenizers}) == 1
    old, new = (
        json.loads((folder / "conversion.json").read_text()) for folder in (converted.folder, tmp_path / "out")
    )
    assert new["prompt_format"] == old["prompt_format"] == "article-3.6b"
    assert new["sources"]["vision"] == {**old["sources"]["vision"], "through": "checkpoint"}
