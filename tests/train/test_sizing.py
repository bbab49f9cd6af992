"""`auto`: numbers that follow from the size of the data, the same whenever it is the same."""

import inspect
import json

import pytest
import torch
import yaml
from PIL import Image

from jminigpt4.train import commands, engine
from jminigpt4.train.recipe import AUTO, Recipe
from jminigpt4.train.selection import CocoTwins
from jminigpt4.train.sizing import epochs, is_fresh, pictures_per_step, sized, validation_share
from jminigpt4.train.sources import read_data

LARGE = Recipe.load("auto")


def of(count: int, **changes) -> Recipe:
    held = round(validation_share(count) * count)
    return sized(LARGE.with_(**changes), count - held, held)[0]


def test_the_default_of_the_verb_is_that_of_the_function():
    assert inspect.signature(engine.train).parameters["recipe"].default == "auto"
    assert inspect.signature(engine.dry_run).parameters["recipe"].default == "auto"
    assert inspect.signature(commands.train).parameters["recipe"].default == "auto"


@pytest.mark.parametrize(
    ("pictures", "a_step", "times", "held"),
    [(1, 1, 120, 0), (12, 12, 52, 0), (49, 16, 33, 0), (100, 16, 26, 10), (1000, 32, 12, 100)]
    + [(10_000, 128, 6, 1000), (100_000, 256, 3, 1000), (1_000_000, 256, 1, 1000)],
)
def test_numbers_by_size(pictures, a_step, times, held):
    assert pictures_per_step(pictures) == a_step and epochs(pictures) == times
    assert validation_share(pictures) * pictures == pytest.approx(held)


@pytest.mark.parametrize("pictures", [1, 2, 3, 7, 12, 50, 333, 5000, 2_000_000])
def test_any_size_is_a_recipe_with_sensible_steps(pictures):
    recipe = of(pictures)
    assert recipe.auto == () and recipe.values() == Recipe.from_values(recipe.values()).values()
    steps = recipe.epochs * -(-pictures // recipe.pictures_per_step)
    assert recipe.warmup_steps <= max(1, steps // 10)
    assert max(1, steps // 10) <= recipe.save_steps <= 1000 or recipe.save_steps == 1000
    assert recipe.eval_steps <= recipe.save_steps
    assert recipe.warmup_learning_rate == recipe.min_learning_rate < recipe.learning_rate


def test_what_is_given_stays_and_the_rest_fits_it():
    recipe = of(100, epochs=3, learning_rate=0.01, pictures_per_step=5)
    assert (recipe.epochs, recipe.pictures_per_step, recipe.learning_rate) == (3, 5, 0.01)
    assert recipe.min_learning_rate == pytest.approx(2e-4) and recipe.warmup_steps == 3  # of 54 steps
    adamw = of(100, optimizer="adamw")
    assert (adamw.optimizer, adamw.learning_rate, adamw.weight_decay) == ("adamw", 1e-3, 0.05)
    adapters = of(100, lora=8)
    assert (adapters.optimizer, adapters.learning_rate) == ("adamw", 1e-4)
    assert sized(LARGE, 12, 0, fresh=False)[0].learning_rate < of(12).learning_rate / 5
    assert sized(Recipe.load("stage1"), 12, 0)[0] == Recipe.load("stage1")


def test_auto_is_a_value_like_others():
    assert set(LARGE.auto) == set(AUTO)
    assert "epochs" not in LARGE.with_(epochs=3).auto and "epochs" in LARGE.with_(epochs=3).with_(epochs="auto").auto
    assert Recipe.from_values(yaml.safe_load(yaml.safe_dump(LARGE.values()))) == LARGE != LARGE.with_(epochs=1)
    chosen = Recipe.from_values({**LARGE.values(), **commands._changes(["learning_rate=1e-9"])}, "--set")
    assert chosen.learning_rate == 1e-9 and "min_learning_rate" in chosen.auto
    with pytest.raises(ValueError, match="`seed` must be a valid integer, got 'auto'"):
        LARGE.with_(seed="auto")


@pytest.mark.parametrize(
    ("pictures", "sentence"),
    [
        (12, "12 pictures: 52 steps of 12, each picture 52 x; muon at 0.04, as the projection is new, after 3"),
        (1000, "900 pictures and 100 for validation: 348 steps of 32, each picture 12 x; muon at 0.04, as"),
    ],
)
def test_one_sentence_says_what_was_taken(pictures, sentence):
    held = round(validation_share(pictures) * pictures)
    _, said = sized(LARGE, pictures - held, held)
    assert said.startswith(sentence) and "\n" not in said
    assert "7 steps of" in sized(LARGE, pictures - held, held, max_steps=7)[1]


def test_a_run_is_repeated_by_the_recipe_it_wrote(make_model, processor, captions, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(engine, "draw_learning_curve", lambda metrics, picture: None)

    def run(name: str, recipe, **options):
        return engine.train(
            make_model(), captions, tmp_path / name, recipe, processor=processor, progress=False, **options
        )

    first = run("first", "auto", epochs=3, max_steps=2)
    assert "8 pictures: 2 steps of 8" in capsys.readouterr().out
    written = Recipe.load(first.output / "recipe.yaml")
    assert written.auto == () and written.pictures_per_step == 8 and written.epochs == 3
    again = run("again", first.output / "recipe.yaml", max_steps=2)
    assert "steps of" not in capsys.readouterr().out and again.loss == first.loss
    assert run("first", "auto", epochs=3).steps == 3  # it goes on: the numbers are what they were
    folder = captions.parent
    Image.new("RGB", (28, 28)).save(folder / "new.png")
    with open(captions, "a", encoding="utf-8") as file:
        file.write(json.dumps({"image": "new.png", "caption": "犬"}, ensure_ascii=False) + "\n")
    with pytest.raises(ValueError, match="belongs to another run: groups of each source was "):
        run("first", "auto", epochs=3)


def test_the_share_for_validation_is_that_of_the_recipe(tmp_path):
    for number in range(60):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.png")
    lines = [json.dumps({"image": f"{number}.png", "caption": "犬"}) for number in range(60)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (source,) = read_data(str(tmp_path / "rows.jsonl"), LARGE, CocoTwins())
    recipe = sized(LARGE, len(source.training), len(source.validation))[0]
    assert recipe.validation == 8 / 60 and 3 < len(source.validation) < 14
    (again,) = read_data(str(tmp_path / "rows.jsonl"), recipe, CocoTwins())
    assert [each.rows for each in again.validation] == [each.rows for each in source.validation]


def test_a_projection_that_has_learnt_goes_on_slowly(make_model, processor, captions, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(engine, "draw_learning_curve", lambda metrics, picture: None)
    model = make_model()
    torch.manual_seed(0)
    model.model.language_projection = torch.nn.Linear(32, 32)
    assert is_fresh(torch.nn.Linear(768, 2816)) and is_fresh(torch.nn.Linear(768, 64).half())
    assert is_fresh(torch.nn.Sequential(torch.nn.Linear(64, 96), torch.nn.GELU(), torch.nn.Linear(96, 96)))
    small = torch.nn.Linear(768, 64)
    small.weight.data *= 0.2
    assert not is_fresh(small)
    first = engine.train(model, captions, tmp_path / "a", processor=processor, progress=False, epochs=4)
    assert "muon at 0.04, as the projection is new" in capsys.readouterr().out
    assert not is_fresh(first.model.model.language_projection)
    engine.dry_run(first.model, captions, processor=processor, progress=False)
    assert "muon at 0.004, as the projection has learnt" in capsys.readouterr().out
