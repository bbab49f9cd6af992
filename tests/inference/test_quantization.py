"""A language model in fewer bits: nearly the same scores, the image encoder untouched, each choice an entry."""

import pytest
import torch
from torch import nn

from jminigpt4.chat.settings import Settings
from jminigpt4.inference.loading import load_checkpoint
from jminigpt4.inference.quantization import QUANTIZATIONS, Int8Linear, replace_linear_layers

BY_TORCH = {name: each.linear for name, each in QUANTIZATIONS.items() if each.linear}


@pytest.mark.parametrize("bias", [True, False])
def test_layer(bias):
    torch.manual_seed(0)
    layer = nn.Linear(64, 48, bias)
    x = torch.randn(2, 5, 64)
    with torch.no_grad():
        exact, quantised = layer(x), Int8Linear(layer.to(torch.bfloat16))(x)
    assert quantised.dtype == torch.float32 and quantised.shape == exact.shape
    error = (quantised - exact).norm() / exact.norm()
    assert 1e-4 < error < 0.02


@pytest.mark.parametrize("name", BY_TORCH)
def test_only_the_language_model(name, checkpoint, chat_model, processor, pictures):
    model, _ = load_checkpoint(checkpoint, "cpu", quantize=name)
    assert not [name for name, layer in model.model.language_model.named_modules() if isinstance(layer, nn.Linear)]
    assert isinstance(model.lm_head, BY_TORCH[name]) and isinstance(model.model.language_projection, nn.Linear)
    pixels = processor.image_processor(images=pictures[:1], return_tensors="pt").pixel_values
    ids = torch.tensor([[11, *[512] * 4, 12, 13]])
    with torch.no_grad():
        assert torch.equal(model.get_query_features(pixels), chat_model.get_query_features(pixels))
        ours, exact = (one(input_ids=ids, pixel_values=pixels).logits[0, -1, :512] for one in (model, chat_model))
    assert torch.corrcoef(torch.stack([ours, exact]))[0, 1] > 0.99
    assert not torch.equal(ours, exact)


@pytest.mark.parametrize("name", ["8bit", "nf4"])
def test_bitsandbytes_quantises_what_the_hall_lets_it(name, checkpoint):
    pytest.importorskip("bitsandbytes")
    model, _ = load_checkpoint(checkpoint, "cpu", quantize=name)
    types = {key: type(layer).__name__ for key, layer in model.named_modules() if "Linear" in type(layer).__name__}
    quantised = {key for key, kind in types.items() if kind == {"8bit": "Linear8bitLt", "nf4": "Linear4bit"}[name]}
    assert quantised and all(key.startswith("model.language_model.") for key in quantised)
    assert types["model.language_projection"] == types["lm_head"] == "Linear"


@pytest.mark.parametrize("linear", BY_TORCH.values(), ids=BY_TORCH)
def test_tied_weights(linear, make_model):
    """The head is quantised, the embeddings that it shared are not; what is stored in bfloat16 computes in float32."""
    model = make_model(tie_word_embeddings=True).to(torch.bfloat16)
    embeddings = model.get_input_embeddings().weight.clone()
    replace_linear_layers(model, linear)
    assert torch.equal(model.get_input_embeddings().weight, embeddings.float()) and model.dtype == torch.float32
    logits = model(input_ids=torch.tensor([[11, 12]])).logits
    assert logits.shape == (1, 2, 513) and logits.dtype == torch.float32


def test_not_on_other_devices(make_model):
    with pytest.raises(ValueError, match="computed on a CPU; the model is on meta"):
        replace_linear_layers(make_model().to("meta"), Int8Linear)


def test_one_choice(checkpoint, tmp_path):
    for load in (
        lambda: load_checkpoint(checkpoint, "cpu", quantize="nf4", gguf=tmp_path / "model.gguf"),
        lambda: Settings(str(checkpoint), quantize="nf4", gguf=tmp_path / "model.gguf").open_session(),
    ):
        with pytest.raises(ValueError, match="--quantize or --gguf"):
            load()
    with pytest.raises(ValueError, match="no quantisation 'int3': choose one of int8, 8bit, nf4"):
        load_checkpoint(checkpoint, "cpu", quantize="int3")
