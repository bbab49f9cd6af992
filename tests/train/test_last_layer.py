"""The last layer at supervised positions only; that loss and gradient stay the same is shown by test_packing.py."""

import pytest
import torch
from transformers import AutoModel, MixtralConfig
from transformers.pytorch_utils import Conv1D

from jminigpt4.train import loss as loss_module
from jminigpt4.train.last_layer import only_at, position_wise_parts
from jminigpt4.train.loss import PackLoss
from jminigpt4.train.packing import EncodedGroup, EncodedRow, Packer

IMAGE = 512
PARTS = {
    "gpt_neox": ["attention.dense", "mlp"],
    "llama": ["self_attn.o_proj", "mlp"],
    "gpt2": ["attn.c_proj", "mlp"],
    "opt": ["self_attn.out_proj", "fc1", "fc2"],
}


def names_of(parts: list, layer: torch.nn.Module) -> list[str]:
    return [name for part in parts for name, each in layer.named_modules() if each is part]


def last_layer(model) -> torch.nn.Module:
    language_model = model.model.language_model
    return (getattr(language_model, "decoder", None) or language_model).get_submodule(
        "h" if hasattr(language_model, "h") else "layers"
    )[-1]


@pytest.fixture
def pack():
    rows = tuple(EncodedRow([2, *[IMAGE] * 4, 20, *answer, 3], [-100] * 6 + [*answer, 3]) for answer in ([7, 8], [9]))
    (pack,) = Packer(IMAGE, 4).pack([EncodedGroup(rows, (0,))])
    return pack


@pytest.mark.parametrize("family", PARTS)
def test_what_comes_behind_the_attention_is_found(make_model, family):
    model = make_model(family)
    parts = position_wise_parts(model.model.language_model)
    assert names_of(parts, last_layer(model)) == PARTS[family]


@pytest.mark.parametrize("family", PARTS)
def test_the_last_layer_is_computed_at_supervised_positions_only(make_model, query_features, pack, family):
    model = make_model(family)
    seen = []
    for module in model.modules():
        if isinstance(module, torch.nn.Linear | Conv1D):
            module.register_forward_hook(lambda part, inputs, output: seen.append((part, output.shape[-2])))
    with torch.no_grad():
        PackLoss(model)(pack, query_features)
    parts = position_wise_parts(model.model.language_model)
    inside = {id(each) for part in parts for each in part.modules()}
    assert {rows for part, rows in seen if id(part) in inside} == {len(pack.supervised.unique())} == {4}


def test_a_position_left_out_is_seen(make_model, query_features, pack, monkeypatch):
    """The control: the loss does depend on what the parts compute at every supervised position."""
    model = make_model("llama")
    with torch.no_grad():
        expected = PackLoss(model)(pack, query_features)
        monkeypatch.setattr(
            loss_module, "only_at", lambda parts, positions, length: only_at(parts, positions[1:], length)
        )
        wrong = PackLoss(model)(pack, query_features)
    assert not torch.allclose(wrong, expected, rtol=1e-2)


def test_nothing_stays_behind(make_model, query_features, pack):
    model = make_model("gpt_neox")
    ids = torch.tensor([[2, 20, 21]])
    with torch.no_grad():
        before = model(ids).logits
        PackLoss(model)(pack, query_features)
        assert torch.equal(model(ids).logits, before)


def test_recomputed_layers_are_left_alone(make_model):
    model = make_model("llama")
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert position_wise_parts(model.model.language_model) == []


def test_a_part_that_is_not_made_of_linear_layers_is_left_alone():
    """Experts choose by position, and give more than one result."""
    config = MixtralConfig(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=2,
    )  # fmt: skip
    model = AutoModel.from_config(config)
    assert names_of(position_wise_parts(model), model.layers[-1]) == ["self_attn.o_proj"]
