"""Precisions, checkpointing, adapters, 8 bits: what else a run may be asked for."""

import importlib.util

import pytest
import torch

from jminigpt4.train.engine import _prepare, train
from jminigpt4.train.frozen import load_model, load_trained
from jminigpt4.train.recipe import Recipe

RECIPE = Recipe(
    learning_rate=1e-2,
    min_learning_rate=1e-3,
    warmup_steps=1,
    steps_per_epoch=None,
    epochs=2,
    pictures_per_step=4,
    log_steps=1,
    attention="eager",
)


@pytest.fixture
def model_folder(make_model, processor, tmp_path):
    make_model("llama").save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def first_step(model, data, **changes):
    """The run, the loss of its first pack and the gradient of the projection."""
    run = _prepare(model, data, RECIPE.with_(pack_tokens=4096, **changes), progress=False)
    run.model.train()
    step = run.steps[0]
    losses = run.loss(step.packs[0], run.encoder.features(step.query_features, step.pixel_values))
    losses.mean().backward()
    return run, losses.mean().item(), run.model.model.language_projection.weight.grad.clone()


def test_half_precision_is_the_frozen_parts_and_not_what_learns(model_folder, captions):
    _, expected, exact = first_step(model_folder, captions, dtype="float32")
    run, loss, gradient = first_step(model_folder, captions, dtype="bfloat16")
    assert run.model.dtype == torch.bfloat16
    assert run.model.model.language_projection.weight.dtype == gradient.dtype == torch.float32
    assert loss == pytest.approx(expected, rel=0.03)
    assert torch.nn.functional.cosine_similarity(gradient.flatten(), exact.flatten(), dim=0) > 0.98


@pytest.mark.filterwarnings("error::FutureWarning")
def test_gradient_checkpointing_changes_no_gradient(model_folder, captions, monkeypatch):
    _, loss, gradient = first_step(model_folder, captions)
    run, again, recomputed = first_step(model_folder, captions, gradient_checkpointing=True)
    assert again == pytest.approx(loss, rel=1e-6)
    assert torch.allclose(recomputed, gradient, rtol=1e-4, atol=1e-6)
    layer = run.model.model.language_model.layers[0]
    calls = []
    monkeypatch.setattr(layer.mlp, "forward", lambda x, forward=layer.mlp.forward: calls.append(1) or forward(x))
    step = run.steps[0]
    run.loss(step.packs[0], run.encoder.features(None, step.pixel_values)).mean().backward()
    assert len(calls) == 2  # forward, and once more in backward


def test_adapters_learn_are_saved_and_resumed(model_folder, captions, tmp_path):
    result = train(model_folder, captions, tmp_path / "run", RECIPE.with_(lora=2, save_steps=2), progress=False)
    learnt = {name: each.detach() for name, each in result.model.named_parameters() if each.requires_grad}
    assert {name.rpartition(".")[2] for name in learnt} == {"weight", "bias"}
    assert any("lora_B" in name and each.count_nonzero() for name, each in learnt.items())
    frozen = [name for name, each in result.model.named_parameters() if not each.requires_grad]
    assert any("language_model" in name for name in frozen) and any("qformer" in name for name in frozen)
    fresh, _ = load_model(model_folder, None, RECIPE.with_(lora=2))
    load_trained(fresh, result.output)
    restored = dict(fresh.named_parameters())
    assert all(torch.equal(restored[name], each) for name, each in learnt.items())

    from peft import PeftModel

    ids = torch.tensor([[2, 100, 101]])
    base, _ = load_model(model_folder, None, RECIPE.with_(dtype="float32"))
    plain = base(ids).logits
    adapted = PeftModel.from_pretrained(base, result.output / "adapter")(input_ids=ids).logits
    assert torch.allclose(adapted, result.model(ids).logits, atol=1e-4) and not torch.allclose(
        adapted, plain, atol=1e-2
    )

    recipe = RECIPE.with_(lora=2, epochs=3)
    more = train(model_folder, captions, tmp_path / "run", recipe, progress=False)
    changed = [name for name, each in more.model.named_parameters() if not torch.equal(learnt.get(name, each), each)]
    assert more.steps == 6 and any("lora_A" in name for name in changed)


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
def test_the_language_model_in_8_bits(model_folder, captions):
    from bitsandbytes.nn import Linear8bitLt

    _, expected, exact = first_step(model_folder, captions, dtype="float32")
    run, loss, gradient = first_step(model_folder, captions, dtype="float32", load_in_8bit=True)
    quantised = [name for name, module in run.model.named_modules() if isinstance(module, Linear8bitLt)]
    assert quantised and all(name.startswith("model.language_model.") for name in quantised)
    assert loss == pytest.approx(expected, rel=0.05)
    assert torch.nn.functional.cosine_similarity(gradient.flatten(), exact.flatten(), dim=0) > 0.9


def test_unknown_attention_is_refused(captions):
    with pytest.raises(ValueError, match="`attention` must be 'auto', 'sdpa', 'eager' or 'flex_attention'"):
        RECIPE.with_(attention="flash")
