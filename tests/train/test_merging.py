"""Exports hold all that was trained, adapters merged; what cannot be exported is refused before it is trained."""

import json
import shutil

import pytest
import torch
from safetensors import safe_open

from jminigpt4.checkpoint import write_manifest
from jminigpt4.convert.account import Account
from jminigpt4.convert.original_layout import write_minigpt4_checkpoint
from jminigpt4.convert.projection import projection_part
from jminigpt4.convert.sources import open_source
from jminigpt4.convert.verification import verify_folder
from jminigpt4.inference.loading import load_checkpoint
from jminigpt4.train import engine
from jminigpt4.train.engine import train
from jminigpt4.train.export import export
from jminigpt4.train.recipe import Recipe

RECIPE = Recipe(
    learning_rate=3e-2, min_learning_rate=1e-2, warmup_steps=0, steps_per_epoch=2, epochs=1, pictures_per_step=3
)
RUNS = {
    "qformer": {"learn": ["projection", "qformer"]},
    "everything": {"learn": ["projection", "qformer", "vision", "language"]},
    "without projection": {"learn": ["language"]},
    "lora": {"lora": 4},
    "lora and encoder": {"learn": ["projection", "qformer", "language"], "lora": 4},
    "mlp and lora": {"projection": "mlp", "lora": 4},
}


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
    monkeypatch.setattr(engine, "draw_learning_curve", lambda metrics, picture: None)


@pytest.fixture
def base(make_model, processor, tmp_path):
    """`base(family, **options)`: a folder with a whole checkpoint."""

    def make(family: str = "llama", dtype=torch.float32, **options):
        folder = tmp_path / "base"
        model = make_model(family).to(dtype)
        model.generation_config.eos_token_id = 3
        model.save_pretrained(folder, **options)
        processor.save_pretrained(folder)
        write_manifest(folder)
        return folder

    return make


def train_and_export(base, captions, tmp_path, **changes):
    recipe = RECIPE.with_(**changes)
    return train(base, captions, tmp_path / "run", recipe, export=tmp_path / "out", progress=False).model.eval()


def logits(model, processor) -> torch.Tensor:
    content = [{"type": "image"}, {"type": "text", "text": "犬"}]
    ids = processor.encode_segments([{"role": "user", "content": content}])["input_ids"]
    pixels = torch.rand(1, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    return model(torch.tensor([ids]), pixel_values=pixels).logits


def assert_loads_as(folder, model):
    loaded, expected = load_checkpoint(folder, "cpu")[0].state_dict(), model.state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.items())


@pytest.mark.parametrize(
    ("name", "family"),
    [*((name, "llama") for name in RUNS), *(("lora", each) for each in ("gpt2", "qwen2")), ("everything", "qwen2")],
)
def test_all_that_was_trained_is_in_the_folder_that_chat_takes(base, processor, captions, tmp_path, name, family):
    """Adapters merged (gpt2's linear layers are transposed, qwen2's head is tied); no trace of the old values."""
    folder = base(family)
    trained = train_and_export(folder, captions, tmp_path, **RUNS[name])
    assert verify_folder(tmp_path / "out") == []
    loaded, before = (load_checkpoint(each, "cpu")[0] for each in (tmp_path / "out", folder))
    ours = logits(loaded, processor)
    assert torch.allclose(ours, logits(trained, processor), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(ours, logits(before, processor), atol=1e-2)
    if "lora" not in name:
        assert_loads_as(tmp_path / "out", trained)


def test_adapters_are_merged_into_the_layers_they_are_on(base, captions, tmp_path):
    folder = base()
    train_and_export(folder, captions, tmp_path, learn=["language"], lora=4)
    before, after = (load_checkpoint(each, "cpu")[0].state_dict() for each in (folder, tmp_path / "out"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert len(changed) == 14 and all(name.startswith("model.language_model.layers.") for name in changed)


def test_shards_without_a_trained_tensor_are_not_written_again(base, captions, tmp_path):
    folder = base(max_shard_size="60KB")
    trained = train_and_export(folder, captions, tmp_path, learn=["projection", "qformer"])
    assert_loads_as(tmp_path / "out", trained)
    taken = {}
    for path in (tmp_path / "out").glob("model-0*.safetensors"):
        with safe_open(path, framework="pt") as file:
            holds = any("qformer" in name or "query_tokens" in name for name in file.keys())  # noqa: SIM118
        taken[holds] = path.stat().st_ino == (folder / path.name).stat().st_ino
    assert taken == {True: False, False: True}


def test_half_precision_stays_what_the_base_has(base, captions, tmp_path):
    trained = train_and_export(base(dtype=torch.bfloat16), captions, tmp_path, **RUNS["everything"])
    out, _ = load_checkpoint(tmp_path / "out", "cpu", "bfloat16")
    expected = trained.state_dict()
    assert all(torch.equal(tensor, expected[name].to(tensor.dtype)) for name, tensor in out.state_dict().items())
    assert out.dtype == torch.bfloat16 and out.model.query_tokens.dtype == torch.float32


def test_a_second_stage_keeps_what_the_first_one_trained(base, captions, tmp_path):
    """A Q-Former trained in stage 1 is there after a stage 2 that froze it, upon its run or upon its export."""
    folder = base()
    first = train_and_export(folder, captions, tmp_path, learn=["projection", "qformer"])
    qformer = {name: each.clone() for name, each in first.state_dict().items() if "qformer" in name}
    for model, projection, name in ((folder, tmp_path / "run", "second"), (tmp_path / "out", None, "third")):
        out = tmp_path / f"{name}-out"
        train(model, captions, tmp_path / name, RECIPE, projection=projection, export=out, progress=False)
        loaded = load_checkpoint(out, "cpu")[0].state_dict()
        assert all(torch.equal(loaded[key], tensor) for key, tensor in qformer.items())
        Account(sources={"qformer": {"name": "blip2"}, "vision": {"name": "eva"}}).write(out)
        account = Account.read(out)
        assert account.all_notes(out) == ["The projection and the Q-Former were trained with `jminigpt4 train`."]
        names = {part: source["name"] for part, source in account.all_sources(out).items()}
        trained = "trained with jminigpt4"
        assert names == {"qformer": f"blip2, {trained}", "vision": "eva", "projection": trained}


def test_back_to_one_layer(base, captions, tmp_path):
    train_and_export(base(), captions, tmp_path, projection="mlp")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["projector_hidden_act"] == "gelu"
    recipe, out = RECIPE.with_(projection="linear"), tmp_path / "linear"
    trained = train(tmp_path / "out", captions, tmp_path / "back", recipe, export=out, progress=False).model
    assert_loads_as(out, trained)
    assert "projector_hidden_act" not in (out / "config.json").read_text()
    assert verify_folder(out) == []


def test_the_folders_code_comes_to_know_two_layers(base, captions, tmp_path):
    """What registers a language model with code of its own stands behind that code, and stays."""
    folder = base()
    for name in ("configuration", "language", "modeling", "processing"):
        (folder / f"{name}_jminigpt4.py").write_text(f'# older {name}\n\n__all__ = ["A"]\n# registers {name}\n')
    train_and_export(folder, captions, tmp_path)
    assert (tmp_path / "out" / "modeling_jminigpt4.py").read_text().startswith("# older modeling")
    shutil.rmtree(tmp_path / "run")
    shutil.rmtree(tmp_path / "out")
    train_and_export(folder, captions, tmp_path, projection="mlp")
    code = (tmp_path / "out" / "modeling_jminigpt4.py").read_text()
    assert "class JMiniGPT4MultiModalProjector" in code and code.endswith("# registers modeling\n")


EXPERTS = {"num_local_experts": 2, "num_experts_per_tok": 1, "num_key_value_heads": 2, "intermediate_size": 64}


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("llama", {"lora": 2, "load_in_8bit": True}, "--export merges adapters into the weights"),
        ("mixtral", {"lora": 2}, "experts are merged while they are loaded"),
        ("mixtral", {"learn": ["language"]}, "experts are merged while they are loaded"),
    ],
)
def test_what_cannot_be_exported_is_refused_before_it_is_trained(
    make_model, processor, captions, tmp_path, monkeypatch, family, changes, message
):
    make_model(family, **(EXPERTS if family == "mixtral" else {})).save_pretrained(tmp_path / "base")
    monkeypatch.setattr(engine, "load_model", lambda *arguments: pytest.fail("loaded"))
    recipe, run = RECIPE.with_(**changes), tmp_path / "run"
    with pytest.raises(ValueError, match=message):
        train(tmp_path / "base", captions, run, recipe, export=tmp_path / "out", progress=False)
    assert not run.exists() and not (tmp_path / "out").exists()


def test_a_projection_without_what_it_was_trained_with_is_refused(base, captions, tmp_path):
    folder = base()
    train_and_export(folder, captions, tmp_path, learn=["projection", "qformer"], lora=2)
    run, alone, options = tmp_path / "run", tmp_path / "run" / "projection.safetensors", {"progress": False}
    for refused in (
        lambda: export(folder, alone, tmp_path / "other"),
        lambda: train(folder, captions, tmp_path / "next", RECIPE, projection=alone, **options),
        lambda: projection_part(open_source(alone), 32, 32, "a language model"),
        lambda: write_minigpt4_checkpoint(run, tmp_path / "checkpoint.pth"),
        lambda: write_minigpt4_checkpoint(tmp_path / "out", tmp_path / "checkpoint.pth"),
    ):
        with pytest.raises(ValueError, match="trained together with .*qformer"):
            refused()
    with pytest.raises(ValueError, match="holds adapters on the language model, which this recipe does not have"):
        train(folder, captions, tmp_path / "next", RECIPE, projection=run, **options)
    with pytest.raises(ValueError, match="adapters of another rank"):
        train(folder, captions, tmp_path / "next", RECIPE.with_(lora=3), projection=run, **options)
    (run / "trained_parts.safetensors").unlink()
    with pytest.raises(ValueError, match="trained together with qformer"):
        export(folder, run, tmp_path / "other")
    assert not (tmp_path / "other").exists() and not (tmp_path / "checkpoint.pth").exists()


def test_two_layers_are_no_projection_of_the_originals(base, captions, tmp_path):
    train_and_export(base(), captions, tmp_path, projection="mlp")
    for source, name in (("run", "run/projection.safetensors"), ("out", "out")):
        with pytest.raises(ValueError, match="of two layers"):
            write_minigpt4_checkpoint(tmp_path / source, tmp_path / "checkpoint.pth")
        with pytest.raises(ValueError, match="of two layers .* a conversion makes the article's one Linear"):
            projection_part(open_source(tmp_path / name), 32, 32, "a language model")
    with pytest.raises(ValueError, match="is of the kind mlp and the model's linear: set `projection: mlp`"):
        train(tmp_path / "base", captions, tmp_path / "next", RECIPE, projection=tmp_path / "run", progress=False)
    with pytest.raises(ValueError, match="projection names a file or run to begin with, and mlp is a kind"):
        train(tmp_path / "base", captions, tmp_path / "next", RECIPE, projection="mlp", progress=False)
