"""The language model as a GGUF file: read back, every tensor is the folder's, with the heads in llama.cpp's order."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText
from typer import Typer
from typer.testing import CliRunner

from jminigpt4.convert import commands
from jminigpt4.convert.gguf import write_gguf

gguf = pytest.importorskip("gguf", reason="the extra 'gguf' is not installed")


def read(path):
    """Settings and tensors of a file; tensors in float32, in the shape they have in torch."""
    reader = gguf.GGUFReader(path)
    settings = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {
        tensor.name: torch.tensor(gguf.quants.dequantize(tensor.data, tensor.tensor_type)).reshape(
            tuple(int(size) for size in reversed(tensor.shape))
        )
        for tensor in reader.tensors
    }
    return settings, tensors, {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}


@pytest.fixture(scope="module")
def exact(converted, tmp_path_factory):
    return read(write_gguf(converted.folder, tmp_path_factory.mktemp("gguf") / "model.gguf", "float32"))


def test_settings(converted, exact):
    settings, _, _ = exact
    config = converted.model.config.text_config
    assert settings["general.architecture"] == "gptneox" and settings["tokenizer.ggml.model"] == "no_vocab"
    assert settings["gptneox.vocab_size"] == 513 and settings["gptneox.block_count"] == config.num_hidden_layers
    assert settings["gptneox.rope.dimension_count"] == 12 and settings["gptneox.rope.freq_base"] == 10000
    assert settings["gptneox.use_parallel_residual"] is False
    assert settings["gptneox.attention.layer_norm_epsilon"] == pytest.approx(1e-5)
    assert settings["tokenizer.ggml.eos_token_id"] == 3


def test_every_tensor(converted, exact):
    _, tensors, _ = exact
    ours = load_file(converted.folder / "model.safetensors")
    language = {name: tensor for name, tensor in ours.items() if "language_model." in name or name.startswith("lm_")}
    assert len(tensors) == len(language)
    pairs = {"token_embd.weight": "embed_in.weight", "output_norm.bias": "final_layer_norm.bias"}
    pairs |= {"blk.1.ffn_up.weight": "layers.1.mlp.dense_h_to_4h.weight"}
    pairs |= {"blk.2.attn_norm.weight": "layers.2.input_layernorm.weight"}
    pairs |= {"blk.0.attn_output.bias": "layers.0.attention.dense.bias"}
    pairs |= {"blk.0.ffn_norm.bias": "layers.0.post_attention_layernorm.bias"}
    for theirs, name in pairs.items():
        assert torch.equal(tensors[theirs], ours[f"model.language_model.{name}"]), theirs
    assert torch.equal(tensors["output.weight"], ours["lm_head.weight"])


def test_heads_are_one_after_another(converted, exact):
    """Queries, keys and values of the file are those that the attention of transformers makes of the same input."""
    _, tensors, _ = exact
    layer = converted.model.model.language_model.layers[1].attention
    x = torch.randn(5, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        by_head = layer.query_key_value(x).view(5, 4, 3 * 12).chunk(3, -1)  # modeling_gpt_neox.py
    weight, bias = tensors["blk.1.attn_qkv.weight"], tensors["blk.1.attn_qkv.bias"]
    for ours, theirs in zip(by_head, (x @ weight.T + bias).chunk(3, -1), strict=True):
        torch.testing.assert_close(theirs, ours.flatten(1), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("dtype", "error"), [("float16", 2e-4), ("bfloat16", 2e-3), ("q8_0", 2e-3)])
def test_matrices_in_fewer_bits(converted, exact, dtype, error, tmp_path):
    """The reference's rows of 48 fill no block of 32: there q8_0 falls back to float16, and 192 does not."""
    _, tensors, kinds = read(write_gguf(converted.folder, tmp_path / "model.gguf", dtype))
    assert kinds["blk.0.attn_norm.weight"] == kinds["blk.0.attn_qkv.bias"] == "F32"
    assert kinds["blk.0.ffn_down.weight"] == {"float16": "F16", "bfloat16": "BF16", "q8_0": "Q8_0"}[dtype]
    assert kinds["blk.0.ffn_up.weight"] == {"float16": "F16", "bfloat16": "BF16", "q8_0": "F16"}[dtype]
    for name, tensor in exact[1].items():
        largest = tensor.abs().max()
        assert (tensors[name] - tensor).abs().max() <= error * largest * 4, name
    assert not torch.equal(tensors["blk.0.ffn_down.weight"], exact[1]["blk.0.ffn_down.weight"])


def test_a_folder_that_generates_still_does_from_the_file(converted, exact):
    """The tensors go back into the model, heads interleaved again, and it says the same."""
    _, tensors, _ = exact
    model = AutoModelForImageTextToText.from_pretrained(converted.folder).eval()
    state = model.model.language_model.state_dict()
    for index in range(3):
        for kind in ("weight", "bias"):
            qkv = tensors[f"blk.{index}.attn_qkv.{kind}"].unflatten(0, (3, 4, 12))
            state[f"layers.{index}.attention.query_key_value.{kind}"] = qkv.transpose(0, 1).flatten(0, 2)
    model.model.language_model.load_state_dict(state)
    ids = torch.arange(10, 30)[None]
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, converted.model(input_ids=ids).logits)


def test_a_head_that_shares_the_embeddings_is_written_too(make_model, tmp_path):
    """llama.cpp takes no GPT-NeoX without `output.weight`."""
    model = make_model(tie_word_embeddings=True)
    model.save_pretrained(tmp_path / "tied")
    assert "lm_head.weight" not in load_file(tmp_path / "tied" / "model.safetensors")
    _, tensors, _ = read(write_gguf(tmp_path / "tied", tmp_path / "model.gguf", "float32"))
    assert torch.equal(tensors["output.weight"], model.get_input_embeddings().weight)
    assert torch.equal(tensors["output.weight"], tensors["token_embd.weight"])


def test_the_verb(converted, tmp_path):
    app = Typer(pretty_exceptions_enable=False)
    app.command()(commands.convert)
    arguments = ["--to", "gguf", str(converted.folder), str(tmp_path / "model.gguf"), "--dtype", "q8_0"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]
    assert read(tmp_path / "model.gguf")[2]["blk.0.ffn_down.weight"] == "Q8_0"
    with pytest.raises(FileExistsError, match="exists already"):
        CliRunner().invoke(app, arguments, catch_exceptions=False)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"model_type": "llama"}, "only GPT-NeoX is written here"),
        ({"hidden_act": "relu"}, "computes GPT-NeoX with GELU"),
        ({"attention_bias": False}, "has none in its attention"),
        ({}, "has one in its head"),
    ],
)
def test_what_is_not_written(folder, change, match, tmp_path):
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["text_config"] |= change
    config["lm_head_bias"] = not change
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=match):
        write_gguf(folder, tmp_path / "model.gguf")
    with pytest.raises(ValueError, match="no dtype 'int4': choose one of float32"):
        write_gguf(folder, tmp_path / "model.gguf", "int4")
    assert not list(tmp_path.glob("*.gguf*"))


def test_a_value_that_is_not_finite_leaves_no_file(converted, tmp_path):
    shutil.copytree(converted.folder, tmp_path / "damaged")
    state = load_file(tmp_path / "damaged" / "model.safetensors")
    state["model.language_model.layers.2.mlp.dense_4h_to_h.weight"][0, 0] = float("nan")
    save_file(state, tmp_path / "damaged" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"layers\.2\.mlp\.dense_4h_to_h\.weight holds 1 values"):
        write_gguf(tmp_path / "damaged", tmp_path / "model.gguf")
    assert not [path for path in tmp_path.iterdir() if "gguf" in path.name]
