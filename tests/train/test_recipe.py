"""Recipes: every value is checked on entry; what is wrong is one sentence with its file or option and its field."""

import random

import pytest

from jminigpt4.train.commands import _changes
from jminigpt4.train.recipe import RECIPES, Recipe


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("epochs=abc", "--set: `epochs` must be a valid integer, got 'abc'"),
        ("epochs=1.5", "--set: `epochs` must be a valid integer, got 1.5"),
        ("epochs=true", "--set: `epochs` must be a valid integer, got True"),
        ("epochs=0", "--set: `epochs` must be greater than or equal to 1, got 0"),
        ("pictures_per_step=2.5", "--set: `pictures_per_step` must be a valid integer"),
        ("warmup_steps=-5", "--set: `warmup_steps` must be greater than or equal to 0"),
        ("betas=0.9", "--set: `betas` must be a valid tuple, got 0.9"),
        ("betas=[0.9]", "--set: `betas.1` is missing"),
        ("betas=[0.9, 1]", "--set: `betas.1` must be less than 1"),
        ("augmentation=maybe", "--set: `augmentation` must be a valid boolean, got 'maybe'"),
        ("learning_rate=.nan", "--set: `learning_rate` must be a finite number"),
        ("learning_rate=2026-01-01", "--set: `learning_rate` must be a valid number"),
        ("learning_rate=!!python/tuple [1]", "--set learning_rate is not YAML of plain values"),
        ("learning_rate=!!float ''", "--set learning_rate is not YAML of plain values"),
        ("learning_rate=2026-13-01", "--set learning_rate is not YAML of plain values: month must be in 1..12"),
        ("min_learning_rate=1", "--set: min_learning_rate 1 is above learning_rate 0.0001, which is the peak"),
        ("learning_rate=1e-9", "--set: min_learning_rate 8e-05 is above learning_rate 1e-09"),
        ("schedule=linear", "--set: `schedule` must be 'cosine' or 'originals', got 'linear'"),
        ("prompts=[1]", "--set: `prompts`: expected one of none, japanese, minigpt4, or a list of texts"),
        ("data=[{path: a, weight: x}]", "--set: `data.0`: A data source: `weight` must be a valid number"),
        ("data=[7]", "--set: `data.0`: a data source is a path or a mapping"),
        ("seed=-1", "--set: `seed` must be greater than or equal to 0"),
        ("epoch=1", "--set has epoch, which no recipe has; known are learning_rate"),
    ],
)
def test_a_value_that_cannot_be_is_named(setting, message):
    with pytest.raises(ValueError) as raised:
        Recipe.from_values({**dict(Recipe.load("stage1")), **_changes([setting])}, "--set")
    assert str(raised.value).startswith(message) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs: three", "mine.yaml: `epochs` must be a valid integer, got 'three'"),
        ("- epochs: 3", "mine.yaml holds no keys with values"),
        ("epochs", "mine.yaml holds no keys with values"),
        ("1: 2", "mine.yaml has 1, which no recipe has"),
        ("epochs: !!python/object/apply:os.system [true]", "mine.yaml is not YAML of plain values"),
        ("epochs: [" * 2000, "mine.yaml is not YAML of plain values"),
        ("epochs: &a [*a]", "mine.yaml: `epochs` must be a valid integer, got"),
        ("# 学習率".encode("shift_jis"), "mine.yaml is not YAML of plain values"),
    ],
)
def test_a_file_that_cannot_be_is_named(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(ValueError) as raised:
        Recipe.load(path)
    assert str(raised.value).removeprefix(f"{tmp_path}/").startswith(message) and "\n" not in str(raised.value)


def test_a_recipe_survives_its_file(tmp_path):
    yaml = pytest.importorskip("yaml")
    for path in RECIPES.glob("*.yaml"):
        recipe = Recipe.load(path).with_(exclude=["a.txt"], rows_per_picture=3)
        (tmp_path / "again.yaml").write_text(yaml.safe_dump(recipe.values()))
        assert Recipe.load(tmp_path / "again.yaml") == recipe
    assert Recipe(learning_rate="1e-3").learning_rate == 1e-3  # YAML 1.1 reads it as a text
    with pytest.raises(ValueError, match="The recipe: `lora` must be"):
        Recipe().with_(lora=-1)


def test_mutated_recipes_are_recipes_or_one_sentence(tmp_path):
    """2,500 files with spoilt bytes, values and structure: a recipe, or a `ValueError` that begins with the file."""
    generator, accepted = random.Random(11), 0
    originals = [path.read_text().splitlines()[2:] for path in sorted(RECIPES.glob("*.yaml"))]
    values = ["abc", "-5", "1.5", ".inf", "1e999", "[1, 2]", "{a: b}", "null", "true", "!!int x", "!!set {a}", "0x"]
    values += [
        "&a [*a]",
        "2026-99-99",
        "9" * 5000,
        "[" * 99,
        "1:60",
        "!!binary x",
        "!<tag:x> y",
        "\x07",
        "{",
        "\ud83d",
    ]
    path = tmp_path / "fuzz.yaml"
    for _ in range(2500):
        lines = generator.sample(generator.choice(originals), 3)
        for _ in range(generator.randint(1, 3)):
            place = generator.randrange(len(lines))
            key = lines[place].partition(":")[0]
            lines[place] = generator.choice(
                [
                    f"{key}: {generator.choice(values)}",
                    lines[place][: generator.randint(0, len(lines[place]))],
                    lines[place] + generator.choice(values),
                    generator.choice(values),
                ]
            )
        path.write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))
        try:
            accepted += isinstance(Recipe.load(path), Recipe)
        except ValueError as error:
            assert str(error).startswith(str(path)) and "\n" not in str(error)
    assert 0 < accepted < 1500
