"""What a dry run says of hours, memory and disk, and of what is absurd."""

import pytest
import torch

from jminigpt4.train import engine, plan
from jminigpt4.train.packing import Packer
from jminigpt4.train.plan import advice, fitting_in_memory, lines, repetition, tokens_of_a_pack
from jminigpt4.train.recipe import Recipe


@pytest.fixture
def dry(make_model, processor, captions, tmp_path):
    def go(recipe="auto", **options):
        options = {"output": tmp_path / "run"} | options
        return engine.dry_run(make_model(), captions, recipe, processor=processor, progress=False, **options)

    return go


def test_a_plan_has_hours_memory_and_disk(dry, tmp_path):
    found = dry(epochs=10)
    assert found["steps"] == 10 and found["rows"] == 24 and found["packs"] >= 1 and found["loss"] > 0
    assert found["measured_share"] == 1.0 and found["cache_hours"] == 0.0 and found["advice"] == []
    assert found["hours"] == pytest.approx(10 * found["seconds"] / 3600)
    assert found["seconds"] > found["seconds_encoding"] > 0
    assert 0.1 < found["peak_memory_gb"] < found["memory_gb"] < 1e5 and found["free_disk_gb"] > 0
    # Projection of 32 x 32 and 32 in float32, two numbers of the optimiser, three checkpoints and the last.
    assert found["disk_gb"] == pytest.approx(4 * (32 * 32 + 32) * (1 + 3 * 3) / 1e9)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]  # nothing is written


def test_validation_takes_its_time_too(dry, monkeypatch):
    monkeypatch.setattr(plan, "_update", lambda run: 0.0)
    found = dry(validation=0.3, epochs=10, eval_steps=2)
    # A look at the validation pictures is a step of them without its way back: five of those.
    backward = (found["seconds"] - found["seconds_encoding"]) / 2
    expected = 10 * found["seconds"] + 5 * (found["seconds"] - backward)
    assert found["hours"] * 3600 == pytest.approx(expected)


def test_a_cache_is_planned_and_not_filled(dry, make_model, processor, captions, tmp_path, monkeypatch):
    features = tmp_path / "features"
    empty = dry("stage1", cache=features, warmup_steps=1, epochs=1, steps_per_epoch=2, pictures_per_step=8)
    assert empty["cache_hours"] > 0 and not features.exists()
    # Four views of eight pictures, four queries of 32 numbers in two bytes each.
    assert empty["disk_gb"] == pytest.approx(4 * (32 * 32 + 32) * 10 / 1e9 + 8 * 4 * 4 * 32 * 2 / 1e9)
    one = {"max_steps": 1, "progress": False, "processor": processor, "epochs": 1}
    engine.train(make_model(), captions, tmp_path / "run", cache=features, **one)
    monkeypatch.setattr(plan, "_encode", lambda encoder, step, device: (encoder.encode(step.pixel_values), 1000.0))
    full = dry(cache=features)
    assert full["cache_hours"] == 0.0 and full["seconds"] < 1000 < full["seconds_encoding"]
    assert dry()["seconds"] > 1000


def test_a_long_step_is_scaled_up(dry, monkeypatch):
    """Of the packs, only the first is computed, and of the pictures, only the first batch."""
    monkeypatch.setattr(plan, "SECONDS", 0.0)
    passed = []
    backward = torch.autograd.backward
    monkeypatch.setattr(torch.autograd, "backward", lambda loss: (passed.append(1), backward(loss)))
    part = dry("stage1", pack_tokens=16, steps_per_epoch=1, epochs=1, pictures_per_step=8, warmup_steps=0)
    before_first_step = len(passed)
    assert part["packs"] > 4 and 0 < part["measured_share"] < 0.5
    passed.clear()
    monkeypatch.setattr(plan, "SECONDS", 100.0)
    whole = dry("stage1", pack_tokens=16, steps_per_epoch=1, epochs=1, pictures_per_step=8, warmup_steps=0)
    assert whole["measured_share"] == 1.0 and len(passed) - before_first_step == whole["packs"] - 1
    assert "scaled up" in next(lines(part)) and "a whole step" in next(lines(whole))


def test_an_absurd_plan_is_named_with_its_remedy(dry, capsys):
    found = dry("stage1")
    assert found["steps"] == 20_000
    (first, *_) = found["advice"]
    assert first.startswith(
        "20,000 steps of 256 would show each of the 8 pictures 640,000 times. `--recipe auto` suits"
    )
    assert "60 steps of 8" in first
    assert f"change: {first}" in list(lines(found))
    assert repetition(Recipe.load("stage1"), 20_000, 1_000_000) == "" == repetition(Recipe(), 1, 1)


class FakeRun:
    def __init__(self, recipe, pictures):
        self.recipe, self.size = recipe, pictures
        self.packer = Packer(7, 4, tokens_of_a_pack(recipe, torch.device("cpu")))


def planned(**changes):
    numbers = {"steps": 1000, "hours": 1.0, "seconds": 3.6, "seconds_encoding": 0.0, "peak_memory_gb": 1.0}
    numbers["optimizer_memory_gb"] = 0.1
    return numbers | {"memory_gb": 8.0, "disk_gb": 1.0, "free_disk_gb": 9.0} | changes


@pytest.mark.parametrize(
    ("changes", "cache", "said"),
    [
        ({}, None, []),
        ({"hours": 240.0}, None, ["In a day this machine makes 100 of the 1,000 steps: `--max-steps 100`."]),
        (
            {"seconds_encoding": 1.8},
            None,
            ["Encoding pictures takes 30 minutes of this: `--cache FOLDER` does it once for all, 3 minutes."],
        ),
        ({"seconds_encoding": 1.8}, "cache", []),
        ({"peak_memory_gb": 7.5}, None, ["Memory is nearly full: `--set pack_tokens=512` or"]),
        ({"disk_gb": 12.0}, None, ["The disk is too full by 3.0 GB: choose another folder."]),
    ],
)
def test_advice(changes, cache, said):
    run = FakeRun(Recipe(epochs=10, steps_per_epoch=100, warmup_steps=0, pictures_per_step=10), 1000)
    given = advice(run, planned(**changes), cache)
    assert len(given) == len(said) and all(each.startswith(start) for each, start in zip(given, said, strict=True))


def test_a_training_that_repeats_absurdly_says_so(make_model, processor, captions, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(engine, "draw_learning_curve", lambda metrics, picture: None)
    recipe = Recipe(epochs=2, steps_per_epoch=9000, pictures_per_step=1, warmup_steps=0, save_steps=10**6)
    monkeypatch.setattr(engine.ProjectionTrainer, "train", lambda self, **given: pytest.skip("it begins"))
    with pytest.raises(pytest.skip.Exception):
        engine.train(make_model(), captions, tmp_path / "run", recipe, processor=processor, progress=False)
    assert "Warning: 18,000 steps of 1 would show each of the 8 pictures 2,250 times." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("device", "gigabytes", "tokens"), [("cpu", 99, 1024), ("cuda", 16, 1024), ("cuda", 24, 2048)]
)
def test_packs_are_larger_on_a_gpu_with_room(monkeypatch, device, gigabytes, tokens):
    monkeypatch.setattr(plan, "_memory_gb", lambda device: gigabytes)
    assert tokens_of_a_pack(Recipe(), torch.device(device)) == tokens
    assert tokens_of_a_pack(Recipe(pack_tokens=300), torch.device(device)) == 300
    # All processes pack alike, whatever the card of each.
    monkeypatch.setattr(plan, "from_all", lambda mine: [*mine, 1024])
    assert tokens_of_a_pack(Recipe(), torch.device(device)) == 1024


def test_a_recipe_keeps_that_packs_are_left_to_the_device():
    assert Recipe().values()["pack_tokens"] == "auto"
    with pytest.raises(ValueError, match="pack_tokens"):
        Recipe(pack_tokens="many")


def test_too_little_memory_is_one_sentence(dry, make_model, monkeypatch):
    with pytest.raises(ValueError) as raised, fitting_in_memory(512):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.\nSee documentation")
    assert "`--set pack_tokens=256`" in str(raised.value) and "\n" not in str(raised.value)

    def exhausted(*given):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(engine.Run, "_prove_packing", exhausted)
    with pytest.raises(ValueError, match="The device's memory is too small"):
        dry()
