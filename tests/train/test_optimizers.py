"""Optimisers: Muon against torch's own and the published equations, where rates and weight decay land, resuming."""

import io

import pytest
import torch
from torch import nn

from jminigpt4.checkpoint import read_projection
from jminigpt4.train import engine
from jminigpt4.train.engine import train
from jminigpt4.train.optimizers import BIAS_RATE, ITERATIONS, QUINTIC, Muon, orthogonalized
from jminigpt4.train.recipe import Recipe
from jminigpt4.train.trainer import make_optimizer


def layer(rows: int = 12, columns: int = 6) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(columns, rows)


def gradients(module: nn.Linear, steps: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    shapes = module.weight.shape, module.bias.shape
    return [tuple(torch.randn(shape, generator=generator) for shape in shapes) for _ in range(steps)]


def step(optimizer: torch.optim.Optimizer, module: nn.Linear, gradient: tuple[torch.Tensor, torch.Tensor]):
    module.weight.grad, module.bias.grad = (each.clone() for each in gradient)
    optimizer.step()


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch.optim.Muon came with torch 2.9")
@pytest.mark.parametrize("shape", [(12, 6), (6, 12)])
def test_the_weight_moves_as_with_torchs_muon_and_the_bias_as_with_adamw(shape):
    recipe = Recipe(optimizer="muon", learning_rate=0.02, weight_decay=0.5)
    mine, theirs = layer(*shape), layer(*shape)
    optimizer = make_optimizer(mine, recipe)
    muon = torch.optim.Muon([theirs.weight], lr=0.02, weight_decay=0.5, momentum=0.9)
    adamw = torch.optim.AdamW([theirs.bias], lr=0.02 * BIAS_RATE, weight_decay=0.0, betas=(0.9, 0.999))
    for each in gradients(mine, 4):
        step(optimizer, mine, each)
        step(muon, theirs, each)
        adamw.step()
    assert torch.equal(mine.weight, theirs.weight)
    assert torch.equal(mine.bias, theirs.bias)


def test_the_first_step_follows_the_published_equations():
    """Written out in float64; the iterations run in bfloat16, hence the tolerance."""
    recipe = Recipe(optimizer="muon", learning_rate=0.1, weight_decay=2.0)
    module = layer()
    before = module.weight.detach().double()
    gradient = gradients(module, 1)[0]
    step(make_optimizer(module, recipe), module, gradient)
    momentum = 0.1 * gradient[0].double()
    x = 0.1 * gradient[0].double() + 0.9 * momentum
    x = x.T / x.norm()
    a, b, c = QUINTIC
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    expected = before * (1 - 0.1 * 2.0) - 0.1 * 2**0.5 * x.T
    assert torch.allclose(module.weight.detach().double(), expected, atol=5e-3)


def test_singular_values_come_near_one_whatever_they_were():
    torch.manual_seed(0)
    u, v = (torch.linalg.qr(torch.randn(size, 8))[0] for size in (20, 8))
    for wide in (False, True):
        matrix = u @ torch.diag(torch.logspace(0, -1.5, 8)) @ v.T
        values = torch.linalg.svdvals(orthogonalized(matrix.T if wide else matrix).float())
        assert values.min() > 0.5 and values.max() < 1.3


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_rate_and_weight_decay_land_where_the_recipe_says(name):
    """Without a gradient's worth of momentum only decay moves the weight; the bias has none and moves by its rate."""
    recipe = Recipe(optimizer=name, learning_rate=0.01, weight_decay=0.5)
    module = layer()
    optimizer = make_optimizer(module, recipe)
    weight, bias = module.weight.detach().clone(), module.bias.detach().clone()
    step(optimizer, module, (torch.zeros(12, 6), torch.ones(12)))
    assert torch.allclose(module.weight, weight * (1 - 0.01 * 0.5), rtol=1e-6)
    rate = 0.01 * (BIAS_RATE if name == "muon" else 1)
    assert torch.allclose(module.bias, bias - rate, atol=1e-7)
    for group in optimizer.param_groups:
        assert group["lr"] == 0.01
        group["lr"] = 0.0
    weight, bias = module.weight.detach().clone(), module.bias.detach().clone()
    step(optimizer, module, gradients(module, 1)[0])
    assert torch.equal(module.weight, weight) and torch.equal(module.bias, bias)


def test_resuming_equals_going_on_bit_for_bit():
    recipe = Recipe(optimizer="muon", learning_rate=0.02, weight_decay=1.0)
    whole = layer()
    optimizer = make_optimizer(whole, recipe)
    for number, each in enumerate(gradients(whole, 6)):
        if number == 3:
            stored = {name: value.clone() for name, value in whole.state_dict().items()}
            torch.save(optimizer.state_dict(), buffer := io.BytesIO())
        step(optimizer, whole, each)
    resumed = layer()
    resumed.load_state_dict(stored)
    again = make_optimizer(resumed, recipe)
    again.load_state_dict(torch.load(io.BytesIO(buffer.getvalue()), weights_only=True))
    for each in gradients(resumed, 6)[3:]:
        step(again, resumed, each)
    assert torch.equal(whole.weight, resumed.weight) and torch.equal(whole.bias, resumed.bias)


def test_an_interrupted_run_with_muon_ends_in_the_weights_of_an_uninterrupted_one(
    make_model, processor, captions, tmp_path, monkeypatch
):
    monkeypatch.setattr(engine, "draw_learning_curve", lambda metrics, picture: None)
    recipe = Recipe(
        optimizer="muon", learning_rate=0.04, weight_decay=1.0, warmup_steps=2, epochs=1, steps_per_epoch=6,
        pictures_per_step=3,
    )  # fmt: skip

    def run(name: str, steps: int) -> torch.Tensor:
        model = make_model()
        output = tmp_path / name
        train(model, captions, output, recipe, processor=processor, progress=False, max_steps=steps)
        return read_projection(output)[:2]

    whole = run("whole", 6)
    run("parted", 3)
    parted = run("parted", 6)
    assert all(torch.equal(one, other) for one, other in zip(whole, parted, strict=True))
    state = torch.load(tmp_path / "parted" / "checkpoint-6" / "optimizer.pt", weights_only=True)["state"]
    assert sorted(state[0]) == ["momentum_buffer", "step"] and state[0]["step"] == 6
    assert sorted(state[1]) == ["exp_avg", "exp_avg_sq", "step"]


def test_gradients_stay_and_what_has_none_stays_as_it_is():
    module = layer()
    optimizer = make_optimizer(module, Recipe(optimizer="muon"))
    gradient = gradients(module, 1)[0]
    step(optimizer, module, gradient)
    assert torch.equal(module.weight.grad, gradient[0])
    module.weight.grad = None
    weight, bias = module.weight.detach().clone(), module.bias.detach().clone()
    optimizer.step()
    assert torch.equal(module.weight, weight) and not torch.equal(module.bias, bias)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="`optimizer`: expected one of adamw, muon, got 'sgd'"):
        Recipe(optimizer="sgd")
    with pytest.raises(ValueError, match="adamw goes with lora"):
        Recipe(optimizer="muon", lora=4)
    with pytest.raises(ValueError, match=r"matrices, got a parameter of shape \(3,\)"):
        Muon([{"params": [nn.Parameter(torch.zeros(3))], "momentum": 0.9}], lr=0.1, betas=(0.9, 0.999))
