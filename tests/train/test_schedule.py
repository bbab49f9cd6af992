"""The originals' learning rates to the digit, and the schedule without their quirks."""

import pytest
import torch

from jminigpt4.train.recipe import Recipe
from jminigpt4.train.schedule import RateSchedule, cosine_rate, originals_rate


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_recipes_give_the_originals_rates(expected, stage):
    recipe = Recipe.load(stage, schedule="originals")
    rates = recipe.rates(recipe.steps_per_epoch)
    assert {step: rates(int(step)) for step in expected["meta"][f"lr_{stage}"]} == expected["meta"][f"lr_{stage}"]


def test_a_warmup_longer_than_an_epoch_starts_again_as_in_the_originals(expected):
    numbers = expected["meta"]["lr_warmup_longer_than_epoch(max_epoch3,ipe10,warmup15)"]
    rates = [originals_rate(step, 3e-5, 1e-5, 1e-6, 15, 10, 3) for step in range(30)]
    assert rates == numbers


def test_the_default_schedule_neither_jumps_nor_restarts():
    rates = [cosine_rate(step, 1e-4, 8e-5, 1e-6, 20, 100) for step in range(101)]
    assert rates[0] == 1e-6 and rates[20] == 1e-4 and rates[100] == pytest.approx(8e-5, abs=0)
    assert all(later > earlier for earlier, later in zip(rates[:20], rates[1:21], strict=True))
    assert all(later < earlier for earlier, later in zip(rates[20:], rates[21:], strict=False))


def test_the_optimizer_gets_the_rate_itself_and_resumes_with_it():
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.AdamW([parameter], lr=0.5)
    schedule = RateSchedule(optimizer, lambda step: 0.1 + step / 3)
    assert optimizer.param_groups[0]["lr"] == 0.1
    optimizer.step()
    schedule.step()
    assert optimizer.param_groups[0]["lr"] == 0.1 + 1 / 3
    again = RateSchedule(torch.optim.AdamW([parameter], lr=0.5), schedule.rates)
    again.load_state_dict(schedule.state_dict())
    assert again.last_epoch == 1 and again.get_lr() == [0.1 + 1 / 3]
