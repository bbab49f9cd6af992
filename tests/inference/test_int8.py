"""A language model in 8-bit integers of torch: nearly the same scores, the image encoder untouched."""

import pytest
import torch
from torch import nn

from jminigpt4.inference.int8 import Int8Linear, quantise
from jminigpt4.inference.loading import load_checkpoint


@pytest.mark.parametrize("bias", [True, False])
def test_layer(bias):
    torch.manual_seed(0)
    linear = nn.Linear(64, 48, bias)
    x = torch.randn(2, 5, 64)
    with torch.no_grad():
        exact, quantised = linear(x), Int8Linear(linear.to(torch.bfloat16))(x)
    assert quantised.dtype == torch.float32 and quantised.shape == exact.shape
    error = (quantised - exact).norm() / exact.norm()
    assert 1e-4 < error < 0.02


def test_only_the_language_model(checkpoint, chat_model, processor, pictures):
    model, _ = load_checkpoint(checkpoint, "cpu", int8=True)
    assert not [name for name, layer in model.model.language_model.named_modules() if isinstance(layer, nn.Linear)]
    assert isinstance(model.lm_head, Int8Linear) and isinstance(model.model.language_projection, nn.Linear)
    pixels = processor.image_processor(images=pictures[:1], return_tensors="pt").pixel_values
    ids = torch.tensor([[11, *[512] * 4, 12, 13]])
    with torch.no_grad():
        assert torch.equal(model.get_query_features(pixels), chat_model.get_query_features(pixels))
        ours, exact = (one(input_ids=ids, pixel_values=pixels).logits[0, -1, :512] for one in (model, chat_model))
    assert torch.corrcoef(torch.stack([ours, exact]))[0, 1] > 0.99
    assert not torch.equal(ours, exact)


def test_tied_weights(make_model):
    """The head is quantised, the embeddings that it shared are not."""
    model = make_model(tie_word_embeddings=True)
    embeddings = model.get_input_embeddings().weight.clone()
    quantise(model)
    assert torch.equal(model.get_input_embeddings().weight, embeddings)
    assert model(input_ids=torch.tensor([[11, 12]])).logits.shape == (1, 2, 513)


def test_not_on_other_devices(make_model):
    with pytest.raises(ValueError, match="for a CPU; the model is on meta"):
        quantise(make_model().to("meta"))
