"""The verbs `data`, `features` and `train`, as a user types them; and a language model swapped in from end to end."""

import json

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedTokenizerFast
from typer import Typer
from typer.testing import CliRunner

from jminigpt4.checkpoint import read_projection, verify_manifest
from jminigpt4.convert.commands import convert
from jminigpt4.train.commands import data, features, train
from jminigpt4.train.metrics import read_metrics
from jminigpt4.train.recipe import RECIPES

app = Typer(pretty_exceptions_enable=False)
for verb in (convert, data, features, train):
    app.command()(verb)


def run(*arguments) -> str:
    done = CliRunner().invoke(app, [str(each) for each in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture
def model_folder(make_model, processor, tmp_path):
    make_model().save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


RECIPE = ["epochs=1", "steps_per_epoch=null", "warmup_steps=1", "pictures_per_step=4", "log_steps=1", "views=2"]
RECIPE = ["--recipe", "stage1", *(part for setting in RECIPE for part in ("--set", setting))]


def test_data_says_what_is_in_a_file(model_folder, captions, tmp_path):
    folder = captions.parent
    (folder / "0.png").unlink()
    (folder / "1.png").write_bytes(b"<html>not found</html>")
    (folder / "2.png").write_bytes((folder / "3.png").read_bytes())
    with open(captions, "a", encoding="utf-8") as file:
        file.write(captions.read_text().splitlines(True)[-1])
        file.write('{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}\n')
    (tmp_path / "val.txt").write_text("000000000005\n")
    output = run("data", f"stair={captions}", "--model", model_folder, "--against", tmp_path / "val.txt", "--json")
    found = json.loads(output.splitlines()[-1])
    assert found["source"] == "stair" and found["rows"] == 26 and found["text_only"] == 1 and found["pictures"] == 8
    assert found["missing"] == [str(folder / "0.png")]
    assert [bad["name"] for bad in found["broken"]] == [str(folder / "1.png")]
    assert found["duplicate_rows"] == 1 and found["duplicate_pictures"] == 1
    assert found["overlap"] == {str(tmp_path / "val.txt"): 3}
    # "<s>Q:[", four image tokens, "]A:", a caption of 6 and its end mark; without a picture "<s>Q:qA:a</s>".
    assert found["tokens"]["most"] == 4 + 4 + 3 + 6 + 1 and found["tokens"]["least"] == 8
    assert len(found["examples"]) == 3 and found["examples"][0] == "<s>Q:[<ImageHere>]A:【犬0</s>】"
    lines = run("data", captions, "--model", model_folder)
    assert "captions: 26 rows about 8 pictures (1 rows without)" in lines
    assert "pictures missing: 1; broken: 1" in lines and "example: <s>Q:[<ImageHere>]A:【犬0</s>】" in lines


def test_features_then_train_then_export(model_folder, captions, tmp_path):
    """A cache that is filled beforehand is what `train` reads: the pictures may be gone by then."""
    output = run("features", model_folder, tmp_path / "cache", captions, "--views", "2")
    assert "8 pictures" in output and "0 bad" in output
    arguments = ["train", model_folder, captions, "--output", tmp_path / "run", "--cache", tmp_path / "cache", *RECIPE]
    dry = run(*arguments, "--dry-run")
    assert "2 steps: " in dry and "tokens to learn a row" in dry and "memory: " in dry and "GB are free" in dry
    assert "before them" not in dry  # the cache is full
    assert not (tmp_path / "run").exists()

    output = run(*arguments, "--export", tmp_path / "out")
    assert "2 steps, loss" in output and f"model: {tmp_path / 'out'}" in output
    assert verify_manifest(tmp_path / "out") == []
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    weight, _, _ = read_projection(tmp_path / "run")
    assert torch.equal(loaded.model.language_projection.weight, weight)
    with pytest.raises(FileExistsError, match="out exists already"):
        run(*arguments, "--export", tmp_path / "out")


SMALL = ["steps_per_epoch=null", "epochs=1", "warmup_steps=1", "pictures_per_step=4", "log_steps=1", "validation=0"]
SMALL = [part for setting in SMALL for part in ("--set", setting)]


SETTINGS = [[], *(["--recipe", path.stem] for path in sorted(RECIPES.glob("*.yaml")))]
SETTINGS += [["--set", "augmentation=false"], ["--set", "dtype=bfloat16"], ["--recipe", "stage1", "--set", "views=2"]]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_features_and_train_agree_by_recipe(model_folder, captions, tmp_path, settings):
    """With the defaults of both, every recipe, and the same settings given to both: nothing is left to encode."""
    assert "8 pictures" in run("features", model_folder, tmp_path / "cache", captions, *settings)
    files = sorted((tmp_path / "cache").iterdir())
    arguments = ["train", model_folder, captions, "--output", tmp_path / "run", "--cache", tmp_path / "cache"]
    assert "2 steps, loss" in run(*arguments, *settings, *SMALL)
    assert sorted((tmp_path / "cache").iterdir()) == files


@pytest.mark.parametrize(
    ("features_by", "train_by", "remedy"),
    [
        ([], ["--recipe", "stage1"], "--set augmentation=false"),
        (["--recipe", "stage1"], [], "--set augmentation=true --set views=4"),
        (["--set", "dtype=bfloat16"], [], "--set dtype=bfloat16"),
        (["--dtype", "float32"], ["--set", "dtype=bfloat16"], "--set cache_dtype=float32 --set dtype=float32"),
    ],
)
def test_the_settings_that_a_refusal_names_take_the_cache(
    model_folder, captions, tmp_path, features_by, train_by, remedy
):
    run("features", model_folder, tmp_path / "cache", captions, *features_by)
    files = sorted((tmp_path / "cache").iterdir())
    arguments = ["train", model_folder, captions, "--output", tmp_path / "run", "--cache", tmp_path / "cache"]
    arguments += [*train_by, *SMALL]
    with pytest.raises(ValueError, match="takes? them, or name another folder") as refused:
        run(*arguments)
    named = str(refused.value).partition(": ")[2].partition(" takes")[0].split()
    assert sorted(named) == sorted(remedy.split()) and "elete" not in str(refused.value)
    assert "2 steps, loss" in run(*arguments, *named)
    assert sorted((tmp_path / "cache").iterdir()) == files


def test_features_of_what_learns_are_refused_as_in_training(model_folder, captions, tmp_path):
    with pytest.raises(ValueError, match="qformer learns"):
        run("features", model_folder, tmp_path / "cache", captions, "--set", "learn=qformer")
    assert not (tmp_path / "cache").exists()


def test_features_takes_the_pictures_of_the_recipe_and_no_others(model_folder, captions, tmp_path):
    (tmp_path / "val.txt").write_text("000000000005\n")
    recipe = tmp_path / "own.yaml"
    recipe.write_text(f"data: [{captions}]\nexclude: [{tmp_path / 'val.txt'}]\nvalidation: 0.3\nviews: 2\n")
    assert "7 pictures" in run("features", model_folder, tmp_path / "cache", "--recipe", recipe)
    recipe.write_text("epochs: 1\n")
    with pytest.raises(ValueError, match="There is no data"):
        run("features", model_folder, tmp_path / "cache", "--recipe", recipe)


def test_overfit_prints_what_it_learnt_by_heart(model_folder, captions, tmp_path):
    output = run("train", model_folder, captions, "--output", tmp_path / "run", "--overfit", "2", "--max-steps", "2")
    assert "expected '犬0', answered " in output and "expected '犬1', answered " in output


@pytest.mark.parametrize(
    ("arguments", "match"),
    [(["--set", "epochs"], "KEY=VALUE"), (["--set", "epoch=1"], "epoch"), (["--recipe", "stage9"], "stage9")],
)
def test_mistakes_are_named_before_anything_is_made(model_folder, captions, tmp_path, arguments, match):
    with pytest.raises((ValueError, FileNotFoundError), match=match):
        run("train", model_folder, captions, "--output", tmp_path / "run", *arguments)
    assert not (tmp_path / "run").exists()


SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 256}
FAMILIES = {"llama": {"intermediate_size": 64, "num_key_value_heads": 2}, "gpt2": {"n_inner": 64}}


def language_model(folder, family: str):
    """A tiny language model of another family, with a tokenizer of bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {token: index for index, token in enumerate(["<pad>", "<s>", "</s>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(words, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    marks = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **marks).save_pretrained(folder)
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "vocab_size": len(words)}
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **SIZES, **FAMILIES[family], **ids, initializer_range=0.3)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_another_language_model_from_the_originals_to_a_trained_folder(reference, captions, tmp_path, family):
    files = reference / "checkpoints"
    sources = ["--vision", files / "eva_vit_g.pth", "--qformer", files / "blip2_pretrained_flant5xxl.pth"]
    sources += ["--language", reference / "llm", "--format", "article-3.6b", "--vision-heads", 4, "--qformer-heads", 4]
    run("convert", tmp_path / "first", *sources, "--no-prove")
    language_model(tmp_path / "llm", family)
    swapped = ["--swap-language", tmp_path / "first", "--language", tmp_path / "llm", "--format", "article-3.6b"]
    run("convert", tmp_path / "swapped", *swapped, "--no-prove")

    settings = [
        "epochs=8",
        "learning_rate=1e-2",
        "min_learning_rate=1e-3",
        "pictures_per_step=8",
        "augmentation=false",
    ]
    settings = [part for setting in settings for part in ("--set", setting)]
    arguments = ["--output", tmp_path / "run", "--cache", tmp_path / "cache", *RECIPE, *settings]
    run("train", tmp_path / "swapped", captions, *arguments, "--export", tmp_path / "out")
    losses = [line["loss"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "loss" in line]
    assert len(losses) == 8 and losses[-1] < losses[0]
    assert verify_manifest(tmp_path / "out") == []
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    assert model.config.text_config.model_type == family
    # The same vision stack as the first folder's: its cache serves both language models.
    run("train", tmp_path / "first", captions, "--cache", tmp_path / "cache", *RECIPE, *settings, "--dry-run")
